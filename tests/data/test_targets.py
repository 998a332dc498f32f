# SPDX-License-Identifier: MIT
"""Reference runs and target windows: made, filtered, cut, and refused when they do not fit."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import trimtab
from trimtab.config.experiment import parse_experiment
from trimtab.config.sections import ReferenceConfig
from trimtab.core.atomic_files import only_writer
from trimtab.core.errors import BlowUpError, ConfigError, DataError, SolverError
from trimtab.core.random_fields import random_vorticity
from trimtab.core.spec import Field, SolverSpec
from trimtab.data.filters import coarsen, refine
from trimtab.data.reference import make_reference, recipe_of, reference_path
from trimtab.data.reference_run import part_path
from trimtab.data.windows import Targets
from trimtab.training.offline import fit_normalisation

H = 0.1
COORDINATES = {"y": np.linspace(0, 1, 4, endpoint=False), "x": np.linspace(0, 1, 6, endpoint=False)}
PLANE = SolverSpec("plane", 0.05, 4, (Field("q", "vorticity", "1", ("y", "x"), (4, 6), COORDINATES),))
PAIR = SolverSpec("pair", 0.05, 4, (Field("a", "slow", "m", ("i",), (2,)), Field("b", "fast", "m", ("j",), (3,))))
SPLIT = ReferenceConfig(training_runs=2, validation_runs=1, test_runs=1)


def dataset(runs=4, snapshots=10, interval=H):
    values = np.random.default_rng(0).standard_normal((runs, snapshots, 4, 6))
    return xr.Dataset({"q": (("run", "time", "y", "x"), values)},
                      {"time": interval * np.arange(snapshots), **COORDINATES})


@pytest.fixture
def saved(tmp_path):
    def save(data, name="truth.nc"):
        path = tmp_path / name
        if name.endswith(".zarr"):
            data.to_zarr(path, consolidated=False)
        else:
            data.to_netcdf(path)
        return path

    return save


@pytest.mark.parametrize("in_memory", [0, 2**30])
@pytest.mark.parametrize("name", ["truth.nc", "truth.zarr"])
def test_windows_are_the_file(saved, name, in_memory):
    data = dataset()
    targets = Targets(saved(data, name), PLANE, SPLIT, H, in_memory=in_memory)
    values = data.q.values.reshape(4, 10, 24)
    assert targets.shape == (4, 10, 24) and targets.in_memory == bool(in_memory)
    training, validation, test = targets.windows("training", 3), targets.windows("validation", 3), targets.runs("test")
    assert len(training) == 14 and len(validation) == 7
    np.testing.assert_array_equal(training.batch([0, 8], (0, 1, 3)), values[[0, 1]][:, [[0, 1, 3], [1, 2, 4]]][
        [0, 1], [0, 1]].transpose(1, 0, 2))
    np.testing.assert_array_equal(validation.batch([6], range(4))[:, 0], values[2, 6:])
    assert test.shape == (1, 10, 24) and len(test) == 1
    np.testing.assert_array_equal(test[0, 2:9:3], values[3, 2:9:3])
    np.testing.assert_array_equal(test[0, 4], values[3, 4])
    targets.close()


def test_windows_of_several_fields_and_one_run(saved):
    a, b = np.arange(20.0).reshape(10, 2), np.arange(30.0).reshape(10, 3)
    data = xr.Dataset({"b": (("time", "j"), b), "a": (("i", "time"), a.T)}, {"time": H * np.arange(10)})
    split = ReferenceConfig(training_runs=1, validation_runs=0, validation_windows=3, test_runs=0)
    targets = Targets(saved(data), PAIR, split, H)
    np.testing.assert_array_equal(targets.states(0, slice(None)), np.concatenate([a, b], axis=1))
    training, validation = targets.windows("training", 2), targets.windows("validation", 2)
    assert (training.first, len(training), validation.first, len(validation)) == (0, 5, 5, 3)
    short = targets.windows("training", 1, longest=2)
    assert (short.first, len(short)) == (0, 5)  # not one window reaches past where those that validate begin


def test_snapshots_closer_than_the_outer_step_are_skipped(saved):
    data = dataset(interval=H / 2)
    targets = Targets(saved(data), PLANE, SPLIT, H)
    windows = targets.windows("training", 4)
    assert (targets.skip, targets.gap, windows.count) == (2, 1, 2)
    np.testing.assert_array_equal(windows.batch([1], (0, 4))[:, 0], data.q.values.reshape(4, 10, 24)[0, [1, 9]])


def test_sparse_targets(saved):
    data = dataset(interval=5 * H)
    targets = Targets(saved(data), PLANE, SPLIT, H)
    assert (targets.skip, targets.gap) == (1, 5)
    assert targets.leads(12) == [5, 10] and targets.leads(12, [10]) == [10]
    windows = targets.windows("training", 12)
    np.testing.assert_array_equal(windows.batch([2], (0, 5, 10))[:, 0], data.q.values.reshape(4, 10, 24)[0, [2, 3, 4]])
    with pytest.raises(ConfigError, match="loss_at holds 7"):
        targets.leads(12, [7])
    with pytest.raises(ConfigError, match="meets no target"):
        targets.leads(4)


def broken(kind):
    data = dataset()
    if kind == "variable":
        return data.rename(q="vorticity")
    if kind == "grid":
        return data.isel(x=slice(5))
    if kind == "coordinate":
        return data.assign_coords(x=2 * data.x)
    if kind == "dimension":
        return data.rename(y="latitude")
    if kind == "gap":
        return data.isel(time=[0, 1, 2, 3, 5, 6])
    if kind == "order":
        return data.isel(time=slice(None, None, -1))
    if kind == "no time":
        return data.drop_vars("time")
    if kind == "time of text":
        return data.assign_coords(time=[str(i) for i in range(10)])
    if kind == "interval":
        return data.assign_coords(time=0.07 * np.arange(10))
    if kind == "runs":
        return data.isel(run=slice(3))
    if kind == "text":
        return xr.Dataset({"q": data.q.astype(str)})
    if kind == "snapshots":
        return data.isel(time=[0])
    data.q.values[1, 7, 2, 3] = np.nan if kind == "nan" else np.inf
    return data


@pytest.mark.parametrize("kind, words", [
    ("variable", "no variable 'q' (vorticity); it has vorticity"),
    ("grid", "has the grid (4, 5), the solver has (4, 6)"),
    ("coordinate", "coordinate 'x'"),
    ("dimension", "(run, time, latitude, x); it needs (run, time, y, x)"),
    ("gap", "0.3 is followed by 0.5, elsewhere they are 0.1 apart"),
    ("order", "do not rise"),
    ("no time", "no coordinate `time`"),
    ("time of text", "one finite number a snapshot"),
    ("interval", "0.07 apart and the outer step is 0.1"),
    ("runs", "holds 3 runs"),
    ("text", "real numbers"),
    ("snapshots", "1 snapshots"),
    ("nan", "run 1, snapshot 7"),
    ("infinity", "run 1, snapshot 7"),
])
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(saved, kind, words):
    path = saved(broken(kind))
    with pytest.raises(DataError) as refusal:
        Targets(path, PLANE, SPLIT, H)
    assert words in str(refusal.value) and path.name in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_large_file_with_a_nan_is_refused_where_it_is_read(saved):
    targets = Targets(saved(broken("nan")), PLANE, SPLIT, H, in_memory=0)
    windows = targets.windows("training", 2)
    windows.batch([0, 7], (0, 1, 2))
    with pytest.raises(DataError, match="run 1, snapshot 7"):
        windows.batch([0, 13], (0, 1, 2))


def test_files_that_cannot_be_opened(saved, tmp_path):
    with pytest.raises(DataError, match="There is no reference run"):
        Targets(tmp_path / "none.nc", PLANE, SPLIT, H)
    path = saved(dataset())
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="cut short"):
        Targets(path, PLANE, SPLIT, H)
    path.write_text("not at all")
    with pytest.raises(DataError, match="cannot be opened"):
        Targets(path, PLANE, SPLIT, H)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="Zarr"):
        Targets(tmp_path / "folder", PLANE, SPLIT, H)


def test_windows_longer_than_the_runs(saved):
    targets = Targets(saved(dataset()), PLANE, SPLIT, H)
    assert len(targets.windows("training", 9)) == 2
    with pytest.raises(DataError, match=r"too few for training windows of 10"):
        targets.windows("training", 10)
    held = Targets(targets.path, PLANE, replace(SPLIT, validation_runs=0, validation_windows=8), H)
    with pytest.raises(DataError, match="8 windows held back"):
        held.windows("training", 2)


def test_filter_keeps_large_waves_and_drops_the_rest():
    y, x = np.meshgrid(*(2 * np.pi * np.arange(n) / n for n in (32, 64)), indexing="ij")
    fields = np.stack([np.cos(3 * x + 2 * y), np.cos(8 * x), np.cos(5 * y), np.ones_like(x)])
    sharp = coarsen(fields, (12, 16), "sharp")
    yc, xc = np.meshgrid(*(2 * np.pi * np.arange(n) / n for n in (12, 16)), indexing="ij")
    expected = np.stack([np.cos(3 * xc + 2 * yc), np.zeros_like(xc), np.cos(5 * yc), np.ones_like(xc)])
    np.testing.assert_allclose(sharp, expected, atol=1e-14)
    damping = np.exp(-((3 * 2 * 2 * np.pi / 16) ** 2 + (2 * 2 * 2 * np.pi / 12) ** 2) / 24)
    np.testing.assert_allclose(coarsen(fields, (12, 16), "gaussian", 2.0)[0], damping * expected[0], atol=1e-14)
    np.testing.assert_allclose(coarsen(refine(expected, (64, 64)), (12, 16), "sharp"), expected, atol=1e-14)
    with pytest.raises(ConfigError, match=r"reference\.filter"):
        coarsen(fields, (12, 16), "none")
    with pytest.raises(ValueError, match="cannot be filtered"):
        coarsen(fields, (64, 64), "sharp")


def test_random_vorticity_has_no_mean_and_the_given_strength():
    field = random_vorticity((16, 24), np.random.default_rng(1), rms=3.0)
    assert field.shape == (16, 24)
    np.testing.assert_allclose([field.mean(), np.sqrt((field**2).mean())], [0, 3], atol=1e-12)


LORENZ = """
[solver]
name = "lorenz63"
dt = 0.01
beta = 0.0
[reference]
solver = { beta = 2.6666666666666665 }
initial = [8.0, 0.0, 30.0]
perturbation = 1.0
spin_up = 1.0
snapshots = 40
training_runs = 2
validation_runs = 1
test_runs = 0
[training]
window = 5
"""
QG = """
[solver]
name = "qg"
n = 16
dt = 0.02
viscosity = 1e-3
drag = 0.1
forcing_amplitude = 4.0
forcing_wavenumber = 4
[reference]
solver = { n = 32, dt = 0.01 }
coarse = { n = 16, dt = 0.02, spin_up = 2.0 }
spin_up = 0.5
snapshots = 12
filter = "gaussian"
training_runs = 1
validation_runs = 1
test_runs = 1
"""


@pytest.fixture
def made(tmp_path, monkeypatch, open_solver):
    """(experiment, spec) of a text, with a cache of its own."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))

    def make(text, *overrides):
        experiment = parse_experiment(text, "test", overrides)
        return experiment, trimtab.open_solver(experiment.solver.name, **experiment.solver.options).spec

    return make


def test_reference_run_of_an_ode_is_the_solver_itself(made, open_solver):
    experiment, spec = made(LORENZ)
    told = []
    path = make_reference(experiment, spec, progress=lambda fraction, text: told.append((fraction, text)))
    targets = Targets(path, spec, experiment.reference, 0.01)
    truth = open_solver("lorenz63", beta=8 / 3)
    start = truth.advance(np.array([[8.0, 0.0, 30.0]]), 1, stride=100).states[-1]
    np.testing.assert_array_equal(targets.states(0, slice(None)), truth.advance(start, 39).states[:, 0])
    assert np.abs(targets.states(1, 0) - targets.states(0, 0)).max() > 0.01
    assert told[-1][0] == 1 and [one[0] for one in told] == sorted(one[0] for one in told)
    with xr.open_dataset(path) as file:
        assert file.u.dims == ("run", "time", "component") and file.u.long_name and file.u.units == "1"
        assert file.attrs["seed"] == 0 and json.loads(file.attrs["recipe"])["truth"]["name"] == "lorenz63"
        assert "trimtab" in file.attrs["source"]


def test_a_solver_that_is_the_truth_has_nothing_to_learn(made, open_solver):
    experiment, spec = made(LORENZ)
    solver = open_solver("lorenz63", beta=8 / 3)
    targets = Targets(make_reference(experiment, spec), spec, experiment.reference, 0.01)
    with pytest.raises(ConfigError, match="nothing to learn: change in \\[reference\\] solver"):
        fit_normalisation(trimtab.Correction(torch.nn.Linear(3, 3), spec), solver, targets, experiment.training)


def test_reference_run_is_made_once_and_found_by_its_parameters(made):
    experiment, spec = made(LORENZ)
    path = make_reference(experiment, spec)
    stamp = path.stat().st_mtime_ns
    assert make_reference(experiment, spec) == path and path.stat().st_mtime_ns == stamp
    for override in ("reference.seed=1", "reference.spin_up=2.0", "reference.solver.rho=27.0",
                     "reference.snapshots=41"):
        assert reference_path(*made(LORENZ, override)) != path
    assert reference_path(*made(LORENZ, "training.epochs=7", "solver.rho=29.0", "reference.solver.rho=28.0")) != path
    assert reference_path(*made(LORENZ, "training.epochs=7")) == path
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("text", [LORENZ, QG])
def test_processes_and_kills_change_no_bit(made, text, monkeypatch):
    experiment, spec = made(text)
    path = make_reference(experiment, spec, workers=2)
    together = xr.load_dataset(path)
    path.unlink()

    class Killed(BaseException):
        pass

    def kill(fraction, text):
        if fraction > 0.5:
            raise Killed

    with pytest.raises(Killed):
        make_reference(experiment, spec, workers=1, progress=kill)
    assert not path.exists() and part_path(path.with_suffix(".parts"), 0).exists()
    calls = []
    make_reference(experiment, spec, workers=1, progress=lambda *one: calls.append(one))
    assert min(fraction for fraction, _ in calls) > 1 / 3
    xr.testing.assert_identical(xr.load_dataset(path), together)


def test_reference_run_of_a_plane_is_filtered(made):
    experiment, spec = made(QG)
    targets = Targets(make_reference(experiment, spec), spec, experiment.reference, 0.02)
    assert targets.shape == (3, 12, 256)
    states = targets.states(0, slice(None)).reshape(-1, 16, 16)
    assert 0.5 < states.std() < 50 and abs(states.mean()) < 1e-12
    spectrum = np.abs(np.fft.rfft2(states))
    assert spectrum[:, :, 8].max() < 1e-10 and spectrum[:, 8].max() < 1e-10
    assert np.abs(np.diff(states, axis=0)).max() < 0.2 * np.abs(states).max()


@pytest.mark.parametrize("override, words", [
    ("reference.spin_up=0.1234567", "reference.spin_up"),
    ("reference.interval=0.015", "reference.interval"),
    ("reference.initial=[1.0, 2.0]", "needs 3"),
    ("reference.initial=[]", "reference.initial is empty"),
    ("reference.solver={name = \"oscillator\", dt = 0.01}", "(2,) in the truth and (3,) in the solver"),
    ("reference.solver={name = \"lorenz96_two_scale\", n = 4, dt = 0.01}", "no field 'u'"),
    ("reference.solver={name = \"oscillator\"}", "give dt"),
])
def test_recipes_that_do_not_fit(made, override, words):
    experiment, spec = made(LORENZ, override)
    with pytest.raises(ConfigError) as refusal:
        make_reference(experiment, spec)
    assert words in str(refusal.value)


def test_a_truth_that_blows_up_says_so_from_another_process(made):
    experiment, spec = made(LORENZ, "reference.solver={beta = -90.0}")
    with pytest.raises(BlowUpError, match="left the finite numbers"):
        make_reference(experiment, spec, workers=2)
    assert not reference_path(experiment, spec).exists()


def test_a_process_that_dies_is_noticed(made, monkeypatch):
    experiment, spec = made(LORENZ)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises((SolverError, BrokenPipeError), match=r"ended with code|Broken pipe"):
        make_reference(experiment, spec, workers=2)


def test_it_waits_for_another_process_and_takes_what_that_made(made):
    experiment, spec = made(LORENZ)
    path = reference_path(experiment, spec)
    path.parent.mkdir()
    told = []

    def tell(fraction, text):
        told.append(text)
        path.write_text("made")
        holder.close()

    holder = contextlib.ExitStack()
    holder.enter_context(only_writer(path.parent))
    assert make_reference(experiment, spec, progress=tell) == path
    assert path.read_text() == "made" and len(told) == 1 and "waiting" in told[0]


def test_a_file_of_ones_own_is_left_alone(made):
    experiment, spec = made(LORENZ, "reference.file=/somewhere/truth.nc")
    assert str(make_reference(experiment, spec)) == "/somewhere/truth.nc"
    assert recipe_of(experiment, spec).runs == 3
