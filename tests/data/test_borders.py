# SPDX-License-Identifier: MIT
"""Fields declared in reverse alphabetical order cross every border between processes, files and ranks as what they were."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import trimtab
from helpers import TESTS
from trimtab.config.experiment import dump_experiment, parse_experiment
from trimtab.core.errors import CheckpointError, ConfigError
from trimtab.core.provenance import provenance
from trimtab.core.spec import Field, Slot
from trimtab.corrections.factory import build_correction
from trimtab.corrections.slot_response import SlotResponse
from trimtab.data.field_names import variable_names
from trimtab.data.reference import make_reference, recipe_of
from trimtab.data.reference_run import Recipe, make_run, part_path
from trimtab.data.windows import Targets
from trimtab.forecast.ensemble_netcdf import write_ensemble
from trimtab.forecast.forecast import forward
from trimtab.forecast.initial_conditions import file_starts
from trimtab.production.export import export_run, slot_layout
from trimtab.training.checkpoint import load_correction, save_checkpoint, slots_of, state_of
from trimtab.training.run_folder import load_run
from trimtab.training.trainer import Trainer

HERE = TESTS / "borders"
sys.path.insert(0, str(HERE))

from backwards import Backwards  # noqa: E402

TEXT = """
[solver]
name = "backwards:Backwards"
sizes = {z = 3, y = 3, b = 2, a = 1}
[reference]
solver = {rate = 0.2}
spin_up = 1.0
perturbation = 0.01
snapshots = 6
training_runs = 2
validation_runs = 1
test_runs = 1
[network]
name = "MLP"
sizes = [11, 4, 11]
[correction]
dtype = "float64"
input_mean = [0.0]
input_scale = [1.0]
output_scale = [1e-3]
"""
SLOTS = (Slot("upper", (Field("w", "w", "1", ("i",), (2,)), Field("v", "v", "1", ("i",), (2,))),
              (Field("z", "z", "1", ("i",), (3,)), Field("y", "y", "1", ("i",), (3,)))),)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of its own, whose processes find the solver."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(path, spec=None):
    """Run, snapshot, state, by the names of the fields."""
    experiment = parse_experiment(TEXT, "test")
    targets = Targets(path, spec or Backwards().spec, experiment.reference, 0.1)
    states = np.stack([targets.states(run, slice(None)) for run in range(targets.shape[0])])
    targets.close()
    return states, (spec or Backwards().spec).split(states)


def assert_right(views, steps=10):
    """What each field must hold, whatever its neighbours are, from `steps` steps of the truth on."""
    assert (views["counter"][..., 0] == steps + np.arange(6)).all()
    assert np.allclose(views["time"][..., 0], 0.1 * (steps + np.arange(6)))
    for name, least, most in (("z", 500, 1100), ("y", 30, 110), ("b", 8, 13), ("a", 0.9, 2)):
        assert least < views[name].min() and views[name].max() < most, name


def test_a_reference_run_of_any_number_of_processes(place, monkeypatch):
    experiment = parse_experiment(TEXT, "test")
    spec = Backwards().spec
    alone = make_reference(experiment, spec, workers=1)
    monkeypatch.setenv("TRIMTAB_CACHE", str(place / "several"))
    path = make_reference(experiment, spec, workers=2)
    states, views = read(path)
    assert np.array_equal(states, read(alone)[0])
    assert_right(views)
    assert np.array_equal(states[0, 0], _steps(Backwards(rate=0.2), 10))


def _steps(solver, steps):
    return solver.advance(solver.initial_state(), 1, stride=steps).states[-1, 0]


def test_the_recipe_says_the_same_after_json(place):
    recipe = recipe_of(parse_experiment(TEXT, "test"), Backwards().spec)
    again = Recipe(**json.loads(recipe.to_json()))
    assert again.to_json() == recipe.to_json() and again.record == recipe.record
    assert again.record.names == tuple(one.name for one in Backwards().spec.fields)
    assert list(again.truth["sizes"]) == ["z", "y", "b", "a"]  # a table of the TOML keeps its order
    list(make_run(again, 0, place, trimtab.open_solver))
    records = np.load(part_path(place, 0))
    assert (records["counter"][:, 0] == 10 + np.arange(6)).all() and (records["b"][:, 0] == 10).all()


class Forwards(Backwards):
    """The same with its fields in alphabetical order."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = Backwards(**options)
        self.spec = replace(self.spec, solver="forwards", fields=tuple(sorted(self.spec.fields, key=lambda one: one.name)))

    def advance(self, u0, steps, **options):
        window = self.inner.advance(reordered(u0, self.spec, self.inner.spec), steps, **options)
        return replace(window, states=reordered(window.states, self.inner.spec, self.spec))


class Renamed(Backwards):
    def __init__(self, **options):
        super().__init__(**options)
        self.inner = Backwards(**options)
        self.spec = replace(self.spec, fields=tuple(replace(one, name=f"{one.name}_") for one in self.spec.fields))

    def initial_state(self):
        return self.inner.initial_state()

    def advance(self, u0, steps, **options):
        return self.inner.advance(u0, steps, **options)


def reordered(states, spec, other):
    views = spec.split(states)
    return np.concatenate([views[one.name] for one in other.fields], axis=-1)


def test_a_cheaper_spin_up_with_its_fields_in_another_order(place):
    """Its state is handed over by name."""
    recipe = recipe_of(parse_experiment(TEXT, "test", ["reference.coarse={name = 'coarse', spin_up = 0.5}"]), Backwards().spec)
    kinds = {"coarse": Forwards, "backwards:Backwards": Backwards}
    list(make_run(recipe, 0, place, lambda name, **options: kinds[name](**options)))
    records = np.load(part_path(place, 0))
    assert (records["counter"][:, 0] == 15 + np.arange(6)).all() and (records["b"][:, 1] == 11).all()
    kinds["coarse"] = Renamed
    with pytest.raises(ConfigError, match=r"z_, .* are not those of the truth, z, counter"):
        list(make_run(recipe, 0, place, lambda name, **options: kinds[name](**options)))


@pytest.mark.parametrize("isolation", ["process", "fork"])
def test_a_solver_in_a_process_of_its_own(place, isolation):
    here = Backwards()
    solver = trimtab.open_solver("backwards:Backwards", sizes={"z": 3, "y": 3, "b": 2, "a": 1}, isolation=isolation)
    try:
        assert [one.name for one in solver.spec.fields] == ["z", "counter", "y", "time", "b", "a"]
        start = solver.initial_state()
        assert np.array_equal(start, here.initial_state())
        correction = torch.nn.Linear(11, 11, dtype=torch.float64)
        for given in (None, correction):
            one, other = (each.advance(start, 3, correction=given).states for each in (solver, here))
            assert np.array_equal(one, other)
        assert solver.spec.split(one)["counter"].ravel().tolist() != [0, 1, 2, 3]  # the correction arrived, too
    finally:
        solver.close()


def test_two_ranks_and_one(place):
    """Each rank makes some of the runs; both read the file."""
    (place / "ranks.toml").write_text(TEXT)
    code = ("import sys\nfrom trimtab.config.experiment import load_experiment\nfrom trimtab.parallel.mpi import get_world\n"
            "from trimtab.data.reference import make_reference\nfrom backwards import Backwards\n"
            "world = get_world()\nassert world.size == 2\n"
            "path = make_reference(load_experiment('ranks.toml'), Backwards().spec, world=world)\n"
            "if world.rank == 0:\n    print('made', path)\n")
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1",
                   "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_btl_base_warn_component_unused": "0"}
    job = subprocess.Popen(["mpirun", "-n", "2", sys.executable, "-c", code], env=environment, text=True, start_new_session=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        said, _ = job.communicate(timeout=240)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 0 and "made" in said, said
    states, views = read(said.split("made")[1].split()[0])
    assert_right(views)
    os.environ["TRIMTAB_CACHE"] = str(place / "alone")
    assert np.array_equal(states, read(make_reference(parse_experiment(TEXT, "test"), Backwards().spec, workers=1))[0])


def stored(folder, spec):
    """A run folder with the weights of a correction that nobody trained."""
    experiment = parse_experiment(TEXT, "test", [] if not spec.slots else ["network.sizes=[2, 3]"])
    torch.manual_seed(1)
    correction = build_correction(experiment, spec)
    folder.mkdir()
    (folder / "experiment.toml").write_text(dump_experiment(experiment))
    save_checkpoint(folder / "best.pt", {
        "experiment": dump_experiment(experiment), "state": state_of(spec), "slots": slots_of(spec), "coefficient": None,
        "correction": correction.state_dict(), "progress": {}, "history": [], "folder": "", "best": None, "optimiser": None,
        "random": None, **provenance()})
    return correction


def test_a_checkpoint_is_for_the_fields_it_was_trained_with(place):
    spec = Backwards().spec
    correction = stored(place / "run", spec)
    seen = torch.randn(4, spec.size, dtype=torch.float64)
    assert torch.equal(load_correction(place / "run" / "best.pt", spec)(seen), correction(seen))
    other = replace(spec, fields=tuple(sorted(spec.fields, key=lambda one: one.name)))
    with pytest.raises(CheckpointError, match=r"a state of z, counter, y, time, b, a, in this order; .* has a, b, counter"):
        load_correction(place / "run" / "best.pt", other)


def test_a_training_goes_on_with_the_fields_it_began_with(place):
    """The weights would fit: all that differs is the order."""
    changes = ["training.window=1", "training.epochs=1", "training.steps_per_epoch=1", "training.batch=2", "offline.steps=0"]
    experiment = parse_experiment(TEXT, "test", changes)
    kinds = {"backwards:Backwards": Backwards}

    def opener(name, **options):
        return kinds[name](**options)

    Trainer(experiment, place / "run", open_solver=opener).fit()
    kinds["backwards:Backwards"] = Forwards
    with pytest.raises(CheckpointError, match=r"last.pt was trained for a state of z, counter, .* has a, b, counter"):
        Trainer(parse_experiment(TEXT, "test", [*changes[:1], "training.epochs=2", *changes[2:]]), place / "run",
                open_solver=opener, resume=True).fit()


def turned(slot, **changes):
    return (replace(slot, **{kind: getattr(slot, kind)[::-1] for kind in changes}),)


@pytest.mark.parametrize(("slots", "sentence"), [
    (turned(SLOTS[0], inputs=1), "inputs of the slot upper of w, v, in this order; .* has v, w"),
    (turned(SLOTS[0], outputs=1), "outputs of the slot upper of z, y"),
    ((replace(SLOTS[0], name="lower"),), "the slots upper, in this order"), ((), "the slots upper")])
def test_a_checkpoint_is_for_the_slots_it_was_trained_with(place, slots, sentence):
    spec = replace(Backwards().spec, slots=SLOTS)
    correction = stored(place / "run", spec)
    seen = torch.randn(4, 4, dtype=torch.float64)
    assert torch.equal(load_correction(place / "run" / "best.pt", spec)(seen), correction(seen))
    with pytest.raises(CheckpointError, match=sentence):
        load_correction(place / "run" / "best.pt", replace(spec, slots=slots))


def test_an_exported_folder_names_its_ports_in_their_order(place, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")  # its library is tested with the production programs
    spec = replace(Backwards().spec, slots=SLOTS)
    correction = stored(place / "run", spec)
    (exported,) = export_run(load_run(place / "run"), place / "out")
    manifest = json.loads((exported.folder / "manifest.json").read_text())
    assert manifest["ports"] == slot_layout(spec, "upper") == "slot upper;input 2 w;input 2 v;output 3 z;output 3 y;"
    assert manifest["inputs"].startswith("w [1] (i 2), v") and manifest["outputs"].startswith("z [1] (i 3), y")
    seen = torch.randn(4, 4, dtype=torch.float64)
    assert torch.equal(torch.jit.load(exported.folder / "correction.ts")(seen), correction(seen))


def test_a_measured_response_finds_its_rows_by_name(place):
    spec, outputs = replace(Backwards().spec, slots=SLOTS), {"g": Field("g", "g", "1", ("i",), (2,))}
    matrix = np.random.default_rng(0).standard_normal((spec.size, 2))
    SlotResponse(spec, {"g": matrix}, outputs).write("r.npz")
    other = replace(spec, fields=spec.fields[::-1])
    found = SlotResponse.read("r.npz", other, outputs).matrices["g"].numpy()
    for name, rows in spec.split(matrix.T).items():
        assert np.array_equal(other.split(found.T)[name], rows)
    with pytest.raises(ConfigError, match="measured for the fields 3 z, 1 counter"):
        SlotResponse.read("r.npz", replace(spec, fields=spec.fields[1:]), outputs)
    np.savez("old.npz", g=matrix)
    with pytest.raises(ConfigError, match="measure it anew"):
        SlotResponse.read("old.npz", spec, outputs)


def shuffled(path, out, dims=True):
    """A file with its variables, and the dimensions of each, in another order."""
    with xr.open_dataset(path, decode_times=False) as file:
        names = sorted(map(str, file.data_vars))
        other = file[names].load()
        (other.transpose(*reversed(list(other.dims))) if dims else other).to_netcdf(out)
    return out


def test_a_truth_in_a_file_with_its_variables_in_any_order(place):
    path = make_reference(parse_experiment(TEXT, "test"), Backwards().spec, workers=1)
    states, _ = read(shuffled(path, place / "truth.nc"))
    assert np.array_equal(states, read(path)[0])
    other = replace(Backwards().spec, fields=Backwards().spec.fields[::-1])
    for name, values in other.split(read(path, other)[0]).items():
        assert np.array_equal(values, read(path)[1][name])


def test_the_file_of_a_run_starts_the_next(place):
    solver = Backwards()
    start = np.concatenate([solver.initial_state(), 2 * solver.initial_state()])
    forward(solver, None, start, 4, "one.nc")
    states, time = file_starts(shuffled("one.nc", place / "two.nc"), solver.spec)
    assert np.array_equal(states, solver.advance(start, 4).states[-1]) and time == pytest.approx(0.4)
    (name,) = {"time_field"} & set(variable_names(solver.spec).values())
    with xr.open_dataset("one.nc", decode_times=False) as file:
        assert file["time"].dims == ("time",) and file[name].attrs["trimtab_field"] == "time"
        assert np.allclose(file[name][:, 0, 0], 0.1 * np.arange(5))


def test_an_ensemble_keeps_its_fields_apart(place):
    solver = Backwards()
    start = np.concatenate([solver.initial_state(), 3 * solver.initial_state()])
    with contextlib.closing(trimtab.Ensemble(Backwards, start, 3, steps=2)) as ensemble:
        write_ensemble(ensemble, "e.nc")
        members = {(one.start, one.number): one.states for one in ensemble}
    with xr.open_dataset("e.nc", decode_times=False) as file:
        for (start, number), states in members.items():
            for name, values in Backwards().spec.split(states).items():
                assert np.array_equal(file[variable_names(Backwards().spec)[name]][start, number], values), name
