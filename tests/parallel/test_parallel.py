# SPDX-License-Identifier: MIT
"""MPI: any number of ranks gives the same bits; whatever happens to a rank, the job ends by itself and can go on."""

from __future__ import annotations

import math
import os
import resource
import shutil
import subprocess
import sys
import time

import pytest
import torch

from helpers import TESTS
from helpers.jobs import LIMIT, mpirun
from helpers.training import NETWORK, TEXT, assert_same_run
from trimtab.__main__ import main
from trimtab.config.experiment import dump_experiment, load_experiment, parse_experiment
from trimtab.core.errors import ConfigError, OutputError
from trimtab.gradient import EnsembleEGA, StaticEGA
from trimtab.parallel.launcher import launched
from trimtab.parallel.mpi import get_world
from trimtab.parallel.subgroup import Cohort
from trimtab.parallel.world import World
from trimtab.training.checkpoint import read_checkpoint
from trimtab.training.microbatches import Crew
from trimtab.training.online import Online
from trimtab.training.trainer import Trainer

SCRIPTS = TESTS / "parallel"
sys.path.insert(0, str(SCRIPTS))

from ranks import PARTS, sums  # noqa: E402
from train import open_solver  # noqa: E402

CUT = ("training.microbatch=2", "offline.microbatch=4", "score.leads=[1,2]", "score.long_steps=20", "score.starts=1")
RING = """
[solver]
name = "ring"
dt = 0.01
[network]
name = "PeriodicCNN"
channels = [1, 4, 1]
kernel = 1
[correction]
dtype = "float64"
input_mean = [0.0]
input_scale = [1.0]
output_scale = [1.0]
[reference]
solver = { damping = -0.5 }
initial = [1.0]
perturbation = 0.5
snapshots = 60
training_runs = 2
test_runs = 1
[training]
window = 4
batch = 8
microbatch = 2
epochs = 2
steps_per_epoch = 6
rate = 0.01
[parallel]
timeout = 60
"""


class Pair(Cohort):
    """Two ranks, of which this is one."""

    def __init__(self):
        super().__init__()
        self.size = 2


class _NaNGradient(torch.autograd.Function):
    """The identity, whose derivative is NaN."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the network's module, on the path of all ranks, a cache to share, and the experiments."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "restless.py").write_text(NETWORK)
    (folder / "small.toml").write_text(dump_experiment(parse_experiment(TEXT, "test", CUT)))
    (folder / "ring.toml").write_text(RING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="module")
def whole(place):
    """The training on one rank, without MPI."""
    result = Trainer(place / "small.toml", place / "whole", open_solver=open_solver).fit()
    assert result.dropped > 10
    return place / "whole"


def train(place, ranks, folder, what="nothing", rank=0, step=0, *changes, file="small.toml"):
    return mpirun(ranks, SCRIPTS / "train.py", what, rank, step, folder, place / file, *changes)


def test_alone_nothing_of_mpi_is_started():
    script = ("import sys; from trimtab.parallel.mpi import get_world; import trimtab.training.trainer; w = get_world(); "
              "assert w.size == 1 and not any(one.startswith('mpi4py') for one in sys.modules)")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMPI", "PMI", "SLURM"))}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=LIMIT, env=environment)


def test_launchers_are_recognised(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("OMPI", "PMI", "SLURM", "MV2", "TRIMTAB_MPI")):
            monkeypatch.delenv(name)
    assert launched() == (0, 0)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert launched() == (0, 0)  # a batch script is no step of srun
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert launched() == (8, 3)
    monkeypatch.setenv("TRIMTAB_MPI", "0")
    assert launched() == (0, 0)
    monkeypatch.setenv("TRIMTAB_MPI", "yes")
    with pytest.raises(ConfigError, match="TRIMTAB_MPI"):
        launched()


def test_what_one_rank_does_is_done_once(monkeypatch, capsys):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "1")
    assert main(["experiments"]) == 0 and capsys.readouterr().out == ""
    monkeypatch.setenv("PMI_RANK", "0")
    assert main(["experiments"]) == 0 and "lorenz63" in capsys.readouterr().out


@pytest.mark.parametrize("hide, sentence", [
    ("", "finds 1: two MPI libraries are mixed"), ("sys.modules['mpi4py'] = None; ", "mpi4py cannot be used")])
def test_a_launcher_of_another_library_and_a_missing_package(hide, sentence):
    script = f"import sys; {hide}from trimtab.__main__ import main; sys.exit(main(['train', 'lorenz63']))"
    environment = {**os.environ, "PMI_SIZE": "4", "PMI_RANK": "0", "OMPI_MCA_ess": "singleton"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 2 and sentence in done.stderr and "started 4 processes" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_sum_does_not_depend_on_who_holds_what():
    code, output = mpirun(3, SCRIPTS / "ranks.py")
    assert code == 0, output
    assert sums(World(), [0] * PARTS) in output.split()
    code, output = mpirun(2, SCRIPTS / "ranks.py")
    assert code == 0, output


def test_ranks_that_share_the_members_of_an_ensemble_find_the_bits_of_one():
    code, output = mpirun(3, SCRIPTS / "members.py")
    assert code == 0 and "the same bits" in output, output


def test_a_training_whose_members_are_shared_ends_with_the_same_bits(place, tmp_path):
    """Windows x members: one rank alone; 4 ranks, two of which share the members of one microbatch, two those of the other."""
    changes = ("training.gradient=ensemble", "training.gradient_options={group=1}", "training.epochs=1", "offline.steps=4",
               "training.steps_per_epoch=3")
    Trainer(load_experiment(place / "small.toml", changes), tmp_path / "one").fit()
    code, output = train(place, 4, tmp_path / "four", "whole", 0, 0, *changes, "parallel.members=2")
    assert code == 0, output
    one, four = (read_checkpoint(tmp_path / name / "last.pt") for name in ("one", "four"))
    for key, value in one["correction"].items():
        assert torch.equal(value, four["correction"][key]), key
    assert one["progress"]["best_validation"] == four["progress"]["best_validation"]
    lines = (tmp_path / "four" / "metrics.csv").read_text().splitlines()
    assert float(dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))["wait"]) > 0
    with pytest.raises(ConfigError, match=r"parallel.members = 2 does not divide the 1 ranks"):
        Trainer(load_experiment(place / "small.toml", ("parallel.members=2",)), tmp_path / "none")
    with pytest.raises(ConfigError, match=r"shares the members of an ensemble, and the gradient 'static' has none"):
        StaticEGA().join(Pair())
    with pytest.raises(ConfigError, match=r"given as an mpi4py communicator, not 3"):
        EnsembleEGA(comm=3)


def test_any_number_of_ranks_gives_the_same_bits_also_when_it_changes(place, whole, tmp_path):
    """4 ranks, of which the last is asked to stop; then 2, of which the first is; then 1."""
    for ranks, what, rank, step, code in ((4, "SIGUSR1", 3, 30, 143), (2, "SIGTERM", 0, 25, 143), (1, "nothing", 0, 0, 0)):
        found, output = train(place, ranks, tmp_path / "run", what, rank, step)
        assert found == code, output
    assert_same_run(tmp_path / "run", whole)
    assert "terminated at offline" in (tmp_path / "run" / "log.txt").read_text()


def test_the_command_trains_and_scores_on_two_ranks(place, tmp_path):
    code, output = mpirun(2, "-m", "trimtab", "train", place / "small.toml", "--out", tmp_path / "two", "--resume", "auto")
    assert code == 0, output
    assert output.count("small: 2 ranks on 1 host") == 1 and output.count("Run folder") == 1
    assert (tmp_path / "two" / "report.html").is_file()
    Trainer(place / "small.toml", tmp_path / "one").fit()
    assert_same_run(tmp_path / "two", tmp_path / "one")
    code, output = mpirun(2, "-m", "trimtab", "train", place / "small.toml", "--out", tmp_path / "two")
    words = [line for line in output.splitlines() if not line.startswith("small: ")]  # of standard output, before or after
    assert code == 2 and words[0].startswith("trimtab: ") and "holds a training already" in words[0], output


@pytest.mark.parametrize("what, code, sentence", [
    ("raise", 1, "trimtab: rank 1 failed:"), ("SIGKILL", 137, "rank 1 with PID"), ("SIGSTOP", 1, "for rank 1, which hangs"),
    ("loop", 1, "trimtab: rank 1 gives no sign of life")])
def test_a_rank_that_fails_ends_the_job(what, code, sentence, place, whole, tmp_path):
    found, output = train(place, 2, tmp_path / "run", what, 1, 30, "parallel.timeout=6")
    assert found == code and sentence in output, output
    words = [line for line in output.splitlines() if line.strip("- ")]
    assert words[0].startswith("trimtab: ") or what == "SIGKILL"
    assert ("ZeroDivisionError: made by the test" in output) == (what == "raise")
    assert ("in meddled" in output) == (what in ("raise", "loop"))  # where it was
    at = read_checkpoint(tmp_path / "run" / "last.pt")["progress"]
    assert (at["phase"], at["epoch"], at["step"]) == ("offline", 1, 9)  # step 28 of 40, the last multiple of 3 before step 30
    if what == "SIGKILL":
        Trainer(place / "small.toml", tmp_path / "run", open_solver=open_solver, resume=True).fit()
        assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("what, ranks, first, doing", [
    ("reference", "1", "which gives no sign of life at the reference run", "the reference run"),
    ("reference", "0+1", "trimtab: rank 0 gives no sign of life for", "the reference run"),
    ("validation", "0", "for rank 0, which hangs or is slow at validation, online", "validation, online"),
    ("scoring", "0", "for rank 0, which gives no sign of life at the scores of rank 0", ""),
    ("ensemble", "1", "for rank 1, which gives no sign of life at the ensemble", "the ensemble"),
])
def test_a_hang_outside_of_the_steps_ends_the_job(what, ranks, first, doing, place, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    changes = ("parallel.timeout=4", "training.epochs=1", "training.steps_per_epoch=2", "offline.steps=0")
    (place / "hasty.toml").write_text(dump_experiment(parse_experiment(TEXT, "test", (*CUT, *changes))))
    began = time.monotonic()
    code, output = train(place, 2, tmp_path / "run", f"loop in {what}", ranks, 0, "score.starts=1", file="hasty.toml")
    assert code == 1 and first in output, output
    assert ("in endless" in output) == bool(doing), output  # where it is, said by a rank that still can
    assert time.monotonic() - began < 120
    if what == "scoring":
        assert read_checkpoint(tmp_path / "run" / "best.pt")["progress"]["best_epoch"] >= 0


def test_a_blow_up_that_is_to_stop_ends_the_job(place, whole, tmp_path):
    code, output = train(place, 2, tmp_path / "run", "nothing", 0, 0, "training.on_blow_up=stop", "offline.steps=0")
    assert code == 1 and "BlowUpError: It blew up." in output, output


def test_solvers_on_several_ranks_agree_with_one(place, tmp_path):
    for ranks, name, domain in ((1, "one", 1), (4, "four", 2)):
        code, output = train(place, ranks, tmp_path / name, "nothing", 0, 0, f"parallel.domain={domain}", file="ring.toml")
        assert code == 0, output
    one, four = (read_checkpoint(tmp_path / name / "last.pt") for name in ("one", "four"))
    fresh = read_checkpoint(tmp_path / "one" / "best.pt")["history"]
    assert fresh == [] and one["state"] == four["state"]
    for key, value in one["correction"].items():
        torch.testing.assert_close(value, four["correction"][key], rtol=1e-10, atol=1e-14)
    assert one["progress"]["best_validation"] == pytest.approx(four["progress"]["best_validation"], rel=1e-10)
    validation = [row[6] for row in one["history"]]
    assert validation[-1] < 0.9 * validation[0]


def test_an_ensemble_of_solvers_on_several_ranks_agrees_with_one(place, tmp_path):
    """Windows x members x domain: 4 ranks share out what one does alone; in K x K products the blocks count, too."""
    changes = ("training.gradient=ensemble", "training.gradient_options={members=6,group=2}", "training.epochs=1",
               "training.steps_per_epoch=3")
    Trainer(load_experiment(place / "ring.toml", changes), tmp_path / "one", open_solver=open_solver).fit()
    code, output = train(place, 4, tmp_path / "four", "nothing", 0, 0, *changes, "parallel.domain=2", "parallel.members=2",
                         file="ring.toml")
    assert code == 0, output
    one, four = (read_checkpoint(tmp_path / name / "last.pt") for name in ("one", "four"))
    for key, value in one["correction"].items():
        torch.testing.assert_close(value, four["correction"][key], rtol=1e-9, atol=1e-13)


def test_a_full_disk_gets_one_sentence_and_leaves_the_checkpoint(place, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    before = (tmp_path / "run" / "last.pt").read_bytes()
    script = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); "
              "from trimtab.__main__ import main; sys.exit(main(sys.argv[2:]))")
    done = subprocess.run([sys.executable, "-c", script, str(len(before) - 1), "train", str(place / "small.toml"), "--out",
                           str(tmp_path / "run"), "--set", "training.epochs=6", "--resume"],
                          capture_output=True, text=True, timeout=LIMIT)
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("trimtab: ")]
    assert done.returncode == 1 and "last.pt cannot be written (File too large)" in sentence and "Traceback" not in done.stderr
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_folder_that_cannot_be_made(place, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Trainer(place / "small.toml", tmp_path / "file" / "run").fit()


@pytest.mark.parametrize("spoil, skipped", [(lambda loss: loss * math.inf, 16), (_NaNGradient.apply, 16)])
def test_one_microbatch_that_is_not_finite_spoils_its_step_alone(spoil, skipped, place, tmp_path, monkeypatch):
    original, count = Online.loss, 0

    def sometimes(self, indices, epoch):
        nonlocal count
        count += 1
        loss, dropped = original(self, indices, epoch)
        return (spoil(loss) if count % 8 == 3 else loss), dropped

    monkeypatch.setattr(Online, "loss", sometimes)
    result = Trainer(place / "small.toml", tmp_path).fit()
    assert result.skipped == skipped and math.isfinite(result.best_validation)


def test_work_goes_to_those_who_are_fast():
    """Microbatches by pace, in stretches; the sum does not see it."""

    class Four(World):
        size = teams = 4

    crew = Crew(Four(), torch.nn.Linear(1, 1), seed=0)
    assert crew._hand_out(8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert crew._hand_out(2).tolist() == [0, 1]
    for _ in range(30):
        teams = crew._hand_out(12)
        counts = [teams.tolist().count(team) for team in range(4)]
        crew._learn_pace(torch.tensor(counts).numpy() * [1.0, 1.0, 3.0, 1.0], teams)
    assert counts == [4, 4, 1, 3] and teams.tolist() == sorted(teams)


def test_the_time_of_each_part_is_kept(whole):
    lines = (whole / "metrics.csv").read_text().splitlines()
    last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    parts = [float(last[name]) for name in ("solver", "network", "backward", "exchange", "wait")]
    assert min(parts[:3]) > 0 and parts[4] == float(last["idle"]) == 0 and sum(parts) <= float(last["seconds"])


def test_the_world_of_one_rank_waits_for_nobody():
    began = time.monotonic()
    world = get_world()
    world.wait()
    assert world.broadcast("a") == "a" and world.share(1) == [1] and world.place(1) is world and world.placement() == "1 rank"
    with pytest.raises(ConfigError, match=r"parallel.domain = 2 does not divide the 1 ranks"):
        world.place(2)
    assert time.monotonic() - began < 1
