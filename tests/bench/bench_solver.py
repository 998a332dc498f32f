# SPDX-License-Identifier: MIT
"""One QG tendency on one core, against pyqg 0.7.2 and against the time of four bare FFTs of its grid.

Ours is a forward Euler step (one tendency, one update), measured from Python over many steps; pyqg's is a step of its
BTModel (one tendency, one Adams-Bashforth update). pyqg truncates by a filter at 2/3 and transforms without padding, so the
2/3 rule is what compares with it. The bare FFTs are two transforms to the grid and two back by FFTW (3n/2 points a direction
for the 3/2 rule). Our transforms leave out what is known to be zero, so their share may pass 100 %. Aims: 3 times
pyqg (2 is the floor), 70 % in FFTW.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

import trimtab
from clock import median, ratio

ROUNDS, HERE, BUILD = 7, Path(__file__).parent, Path("build/bench")
PYQG = BUILD / "pyqg" / "bin" / "python"


def numbers(*command: str) -> list[float]:
    """What a program prints, one number a line."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def ours(n: int, dealiasing: str) -> list[float]:
    """Seconds a forward Euler step."""
    import time

    solver = trimtab.open_solver("qg", n=n, dt=1e-6, integrator="euler", dealiasing=dealiasing, drag=0.1, viscosity=1e-4)
    u0 = np.random.default_rng(0).standard_normal((1, n * n))
    steps = max(4, 4_000_000 // n**2)
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        solver.advance(u0, 1, stride=steps)
        times.append((time.perf_counter() - start) / steps)
    solver.close()
    return times[1:]


def build() -> Path:
    """Compile the bare transforms."""
    program = BUILD / "bare_fft"
    BUILD.mkdir(parents=True, exist_ok=True)
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fftw3"], capture_output=True, text=True, check=True)
    include = subprocess.run(["pkg-config", "--variable=includedir", "fftw3"], capture_output=True, text=True, check=True)
    subprocess.run(["gfortran", "-O3", f"-I{include.stdout.strip()}", str(HERE / "bare_fft.f90"), "-o", str(program),
                    "-J", str(BUILD), *flags.stdout.split()], check=True)
    return program


def measure() -> list[dict[str, object]]:
    """One row a size and rule."""
    program, rows = build(), []
    for n in (64, 128, 256, 512):
        pyqg = numbers(str(PYQG), str(HERE / "pyqg_step.py"), str(n), str(ROUNDS)) if PYQG.exists() else []
        for rule, grid in (("2/3", n), ("3/2", 3 * n // 2)):
            step, bare = ours(n, rule), numbers(str(program), str(grid), str(ROUNDS))
            row: dict[str, object] = {"n": n, "rule": rule, "tendency [us]": 1e6 * median(step),
                                      "bare FFTs [us]": 1e6 * median(bare), "FFTs / tendency": ratio(bare, step)}
            row["pyqg step [us]"] = 1e6 * median(pyqg) if pyqg else "not installed"
            row["times pyqg"] = ratio(pyqg, step) if pyqg else "not installed"
            rows.append(row)
    return rows
