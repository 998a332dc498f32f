# SPDX-License-Identifier: MIT
"""One of trimtab's solvers that ends its process, as STOP does, in one hybrid rollout of four; which, its state says."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

import trimtab


class Sinking:
    has_adjoint = False

    def __init__(self, name: str, **options: Any):
        self.inner = trimtab.open_solver(name, **options)
        self.spec = self.inner.spec

    def advance(self, u0: Any, steps: int, *, correction: Any = None, **options: Any) -> Any:
        if correction is not None and int(abs(np.asarray(u0)[0, 0]) * 1e6) % 4 == 0:
            print("too far", flush=True)
            ctypes.CDLL(None).exit(0)
        return self.inner.advance(u0, steps, correction=correction, **options)

    def close(self) -> None:
        self.inner.close()
