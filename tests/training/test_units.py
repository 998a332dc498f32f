# SPDX-License-Identifier: MIT
"""The unit of a state decides nothing: the same training, gradients, scores and verdicts of the doctor for any power of ten."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import trimtab
from helpers.blocks import build, needs_mpi
from trimtab.__main__ import main
from trimtab.config.experiment import dump_experiment, parse_experiment
from trimtab.core.errors import ConfigError, DataError, InputError
from trimtab.core.loss import field_scale, field_weights
from trimtab.core.spec import Field, SolverSpec
from trimtab.evaluation import score_ensemble as ensemble_scoring
from trimtab.evaluation.gradcheck_report import check_gradients
from trimtab.evaluation.score_run import score_run, score_runs
from trimtab.evaluation.table import Column, ScoreTable
from trimtab.reproduce.cache import mean_square_of
from trimtab.training.checkpoint import read_checkpoint
from trimtab.training.offline import Offline
from trimtab.training.online import Online
from trimtab.training.optimiser import Movement
from trimtab.training.state import Position
from trimtab.training.trainer import Trainer

# core -> what the truth has more, its initial state, and a scale of its network's inputs.
CORES = {"lorenz63": ("beta = 2.6666666666666665", (8.0, 0.0, 30.0)), "oscillator": ("restoring = 1.0", (5.0, 0.0))}
LACKING = {"lorenz63": {"beta": 0.0}, "oscillator": {"restoring": 0.0}}
TEXT = """
[solver]
name = "test_units:Scaled"
core = "{core}"
unit = {unit!r}
[network]
name = "MLP"
sizes = [{size}, 8, {size}]
activation = "tanh"
[correction]
dtype = "{dtype}"
[reference]
solver = {{ {truth} }}
initial = {initial!r}
perturbation = {unit!r}
snapshots = 60
training_runs = 2
validation_runs = 1
test_runs = 1
[offline]
steps = 10
batch = 8
rate = 0.02
[training]
gradient = "static"
window = 4
batch = 8
epochs = 3
steps_per_epoch = 5
rate = 0.01
clip = 0.01
validate_windows = 16
[score]
leads = [2, 5]
starts = 3
long_steps = 40
closures = ["none", "offline", "online"]
"""


class Scaled:
    """One of our solvers in another unit: `unit` times its state."""

    def __init__(self, core: str, unit: float, **options: float):
        self._solver = trimtab.open_solver(core, **{"dt": 0.01, **LACKING[core], **options})
        self.unit, self.spec = unit, dataclasses.replace(self._solver.spec, solver="scaled")

    def advance(self, u0, steps, *, correction=None, **options):
        inner = None if correction is None else Unscaled(correction, self.unit)
        window = self._solver.advance(np.asarray(u0) / self.unit, steps, correction=inner, **options)
        return dataclasses.replace(window, states=window.states * self.unit)

    def close(self):
        self._solver.close()


class Unscaled(torch.nn.Module):
    """A correction of scaled states, for the solver in its own unit."""

    def __init__(self, correction, unit):
        super().__init__()
        self.correction, self.unit = correction, unit

    def forward(self, u):
        return self.correction(u * self.unit) / self.unit


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for runs, and a cache of its own."""
    folder = tmp_path_factory.mktemp("units")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        patch.syspath_prepend(str(Path(__file__).parent))
        yield folder


def experiment(core="lorenz63", unit=1.0, dtype="float64", *changes):
    truth, initial = CORES[core]
    return parse_experiment(TEXT.format(core=core, unit=unit, dtype=dtype, truth=truth, size=len(initial),
                                        initial=[unit * one for one in initial]), "units", changes)


def trained(place, core, unit, dtype):
    """(folder, curves (epochs, 3) of loss, validation and gradient's norm, network's weights), once for each."""
    folder = place / f"{core}-{unit:g}-{dtype}"
    if not folder.exists():
        Trainer(experiment(core, unit, dtype), folder).fit()
    saved = read_checkpoint(folder / "last.pt")
    curves = np.array([[row[5], row[6], row[7]] for row in saved["history"]], dtype=float)
    weights = torch.cat([value.double().flatten() for key, value in saved["correction"].items() if key.startswith("network.")])
    return folder, curves, weights.numpy()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-7), ("float32", 2e-2)])
@pytest.mark.parametrize("power", [-9, -4, 5, 9])
@pytest.mark.parametrize("core", list(CORES))
def test_a_training_does_not_depend_on_the_unit(core, power, dtype, tolerance, place):
    _, expected, weights = trained(place, core, 1.0, dtype)
    _, curves, found = trained(place, core, 10.0**power, dtype)
    np.testing.assert_allclose(curves, expected, rtol=tolerance)
    assert np.linalg.norm(found - weights) < tolerance * np.linalg.norm(weights)
    online = expected[-4:, 1]
    assert online.min() < 0.9 * online[0]


@pytest.mark.parametrize("power", [-9, 9])
def test_scores_are_in_the_unit_and_their_verdicts_without(power, place):
    tables = [score_run(trained(place, "lorenz63", unit, "float64")[0]) for unit in (1.0, 10.0**power)]
    for row, scores in tables[0].rows.items():
        for key, values in scores.items():
            unit = 10.0**power if key.startswith("rmse") else 1.0
            np.testing.assert_allclose(tables[1].rows[row][key], unit * values, rtol=1e-5, err_msg=f"{row} {key}")
    assert tables[0].comparison() == tables[1].comparison()


@pytest.mark.parametrize("power", [-9, 9])
def test_gradcheck_does_not_depend_on_the_unit(power, place):
    tables = [check_gradients(trained(place, "lorenz63", unit, "float64")[0], windows=[4], gradients=["static", "ensemble"],
                              directions=2, starts=2)[0] for unit in (1.0, 10.0**power)]
    for one, other in zip(tables[0].rows, tables[1].rows, strict=True):
        assert other.cosine == pytest.approx(one.cosine, rel=1e-5) and other.efficiency == pytest.approx(one.efficiency, rel=1e-4)
    assert tables[0].recommendation() == tables[1].recommendation()


def test_a_small_error_of_the_solver_trains_as_well(place):
    """Not only in small units is a loss small: windows in which the solver loses a millionth of a deviation give gradients of
    1e-13 and less, and the weights still move at the rate."""
    changes = ("reference.solver={beta = 1e-6}", "training.clip=0.0", "offline.steps=0")
    trainer = Trainer(experiment("lorenz63", 1.0, "float64", *changes), place / "little")
    result = trainer.fit()
    rows = read_checkpoint(place / "little" / "last.pt")["history"]
    assert rows[0][6] < 1e-12 and result.best_validation < 0.9 * rows[0][6] and result.verdict == ""


@pytest.fixture(scope="module")
def heat(tmp_path_factory):
    """The folder of a coupled code whose namelist has a unit."""
    if needs_mpi.args[0]:
        pytest.skip(needs_mpi.kwargs["reason"])
    return build(tmp_path_factory.mktemp("heat") / "blocks")


SHORT = ("training.epochs=2", "training.steps_per_epoch=4", "training.window=2", "reference.snapshots=12", "score.leads=[1,2]",
         "score.long_steps=8", "score.starts=1")
COUPLED = """
import json, sys
from trimtab.config.experiment import load_experiment
from trimtab.coupling.report import check_coupling
from trimtab.training.trainer import Trainer
unit, changes = sys.argv[1], sys.argv[2:]
open("blocks.nml", "w").write(f"&blocks\\n  nsteps = 200\\n  unit = {unit}\\n/\\n")
Trainer(load_experiment("blocks.toml", changes), f"run{unit}").fit()
print("FOUND", json.dumps({one.check: one.state for one in check_coupling("blocks.toml", write=False)}))
"""


def test_a_coupled_code_in_two_units(heat):
    """A2's smallest input: initial state and heating times 1e-6. The perturbation of its runs is a share of its fields."""
    curves, reports = [], []
    for unit in ("1d0", "1d-6"):
        job = subprocess.run([sys.executable, "-c", COUPLED, unit, *SHORT], cwd=heat, capture_output=True, timeout=300, text=True,
                             env={**os.environ, "TRIMTAB_CACHE": f"cache{unit}"})
        assert job.returncode == 0, job.stdout + job.stderr
        curves.append(np.array([[row[5], row[6]] for row in read_checkpoint(heat / f"run{unit}" / "last.pt")["history"]], float))
        reports.append(json.loads(job.stdout.rpartition("FOUND ")[2]))
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-6)
    assert curves[1][-1, 1] < 0.5 * curves[1][0, 1]
    assert reports[0] == reports[1] and reports[0]["gradient, one step"] == "ok"


# ---- the scale of the loss, and weights of one's own -----------------------------------------------------------------


PROFILE = SolverSpec("air", 0.1, 1, (Field("t", "temperature", "K", ("z", "x"), (3, 4)), Field("w", "wind", "m/s", ("x",), (4,)),
                                     Field("n", "counter", "1", (), (), hidden=True)))


def steep(states: int = 200) -> np.ndarray:
    """A field of 200 to 300 by level that varies by 0.01, one without a mean that varies by 5, and a counter."""
    generator = np.random.default_rng(0)
    t = np.repeat([200.0, 250.0, 300.0], 4) + 0.01 * generator.standard_normal((states, 12))
    return np.concatenate([t, 5 * generator.standard_normal((states, 4)), np.arange(states)[:, None]], 1)


def test_a_mean_profile_takes_no_weight_from_a_field():
    scale = field_scale(PROFILE, steep())
    assert scale[0] == pytest.approx(0.01, rel=0.05) and (scale[:12] == scale[0]).all()
    assert scale[12] == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize("power", [-9, 0, 9])
def test_fields_that_do_not_vary_have_a_scale_without_a_choice_of_unit(power):
    """The largest of their unit, their own size, or none: and never 1."""
    unit = 10.0**power
    fields = [Field(name, "", units, ("x",), (2,)) for name, units in (("u", "m"), ("v", "m"), ("p", "Pa"), ("s", "kg"))]
    spec = SolverSpec("four", 0.1, 1, tuple(fields))
    states = np.zeros((30, 8))
    states[:, :2] = np.random.default_rng(1).standard_normal((30, 2))
    states[:, 2:4], states[:, 4:6] = 7.0, 0.3
    scale = field_scale(spec, unit * states).numpy() / unit
    assert scale[2] == scale[0] == pytest.approx(1, rel=0.3) and scale[4] == pytest.approx(0.3) and np.isinf(scale[6])
    with pytest.raises(DataError, match="nothing to measure by"):
        field_scale(spec, 0 * states)


def test_weights_of_ones_own():
    """By field, along its first dimension, and along another by name."""
    scale = field_scale(PROFILE, steep())
    assert (field_scale(PROFILE, steep(), {"w": 4.0})[12:16] == scale[12:16] / 2).all()
    weights = field_weights(PROFILE, {"t": [1.0, 0.25, 0.0]})
    assert weights.tolist() == [*[1.0] * 4, *[0.25] * 4, *[0.0] * 4, *[1.0] * 5]
    assert field_weights(PROFILE, {"t": {"x": [1, 2, 3, 4]}})[:12].tolist() == [1, 2, 3, 4] * 3
    assert torch.isinf(field_scale(PROFILE, steep(), {"t": [1, 1, 0]})[8:12]).all()


@pytest.mark.parametrize(("weights", "words"), [
    ({"q": 1.0}, "names 'q'; the fields of air are t, w"), ({"n": 1.0}, "names 'n'"),
    ({"t": [1.0, 2.0]}, r"holds 2 numbers; its dimension z has 3"), ({"t": {"y": [1.0]}}, "must name one dimension"),
    ({"t": {"x": [1.0]}}, "its dimension x has 4"), ({"t": -1.0}, "numbers of at least 0"),
    ({"t": "much"}, "numbers of at least 0"), ({"t": [1.0, True, 1.0]}, "numbers of at least 0"),
])
def test_weights_that_do_not_fit_are_refused(weights, words):
    with pytest.raises(ConfigError, match=words):
        field_weights(PROFILE, weights)


def test_weights_in_a_training(place):
    """Refused before the reference run is made; a weight of 4 counts four times, offline and online, and 0 not at all."""
    bad = experiment("lorenz63", 1.0, "float64", "training.weights={q = 2.0}", "reference.seed=99")
    with pytest.raises(ConfigError, match=r"training\.weights names 'q'"):
        Trainer(bad, place / "bad").fit()
    trainer = Trainer(experiment("lorenz63", 1.0, "float64", "training.epochs=0", "offline.steps=0"), place / "plain")
    trainer.fit()
    assert Trainer(experiment("lorenz63", 1.0, "float64", "training.epochs=0", "offline.steps=1",
                              "training.weights={u = [1, 0, 0]}"), place / "weighted").fit().verdict == ""
    losses = {}
    for weights in ({}, {"u": 4.0}, {"u": [1, 0, 0]}, {"u": [0, 1, 1]}):
        config = dataclasses.replace(trainer.experiment.training, weights=weights)
        online = Online(config, trainer.solver, trainer.correction, trainer.targets)
        offline = Offline(trainer.experiment.offline, config, trainer.solver, trainer.correction, trainer.targets)
        losses[str(weights)] = [phase.loss(np.arange(4), 0)[0].item() for phase in (online, offline)]
    plain, four, first, rest = map(np.array, losses.values())
    np.testing.assert_allclose(four, 4 * plain, rtol=1e-12)
    np.testing.assert_allclose(first + rest, plain, rtol=1e-12)
    trainer.solver.close()


# ---- what is said of a training that learns nothing, and of runs that are no seeds ----------------------------------


def test_a_training_that_learns_nothing_says_so(place, caplog):
    """With a rate that moves no weight: warned of once, and the verdict is the training's last word."""
    result = Trainer(experiment("lorenz63", 1.0, "float32", "training.rate=1e-30", "offline.steps=0"), place / "idle").fit()
    assert "Nothing was learned in the online phase: the best of 3 epochs is epoch 0" in result.verdict
    log = (place / "idle" / "log.txt").read_text()
    assert log.count("The weights did not move measurably in online epoch 1") == 1 and "online epoch 2: by" not in log
    assert log.rstrip().splitlines()[-2].endswith(result.verdict) or log.rstrip().splitlines()[-1].endswith(result.verdict)


def test_movement_is_measured_over_the_norm_of_the_weights(caplog):
    layer = torch.nn.Linear(3, 3).double()
    movement = Movement(layer)
    for step, warnings in ((1e-9, 1), (1e-9, 1), (1e-3, 1), (0.0, 2)):
        with torch.no_grad():
            layer.weight.add_(step)
        movement.close_epoch("online", Position("online", epoch=1, step=5, norms=5e-12))
        assert caplog.text.count("did not move measurably") == warnings, step


def test_a_validation_that_moves_by_rounding_is_no_learning():
    position = Position("online")
    for epoch, validation in enumerate((1.569e-17, 1.569e-17 * (1 - 1e-9))):
        position.epoch = epoch
        assert position.validated(validation, 0)
    assert position.verdict("online").startswith("Nothing was learned") and "rounding" in position.verdict("online")
    assert position.validated(1.5e-17, 0) and position.verdict("online") == ""
    saved = Position("online", epoch=3, best_epoch=0, best_validation=2.0, first_validation=2.0, first_dropped=3, best_dropped=0)
    assert saved.verdict("online") == ""  # fewer windows blow up: that was learned


def test_equal_scores_are_not_praised():
    columns = (Column("rmse_5", "RMSE, lead 5", "1", "low", "Error."),)
    rows = {"none": {"rmse_5": np.array([2.0, 4.0, 1.0])}, "online": {"rmse_5": np.array([2.0 - 1e-9, 4.0, 0.5])}}
    table = ScoreTable("toy", columns, rows)
    assert table.comparison().endswith("online is better than no closure at 1 of 3 (2 equal).")
    tied = {"none": rows["none"], "online": {"rmse_5": rows["none"]["rmse_5"] * (1 - 1e-8)}}
    assert ScoreTable("toy", columns, tied).best(columns[0]) is None


def test_unlike_runs_are_not_averaged(place):
    first = trained(place, "lorenz63", 1.0, "float64")[0]
    for name, change in (("seed1", "training.seed=1"), ("wide", "network.sizes=[3, 9, 3]"), ("long", "training.epochs=4")):
        if not (place / name).exists():
            Trainer(experiment("lorenz63", 1.0, "float64", change), place / name).fit()
    table, _ = score_runs([first, place / "seed1"], place / "both")
    assert len(table.rows["online"]["rmse_5"]) == 2
    for name, key in (("wide", "network.sizes"), ("long", "training.epochs")):
        with pytest.raises(ConfigError, match=f"they differ in {key};"):
            score_runs([first, place / name], place / "none")
    with pytest.raises(ConfigError, match=r"the same seed, training\.seed = 0"):
        score_runs([first, first], place / "none")
    assert not (place / "none").exists()


def test_gradcheck_takes_targets_that_are_observed_in_part(open_solver):
    """What is not among the components is NaN in an experiment's targets: refused only where it would enter the loss."""
    solver = open_solver("lorenz63")
    correction = trimtab.Correction(trimtab.networks.MLP((3, 4, 3)).double(), solver.spec)
    truth = open_solver("lorenz63", beta=8 / 3).advance(np.array([[8.0, 0.0, 30.0]]), 4).states
    given = {"gradients": ["static"], "directions": 2, "scale": torch.ones(3, dtype=torch.float64)}
    whole = trimtab.gradcheck(solver, correction, truth[0], truth[1:], [4], components=np.array([0, 1]), **given)
    truth[1:, :, 2] = np.nan
    found = trimtab.gradcheck(solver, correction, truth[0], truth[1:], [4], components=np.array([0, 1]), **given)
    assert found.rows[0].cosine == whole.rows[0].cosine
    with pytest.raises(InputError, match="must be finite"):
        trimtab.gradcheck(solver, correction, truth[0], truth[1:], [4], components=np.array([0, 2]), **given)


def test_an_ensemble_is_scored_in_deviations_where_fields_have_several_units():
    shown = ensemble_scoring._Shown(PROFILE, steep())
    scored = shown(steep()[:5])
    np.testing.assert_allclose(scored[:, :12] * shown.scale[0], steep()[:5, :12], rtol=1e-12)
    assert scored.shape == (5, 16) and shown.scale[0] == pytest.approx(0.01, rel=0.05)


def test_the_last_line_of_the_command_is_the_verdict_in_yellow(place, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    text = dump_experiment(experiment("oscillator", 1.0, "float64", "offline.steps=0", "training.rate=1e-30"))
    (place / "idle.toml").write_text(text)
    assert main(["train", str(place / "idle.toml"), "--out", str(place / "told")]) == 0
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert last.startswith("\x1b[33mNothing was learned in the online phase")
    assert main(["train", str(place / "idle.toml"), "--out", str(place / "learned"), "--set", "training.rate=0.01"]) == 0
    assert "Nothing was learned" not in capsys.readouterr().out


def test_a_published_mean_square_is_compared_in_its_own_unit(place):
    """`reproduce` turns the best validation back into the square of the state's unit."""
    trainer = Trainer(experiment("lorenz63", 1e3, "float64", "offline.steps=0"), place / "published")
    result = trainer.fit()
    online = Online(trainer.experiment.training, trainer.solver, trainer.correction, trainer.targets)
    online.scale = torch.ones(3, dtype=torch.float64)
    raw, _ = online.judge(online.held()[0])
    assert mean_square_of(trainer, result) == pytest.approx(raw, rel=1e-9) and raw > 10 * result.best_validation
    trainer.solver.close()
