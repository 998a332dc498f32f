# SPDX-License-Identifier: MIT
"""What several tests share: one thread, a solver of each kind, states to start from."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it puts in the background; tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trimtab

# The core of the paper: Lorenz 63 without -beta u_3.
SYSTEMS: dict[str, dict[str, Any]] = {
    "lorenz63": {"dt": 0.01, "beta": 0.0},
    "lorenz96": {"dt": 0.01, "n": 12},
    "lorenz96_two_scale": {"dt": 1e-3, "n": 4, "fast": 5},
    "oscillator": {"dt": 0.01, "omega": 1.5},
    "vanderpol": {"dt": 1e-3, "stiffness": 2.0},
    "burgers": {"dt": 5e-3, "n": 16, "viscosity": 0.05, "drag": 0.1, "forcing_amplitude": 1.0, "limiter": "vanleer"},
    "qg": {"dt": 2e-3, "n": 16, "viscosity": 1e-3, "drag": 0.1, "beta": 0.7, "forcing_amplitude": 4.0,
           "forcing_wavenumber": 4},
}


@pytest.fixture
def open_solver() -> Iterator[Callable[..., Any]]:
    """`trimtab.open_solver` whose solvers are closed after the test; a known system's options are filled in."""
    opened = []

    def build(name: str, **options: Any) -> Any:
        opened.append(trimtab.open_solver(name, **{**SYSTEMS.get(name, {}), **options}))
        return opened[-1]

    yield build
    for solver in opened:
        solver.close()


@pytest.fixture
def compiled_cache(monkeypatch) -> Path:
    """Compiled corrections are kept between runs of the tests: their names say all that they depend on."""
    folder = Path(__file__).parent.parent / "build" / "cache"
    monkeypatch.setenv("TRIMTAB_CACHE", str(folder))
    return folder


@pytest.fixture
def random_states() -> Callable[..., np.ndarray]:
    """(B, N) float64 states that a solver can start from; for QG smooth fields of zero mean."""

    def build(solver: Any, members: int = 3, seed: int = 0) -> np.ndarray:
        generator = np.random.default_rng(seed)
        states = generator.standard_normal((members, solver.spec.size))
        if solver.spec.solver == "lorenz96_two_scale":
            return states
        if solver.spec.solver != "qg":
            return 5.0 * states + 1.0
        n = solver.spec.grid[0]
        spectrum = np.fft.rfft2(states.reshape(members, n, n))
        ky, kx = np.fft.fftfreq(n, 1 / n)[:, None], np.fft.rfftfreq(n, 1 / n)
        square = kx**2 + ky**2
        spectrum *= np.exp(-square / 10) * (square > 0)
        smooth = np.fft.irfft2(spectrum, s=(n, n)).reshape(members, -1)
        return 4.0 * smooth / smooth.std()

    return build
