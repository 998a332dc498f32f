# SPDX-License-Identifier: MIT
"""Two legacy codes coupled as README.md says: fixed-form FORTRAN 77 with COMMON, and a module-global Fortran 90 code. For each:
few lines, the doctor all green, a missing term found online, and its own program in production to the last bit."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import trimtab
from helpers import CODES, ROOT
from trimtab.bridge.aot_function import installed
from trimtab.config.experiment import load_experiment, parse_experiment
from trimtab.coupling.checks.cold_start import check_cold
from trimtab.coupling.checks.restart import check_restart
from trimtab.coupling.harness import Bench
from trimtab.coupling.report import check_coupling
from trimtab.coupling.templates import lay_down
from trimtab.data.reference import make_reference
from trimtab.training.checkpoint import load_correction

STEPS = 40  # of the production run
LOAD = """
subroutine load_correction()
  use trimtab_production, only: trimtab_load_correction
  implicit none
  character(:), allocatable :: message
  integer :: status
  call trimtab_load_correction('{name}', ' ', status, message)   ! what TRIMTAB_CORRECTION names
  if (status /= 0) error stop message
end subroutine load_correction
"""


@dataclass(frozen=True)
class Code:
    """How one of them is coupled.

    Args:
        name: of the coupling.
        folder: its folder in tests/codes.
        sources: of the library.
        program: the file that holds its main program.
        inputs: files it reads.
        changes: (file, text, text in its place): what its owner changes.
        toml: the same for the TOML.
        truth: (fields of the state that the slot sees, (T, 2, ...)) to the missing term, (T, 2, ...).
        seen: names of these fields.
        production: changes of program and inputs for a production run.
        kind: of its reals.
    """

    name: str
    folder: str
    sources: tuple[str, ...]
    program: str
    inputs: tuple[str, ...]
    changes: tuple[tuple[str, str, str], ...]
    toml: tuple[tuple[str, str], ...]
    truth: Callable[[np.ndarray], np.ndarray]
    seen: tuple[str, ...]
    production: tuple[tuple[str, str, str], ...]
    kind: type


def grazing(seen: np.ndarray) -> np.ndarray:
    """What grazers eat, and what they grow by it."""
    eaten = 0.8 * seen[:, 0] * seen[:, 1]
    return np.stack([-eaten, 0.6 * eaten], 1)


SHALLOW = Code(
    "swe", "shallow77", ("shallow.f",), "shallow.f", ("shallow.nml",),
    changes=(("shallow.f", "      TDT = 2.*DT\n", "      CALL SWE_CORRECT\n      TDT = 2.*DT\n"),),
    toml=(('# stdin = "input.nml"', 'stdin = "shallow.nml"'), ("# viscosity = 1e-3", "rdrag = 0.0"),
          ("solver = {}", "solver = {rdrag = 2e-5}"), ("spin_up = 0.0", "spin_up = 6000.0")),
    truth=lambda seen: -2e-5 * seen, seen=("u_old", "v_old"),
    production=(("shallow.f", "      CALL SETUP\n", "      CALL SETUP\n      CALL LOAD_CORRECTION\n"),
                ("shallow.f", "   10 CONTINUE\n", "   10 CONTINUE\n      WRITE (9) U,V,H\n"),
                ("shallow.nml", "RDRAG = 2.E-5", "RDRAG = 0."), ("shallow.nml", "NSTEP = 2000", f"NSTEP = {STEPS}")),
    kind=np.float32,
)
TRACER = Code(
    "tracer", "tracer90", ("tracer_grid.f90", "tracer_step.f90"), "tracer.f90", ("tracer.nml",),
    changes=(("tracer_step.f90", "  implicit none\ncontains\n", "  implicit none\n  logical :: x_first = .true.\ncontains\n"),
             ("tracer_step.f90", "    logical, save :: x_first = .true.\n", ""),
             ("tracer_step.f90", "    call sources()\n", "    call sources()\n    call tracer_correct()\n")),
    toml=(('# files = ["input.nml"]', 'files = ["tracer.nml"]'), ("# viscosity = 1e-3", "rate = 0.0"),
          ("solver = {}", "solver = {rate = 0.8}")),
    truth=grazing, seen=("food", "grazer"),
    production=(("tracer.f90", "  call setup()\n", "  call setup()\n  call load_correction()\n"),
                ("tracer.f90", "  use tracer_grid, only: nsteps\n", "  use tracer_grid, only: nsteps, food, grazer\n"),
                ("tracer.f90", "  end do\n", "  end do\n  write (9) food, grazer\n"),
                ("tracer.nml", "rate = 0.8", "rate = 0.0"), ("tracer.nml", "nsteps = 2000", f"nsteps = {STEPS}")),
    kind=np.float64,
)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, (path, old)
    path.write_text(text.replace(old, new, 1))


def coupled_in(folder: Path, code: Code, adapt: Callable[[str], str] = lambda adapter: adapter) -> None:
    """Lay down, copy, change, build."""
    home = CODES / code.folder
    lay_down(folder, code.name, fixed=code.program.endswith(".f"))
    for path in home.iterdir():
        shutil.copy(path, folder)
    adapter = next(folder.glob("adapter.f*"))
    adapter.write_text(adapt(adapter.read_text()))
    for file, old, new in code.changes:
        replace(folder / file, old, new)
    for old, new in code.toml:
        replace(folder / f"{code.name}.toml", old, new)
    network = f'"{code.name}_network:Network"'
    replace(folder / f"{code.name}.toml", network, f"{network}\ninputs = 2\noutputs = 2 ")
    replace(folder / "Makefile", "SOURCES =\n", f"SOURCES = {' '.join(code.sources)}\n")
    subprocess.run(["make"], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module", params=[SHALLOW, TRACER], ids=["shallow77", "tracer90"])
def coupled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Code, Path]:
    """A code and the folder in which it is coupled and built."""
    folder = tmp_path_factory.mktemp(request.param.folder)
    coupled_in(folder, request.param)
    return request.param, folder


def trimmed(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines()]


def test_few_lines(coupled):
    code, folder = coupled
    changed = 0
    for source in code.sources:
        before, after = trimmed(CODES / code.folder / source), trimmed(folder / source)
        changed += sum(line not in before for line in after) + sum(line not in after for line in before)
    adapter = next(folder.glob("adapter.f*"))
    lines = [line for line in trimmed(adapter) if line and not line.startswith("!")]
    assert changed <= 3 and len(lines) < 100


def test_the_doctor_is_all_green(coupled):
    code, folder = coupled
    found = check_coupling(folder)
    assert {one.state for one in found if one.check != "runs"} == {"ok"}, found  # runs of a calm code stay alike, which is noted
    weight = load_experiment(folder / f"{code.name}.toml").solver.options.get("weight")
    leapfrog = {"u": {"u": 2.0, "u_old": 0.1}, "v": {"v": 2.0, "v_old": 0.1}}
    assert weight == ({"stride": 1, "steady": {"u": 1.0, "v": 1.0}, "step": leapfrog} if code is SHALLOW else None)


@pytest.fixture(scope="module")
def trained(coupled: tuple[Code, Path]) -> tuple[Code, Path]:
    """The same with a run folder `run` in it."""
    code, folder = coupled
    weights = "weight = {stride = 1, step = {u = {u = 2.0, u_old = 0.1}, v = {v = 2.0, v_old = 0.1}}}\n"
    if code is SHALLOW and "weight" not in (folder / "swe.toml").read_text():  # the doctor's, when it was not asked before
        replace(folder / "swe.toml", "rdrag = 0.0", weights + "rdrag = 0.0")
    changes = ["training.epochs=6", "training.rate=1e-2", "training.window=5", "training.batch=8", "offline.steps=0",
               "training.steps_per_epoch=25", "training.early_stop=0", "training.clip=0.0", "solver.isolation=none",
               "reference.snapshots=50", "reference.training_runs=3", "score.long_steps=20"]
    subprocess.run([sys.executable, "-m", "trimtab", "train", f"{code.name}.toml", "--out", "run", "--set", *changes], cwd=folder,
                   check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return code, folder


def opened(code: Code, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: float) -> trimtab.Solver:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    options = load_experiment(f"{code.name}.toml").solver.options
    return trimtab.open_solver(code.name, **{**options, "isolation": "none", **changes})


def test_the_missing_term_is_found(trained, monkeypatch):
    code, folder = trained
    solver = opened(code, folder, monkeypatch, **load_experiment(folder / f"{code.name}.toml").reference.solver)
    views = solver.spec.split(solver.advance(solver.initial_state(), 30, stride=2).states[10:, 0])
    seen = np.stack([views[name] for name in code.seen], 1)
    with torch.no_grad():
        learned = load_correction(folder / "run" / "best.pt", solver.spec)(torch.from_numpy(seen.reshape(len(seen), -1))).numpy()
    solver.close()
    truth = code.truth(seen).reshape(learned.shape)
    error = np.linalg.norm(learned - truth) / np.linalg.norm(truth)
    print(f"{code.folder}: the missing term is found to {error:.1%}")
    assert error < 0.12


def run_program(code: Code, folder: Path, changes: Sequence[tuple[str, str, str]], before: Sequence[str] = (),
                after: Sequence[str] = (), **environment: str) -> np.ndarray:
    """Build the code's own program between other sources, run it, and read what it wrote at its end."""
    for file, old, new in changes:
        replace(folder / file, old, new)
    sources = [*before, *dict.fromkeys([*code.sources, code.program]), *after]
    subprocess.run(["gfortran", "-O2", "-o", "program", *sources], cwd=folder, check=True, capture_output=True)
    environment = {"OMP_NUM_THREADS": "1", "HOME": os.environ.get("HOME", "/"), **environment}
    done = subprocess.run(["./program"], cwd=folder, env=environment, input=(folder / code.inputs[0]).read_text(),
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return np.fromfile(folder / "fort.9", np.uint8)[4:-4].view(code.kind)  # one record, between two marks of its length


def test_its_own_program_is_the_python_driven_run(trained, tmp_path, monkeypatch):
    code, folder = trained
    if installed("libtrimtab_embed") is None:
        pytest.skip("this Python has no shared library")
    plain, coupled = tmp_path / "plain", tmp_path / "coupled"
    shutil.copytree(CODES / code.folder, plain)
    original = run_program(code, plain, [one for one in code.production if "CORRECTION" not in one[2].upper()])

    shutil.copytree(folder, coupled, ignore=shutil.ignore_patterns("build", "run", "*.so"))
    (coupled / "load.f90").write_text(LOAD.format(name=code.name))
    library = str(installed("libtrimtab_correction"))
    subprocess.run(["gcc", "-O2", "-c", "trimtab_slot.c"], cwd=coupled, check=True)
    found = run_program(code, coupled, code.production,
                        ["trimtab.f90", str(ROOT / "bridge" / "production" / "production.f90"), "load.f90"],
                        [next(coupled.glob("adapter.f*")).name, "trimtab_slot.o", library],
                        TRIMTAB_PYTHON=sys.executable, TRIMTAB_EMBED=str(installed("libtrimtab_embed")), PYTHONPATH=str(folder),
                        LD_LIBRARY_PATH=str(Path(library).parent), TRIMTAB_CORRECTION=str(folder / "run"))

    solver = opened(code, folder, monkeypatch)
    correction = load_correction(folder / "run" / "best.pt", solver.spec)
    runs = [solver.advance(solver.initial_state(), 1, stride=STEPS, correction=one).states[1, 0] for one in (correction, None)]
    with_network, alone = (one[solver.spec.visible] for one in runs)
    solver.close()
    assert np.array_equal(found, with_network) and np.array_equal(original, alone) and not np.array_equal(found, alone)


@pytest.mark.parametrize("coupled", [SHALLOW], indirect=True, ids=["shallow77"])
def test_a_cold_start_is_measured(coupled, monkeypatch):
    """Leapfrog begins with a step of Euler when its counter is 0; with another counter the same levels are a step of 2 dt."""
    code, folder = coupled
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    text = Path("swe.toml").read_text()
    off = {}
    for counter in (0, 4):
        hidden = f'[reference]\nhidden = {{u_old = "u", v_old = "v", h_old = "h", eddy = 0, kstep = {counter}}}'
        changes = ["solver.isolation=none", "reference.snapshots=3"]
        experiment = parse_experiment(text.replace("[reference]", hidden), "cold", changes)
        with contextlib.closing(Bench(experiment)) as bench:
            (found,) = check_cold(bench)
        off[counter] = [float(one) for one in re.findall(r"([\d.e-]+) of what it moves", found.found)]
    assert off[0][0] < 0.3 and off[0][1] < 0.05 and off[4][0] > 0.8 and off[4][1] > 5 * off[0][1]
    with opened(code, folder, monkeypatch) as solver, xr.open_dataset(make_reference(experiment, solver.spec)) as file:
        assert set(file.data_vars) == {"u", "v", "h"}


def test_a_saved_local_variable_is_named(tmp_path, monkeypatch):
    """The same code without the two lines that move its flag to the module."""
    code = replaced(TRACER, changes=TRACER.changes[2:])
    coupled_in(tmp_path, code, lambda adapter: re.sub(r".*x_first.*\n", "", adapter))
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(Bench(load_experiment("tracer.toml"))) as bench:
        (found,) = check_restart(bench)
    assert found.state == "bad" and "x_first (a local variable that is saved)" in found.found
    assert "declared in its module or a COMMON" in found.remedy
