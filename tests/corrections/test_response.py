# SPDX-License-Identifier: MIT
"""A spectral code whose physics lives on the grid: the doctor measures how grid tendencies enter the coefficients."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import trimtab
from helpers import CODES
from trimtab.config.experiment import load_experiment
from trimtab.core.errors import ConfigError
from trimtab.core.spec import Field, Slot, SolverSpec
from trimtab.corrections.slot_response import STATE, SlotResponse
from trimtab.corrections.slot_weights import SlotWeight
from trimtab.coupling.finding import Finding
from trimtab.coupling.report import check_coupling
from trimtab.coupling.templates import lay_down

LEGACY = CODES
ADAPTER = """
subroutine trimtab_initialise() bind(c)
  use trimtab
  use waves, only: setup, drag
  implicit none
  call trimtab_option(drag, 'drag')
  call setup
end subroutine trimtab_initialise

subroutine trimtab_describe() bind(c)
  use trimtab
  use waves, only: c, last, first, u, dt
  implicit none
  call trimtab_clock(dt, 's')
  call trimtab_field(c, 'c', 'm/s', 'wave')
  call trimtab_hidden(last, 'last')
  call trimtab_hidden(first, 'first')
  call trimtab_slot('waves')
  call trimtab_input(u, 'u', 'm/s', 'x')
  call trimtab_output(u, 'physics')
end subroutine trimtab_describe

subroutine trimtab_advance(n) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t
  use trimtab
  use waves, only: step
  implicit none
  integer(c_int64_t), value :: n
  integer(c_int64_t) :: i
  do i = 1, n
    call step
    if (.not. trimtab_go_on()) return
  end do
end subroutine trimtab_advance

subroutine waves_correct
  use trimtab
  use waves, only: u, physics
  implicit none
  if (.not. trimtab_filled('waves')) return
  call trimtab_give(u, 'u')
  call trimtab_ask()
  call trimtab_add(physics, 'physics')
end subroutine waves_correct
"""
SPEC = SolverSpec("sea", 0.1, 1, (Field("c", "c", "1", ("k",), (3,)), Field("old", "old", "1", ("old_1",), (1,), {}, True)),
                  slots=(Slot("mix", (Field("x", "x", "1", ("i",), (4,)),), (Field("g", "g", "1", ("i",), (4,)),)),))
STORED = ["3 c", "1 old"]


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code, its adapter, a line in it, built."""
    folder = tmp_path_factory.mktemp("waves") / "waves"
    lay_down(folder, "waves")
    code = (LEGACY / "waves" / "waves.f90").read_text()
    line = "    physics = -drag * abs(u) * u\n"
    (folder / "waves.f90").write_text(code.replace(line, line + "    call waves_correct\n"))
    adapter = (folder / "adapter.f90").read_text()
    (folder / "adapter.f90").write_text(ADAPTER + adapter[adapter.index("!> The state, as it comes and goes"):])
    make = (folder / "Makefile").read_text()
    (folder / "Makefile").write_text(re.sub(r"^SOURCES =.*", "SOURCES = waves.f90", make, flags=re.MULTILINE))
    toml = (folder / "waves.toml").read_text()
    (folder / "waves.toml").write_text(re.sub(r"^solver = \{\}.*", "solver = {drag = 0.5}", toml, flags=re.MULTILINE))
    subprocess.run(["make"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def findings(waves: Path) -> dict[str, Finding]:
    """The doctor's table; it writes the weight into the TOML."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(waves)
        return {one.check: one for one in check_coupling(waves)}


def test_the_doctor_measures_the_transform(waves, findings, monkeypatch):
    """Against the transform itself: 1.5 dt of a first push (Adams-Bashforth), through the implicit diffusion; 1 dt lasting."""
    monkeypatch.chdir(waves)
    assert not [one for one in findings.values() if one.state == "bad"]
    assert findings["weight of physics"].state == "ok" and "no field" in findings["weight of physics"].found
    assert findings["gradient, one step"].state == "ok", findings["gradient, one step"]
    weight = load_experiment("waves.toml").solver.options["weight"]
    assert weight["response"] == "waves-response.npz" and abs(weight["steady"]["physics"] - 2 / 3) < 0.1
    with trimtab.open_solver("waves", library="./libwaves.so", isolation="none", weight=weight) as solver:
        matrix = solver.weight.response.matrices["physics"].numpy()
        points, waves_ = 2 * np.pi * np.arange(1, 33) / 32, np.arange(11)
        exact = 1.5 * np.exp(-1j * np.outer(waves_, points)) / 32 / (1 + 0.01 * 0.02 * waves_[:, None] ** 2)
        found = matrix[: solver.spec.fields[0].size].reshape(*solver.spec.fields[0].shape, 32)
        parts = np.stack([exact.real, exact.imag], solver.spec.fields[0].dims.index("part"))
        assert np.allclose(found, parts, atol=2e-5)


def test_the_missing_term_is_learned_on_the_grid(waves, findings, monkeypatch, tmp_path):
    monkeypatch.chdir(waves)
    monkeypatch.syspath_prepend(str(waves))
    changes = ("training.epochs=5", "training.steps_per_epoch=20", "training.batch=16", "training.rate=1e-2", "training.window=5",
               "offline.steps=0", 'solver.isolation="none"')
    trimtab.Trainer(load_experiment("waves.toml", changes), tmp_path / "run").fit()
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    losses = [float(row["validation"]) for row in rows if row["validation"]]
    assert losses[-1] < 0.2 * losses[0], losses


def test_a_response_is_transposed_and_solved(tmp_path):
    """Least squares look at what is visible; what no output reaches stays as it is."""
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((4, 4))
    matrix[:, 3] = matrix[:, 2]  # two outputs that do the same share it
    path = tmp_path / "r.npz"
    SlotResponse(SPEC, {"g": matrix}, {"g": SPEC.slots[0].outputs[0]}).write(path)
    weight = SlotWeight(SPEC, {"stride": 2, "steady": {"g": 0.5}, "response": str(path)})
    lam = torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(weight.transpose(lam, 2, False), lam @ torch.from_numpy(matrix))
    assert torch.equal(weight.transpose(lam, 2, True), 0.5 * (lam @ torch.from_numpy(matrix)))
    outputs = generator.standard_normal((5, 4))
    found = weight.outputs(outputs @ matrix.T, 2)
    assert np.allclose(found @ matrix[:3].T, outputs @ matrix[:3].T, atol=1e-6) and np.allclose(found[:, 2], found[:, 3])
    with pytest.raises(ConfigError, match=r"measured at training.stride = 2, and 1"):
        weight.transpose(lam, 1, False)


@pytest.mark.parametrize(("content", "sentence"), [
    (None, "cannot be read"), (b"no archive", "cannot be read"), ((3, 4), r"is \(3, 4\) and should be finite numbers \(4, 4\)"),
    ("w", r"The response of the output 'w'")])
def test_a_wrong_response_is_refused(tmp_path, content, sentence):
    path = tmp_path / "r.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, tuple):
        np.savez(path, **{STATE: STORED, "g": np.ones(content)})
    elif content:
        np.savez(path, **{STATE: STORED, content: np.ones((4, 4))})
    with pytest.raises(ConfigError, match=sentence):
        SlotWeight(SPEC, {"stride": 1, "response": str(path)})
