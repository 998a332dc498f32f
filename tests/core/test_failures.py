# SPDX-License-Identifier: MIT
"""A code that ends its process in every rollout ends the work after the first few, with its last words."""

from __future__ import annotations

import numpy as np
import pytest

import trimtab
from helpers import TESTS
from trimtab.config.experiment import parse_experiment
from trimtab.core.errors import BlowUpError, SolverError, SolverStopped
from trimtab.core.failures import FIRST, HYBRID, LATER, Failures, report
from trimtab.evaluation.evaluate import evaluate
from trimtab.evaluation.gradcheck_report import check_gradients
from trimtab.training.checkpoint import read_checkpoint
from trimtab.training.microbatches import LOST_STEPS
from trimtab.training.trainer import Trainer

NORMALISED = "correction={input_mean=[0,0,20],input_scale=[8,9,9],output_scale=[9,9,9]}"
WORDS = "STOP: surface pressure out of bounds"
TEXT = """
name = "stopping"
[solver]
name = "stopping:Stopping"
isolation = "fork"
dt = 0.01
beta = 0.0
[network]
name = "MLP"
sizes = [3, 4, 3]
[reference]
solver = { name = "lorenz63", dt = 0.01, beta = 2.6666666666666665 }
initial = [8.0, 0.0, 30.0]
perturbation = 1.0
snapshots = 100
training_runs = 1
validation_runs = 1
test_runs = 1
[training]
window = 4
curriculum = [[0, 2], [5, 4]]
batch = 8
epochs = 2
validate_windows = 20
[score]
leads = [4]
starts = 20
"""


@pytest.fixture(autouse=True)
def place(tmp_path_factory, monkeypatch):
    monkeypatch.syspath_prepend(TESTS / "isolation")
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path_factory.getbasetemp() / "failures-cache"))


def experiment(*changes):
    return parse_experiment(TEXT, "test", changes)


def started(caplog) -> int:
    """Rollouts that ended their process, as the log has them."""
    return sum("The solver ended its process with exit code 3" in one.message for one in caplog.records
               if one.levelname == "WARNING")


@pytest.mark.parametrize(("changes", "limit", "what"), [
    (["solver.stops=always"], FIRST, "windows of the truth"),
    (["solver.stops=always", "offline.steps=4", NORMALISED], FIRST, "windows of the truth"),
    (["solver.stops=hybrid", "training.curriculum=[]"], HYBRID, "validation windows of the online phase"),
    (["solver.stops=hybrid", "solver.at=2"], HYBRID, "training windows of the online phase"),
], ids=["normalisation", "labels", "validation", "training"])
def test_a_training_whose_every_rollout_stops_ends(changes, limit, what, tmp_path, caplog):
    sentence = f"{limit} of {limit} {what} ended the solver's process.*is the truth sound"
    with pytest.raises(SolverStopped, match=sentence) as caught:
        Trainer(experiment(*changes), tmp_path / "run").fit()
    assert WORDS in str(caught.value) and caught.value.code == 3 and started(caplog) == limit
    if what.startswith("training"):
        assert read_checkpoint(tmp_path / "run" / "last.pt")["progress"]["entered"]


def test_scores_of_a_solver_that_always_stops(caplog):
    starts = np.ones((1, 60, 3)) + np.arange(60)[None, :, None]
    config = experiment().score
    with trimtab.open_solver("stopping:Stopping", isolation="fork", stops="always", dt=0.01) as solver, \
            pytest.raises(SolverStopped, match=f"{HYBRID} of {HYBRID} forecasts") as caught:
        evaluate(solver, {"none": None}, starts, config, interval=0.01, stride=1)
    assert WORDS in str(caught.value) and started(caplog) == HYBRID


def test_an_ensemble_of_a_solver_that_always_stops(caplog):
    def opener(**_):
        return trimtab.open_solver("stopping:Stopping", isolation="fork", stops="always", dt=0.01)

    ensemble = trimtab.Ensemble(opener, np.ones((1, 3)), 64, steps=10, perturbation=trimtab.Perturbation("none"), group=4)
    with pytest.raises(SolverStopped, match=f"{HYBRID} of {HYBRID} runs of members") as caught:
        list(ensemble)
    ensemble.close()
    assert WORDS in str(caught.value) and started(caplog) == HYBRID


def test_a_group_that_is_lost_does_not_run_on(caplog):
    def opener(**_):
        return trimtab.open_solver("stopping:Stopping", isolation="fork", stops="always", dt=0.01)

    ensemble = trimtab.Ensemble(opener, np.ones((1, 3)), 4, steps=10, perturbation=trimtab.Perturbation("none"), group=4)
    members = list(ensemble)
    ensemble.close()
    assert started(caplog) == 2 + 4  # to see whether forks agree, and once a member: not once a block
    assert all(np.isnan(one.states[1:]).all() and one.failed_step == 1 and one.states.shape == (11, 3) for one in members)


def test_gradcheck_of_a_hybrid_that_always_stops(tmp_path, monkeypatch, caplog):
    (tmp_path / "stopping.toml").write_text(TEXT)
    with pytest.raises(SolverStopped, match=f"{HYBRID} of {HYBRID} rollouts") as caught:
        check_gradients(tmp_path / "stopping.toml", tmp_path, windows=[2], gradients=["static"], starts=20,
                        changes=["solver.stops=hybrid"])
    assert WORDS in str(caught.value) and started(caplog) == HYBRID


def test_a_worker_that_is_started_over_and_over(caplog):
    """In "process" mode each end costs the start of another process."""
    failures = Failures("pieces", "why?", first=3)
    with trimtab.open_solver("stopping:Stopping", isolation="process", stops="always", dt=0.01) as solver:
        with failures.watching(), pytest.raises(SolverStopped, match=r"3 of 3 pieces .*why"):
            solver.advance(np.ones((9, 3)), 2, on_blow_up="mark")
        assert started(caplog) == 3 and not solver.processes


def test_where_some_succeed_the_work_goes_on():
    stop = SolverStopped("STOP", code=1)
    failures = Failures("pieces", "why?")
    with failures.watching():
        for _ in range(20):
            for _ in range(FIRST - 1):
                report(stop)
            report(None)
        for _ in range(LATER - 1):
            report(stop)
        with pytest.raises(SolverStopped, match=f"{LATER} pieces in a row"):
            report(stop)
    unlimited = Failures("pieces", "why?", later=0)
    with unlimited.watching():
        report(None)
        for _ in range(10 * LATER):
            report(stop)
    report(stop)  # nobody counts


def test_labels_that_all_blow_up_end_the_training(tmp_path):
    changes = ("solver={name='lorenz63',dt=0.01,sigma=1e300}", "offline.steps=4",
               NORMALISED)
    with pytest.raises(BlowUpError, match="blew up on all of 99 states"):
        Trainer(experiment(*changes), tmp_path / "run").fit()


def test_steps_in_a_row_of_which_nothing_is_left_end_the_training(tmp_path):
    """Long before the end of an epoch."""
    changes = ("solver={name='lorenz63',dt=0.01,beta=0.0}", "training.steps_per_epoch=1000",
               "correction={input_mean=[0,0,20],input_scale=[8,9,9],output_scale=[1e30,1e30,1e30]}")
    trainer = Trainer(experiment(*changes), tmp_path / "run")
    with pytest.raises(SolverError, match=f"Every window of {LOST_STEPS} steps in a row blew up"):
        trainer.fit()
    assert trainer.at.step == LOST_STEPS - 1
