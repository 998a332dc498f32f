# SPDX-License-Identifier: MIT
"""What several tests share: one thread, a solver of each kind, states to start from."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess

from helpers import CODES, ROOT

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it puts in the background; tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trimtab
from trimtab.config.experiment import parse_experiment
from trimtab.coupling.harness import Bench
from trimtab.coupling.templates import lay_down

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
    folder = ROOT / "build" / "cache"
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


class Faulty:
    """The code of tests/codes/faulty, built once: `faults` are the numbers of its mistakes by name."""

    def __init__(self, folder: Path):
        self.folder, source = folder, CODES / "faulty"
        lay_down(folder, "faulty")
        for name in ("faulty.f90", "adapter.f90"):
            (folder / name).write_text((source / name).read_text())
        make = (folder / "Makefile").read_text()
        (folder / "Makefile").write_text(re.sub(r"^SOURCES =.*", "SOURCES = faulty.f90", make, flags=re.MULTILINE))
        subprocess.run(["make"], cwd=folder, check=True, capture_output=True)
        numbers = "".join(re.findall(r"^  integer, parameter :: (.*)$", (folder / "faulty.f90").read_text(), re.MULTILINE))
        self.faults = {name: int(number) for name, number in re.findall(r"(\w+) = (\d+)", numbers)}

    def toml(self, fault: str = "none", options: str = "", **sections: str) -> str:
        """The experiment, with lines of [solver], and lines of other sections in place of theirs."""
        lines = f'library = "./libfaulty.so"\nfault = {self.faults[fault]}\n{options}\n'
        text = (self.folder / "faulty.toml").read_text().replace('library = "./libfaulty.so"\n', lines)
        for name, added in sections.items():
            for key in re.findall(r"^\w+(?= = )", added, re.MULTILINE):
                text = re.sub(rf"^{key} = .*\n", "", text, count=1, flags=re.MULTILINE)
            text = text.replace(f"[{name}]", f"[{name}]\n{added}\n#", 1)
        return text


@pytest.fixture(scope="session")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    """The small code that makes a mistake when it is asked for."""
    return Faulty(tmp_path_factory.mktemp("faulty"))


@pytest.fixture
def sick(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    """Opens it on the doctor's bench, with a fault; see `Faulty.toml`."""
    monkeypatch.chdir(faulty.folder)
    monkeypatch.syspath_prepend(str(faulty.folder))
    with contextlib.ExitStack() as stack:
        yield lambda *one, **more: stack.enter_context(
            contextlib.closing(Bench(parse_experiment(faulty.toml(*one, **more), "faulty"))))
