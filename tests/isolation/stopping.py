# SPDX-License-Identifier: MIT
"""One of trimtab's solvers that ends its process as STOP does, or takes its time, when its state says so."""

from __future__ import annotations

import ctypes
import time as clock
from typing import Any

import numpy as np

import trimtab


class Stopping:
    """Lorenz 63, with ways to fail.

    Args:
        stops: "always", "hybrid" (with a correction), "some" (in about half of the states), or "never".
        at: only in rollouts of so many outer steps; 0 for any.
        pause: seconds that each inner step takes besides.
        options: of the solver.
    """

    has_adjoint = False
    on_step = None

    def __init__(self, stops: str = "never", at: int = 0, pause: float = 0.0, **options: Any):
        self.inner = trimtab.open_solver("lorenz63", **options)
        self.spec, self.stops, self.at, self.pause = self.inner.spec, stops, at, pause

    def advance(self, u0: Any, steps: int, *, correction: Any = None, **options: Any) -> Any:
        stops = self.stops == "always" or (self.stops == "some" and int(abs(np.asarray(u0)[0, 0]) * 1e6) % 2)
        stops = stops or (self.stops == "hybrid" and correction is not None)
        if stops and self.at in (0, steps):
            print("STOP: surface pressure out of bounds", flush=True)
            ctypes.CDLL(None)._exit(3)
        clock.sleep(self.pause * steps * options.get("stride", 1))
        return self.inner.advance(np.asarray(u0), steps, correction=correction, **options)

    def close(self) -> None:
        self.inner.close()
