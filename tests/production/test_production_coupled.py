# SPDX-License-Identifier: MIT
"""A coupled code in production: its own main, one line more; the numbers of the Python-driven run to the last bit."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest
import torch

from helpers.column import HERE, PYTHON, program, trained
from trimtab.bridge.aot_function import Compiled, installed
from trimtab.production import export
from trimtab.training.checkpoint import saved_spec
from trimtab.training.run_folder import load_run

pytestmark = pytest.mark.usefixtures("compiled_cache")


def start(built, path, cwd=None, **environment):
    done = subprocess.run([str(built / "column"), str(path)], capture_output=True, text=True, timeout=300, cwd=cwd,
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
    done, found = start(built, tmp_path / "RUN", **PYTHON)
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


NETWORK = """
import torch
class Network(torch.nn.Linear):
    calls = 0
    def __init__(self):
        super().__init__(8, 8)
    def forward(self, x):
        Network.calls += 1
        if Network.calls == CALL:
            raise ArithmeticError("no more")
        return super().forward(x)
"""


def test_a_network_of_its_own_is_found_where_it_was_trained(built, tmp_path, monkeypatch):
    if installed("libtrimtab_embed") is None:
        pytest.skip("this Python has no shared library")
    (tmp_path / "column_net.py").write_text(NETWORK.replace("CALL", "0"))
    monkeypatch.syspath_prepend(str(tmp_path))
    solver, correction = trained(tmp_path / "RUN", built, False, 'name = "column_net:Network"')
    expected = solver.advance(solver.initial_state(), 20, correction=correction).states[-1, 0, -8:]
    solver.close()
    elsewhere = tmp_path / "else"
    elsewhere.mkdir()
    done, _ = start(built, tmp_path / "RUN", cwd=elsewhere, **PYTHON)
    assert done.returncode == 3 and "No module named 'column_net'" in done.stdout
    assert f"it was trained in {tmp_path}: set PYTHONPATH={tmp_path}, or start in that folder." in done.stdout
    for settings in ({"cwd": elsewhere, "PYTHONPATH": str(tmp_path)}, {"cwd": tmp_path}):
        done, found = start(built, tmp_path / "RUN", **settings, **PYTHON)
        assert done.returncode == 0, done.stdout + done.stderr
        assert np.array_equal(found, expected)


def test_a_failure_on_the_way_reaches_its_main(built, tmp_path, monkeypatch):
    if installed("libtrimtab_embed") is None:
        pytest.skip("this Python has no shared library")
    (tmp_path / "failing_net.py").write_text(NETWORK.replace("CALL", "5"))
    monkeypatch.syspath_prepend(str(tmp_path))
    solver, _ = trained(tmp_path / "RUN", built, False, 'name = "failing_net:Network"')
    solver.close()
    done, _ = start(built, tmp_path / "RUN", cwd=tmp_path, **PYTHON)
    assert done.returncode == 4 and "the correction in the slot column failed" in done.stdout
    assert "ArithmeticError: no more" in done.stdout


@pytest.mark.parametrize(("old", "new", "said"), [
    ("n = 8", "n = 6", "the slot column has 6 numbers of temperature, and its correction was trained with 8"),
    ("trimtab_give(temperature, 'temperature')", "trimtab_give(temperature, 'heat')",
     "was trained with 1 inputs, the first is temperature, and none of them is heat"),
])
def test_what_the_program_hands_over_is_held_against_the_training(built, tmp_path, old, new, said):
    if installed("libtrimtab_embed") is None:
        pytest.skip("this Python has no shared library")
    solver, _ = trained(tmp_path / "RUN", built, False)
    solver.close()
    text = (HERE / "column.f90").read_text()
    assert text.count(old) == 1
    (tmp_path / "other").mkdir()
    done, _ = start(program(tmp_path / "other", text.replace(old, new)), tmp_path / "RUN", **PYTHON)
    assert done.returncode == 4 and said in done.stdout, done.stdout + done.stderr
