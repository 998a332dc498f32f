# SPDX-License-Identifier: MIT
"""The doctor's look at the truth, and a first training with the settings that it chose: a chaotic code of odd units (1e-7, 1e5),
whose truth has a term that the solver lacks, in a field that the slot reaches, in one that it does not, or a step late."""

from __future__ import annotations

import contextlib
import csv
import re
import subprocess
from pathlib import Path

import netCDF4
import numpy as np
import pytest

import trimtab
from trimtab.config.experiment import load_experiment
from trimtab.coupling.checks.training import check_training
from trimtab.coupling.checks.truth import check_truth
from trimtab.coupling.finding import Finding
from trimtab.coupling.harness import Bench
from trimtab.coupling.report import check_coupling
from trimtab.coupling.templates import lay_down
from trimtab.evaluation.score_run import score_run

CODE = """
module odd
  implicit none
  integer, parameter :: n = 4
  real(8) :: vapour(n), cloud(n), pressure(n), dcloud(n), dt = 0.005d0
  real(8) :: gain = 0, aside = 0, late = 0, waiting(n) = 0
contains
  subroutine setup()
    integer :: i
    vapour = [(1d-7*(1 + 0.3d0*i), i = 1, n)]
    cloud = 2d-7
    pressure = 2d6
  end subroutine setup

  subroutine step()
    real(8) :: x(n), y(n), z(n), dx(n), dy(n), dz(n)
    x = 1d7*vapour
    y = 1d7*cloud
    z = 1d-5*pressure
    dx = 10*(y - x)
    dy = 26*x - y - x*z + gain*x + waiting
    waiting = late*x
    dz = x*y - 8*z/3 + aside*z
    dcloud = 1d-7*dy
    call odd_correct()
    vapour = vapour + dt*1d-7*dx
    cloud = cloud + dt*dcloud
    pressure = pressure + dt*1d5*dz
  end subroutine step
end module odd

subroutine trimtab_initialise() bind(c)
  use trimtab
  use odd
  implicit none
  call trimtab_option(gain, 'gain')
  call trimtab_option(aside, 'aside')
  call trimtab_option(late, 'late')
  call setup()
end subroutine trimtab_initialise

subroutine trimtab_describe() bind(c)
  use trimtab
  use odd
  implicit none
  call trimtab_clock(dt, 'h')
  call trimtab_field(vapour, 'vapour', 'kg/kg', 'column')
  call trimtab_field(cloud, 'cloud', 'kg/kg', 'column')
  call trimtab_field(pressure, 'air_pressure', 'Pa', 'column')
  call trimtab_hidden(waiting, 'waiting')
  call trimtab_slot('odd')
  call trimtab_input(vapour, 'vapour', 'kg/kg', 'column')
  call trimtab_input(cloud, 'cloud', 'kg/kg', 'column')
  call trimtab_output(cloud, 'cloud')
end subroutine trimtab_describe

subroutine trimtab_advance(n) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t
  use trimtab
  use odd, only: step
  implicit none
  integer(c_int64_t), value :: n
  integer(c_int64_t) :: i
  do i = 1, n
    call step()
    if (.not. trimtab_go_on()) return
  end do
end subroutine trimtab_advance

subroutine odd_correct()
  use trimtab
  use odd, only: vapour, cloud, dcloud
  implicit none
  if (.not. trimtab_filled('odd')) return
  call trimtab_give(vapour, 'vapour')
  call trimtab_give(cloud, 'cloud')
  call trimtab_ask()
  call trimtab_add(dcloud, 'cloud')
end subroutine odd_correct
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code, built, its TOML as `couple init` lays it down but for the truth and the network's inputs."""
    folder = tmp_path_factory.mktemp("odd")
    lay_down(folder, "odd")
    adapter = (folder / "adapter.f90").read_text()
    (folder / "adapter.f90").write_text(CODE + adapter[adapter.index("!> The state, as it comes and goes"):])
    subprocess.run(["make"], cwd=folder, check=True, capture_output=True)
    text = (folder / "odd.toml").read_text()
    text = re.sub(r'^name = "odd_network.*', r"\g<0>" + "\ninputs = 2", text, flags=re.MULTILINE)
    (folder / "odd.toml").write_text(re.sub(r"^solver = \{\}.*", "solver = {gain = 2.0}", text, flags=re.MULTILINE))
    return folder


def looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch, solver: str, also: str = "") -> dict[str, Finding]:
    """The rows on the truth and the training, with another truth in the TOML."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    path = folder / "case.toml"
    path.write_text((folder / "odd.toml").read_text().replace("solver = {gain = 2.0}", f"solver = {solver}{also}"))
    try:
        with contextlib.closing(Bench(load_experiment(path))) as bench:
            rows = check_truth(bench, {}, path)
            found, settings = check_training(bench, {}, path, write=False)
            assert bool(settings) == all(one.state != "bad" for one in rows) * (bench.truth is not None)
    finally:
        path.unlink()
    return {one.check: one for one in (*rows, *found)}


def test_a_truth_in_what_the_slot_reaches(odd, monkeypatch):
    rows = looked_at(odd, monkeypatch, "{gain = 2.0}")
    assert {one.state for one in rows.values()} == {"ok"}, rows
    assert re.search(r"after 1 step cloud by [\d.e-]+ kg/kg \([\d.e-]+ σ\); after 10 steps .*vapour by .*; after 100 steps .*"
                     r"air_pressure by [\d.e+]+ Pa", rows["truth"].found)
    assert "take away 100% of the difference of one step, over 1 of 3 fields" in rows["truth, reach"].found
    bears = int(re.search(r"static bears windows of (\d+) steps", rows["training"].found)[1])
    assert 5 <= bears <= 60  # the flow turns a perturbation in some tenths of its unit of time, 0.1 is 20 steps
    assert "after 1500 on offline labels" in rows["training"].found


def test_a_truth_beyond_the_slot(odd, monkeypatch):
    rows = looked_at(odd, monkeypatch, "{aside = 0.3}")
    assert rows["truth"].state == "ok" and rows["truth, reach"].state == "note"
    assert "take away 0% of the difference" in rows["truth, reach"].found
    assert "do not reach air_pressure (100% of it)" in rows["truth, reach"].found
    assert "no offline fit" in rows["training"].found


def test_a_truth_that_is_the_solver_is_bad_before_anything_long_runs(odd, monkeypatch):
    rows = looked_at(odd, monkeypatch, "{gain = 0.0}")
    assert rows["truth"].state == "bad" and "bit for bit over 100 steps in all fields, hidden ones too" in rows["truth"].found
    assert rows["training"].found == "not checked, see truth"


def test_a_term_that_acts_a_step_late_is_no_equality(odd, monkeypatch):
    """The hidden field differs at once, a visible one after two steps: no word of bit for bit."""
    rows = looked_at(odd, monkeypatch, "{late = 2.0}")
    assert rows["truth"].state == "ok", rows["truth"]
    assert re.search(r"after 1 step no visible field; after 10 steps cloud by", rows["truth"].found)
    assert rows["truth, reach"].state == "note" and "offline label is noise" in rows["truth, reach"].found
    assert "no offline fit" in rows["training"].found


def test_a_truth_of_which_nothing_is_said(odd, monkeypatch):
    rows = looked_at(odd, monkeypatch, "{}")
    assert rows["truth"].state == "note" and "nothing of a truth" in rows["truth"].found and "file =" in rows["truth"].remedy
    assert rows["training"].found == "not checked, see truth"


@pytest.mark.parametrize("apart, gain", [(1, 2.0), (4, 2.0), (1, 0.0)])
def test_a_truth_in_a_file(odd, monkeypatch, tmp_path, apart, gain):
    """Its first snapshots are compared, those of a sparse file where it has some."""
    monkeypatch.chdir(odd)
    with trimtab.open_solver("odd", library="./libodd.so", isolation="none", gain=gain) as solver:
        spec, states = solver.spec, solver.advance(solver.initial_state(), 60, stride=apart).states[10:, 0]
    with netCDF4.Dataset(tmp_path / "truth.nc", "w") as file:
        for name, length in (("run", 6), ("time", len(states)), ("column", 4), ("waiting_1", 4)):
            file.createDimension(name, length)
        file.createVariable("time", "f8", ("time",))[:] = apart * spec.dt * np.arange(len(states))
        file["time"].units = "h"
        for field, values in zip(spec.fields, spec.split(states).values(), strict=True):
            variable = file.createVariable(field.name, "f8", ("run", "time", *field.dims))
            variable.units = field.units
            variable[:] = np.broadcast_to(values, (6, *values.shape))
    rows = looked_at(odd, monkeypatch, "{}", f'\nfile = "{tmp_path}/truth.nc"')
    if not gain:
        assert rows["truth"].state == "bad" and "the first snapshots of" in rows["truth"].found
        return
    assert rows["truth"].state == "ok" and f"after {apart} step" in rows["truth"].found
    assert (rows["truth, reach"].state == "ok") == (apart == 1)
    window = int(re.search(r"chosen: windows of (\d+)", rows["training"].found)[1])
    assert window % apart == 0


def test_the_first_training_is_better_than_no_closure(odd, monkeypatch, tmp_path):
    """From `couple init` to a score with nothing chosen by hand, but for fewer epochs than the doctor chose: a test is short."""
    monkeypatch.chdir(odd)
    monkeypatch.syspath_prepend(str(odd))
    rows = {one.check: one for one in check_coupling(odd)}
    assert not [one for one in rows.values() if one.state == "bad"], rows
    assert "written into odd.toml" in rows["training in TOML"].found
    assert re.search(r"the training of this TOML about [\d.]+ ", rows["cost"].found)
    shorter = ["training.epochs=4", "training.validate_windows=32", "offline.steps=400", "reference.snapshots=150",
               'solver.isolation="none"', "score.long_steps=50"]
    experiment = load_experiment("odd.toml", shorter)
    assert experiment.training.clip > 0 and experiment.training.window > 1
    trimtab.Trainer(experiment, tmp_path / "run").fit()
    table = score_run(tmp_path / "run")
    lead = f"rmse_{max(experiment.score.leads)}"
    rmse = {row: float(np.mean(values[lead])) for row, values in table.rows.items()}
    assert rmse["online"] < 0.5 * rmse["none"], rmse
    with (tmp_path / "run" / "metrics.csv").open() as file:
        online = [float(row["validation"]) for row in csv.DictReader(file) if row["phase"] == "online"]
    assert min(online) <= online[0]
