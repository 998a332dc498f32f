# SPDX-License-Identifier: MIT
"""A signal ends every command soon, in whatever stage: the exit code says which, nothing runs on, and a checkpoint is whole.

The stages here would last for minutes or for ever. `tests/bench/signal_storm.py` sends many signals to processes of their own.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import TESTS
from trimtab.__main__ import main
from trimtab.config.experiment import parse_experiment
from trimtab.core.atomic_files import only_writer
from trimtab.core.signals import AGAIN, Interrupted, StopSignal, obeyed
from trimtab.parallel.world import World
from trimtab.training.checkpoint import read_checkpoint
from trimtab.training.microbatches import Crew
from trimtab.training.trainer import Trainer

LIMIT = 20.0  # seconds; it takes less than one, but machines that test are busy
TEXT = """
name = "asked"
[solver]
name = "lorenz63"
dt = 0.01
beta = 0.0
[network]
name = "MLP"
sizes = [3, 4, 3]
[reference]
solver = { name = "lorenz63", dt = 0.01, beta = 2.6666666666666665 }
initial = [8.0, 0.0, 30.0]
perturbation = 1.0
snapshots = 300
training_runs = 1
validation_runs = 1
test_runs = 1
[training]
window = 4
batch = 8
epochs = 10000
steps_per_epoch = 10
validate_windows = 20
[score]
leads = [4]
starts = 5
long_steps = 20
"""
NORMALISED = "correction={input_mean=[0,0,20],input_scale=[8,9,9],output_scale=[9,9,9]}"
SLOW = "solver={name='stopping:Stopping',isolation='process',dt=0.01,beta=0.0,pause=0.05}"
SLOWER = "solver={name='stopping:Stopping',isolation='process',dt=0.01,beta=0.0,pause=100.0}"
DYING = "solver={name='stopping:Stopping',isolation='process',dt=0.01,beta=0.0,stops='some'}"
IN_FORTRAN = "90000000"  # steps: minutes
# stage: module and function that has begun when the signal is sent, arguments of the command
STAGES = {
    "reference run": ("trimtab.data.reference:make_run", ["train", "EXP", "--set", "reference.spin_up=1000000"]),
    "reference run, processes": ("trimtab.data.reference:_share", ["train", "EXP", "--set", "reference.spin_up=1000001"]),
    "normalisation": ("trimtab.training.trainer:fit_normalisation", ["train", "EXP", "--set", SLOW]),
    "normalisation, one long rollout": ("trimtab.training.trainer:fit_normalisation", ["train", "EXP", "--set", SLOWER]),
    "normalisation, dying workers": ("trimtab.training.trainer:fit_normalisation", ["train", "EXP", "--set", DYING]),
    "labels": ("trimtab.training.offline:Labels.prepare", ["train", "EXP", "--set", SLOW, NORMALISED, "offline.steps=9"]),
    "offline": ("trimtab.training.offline:Offline.loss", ["train", "EXP", "--set", "offline.steps=1000000"]),
    "validation": ("trimtab.training.online:Online.judge", ["train", "EXP", "--set", SLOW, NORMALISED]),
    "online": ("trimtab.training.online:Online.loss", ["train", "EXP"]),
    "online, slow workers": ("trimtab.training.online:Online.loss", ["train", "EXP", "--set", SLOW, NORMALISED,
                                                            "training.validate_windows=1"]),
    "score": ("trimtab.evaluation.evaluate:long_run", ["score", "RUN", "--again"]),
    "report": ("trimtab.evaluation.report:write_report", ["report", "RUN"]),
    "run": ("trimtab.forecast.forecast:forward", ["run", "RUN", "--steps", IN_FORTRAN, "--every", IN_FORTRAN,
                                                 "--out", "OUT.nc"]),
    "ensemble": ("trimtab.forecast.ensemble:Ensemble.blocks", ["ensemble", "RUN", "--members", "8", "--steps", IN_FORTRAN,
                                                               "--every", IN_FORTRAN, "--out", "OUT.nc"]),
    "gradcheck": ("trimtab.evaluation.gradcheck_report:gradcheck", ["gradcheck", "RUN", "--windows", "50", "--directions",
                                                                  "100000"]),
    "lock": ("trimtab.data.reference:_take", ["train", "EXP", "--set", "reference.seed=77"]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The experiment, and a run of it whose scores take for ever."""
    folder = tmp_path_factory.mktemp("signals")
    (folder / "asked.toml").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        patch.syspath_prepend(TESTS / "isolation")
        Trainer(parse_experiment(TEXT, "test", ["training.epochs=1", f"score.long_steps={IN_FORTRAN}"]), folder / "run").fit()
        yield folder


def children() -> set[int]:
    """Processes of this one that run, and theirs."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(") ")[2].split()[:2]
            if state != "Z":
                parents[int(stat.parent.name)] = int(parent)
    known = {os.getpid()}
    while more := {one for one, parent in parents.items() if parent in known} - known:
        known |= more
    return known - {os.getpid()}


def after_it_begins(stage: str, monkeypatch: pytest.MonkeyPatch, act, quick: bool) -> None:
    """Call `act` in another thread when a function has been entered; one that is quick waits for it."""
    module, _, path = stage.partition(":")
    owner = importlib.import_module(module)
    *classes, name = path.split(".")
    for one in classes:
        owner = getattr(owner, one)
    inner, thread = getattr(owner, name), threading.Thread(target=act, daemon=True)

    def entered(*positional, **named):
        if not thread.ident:
            thread.start()
            while quick and thread.is_alive():  # or it would be over before the signal comes
                time.sleep(0.001)
        return inner(*positional, **named)

    monkeypatch.setattr(owner, name, entered)


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_ends_a_stage(stage, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    begins, arguments = STAGES[stage]
    names = {"EXP": str(place / "asked.toml"), "RUN": str(place / "run"), "OUT.nc": str(tmp_path / "out.nc")}
    arguments = [names.get(one, one) for one in arguments]
    if arguments[0] == "train":
        arguments += ["--out", str(tmp_path / "new")]
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    chance, sent = random.Random(seed), []
    number = chance.choice([signal.SIGTERM, signal.SIGINT])
    if stage == "reference run":
        monkeypatch.setattr("trimtab.data.reference._workers", lambda recipe: 1)
    elif stage == "reference run, processes":
        monkeypatch.setattr("trimtab.data.reference._workers", lambda recipe: 2)

    def ask():
        time.sleep(chance.uniform(0, 0.5))
        sent.append(time.monotonic())
        os.kill(os.getpid(), number)

    before = children()
    after_it_begins(begins, monkeypatch, ask, quick=stage == "report")
    with only_writer(place / "cache") if stage == "lock" else contextlib.nullcontext():
        code = main(arguments)
    took = time.monotonic() - sent[0]
    assert code == 128 + number and took < LIMIT
    assert "Traceback" not in (said := capsys.readouterr().err)
    assert arguments[0] != "train" or ("go on with: trimtab train" in said and "--resume" in said)
    until = time.monotonic() + LIMIT
    while children() - before and time.monotonic() < until:  # a worker ends a moment after its parent has given it up
        time.sleep(0.05)
    assert not children() - before
    for file in tmp_path.rglob("*.pt"):
        assert read_checkpoint(file)["progress"]["phase"] in ("offline", "online")
    assert not list(tmp_path.rglob("*.partial"))


def test_where_a_step_is_cut_the_bits_do_not_show_it(place, tmp_path, monkeypatch):
    """Cut in the middle of steps, validations and labels, again and again, by an alarm of random length."""
    changes = ("training.epochs=4", "offline.steps=30", "training.microbatch=2", "training.checkpoint_every=2")
    experiment, cut = parse_experiment(TEXT, "test", changes), tmp_path / "cut"
    Trainer(experiment, tmp_path / "whole").fit()
    chance, stops = random.Random(5), 0
    while True:
        timer = threading.Timer(chance.uniform(0.03, 0.15) + 0.02 * stops, os.kill, (os.getpid(), signal.SIGTERM))
        monkeypatch.setattr("trimtab.training.trainer.Trainer._open_data", _starting(Trainer._open_data, timer))
        result = Trainer(experiment, cut, resume=True).fit()
        timer.cancel()
        monkeypatch.undo()
        monkeypatch.setenv("TRIMTAB_CACHE", str(place / "cache"))
        if not result.exit_code:
            break
        assert result.status == "terminated"
        stops += 1
    one, other = (read_checkpoint(folder / "last.pt") for folder in (tmp_path / "whole", cut))
    assert stops >= 2
    assert all((one["correction"][key] == other["correction"][key]).all() for key in one["correction"])
    assert one["progress"]["best_validation"] == other["progress"]["best_validation"]


def _starting(method, timer):
    def started(self):
        if not timer.ident and not timer.finished.is_set():
            timer.start()
        return method(self)

    return started


def test_a_signal_that_a_finaliser_swallowed_is_raised_again():
    class Careless:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    began = time.monotonic()
    with pytest.raises(Interrupted) as caught, obeyed(), pytest.warns(pytest.PytestUnraisableExceptionWarning):
        Careless()
        time.sleep(20 * AGAIN)
    assert caught.value.number == signal.SIGTERM and time.monotonic() - began < 10 * AGAIN


def test_a_second_signal_does_not_cut_what_tidies_up():
    tidied = False
    with pytest.raises(Interrupted), obeyed():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2 * AGAIN)
            tidied = True
    assert tidied and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_wish_to_stop_is_granted_where_it_suits():
    wish = StopSignal()
    with wish.watching():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert wish.number == signal.SIGUSR1  # and nothing raised
        with pytest.raises(Interrupted), wish.interrupting():
            raise AssertionError("it came before")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


class _Pair(World):
    """This rank and another one, which was interrupted in the middle of its work, or not."""

    size = teams = 2

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def table(self, row):
        return np.stack([row, np.concatenate([[self.number], row[1:]])])


class _Phase:
    name, microbatch = "online", 1

    def loss(self, indices, epoch):
        return torch.zeros((), requires_grad=True), 0


@pytest.mark.parametrize(("number", "cut"), [(-signal.SIGTERM, True), (signal.SIGTERM, False), (0, False)])
def test_no_rank_takes_a_step_that_a_signal_cut_on_one(number, cut):
    crew = Crew(_Pair(number), torch.nn.Linear(1, 1), seed=0)
    if cut:
        with pytest.raises(Interrupted) as caught:
            crew.step(_Phase(), np.arange(2), 0, 0)
        assert caught.value.agreed and caught.value.number == signal.SIGTERM
    else:
        crew.world.sum = lambda parts, owners, weights: parts[0]
        assert crew.step(_Phase(), np.arange(2), 0, 0) == (0.0, 0)
    assert crew.asked_to_stop() == abs(number)
