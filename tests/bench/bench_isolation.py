# SPDX-License-Identifier: MIT
"""What a process of its own costs a rollout: the same rollout in this process, in a worker, and in a fork.

The rollout of one member through a CNN or an MLP; `more` is what isolation adds to it. Besides, the image of a library's static
memory: saved memory compared and put back.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from torch import nn

import trimtab
from bench_bridge import OnGrid
from clock import in_turn, median
from trimtab.isolation import LibraryImage, open_isolated

CASES = (("lorenz63", {"dt": 0.01}, 20, nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 3))),
         ("qg", {"dt": 1e-3, "n": 64}, 10, OnGrid(trimtab.networks.PeriodicCNN((2, 32, 32, 1)), 64)))
STATIC = "      SUBROUTINE S\n      COMMON /B/ U(1310720)\n      REAL*8 U\n      U(1) = U(1) + 1D0\n      END\n"  # 10 MB


def measure() -> list[dict[str, object]]:
    """Milliseconds a rollout, and of an image."""
    rows: list[dict[str, object]] = []
    for name, options, steps, network in CASES:
        solvers = {isolation: open_isolated("trimtab:open_solver", {"name": name, **options}, isolation=isolation)
                   for isolation in ("none", "process", "fork")}
        u0 = 1e-3 * np.random.default_rng(0).standard_normal((1, solvers["none"].spec.size))
        u0 -= u0.mean()

        def run(solver, u0=u0, steps=steps, network=network):
            solver.advance(u0, steps, correction=network)

        seconds = in_turn({one: lambda solver=solver, run=run: run(solver) for one, solver in solvers.items()})
        for isolation in ("process", "fork"):
            more = [a - b for a, b in zip(seconds[isolation], seconds["none"], strict=True)]
            rows.append({"case": f"{name}, {steps} steps", "isolation": isolation, "here [ms]": 1e3 * median(seconds["none"]),
                         "there [ms]": 1e3 * median(seconds[isolation]), "more [ms]": 1e3 * median(more)})
        for solver in solvers.values():
            solver.close()
    return rows + [{"image of": "10 MB", "put back [ms]": restored, "compared [ms]": compared}
                   for restored, compared in [_image()]]


def _image() -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "s.f").write_text(STATIC)
        subprocess.run(["gfortran", "-shared", "-fPIC", "-o", "libs.so", "s.f"], cwd=folder, check=True)
        library = ctypes.CDLL(f"{folder}/libs.so")
        library.s_()
        image = LibraryImage(f"{folder}/libs.so")
        library.s_()
        seconds = in_turn({"restore": image.restore, "compare": image.moved_pointers})
    return 1e3 * median(seconds["restore"]), 1e3 * median(seconds["compare"])
