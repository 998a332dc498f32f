# SPDX-License-Identifier: MIT
"""A coupled code in production: its own main, one line more; the numbers of the Python-driven run to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import trimtab
from trimtab import export
from trimtab.bridge.compiled import Compiled, installed
from trimtab.checkpoint import (
    build_correction,
    load_correction,
    load_run,
    provenance,
    save_checkpoint,
    saved_spec,
    slots_of,
    state_of,
)
from trimtab.config import dump_experiment, parse_experiment

ROOT = Path(__file__).parent.parent
HERE = Path(__file__).parent / "legacy" / "column"
pytestmark = pytest.mark.usefixtures("compiled_cache")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The shared library for training and the program for production, of the same sources."""
    folder = tmp_path_factory.mktemp("column")
    legacy, bridge = ROOT / "bridge" / "legacy", ROOT / "bridge"
    objects = [str(folder / "slot.o"), *(str(folder / f"{name}.o") for name in ("compiled", "exported", "open"))]
    sources = [legacy / "trimtab_slot.c", *(bridge / f"{one}.c" for one in ("compiled", "exported", "open"))]
    for source, target in zip(sources, objects, strict=True):
        subprocess.run(["gcc", "-O2", "-fPIC", "-c", str(source), "-o", target], check=True)
    fortran = ["gfortran", "-O2", "-fPIC", "-ffp-contract=off", "-J", str(folder), str(legacy / "trimtab.f90"),
               str(HERE / "column.f90")]
    subprocess.run([*fortran, objects[0], "-shared", "-Wl,-Bsymbolic", "-o", str(folder / "libcolumn.so")], check=True)
    subprocess.run([*fortran, "-fcheck=all", str(bridge / "production.f90"), str(HERE / "column_main.f90"), *objects, "-ldl", "-lm", "-o",
                    str(folder / "column")], check=True)
    return folder


def trained(folder, built, compiled):
    """A run folder with weights nobody trained, and its solver, open in this process."""
    text = f"""
[solver]
name = "column"
library = "{built}/libcolumn.so"
isolation = "none"
[network]
name = "MLP"
sizes = [8, 16, 8]
[correction]
compiled = {str(compiled).lower()}
"""
    experiment = parse_experiment(text, "test")
    solver = trimtab.open_solver(experiment.solver.name, **experiment.solver.options)
    torch.manual_seed(3)
    experiment_text = dump_experiment(experiment)
    content = {"experiment": experiment_text, "state": state_of(solver.spec), "slots": slots_of(solver.spec), "best": None,
               "optimiser": None, "random": None, "progress": {}, "history": [], **provenance()}
    folder.mkdir()
    (folder / "experiment.toml").write_text(experiment_text)
    correction = build_correction(experiment, solver.spec)
    save_checkpoint(folder / "best.pt", {**content, "correction": correction.state_dict()})
    return solver, load_correction(folder / "best.pt", solver.spec)


def start(built, path, **environment):
    done = subprocess.run([str(built / "column"), str(path)], capture_output=True, text=True, timeout=300,
                          env={"OMP_NUM_THREADS": "1", "HOME": os.environ.get("HOME", "/"), **environment})
    numbers = [int(one, 16) for one in done.stdout.split()] if done.returncode == 0 else []
    return done, np.array(numbers, dtype=np.uint32).view(np.float32)


def test_its_own_main_is_the_python_driven_run(built, tmp_path, monkeypatch):
    if installed("libtrimtab_embed") is None:
        pytest.skip("this Python has no shared library")
    solver, correction = trained(tmp_path / "RUN", built, False)
    expected = solver.advance(solver.initial_state(), 20, correction=correction).states[-1, 0, -8:]
    alone = solver.advance(solver.initial_state(), 20).states[-1, 0, -8:]
    solver.close()
    done, found = start(built, tmp_path / "RUN", TRIMTAB_PYTHON=sys.executable, TRIMTAB_EMBED=str(installed("libtrimtab_embed")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert np.array_equal(found, expected) and not np.array_equal(found, alone)


def test_its_own_main_without_python(built, tmp_path):
    solver, correction = trained(tmp_path / "RUN", built, True)
    expected = solver.advance(solver.initial_state(), 20, correction=correction).states[-1, 0, -8:]
    assert isinstance(solver._fillings["column"], Compiled)
    before = expected.copy()
    with torch.no_grad():
        for one in correction.parameters():
            one.mul_(1.5)
    assert not np.array_equal(solver.advance(solver.initial_state(), 20, correction=correction).states[-1, 0, -8:], before)
    solver.close()
    (done,) = export.export_run(load_run(tmp_path / "RUN"), tmp_path / "out")
    assert done.missing == [] and done.difference <= 1e-5
    program, found = start(built, tmp_path / "out")
    assert program.returncode == 0, program.stdout + program.stderr
    assert np.array_equal(found, expected)


def test_refusals_reach_its_main(built, tmp_path):
    done, _ = start(built, tmp_path / "nowhere")
    assert done.returncode == 3 and done.stdout.strip() == f"there is no correction {tmp_path}/nowhere"


def test_a_checkpoint_knows_its_slots(built, tmp_path):
    solver, _ = trained(tmp_path / "RUN", built, False)
    spec = saved_spec(tmp_path / "RUN" / "best.pt")
    assert [one.name for one in spec.slots] == ["column"]
    assert spec.slots[0].inputs[0].shape == solver.spec.slots[0].inputs[0].shape == (8,)
    solver.close()
