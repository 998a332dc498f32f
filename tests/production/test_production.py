# SPDX-License-Identifier: MIT
"""Fortran drives: the trained correction in a program with its own main, with Python inside it or without any."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

import trimtab
from helpers import ROOT
from helpers.lorenz import LORENZ, trained
from trimtab.__main__ import main
from trimtab.bridge.aot_function import installed, torch_folder
from trimtab.config.experiment import solver_namelists
from trimtab.core.atomic_files import only_writer
from trimtab.core.errors import CheckpointError, ConfigError
from trimtab.production import export
from trimtab.production.embedded import open_correction
from trimtab.training.checkpoint import load_correction, saved_spec

BUILD = ROOT / "build" / "tests"
RUNNER = BUILD / "bridge" / "production" / "trimtab_run"
MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
pytestmark = pytest.mark.usefixtures("compiled_cache")

QG = """
[solver]
name = "qg"
dt = 2e-3
n = 16
viscosity = 1e-3
[network]
name = "PeriodicCNN"
channels = [3, 4, 1]
kernel = 3
[correction]
features = ["q", "psi", "v"]
dtype = "float32"
"""


@pytest.fixture(scope="session")
def runner():
    """The program of bridge/production/main.f90, built without Python."""
    if not (BUILD / "build.ninja").is_file():
        subprocess.run([sys.executable, "-m", "mesonbuild.mesonmain", "setup", str(BUILD), "-Dpython=false"],
                       cwd=ROOT, check=True, capture_output=True)
    with only_writer(BUILD, wait=True):  # other processes of the tests build it, too
        subprocess.run(["ninja", "-C", str(BUILD), "bridge/production/trimtab_run"], check=True, capture_output=True,
                       env={**os.environ, "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"})
    return RUNNER


def start_file(path, states):
    """One record, as trimtab_run writes it."""
    members, n = states.shape
    path.write_bytes(b"TRIMTAB1" + struct.pack("=3q2d", n, members, 1, 0.0, 1.0) + states.tobytes())


def namelist(tmp_path, solver, correction, u0, steps=6, stride=2, name="run"):
    start_file(tmp_path / "start.bin", u0)
    parameters = {key: value for key, value in solver.spec.parameters.items() if key != "length"}  # read, never set
    groups = "\n".join(solver_namelists(solver.spec.solver, {"dt": solver.spec.dt, **parameters}))
    file = tmp_path / f"{name}.nml"
    file.write_text(f"{groups}\n&run steps = {steps}, stride = {stride}, start_file = '{tmp_path}/start.bin'\n"
                    f"output = '{tmp_path}/{name}.bin' /\n{correction}\n")
    return file


def read(path):
    n, members, records = np.fromfile(path, "i8", 3, offset=8)
    return np.fromfile(path, "f8", offset=48).reshape(records, members, n)


def start(program, file, without_python=False, before=(), **environment):
    """Run the program; without Python that means: no PATH to one, no variable that names one."""
    kept = {"TRIMTAB_PYTHON": sys.executable, **os.environ} if not without_python else {"LD_LIBRARY_PATH": ""}
    return subprocess.run([*before, str(program), str(file)], env={**kept, "OMP_NUM_THREADS": "1", **environment},
                          capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(("text", "slot"), [(LORENZ.replace("DTYPE", "float64"), "false"), (QG, "false"),
                                            (LORENZ.replace("DTYPE", "float32"), "true")])
def test_fortran_driven_is_python_driven(text, slot, runner, tmp_path, open_solver, random_states):
    """Bit for bit, with Python inside the Fortran program; members and records, as in Python."""
    if installed("libtrimtab_embed") is None:
        pytest.skip("this Python has no shared library")
    solver, correction = trained(tmp_path / "RUN", text.replace("SLOT", slot), open_solver)
    u0 = random_states(solver, 2)
    done = start(runner, namelist(tmp_path, solver, f"&correction checkpoint = '{tmp_path}/RUN' /", u0))
    assert done.returncode == 0, done.stderr
    expected = solver.advance(u0, 3, stride=2, correction=correction).states
    assert np.array_equal(read(tmp_path / "run.bin"), expected)
    assert not np.array_equal(expected, solver.advance(u0, 3, stride=2).states)


def test_two_ranks_are_python_driven(runner, tmp_path, open_solver, random_states):
    """Each rank of mpirun has a Python of its own."""
    if shutil.which("mpirun") is None or installed("libtrimtab_embed") is None:
        pytest.skip("there is no mpirun, or this Python has no shared library")
    solver, correction = trained(tmp_path / "RUN", LORENZ.replace("DTYPE", "float32").replace("SLOT", "false"), open_solver)
    u0 = random_states(solver, 1)
    for rank in range(2):
        namelist(tmp_path, solver, f"&correction checkpoint = '{tmp_path}/RUN/best.pt' /", u0, 4 + 2 * rank, name=f"rank{rank}")
    script = tmp_path / "rank.sh"
    script.write_text(f'#!/bin/sh\nexec "{runner}" "{tmp_path}/rank$OMPI_COMM_WORLD_RANK.nml"\n')
    script.chmod(0o755)
    done = start(script, "", before=("mpirun", "--oversubscribe", "-n", "2"), **MPI)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        expected = solver.advance(u0, 2 + rank, stride=2, correction=correction).states
        assert np.array_equal(read(tmp_path / f"rank{rank}.bin"), expected)


@pytest.mark.parametrize("text", [LORENZ.replace("DTYPE", "float32").replace("SLOT", "true"), QG])
def test_exported_runs_without_python(text, runner, tmp_path, open_solver, random_states, capsys):
    """`trimtab export`, then the Fortran program and libtorch alone; and every other form gives the same numbers."""
    solver, correction = trained(tmp_path / "RUN", text, open_solver)
    assert main(["export", str(tmp_path / "RUN"), "--out", str(tmp_path / "out")]) == 0
    files = {one.name for one in (tmp_path / "out").iterdir()}
    assert files == {export.LIBRARY, export.PROGRAM, export.SCRIPT, export.PARAMETERS, export.MANIFEST, export.NOTE,
                     *export.SOURCES}
    manifest = json.loads((tmp_path / "out" / export.MANIFEST).read_text())
    assert manifest["n"] == solver.spec.size and manifest["bytes"] == 4 and manifest["solver"] == solver.spec.solver

    u0 = random_states(solver, 2)
    done = start(runner, namelist(tmp_path, solver, f"&correction library = '{tmp_path}/out' /", u0), without_python=True)
    assert done.returncode == 0, done.stderr
    correction.compiled = True
    expected = solver.advance(u0, 3, stride=2, correction=correction).states
    assert np.array_equal(read(tmp_path / "run.bin"), expected)  # the library that training runs through, bit for bit
    assert not np.array_equal(expected, solver.advance(u0, 3, stride=2).states)

    states = torch.from_numpy(u0).float()
    with torch.no_grad():
        eager = correction(states)
        program, script = tmp_path / "out" / export.PROGRAM, tmp_path / "out" / export.SCRIPT
        for one in (torch.export.load(program).module(), torch.jit.load(script)):
            torch.testing.assert_close(one(states), eager, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(one(states[:1]), eager[:1], rtol=1e-6, atol=1e-6)
    assert main(["export", str(tmp_path / "RUN"), "--out", str(tmp_path / "out")]) == 2
    assert "holds something: give another --out, or --overwrite" in capsys.readouterr().err


def test_the_folder_is_enough_for_a_c_program(tmp_path, open_solver):
    """What the note says: compile the C files that are there, call, get torch's numbers; with nothing of trimtab around."""
    _, correction = trained(tmp_path / "RUN", LORENZ.replace("DTYPE", "float32").replace("SLOT", "true"), open_solver)
    export.export_correction(correction, 3, tmp_path / "out", {})
    (tmp_path / "main.c").write_text(r'''
#include <stdio.h>
#include "correction.h"
int main(int count, char **arguments) {
  void *function, *context; int64_t bytes; char message[256]; float state[] = {1, 2, 3, 4, 5, 6}, *answer;
  if (trimtab_open_correction("", arguments[1], "", "", &function, &context, &bytes, message, 256)) return puts(message), 3;
  answer = (*(trimtab_slot_function *)&function)(context, state, 3, 2, 0.1);
  for (int i = 0; answer && i < 6; i++) printf("%.9g ", answer[i]);
  answer = (*(trimtab_slot_function *)&function)(context, state, 7, 2, 0.1);
  trimtab_correction_message(context, message, 256);
  printf("\n%d %s\n", answer == NULL, message);
  if (trimtab_fill_slot("any", arguments[1], message, 256)) puts(message);
  trimtab_close_correction(context);
  return count - 2;
}''')
    sources = [str(tmp_path / "out" / name) for name in export.SOURCES if name.endswith(".c")]
    subprocess.run(["gcc", "-std=c11", "-Wall", "-Werror", "-I", str(tmp_path / "out"), str(tmp_path / "main.c"), *sources,
                    "-ldl", "-lm", "-o", str(tmp_path / "program")], check=True)
    done = start(tmp_path / "program", tmp_path / "out", without_python=True)
    assert done.returncode == 0, done.stdout + done.stderr
    numbers, refused, unlinked = done.stdout.splitlines()
    with torch.no_grad():
        expected = correction(torch.arange(1.0, 7.0).view(2, 3)).flatten()
    np.testing.assert_allclose([float(one) for one in numbers.split()], expected, rtol=1e-5)
    assert refused == "1 the compiled correction takes states of 3 numbers and was given 2 states of 7"
    assert unlinked == "this program has no named slots: link trimtab_slot.c into it"


@pytest.mark.parametrize(("group", "environment", "sentence"), [
    ("&correction checkpoint = 'nowhere' /", {}, "there is no correction nowhere"),
    ("&correction checkpoint = 'EMPTY' /", {}, "CheckpointError: .* is not a run folder"),
    ("&correction checkpoint = 'start.bin' /", {}, "CheckpointError: start.bin is not a checkpoint or is damaged"),
    ("&correction library = 'EMPTY' /", {}, "it has no manifest.json"),
    ("&correction library = 'BROKEN' /", {}, "manifest.json is incomplete or damaged"),
    ("&correction library = 'ELSEWHERE' /", {}, "ELSEWHERE/correction.so cannot be loaded"),
    ("&correction library = 'OLD' /", {}, "was compiled with torch 1.4.0 and finds torch 2."),
    ("&correction /", {}, "no correction was named: give a path, or set TRIMTAB_CORRECTION"),
    ("&correction /", {"TRIMTAB_CORRECTION": "nowhere"}, "there is no correction nowhere"),
    ("&correction library = 'a', checkpoint = 'b' /", {}, "give library or checkpoint, not both"),
    ("&correction file = 'a' /", {}, "library and checkpoint"),
    ("&correction checkpoint = 'EMPTY' /", {"TRIMTAB_EMBED": "nowhere.so"}, "TRIMTAB_EMBED cannot be loaded"),
    ("&correction checkpoint = 'EMPTY' /", {"TRIMTAB_PYTHON": "/nowhere/python", "TRIMTAB_EMBED": "OURS"},
     "there is no Python /nowhere/python: set TRIMTAB_PYTHON"),
    ("&correction checkpoint = 'EMPTY' /", {"TRIMTAB_PYTHON": "BASE", "TRIMTAB_EMBED": "OURS"}, "trimtab cannot be imported"),
])
def test_what_cannot_be_opened_is_one_sentence(group, environment, sentence, runner, tmp_path, open_solver, monkeypatch):
    """Never a crash, never a run without the correction that was asked for."""
    if "checkpoint" in group and installed("libtrimtab_embed") is None:
        pytest.skip("this Python has no shared library")
    (tmp_path / "EMPTY").mkdir()
    fine = {"n": 3, "n_out": 3, "bytes": 8, "library": "correction.so", "torch_folder": str(torch_folder()),
            "torch": torch.__version__, "processor": "any"}
    for name, manifest in {"BROKEN": {"n": 3}, "ELSEWHERE": fine, "OLD": {**fine, "torch": "1.4.0"}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest, indent=1))
    monkeypatch.chdir(tmp_path)
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    words = {"OURS": str(installed("libtrimtab_embed")), "BASE": str(base)}
    file = namelist(tmp_path, open_solver("lorenz63"), group, np.ones((1, 3)))
    done = start(runner, file, **{key: words.get(value, value) for key, value in environment.items()})
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("trimtab_run: correction")
    assert re.search(sentence, said[0])
    assert not (tmp_path / "run.bin").exists()


def test_an_exception_in_the_network_ends_the_run_with_its_words(runner, tmp_path, open_solver):
    """SystemExit, too: Python never ends the Fortran program."""
    if installed("libtrimtab_embed") is None:
        pytest.skip("this Python has no shared library")
    (tmp_path / "hers.py").write_text(
        "import sys, torch\nclass Leaves(torch.nn.Linear):\n    calls = 0\n    def forward(self, u):\n"
        "        Leaves.calls += 1\n        return sys.exit('I leave') if Leaves.calls > 9 else u\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    sys.path.insert(0, str(tmp_path))
    try:
        text = LORENZ.replace('"MLP"\nsizes = [3, 32, 3]', '"hers:Leaves"\nin_features = 3\nout_features = 3')
        solver, _ = trained(tmp_path / "RUN", text.replace("DTYPE", "float64").replace("SLOT", "false"), open_solver)
    finally:
        sys.path.remove(str(tmp_path))
    file = namelist(tmp_path, solver, f"&correction checkpoint = '{tmp_path}/RUN' /", np.ones((1, 3)), stride=1)
    done = start(runner, file, **environment)
    assert done.returncode == 1
    assert "SystemExit: I leave" in done.stderr.splitlines() and "that was after t" in done.stderr


def test_what_a_checkpoint_says_of_its_solver_is_enough(tmp_path, open_solver):
    """Without the solver's description, as in a coupled code: fields and parameters come from the checkpoint."""
    solver, correction = trained(tmp_path / "RUN", QG, open_solver)
    spec = saved_spec(tmp_path / "RUN" / "best.pt")
    assert spec.grid == solver.spec.grid and spec.size == solver.spec.size
    states = torch.randn(2, spec.size)
    with torch.no_grad():
        assert torch.equal(load_correction(tmp_path / "RUN" / "best.pt", spec)(states), correction(states))


def test_the_embedded_side_refuses_in_its_own_words(tmp_path, open_solver):
    before = torch.is_grad_enabled()
    with pytest.raises(CheckpointError, match="is not a run folder"):
        open_correction(str(tmp_path), "", "")
    assert torch.is_grad_enabled() == before


def test_an_export_that_cannot_be_is_refused(tmp_path, open_solver):
    class Python(torch.nn.Linear):
        def forward(self, u):
            return u * float(u.sum())

    solver = open_solver("lorenz63")
    correction = trimtab.Correction(Python(3, 3), solver.spec)
    with pytest.raises(ConfigError, match=r"The correction cannot be exported: torch\.export does not follow it"):
        export.export_correction(correction, 3, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_without_a_compiler_the_other_forms_are_written(tmp_path, open_solver, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    solver = open_solver("lorenz63")
    done = export.export_correction(trimtab.Correction(torch.nn.Linear(3, 3), solver.spec), 3, tmp_path / "out", {})
    assert export.LIBRARY not in done.files and {export.PROGRAM, export.SCRIPT, export.NOTE} <= set(done.files)
    assert done.missing[0].startswith("No library correction.so: there is no C++ compiler")
    assert done.missing[0] in (tmp_path / "out" / export.NOTE).read_text()
