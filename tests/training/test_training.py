# SPDX-License-Identifier: MIT
"""Training: it learns, it counts what it leaves out, and a run that is killed ends as one that was not."""

from __future__ import annotations

import math
import os
import pkgutil
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import trimtab
from helpers import TESTS
from helpers.training import NETWORK, TEXT, assert_same_run, rows_of, same
from trimtab.config.experiment import dump_experiment, parse_experiment
from trimtab.core.atomic_files import only_writer
from trimtab.core.errors import BlowUpError, CheckpointError, ConfigError, DataError, InputError, SolverError, SolverStopped
from trimtab.core.loss import alive, mean_square
from trimtab.core.window import Window
from trimtab.data.reference import reference_path
from trimtab.data.windows import Targets
from trimtab.training.checkpoint import load_correction, read_checkpoint
from trimtab.training.offline import Offline
from trimtab.training.online import Online, loss_scale
from trimtab.training.phase import cosine
from trimtab.training.run_folder import load_run
from trimtab.training.trainer import Trainer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the network's module, on the path of this process and of those it starts, and a cache to share."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "restless.py").write_text(NETWORK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        patch.syspath_prepend(str(folder))
        yield folder


def small(*overrides):
    return parse_experiment(TEXT, "test", overrides)


@pytest.fixture(scope="module")
def whole(place):
    """A run that nothing disturbed."""
    folder = place / "whole"
    Trainer(small(), folder).fit()
    return folder


def test_it_learns_and_leaves_a_folder_to_work_with(whole, open_solver):
    rows = rows_of(whole)
    offline, online = ([row for row in rows if row["phase"] == phase] for phase in ("offline", "online"))
    assert [row["step"] for row in offline] == ["0", "19", "38", "40"]
    assert [row["window"] for row in online] == ["2", "2", "4", "4", "4"]
    assert online[0]["loss"] == "" and all(float(row["loss"]) > 0 for row in online[1:])
    assert float(offline[-1]["validation"]) < 0.5 * float(offline[0]["validation"])
    assert float(online[-1]["validation"]) < float(online[0]["validation"])
    run = load_run(whole)
    assert run.experiment == small() and set(run.checkpoints) == {"offline", "best", "last"}
    assert "finished" in (whole / "log.txt").read_text()
    assert any(path.name.startswith("events.out.tfevents") for path in (whole / "tensorboard").iterdir())
    assert not [path for path in whole.iterdir() if path.name.startswith(".")]
    solver = open_solver("lorenz63")
    targets = Targets(reference_path(small(), solver.spec), solver.spec, run.experiment.reference, 0.01)
    windows = targets.windows("validation", 4)
    states = torch.from_numpy(windows.batch(windows.spread(40), range(5)))
    scale = loss_scale(targets.windows("training", 4))
    errors = [mean_square(torch.from_numpy(solver.advance(states[0], 4, correction=one).states), states[1:], scale=scale).item()
              for one in (None, load_correction(run.checkpoints["best"], solver.spec))]
    assert errors[1] == pytest.approx(min(float(row["validation"]) for row in online), rel=1e-12)
    assert errors[1] < 0.1 * errors[0]


def test_repeated_it_gives_the_same_bits(whole, tmp_path):
    told = []
    trainer = Trainer(small(), tmp_path / "again", progress=lambda fraction, text: told.append((fraction, text)))
    result = trainer.fit()
    assert_same_run(tmp_path / "again", whole)
    assert result.status == "finished" and result.exit_code == 0 and result.best_epoch > 0
    assert {text.split(":")[0] for _, text in told} <= {"offline", "online"}
    assert all(0 <= fraction <= 1 for fraction, _ in told)
    assert same(trainer.correction.state_dict(), read_checkpoint(whole / "best.pt")["correction"])


class Killed(BaseException):
    pass


@pytest.mark.parametrize("module, function", [
    ("trimtab.training.trainer.Trainer", "_step"), ("trimtab.training.checkpoint", "save_checkpoint"), ("os", "replace"),
    ("trimtab.training.trainer.Trainer", "_boundary"), ("trimtab.training.metrics.Records", "add"),
])
def test_killed_at_any_place_it_ends_as_if_it_was_not(module, function, whole, tmp_path, monkeypatch):
    """Ever later kills, each after it has gone a little further than the last one, before and after the call."""
    calls, limit = 0, 0
    owner = pkgutil.resolve_name(module)
    original = getattr(owner, function)

    def counted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == limit and limit % 2:
            raise Killed
        result = original(*arguments, **options)
        if calls == limit:
            raise Killed
        return result

    monkeypatch.setattr(owner, function, counted)
    kills = 0
    while True:
        calls, limit = 0, 2 + 3 * kills
        try:
            Trainer(small(), tmp_path / "run", resume=True).fit()
            break
        except Killed:
            kills += 1
    assert kills >= 2
    assert_same_run(tmp_path / "run", whole)


SCRIPT = """
import sys
from trimtab.training.trainer import Trainer
from trimtab.config.experiment import load_experiment
sys.exit(Trainer(load_experiment(sys.argv[1]), sys.argv[2], resume=True).fit().exit_code)
"""


def start(place, folder, *overrides):
    file = place / f"{folder.name}.toml"
    file.write_text(dump_experiment(small(*overrides)))
    command = [sys.executable, "-c", SCRIPT, str(file), str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_until_it_trains(process, folder, size):
    log = folder / "log.txt"
    while process.poll() is None and not (log.exists() and log.stat().st_size > size):
        time.sleep(0.005)


LONG = ("training.epochs=40", "training.checkpoint_every=2", "offline.steps=200")


@pytest.fixture(scope="module")
def long_whole(place):
    folder = place / "long"
    Trainer(small(*LONG), folder).fit()
    return folder


def test_sigkill_at_random_times(place, long_whole, tmp_path):
    folder = tmp_path / "killed"
    seed = random.SystemRandom().randrange(10**6)
    chance, kills = random.Random(seed), 0
    print(f"seed {seed}")
    while True:
        size = (folder / "log.txt").stat().st_size if (folder / "log.txt").exists() else 0
        process = start(place, folder, *LONG)
        wait_until_it_trains(process, folder, size)
        if kills < 3:
            time.sleep(chance.uniform(0, 0.6))
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
        kills += 1
    assert kills >= 2
    assert_same_run(folder, long_whole)


def test_signals_save_and_end_cleanly(place, long_whole, tmp_path):
    folder, done = tmp_path / "asked", -1
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        size = (folder / "log.txt").stat().st_size if folder.exists() else 0
        process = start(place, folder, *LONG)
        wait_until_it_trains(process, folder, size + 400)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (code, "")
        at = read_checkpoint(folder / "last.pt")["progress"]
        steps = at["step"] + (at["epoch"] * 8 + 200 if at["phase"] == "online" else at["epoch"] * 19)
        assert done < steps < 200 + 40 * 8
        done = steps
    assert Trainer(small(*LONG), folder, resume=True).fit().status == "finished"
    assert_same_run(folder, long_whole)


def test_a_finished_run_may_go_on_for_longer(whole, tmp_path):
    steady = ("training.rate_drop_every=100", "training.curriculum=[]")
    Trainer(small(*steady, "training.epochs=2"), tmp_path / "two").fit()
    before = read_checkpoint(tmp_path / "two" / "last.pt")
    assert Trainer(small(*steady, "training.epochs=2"), tmp_path / "two", resume=True).fit().status == "finished"
    assert same(before["correction"], read_checkpoint(tmp_path / "two" / "last.pt")["correction"])
    Trainer(small(*steady, "training.epochs=4"), tmp_path / "two", resume=True).fit()
    Trainer(small(*steady, "training.epochs=4"), tmp_path / "four").fit()
    one, other = (read_checkpoint(tmp_path / name / "last.pt") for name in ("two", "four"))
    assert same(one["correction"], other["correction"]) and rows_of(tmp_path / "two") == rows_of(tmp_path / "four")


def test_folders_are_not_overwritten(whole, tmp_path):
    before = (whole / "last.pt").read_bytes()
    with pytest.raises(CheckpointError, match="holds a training already"):
        Trainer(small(), whole).fit()
    with pytest.raises(CheckpointError, match=r"belongs to another experiment: solver.dt, training.batch changed"):
        Trainer(small("training.batch=4", "solver.dt=0.005"), whole, resume=True).fit()
    assert load_run(whole).experiment == small()
    with only_writer(whole), pytest.raises(DataError, match="Another process is writing"):
        Trainer(small(), whole, resume=True).fit()
    assert (whole / "last.pt").read_bytes() == before
    (tmp_path / "last.pt").write_bytes(before[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        Trainer(small(), tmp_path, resume=True).fit()


class Fragile:
    """A solver some of whose members blow up."""

    def __init__(self, solver, share):
        self.solver, self.spec, self.share = solver, solver.spec, share
        self.generator = np.random.default_rng(0)

    def advance(self, u0, steps, *, correction=None, on_blow_up="raise", **options):
        window = self.solver.advance(u0, steps, correction=correction, **options)
        failed = (self.generator.random(window.states.shape[1]) < self.share).astype(np.int32)
        failed *= correction is not None
        states = window.states.copy()
        states[1:, failed > 0] = np.nan
        if failed.any() and on_blow_up == "raise":
            raise BlowUpError("It blew up.", failed)
        return Window(states, window.times, window.h, failed)

    def close(self):
        self.solver.close()


def fragile(share):
    return lambda name, **options: Fragile(trimtab.open_solver(name, **options), share)


def test_windows_that_blow_up_are_left_out_and_counted(place, tmp_path):
    result = Trainer(small(), tmp_path / "some", open_solver=fragile(0.2)).fit()
    assert result.status == "finished" and 20 < result.dropped < 100 and result.skipped == 0
    dropped = [int(row["dropped"]) for row in rows_of(tmp_path / "some")]
    assert sum(dropped) == result.dropped
    assert all(torch.isfinite(one).all() for one in load_correction(
        tmp_path / "some" / "best.pt", trimtab.open_solver("lorenz63", dt=0.01).spec).state_dict().values())
    with pytest.raises(SolverError, match=r"Not one step of online epoch 1 .*\(64 windows blew up\)"):
        Trainer(small(), tmp_path / "all", open_solver=fragile(2.0)).fit()
    with pytest.raises(BlowUpError):
        Trainer(small("training.on_blow_up=stop"), tmp_path / "stop", open_solver=fragile(0.2)).fit()


class Stopping(Fragile):
    """A solver whose process ends at its n-th hybrid rollout."""

    def __init__(self, solver, number):
        super().__init__(solver, 0.0)
        self.left = number

    def advance(self, u0, steps, *, correction=None, **options):
        self.left -= correction is not None
        if not self.left:
            raise SolverStopped("The solver ended its process with exit code 3.", code=3)
        return super().advance(u0, steps, correction=correction, **options)


def test_nothing_trained_is_lost_when_the_solver_stops(place, whole, tmp_path):
    def opener(name, **options):
        return Stopping(trimtab.open_solver(name, **options), 12)

    with pytest.raises(SolverStopped, match="exit code 3"):
        Trainer(small(), tmp_path, open_solver=opener).fit()
    saved = read_checkpoint(tmp_path / "last.pt")["progress"]
    assert saved["phase"] == "online" and saved["step"] > 0  # in the middle of an epoch, the stopped step not among them
    assert "exit code 3" in (tmp_path / "log.txt").read_text()
    assert Trainer(small(), tmp_path, resume=True).fit().status == "finished"
    ours, theirs = (read_checkpoint(folder / "last.pt")["correction"] for folder in (tmp_path, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_solver_that_stops_in_its_own_process(place, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(TESTS / "isolation")
    short = ("offline.steps=0", "training.epochs=2", "training.batch=8", "training.steps_per_epoch=2",
             "training.validate_windows=4", "reference.snapshots=30")
    opened = []

    def opener(name, **options):
        if options["beta"]:  # the truth
            return trimtab.open_solver(name, **options)
        opened.append(trimtab.open_isolated("sinking:Sinking", {"name": name, **options}, isolation="fork", verify=False))
        return opened[-1]

    result = Trainer(small(*short), tmp_path / "drop", open_solver=opener).fit()
    assert result.status == "finished" and 0 < result.dropped < 2 * 2 * 8 and result.skipped == 0
    assert "exit code 0" in (tmp_path / "drop" / "log.txt").read_text()
    with pytest.raises(SolverStopped, match="too far"):
        Trainer(small(*short, "training.on_blow_up=stop"), tmp_path / "stop", open_solver=opener).fit()
    assert (tmp_path / "stop" / "last.pt").exists()
    for solver in opened:
        solver.close()


def test_a_gradient_that_is_not_finite_is_never_stepped_on(place, tmp_path, monkeypatch):
    original, count = Online.loss, 0

    def sometimes(self, indices, epoch):
        nonlocal count
        count += 1
        loss, dropped = original(self, indices, epoch)
        return loss * (math.inf if count % 4 == 0 else 1.0), dropped

    monkeypatch.setattr(Online, "loss", sometimes)
    result = Trainer(small(), tmp_path).fit()
    assert result.skipped == 8 and math.isfinite(result.best_validation)


def test_early_stop_and_starts_that_are_not_warm(place, tmp_path):
    options = ("training.rate=1.0", "training.early_stop=2", "training.epochs=9", "training.curriculum=[]")
    result = Trainer(small(*options), tmp_path / "early").fit()
    assert result.status == "stopped early" and result.exit_code == 0
    assert int(rows_of(tmp_path / "early")[-1]["epoch"]) == result.best_epoch + 2
    Trainer(small("training.warm_start=false", "training.epochs=1", "offline.steps=20"), tmp_path / "cold").fit()
    Trainer(small("training.epochs=1", "offline.steps=20"), tmp_path / "warm").fit()
    cold, warm = (next(float(row["validation"]) for row in rows_of(tmp_path / name) if row["phase"] == "online")
                  for name in ("cold", "warm"))
    assert cold > 2 * warm


def test_start_from_the_weights_of_another_run(place, whole, tmp_path):
    """The first validation is the other run's best one; resumed, it goes on from its own last step."""
    start = f"training.start_from={str(whole / 'best.pt')!r}"
    Trainer(small(start, "offline.steps=0", "training.epochs=1", "training.curriculum=[]"), tmp_path / "on").fit()
    first, *_ = rows_of(tmp_path / "on")
    best = read_checkpoint(whole / "best.pt")["progress"]["best_validation"]
    assert first["phase"] == "online" and float(first["validation"]) == pytest.approx(best, rel=1e-7)
    refusals = {
        "set offline.steps = 0": small(start),
        "holds another network than the experiment's": small(start, "offline.steps=0", "network.width=9"),
        r"nothing\.pt": small("training.start_from=nothing.pt", "offline.steps=0"),
    }
    for number, (sentence, experiment) in enumerate(refusals.items()):
        with pytest.raises((ConfigError, CheckpointError), match=sentence):
            Trainer(experiment, tmp_path / str(number)).fit()


def test_sparse_targets_and_no_offline_phase(place, tmp_path):
    result = Trainer(small("reference.interval=0.02", "offline.steps=0", "training.optimiser=sgd"), tmp_path).fit()
    assert result.status == "finished"
    assert not (tmp_path / "offline.pt").exists()
    assert {row["phase"] for row in rows_of(tmp_path)} == {"online"}


def phases(place, solver, *overrides):
    experiment = small(*overrides)
    path = reference_path(small(), solver.spec)
    targets = Targets(path, solver.spec, experiment.reference, 0.01)
    correction = trimtab.Correction(trimtab.networks.MLP(), solver.spec)
    offline = Offline(experiment.offline, experiment.training, solver, correction, targets)
    return offline, Online(experiment.training, solver, correction, targets)


def test_order_of_windows(whole, place, open_solver):
    offline, online = phases(place, open_solver("lorenz63"))
    for phase in (offline, online):
        assert len(phase.order(0)) == phase.steps(0) * phase.batch
        np.testing.assert_array_equal(phase.order(1), phase.order(1))
        assert not np.array_equal(phase.order(0), phase.order(1))
    assert not np.array_equal(offline.order(0)[:9], online.order(0)[:9])
    assert len(set(offline.order(0)[: offline.size(0)])) == offline.size(0)
    _, every = phases(place, open_solver("lorenz63"), "training.steps_per_epoch=0")
    assert every.steps(2) == -(-every.size(2) // 8) and set(every.order(2)) == set(range(every.size(2)))
    _, other = phases(place, open_solver("lorenz63"), "training.seed=1")
    assert not np.array_equal(online.order(0), other.order(0))


def test_rates(whole, place, open_solver):
    _, online = phases(place, open_solver("lorenz63"), "training.rate=1.0", "training.rate_end=0.2")
    assert online.rate(0, 0) == 1 and online.rate(2, 0) == pytest.approx(0.6)
    assert 0.2 < online.rate(3, 7) < 0.22
    _, drops = phases(place, open_solver("lorenz63"), "training.rate=1.0", "training.rate_drop_every=2")
    assert [drops.rate(epoch, 5) for epoch in range(4)] == pytest.approx([1, 1, 0.1, 0.1])
    assert cosine(1.0, 0.0, 1.0) == 0


def test_labels_are_what_the_solver_misses(whole, place, open_solver):
    """With a step that resolves everything, the label of Lorenz 63 without its damping is that damping."""
    solver = open_solver("lorenz63")
    offline, _ = phases(place, solver)
    states, labels = offline.labels.get(np.arange(0, offline.size(0), 3))
    expected = -8 / 3 * states[:, 2]
    np.testing.assert_allclose(labels[:, 2], expected, atol=0.1 * np.abs(expected).max())
    assert np.abs(labels[:, 0]).max() < 0.02 * np.abs(expected).max()
    offline.labels.keep, offline.labels._all = False, None
    np.testing.assert_array_equal(offline.labels.get(np.arange(0, offline.size(0), 3))[1], labels)


PLANE = """
[solver]
name = "qg"
n = 16
dt = 0.02
viscosity = 1e-3
drag = 0.1
forcing_amplitude = 4.0
forcing_wavenumber = 4
[network]
name = "PeriodicCNN"
channels = [2, 6, 1]
[correction]
features = ["q", "psi"]
[reference]
solver = { n = 32, dt = 0.01 }
spin_up = 4.0
snapshots = 200
filter = "gaussian"
training_runs = 4
validation_runs = 1
test_runs = 0
[offline]
steps = 60
batch = 16
rate = 5e-3
[training]
window = 3
batch = 8
epochs = 2
steps_per_epoch = 10
"""


def test_a_plane_learns_its_closure_and_resumes(place, tmp_path, monkeypatch):
    experiment = parse_experiment(PLANE, "test")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = Trainer(experiment, whole).fit()
    rows = rows_of(whole)
    assert rows[0]["phase"] == "offline" and float(rows[0]["validation"]) == pytest.approx(1, abs=0.3)
    assert min(float(row["validation"]) for row in rows if row["phase"] == "offline") < 0.85
    assert result.best_epoch > 0
    original, calls = Trainer._step, 0

    def killing(self, phase, indices):
        nonlocal calls
        calls += 1
        if calls in (50, 75):
            raise Killed
        original(self, phase, indices)

    monkeypatch.setattr(Trainer, "_step", killing)
    for _ in range(2):
        with pytest.raises(Killed):
            Trainer(experiment, killed, resume=True).fit()
    Trainer(experiment, killed, resume=True).fit()
    assert_same_run(killed, whole)


def test_a_loop_of_ones_own(whole, place, open_solver):
    """The parts without the trainer: targets, rollout, loss, and any optimiser of torch."""
    solver = open_solver("lorenz63")
    targets = Targets(reference_path(small(), solver.spec), solver.spec, small().reference, 0.01)
    windows = targets.windows("training", 4)
    torch.manual_seed(0)
    correction = trimtab.Correction(trimtab.networks.MLP(), solver.spec, input_scale=15.0, output_scale=50.0)
    optimiser = torch.optim.Adam(correction.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        truth = torch.from_numpy(windows.batch(np.random.default_rng(0).integers(len(windows), size=16), range(5)))
        states = trimtab.rollout(solver, correction, truth[0], steps=4)
        loss = mean_square(states, truth[1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_mean_square_leaves_out_what_blew_up():
    states = torch.arange(24.0, dtype=torch.float64).reshape(4, 3, 2).requires_grad_()
    truth = torch.zeros(3, 3, 2, dtype=torch.float64)
    assert mean_square(states, truth).item() == states[1:].square().mean().item()
    assert mean_square(states, truth[:2], [1, 3]).item() == states[[1, 3]].square().mean().item()
    broken = states.detach().clone()
    broken[2:, 1] = torch.nan
    broken.requires_grad_()
    assert alive(broken).tolist() == [True, False, True]
    loss = mean_square(broken, truth)
    assert loss.item() == states[1:, [0, 2]].square().mean().item()
    loss.backward()
    assert torch.isfinite(broken.grad).all() and not broken.grad[:, 1].any()
    assert torch.isnan(mean_square(torch.full_like(broken, torch.nan), truth))
    with pytest.raises(InputError, match="targets have shape"):
        mean_square(states, truth[:2])


def test_the_trainer_takes_names_and_has_a_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Trainer("lorenz63").folder == Path("runs/lorenz63")
