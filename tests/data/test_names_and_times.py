# SPDX-License-Identifier: MIT
"""A real*4 code whose fields are called like coordinates and dimensions: its files, its times, and the order of its fields."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import trimtab
from helpers import CODES
from trimtab.__main__ import main
from trimtab.config.experiment import parse_experiment
from trimtab.core.errors import ConfigError, DataError
from trimtab.core.spec import Field, SolverSpec
from trimtab.coupling.checks.times import check_times
from trimtab.coupling.harness import Bench
from trimtab.coupling.templates import lay_down
from trimtab.data.field_names import dimension_names, find_name, variable_names
from trimtab.data.reference import make_reference
from trimtab.data.reference_run import whole_steps
from trimtab.data.windows import Targets
from trimtab.forecast.ensemble_netcdf import write_ensemble
from trimtab.forecast.initial_conditions import file_starts

HERE = CODES / "single"
TEXT = """
[solver]
name = "single"
library = "libsingle.so"
isolation = "none"
[reference]
solver = { rate = 0.4 }
spin_up = 4.0
interval = 0.04
perturbation = 0.01
snapshots = 12
training_runs = 2
validation_runs = 1
test_runs = 1
[network]
name = "MLP"
sizes = [4, 4]
[correction]
dtype = "float64"
[training]
stride = 2
window = 2
batch = 4
epochs = 1
steps_per_epoch = 2
[offline]
steps = 2
[score]
leads = [1, 2]
starts = 1
long_steps = 4
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The code's library and TOML in a folder."""
    folder = tmp_path_factory.mktemp("single") / "single"
    lay_down(folder, "single")
    (folder / "single.f90").write_text((HERE / "single.f90").read_text())
    adapter = (folder / "adapter.f90").read_text()
    (folder / "adapter.f90").write_text((HERE / "adapter.f90").read_text() + adapter[adapter.index("!> The state, as it comes"):])
    make = (folder / "Makefile").read_text()
    (folder / "Makefile").write_text(re.sub(r"^SOURCES =.*", "SOURCES = single.f90", make, flags=re.MULTILINE))
    (folder / "small.toml").write_text(TEXT)
    subprocess.run(["make"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def single(built, tmp_path, monkeypatch):
    """The folder, entered, with a cache of its own."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(built)
    return built


def opened(**options):
    return trimtab.open_solver("single", library="libsingle.so", isolation="none", **options)


def experiment(*changes):
    return parse_experiment(TEXT, "test", changes)


def test_a_reference_run_of_any_number_of_processes(single, monkeypatch, tmp_path):
    with opened() as solver:
        spec = solver.spec
    assert spec.dt_kind == "real32" and [one.name for one in spec.fields] == ["x", "time", "u", "member", "counter"]
    found = []
    for workers in (1, 2):
        monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / str(workers)))
        path = make_reference(experiment(), spec, workers=workers)
        targets = Targets(path, spec, experiment().reference, 2 * spec.dt)
        found.append(np.stack([targets.states(run, slice(None)) for run in range(4)]))
        targets.close()
    assert np.array_equal(*found)
    views = spec.split(found[0])
    assert (views["counter"] == 200 + 2 * np.arange(12)).all()  # 4.0 is 200 steps of 0.02 in real*4
    assert np.allclose(views["time"][0], 4 + 0.04 * np.arange(12), atol=1e-3)
    assert (views["member"] > 6).all() and (views["x"] < 1).all()
    with xr.open_dataset(path, decode_times=False) as file:
        assert file["time"].dims == ("time",) and file["time_field"].attrs["trimtab_field"] == "time"
        assert file["member_field"].dims == ("run", "time", "time_axis") and file["x_field"].dims == ("run", "time", "x")


def test_every_command_works_with_such_names(single, tmp_path):
    """Training, scores with figures, runs and what they start, ensembles and their scores."""
    run = str(tmp_path / "run")
    assert main(["train", "small.toml", "--out", run]) == 0
    assert main(["score", run]) == 0 and "field_member_1" in (tmp_path / "run" / "scores.csv").read_text()
    assert main(["report", run]) == 0 and (tmp_path / "run" / "report.html").is_file()
    first, second = str(tmp_path / "a.nc"), str(tmp_path / "b.nc")
    assert main(["run", run, "--solver-only", "--steps", "4", "--out", first]) == 0
    assert main(["run", run, "--solver-only", "--steps", "4", "--start", first, "--out", second]) == 0
    with opened() as solver:
        begin, time = file_starts(first, solver.spec)
        end, later = file_starts(second, solver.spec)
        assert np.array_equal(end[0], solver.advance(begin, 4).states[-1, 0]) and later == pytest.approx(time + 0.08)
        assert begin[0, 4] == pytest.approx(4.08, abs=1e-3)  # its own time, not the file's
    assert main(["ensemble", run, "--members", "3", "--steps", "4", "--out", str(tmp_path / "e.nc")]) == 0
    assert main(["score", run, "--ensemble", str(tmp_path / "e.nc")]) == 0


def test_an_ensemble_of_such_names(single, tmp_path):
    with opened() as solver:
        start = solver.initial_state()
        ensemble = trimtab.Ensemble(opened, start, 2, steps=2)
        write_ensemble(ensemble, tmp_path / "e.nc")
        members = {one.number: one.states for one in ensemble}
        ensemble.close()
        with xr.open_dataset(tmp_path / "e.nc", decode_times=False) as file:
            for number, states in members.items():
                for field in solver.spec.fields:
                    name = find_name(file.variables, field)
                    assert np.array_equal(file[name][0, number], solver.spec.split(states)[field.name]), name


def test_a_truth_of_ones_own_names_such_a_field_so(single, tmp_path):
    """Without the attribute, by the name that the refusal tells."""
    with opened() as solver:
        spec = solver.spec
        window = solver.advance(solver.initial_state(), 12, stride=2)
    views = {name: values[:, 0] for name, values in spec.split(window.states).items()}
    data = xr.Dataset({"x_field": (("time", "x"), views["x"]), "member": (("time", "time_axis"), views["member"]),
                       "u": (("time", "u_1"), views["u"]), "counter": (("time",), views["counter"])}, {"time": window.times})
    split = replace(experiment().reference, training_runs=1, validation_runs=0, test_runs=0, validation_windows=1)
    data.to_netcdf("own.nc")
    with pytest.raises(DataError, match="not its hidden ones, time"):
        Targets("own.nc", spec, split, 2 * spec.dt)
    data.assign(time_field=(("time",), views["time"])).to_netcdf("own.nc")
    targets = Targets("own.nc", spec, split, 2 * spec.dt)
    assert np.array_equal(targets.states(0, slice(None)), window.states[:, 0])
    targets.close()
    data.drop_vars("x_field").assign_coords(x=np.arange(4.0)).to_netcdf("own.nc")
    with pytest.raises(DataError, match="Its 'x' is a coordinate: store the field as 'x_field'"):
        Targets("own.nc", spec, replace(split, hidden={"time": 0}), 2 * spec.dt)
    with pytest.raises(DataError, match="Its 'x' is a coordinate"):
        file_starts("own.nc", spec)


def test_names_in_files():
    spec = SolverSpec("s", 0.1, 1, tuple(Field(name, name, "1", dims, (2,) * len(dims)) for name, dims in (
        ("run", ("run",)), ("u", ("x", "x")), ("x", ("u",)), ("parameter_a", ("y",)), ("run_field", ("y",)), ("v", ("y",)))))
    assert variable_names(spec) == {"run": "run_field_", "u": "u_field", "x": "x_field", "parameter_a": "parameter_a_field",
                                    "run_field": "run_field", "v": "v"}
    assert [dimension_names(one) for one in spec.fields[:2]] == [("run_axis",), ("x", "x_2")]


def test_fields_described_in_another_order_later_are_refused(single):
    """Their sizes may be alike: the names tell."""
    with opened(turned=True) as solver, pytest.raises(ConfigError, match="named the field u at first where it names member"):
        solver.advance(solver.initial_state(), 5)


@pytest.mark.parametrize(("changes", "state", "words"), [
    ((), "ok", "dt = 0.0199999996 s (real32); reference.interval = 2 steps; reference.spin_up = 200 steps"),
    (("reference.spin_up=4.01",), "bad", "reference.spin_up = 4.01 is not a whole number of steps"),
    (("reference.interval=0.05",), "bad", "reference.interval = 0.05 is not"),
    (("reference.solver={step = 0.03}",), "bad", "reference.interval = 0.04 is not a whole number of steps dt = 0.03"),
    (("reference.solver={step = 0.01}",), "ok", "reference.interval = 4 steps of the truth"),
    (("reference.coarse={step = 0.03, spin_up = 0.1}",), "bad", "reference.coarse.spin_up = 0.1 is not"),
    (("reference.interval=0.08",), "bad", "score.leads"),
    (("reference.file='none.nc'",), "bad", "there is no reference.file"),
    (("reference.file='times.nc'",), "ok", "an outer step is 1 of the intervals of times.nc"),
    (("reference.file='times.nc'", "training.stride=5"), "bad", "one must be a whole multiple of the other"),
])
def test_the_doctor_looks_at_the_times(single, changes, state, words):
    xr.Dataset({}, {"time": 0.04 * np.arange(5)}).to_netcdf("times.nc")
    bench = Bench(experiment(*changes, *(["score.leads=[2]"] if "training.stride=5" in changes else [])))
    (found,) = check_times(bench)
    bench.close()
    assert found.state == state and words in found.found, found
    assert bool(found.remedy) == (state == "bad")


def test_a_whole_number_of_steps_in_the_kind_of_the_step():
    dt = float(np.float32(0.02))
    assert whole_steps(4.0, dt, "spin_up", "real32") == 200
    with pytest.raises(ConfigError, match="not a whole number"):
        whole_steps(4.0, dt, "spin_up")
    with pytest.raises(ConfigError, match="not a whole number"):
        whole_steps(4.00001, dt, "spin_up", "real32")
