# SPDX-License-Identifier: MIT
"""Commands that trimtab says to type next are accepted as they stand there; a refusal is said once, by one rank."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from helpers.blocks import needs_mpi
from helpers.jobs import mpirun
from trimtab.__main__ import _parser, main
from trimtab.cli.commands import train
from trimtab.cli.terminal import print_scores
from trimtab.config.experiment import load_experiment
from trimtab.coupling.finding import Finding
from trimtab.coupling.next_command import next_step
from trimtab.coupling.settings import is_chosen
from trimtab.coupling.templates import ADAPTER
from trimtab.evaluation.table import Column, ScoreTable
from trimtab.parallel.launcher import launch_words
from trimtab.parallel.world import World

LAID_DOWN = ADAPTER.joinpath("NAME.toml").read_text().replace("NAME", "sea").replace("solver = {}  ", "solver = {drag = 2.0}")
CHOSEN = re.sub(r"^window = 5 (.*): 5$", r"window = 9 \1: 9", LAID_DOWN, flags=re.MULTILINE)
TINY = """
[solver]
name = "lorenz63"
dt = 0.01
beta = 0.0
[network]
name = "MLP"
sizes = [3, 4, 3]
[reference]
solver = { name = "lorenz63", dt = 0.01 }
initial = [8.0, 0.0, 30.0]
[parallel]
domain = 2
"""


def divided(text: str, domain: int, members: int = 1) -> str:
    return f"{text}\n[parallel]\ndomain = {domain}\nmembers = {members}\n"


def assert_accepted(command: str, path: Path) -> argparse.Namespace:
    """The command line can be read, and its ranks can be grouped as the experiment wants it."""
    found = re.fullmatch(r"(?:mpirun -n (\d+) )?trimtab (.*)", command.strip())
    assert found, command
    options, world = _parser().parse_args(shlex.split(found[2])), World()
    world.size = int(found[1] or 1)
    if options.command_name == "train":
        parallel = load_experiment(path, options.set).parallel
        world.place(parallel.domain, parallel.members)
    return options


@pytest.fixture
def sea(tmp_path, monkeypatch):
    """A TOML, and a library that says it is linked with MPI."""
    (tmp_path / "libsea.so").write_bytes(b"\0libmpi.so.40\0")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "sea.toml"


@pytest.mark.parametrize(("domain", "members", "ranks", "expected"), [
    (2, 1, 2, "mpirun -n 2 trimtab train sea.toml --out run"), (2, 1, 3, "mpirun -n 2 trimtab train sea.toml --out run"),
    (2, 1, 4, "mpirun -n 4 trimtab train sea.toml --out run"), (2, 2, 2, "mpirun -n 4 trimtab train sea.toml --out run"),
    (1, 1, 3, "mpirun -n 3 trimtab train sea.toml --set parallel.domain=3 --out run"),
])
def test_the_doctor_ends_with_a_training_that_its_ranks_can_do(sea, domain, members, ranks, expected):
    sea.write_text(divided(CHOSEN, domain, members))
    command = next_step(".", [], ranks).partition("\n")[2].strip()
    assert command == expected
    assert_accepted(command, sea)


def test_an_mpi_code_is_led_from_one_rank_to_several_and_to_its_training(sea):
    sea.write_text(divided(LAID_DOWN, 2))
    said = next_step(".", [], 2)
    assert "on one rank" in said and said.endswith("\n  trimtab couple check .")
    sea.write_text(divided(CHOSEN, 2))
    assert next_step(".", []).endswith("\n  mpirun -n 2 trimtab couple check .")
    sea.write_text(CHOSEN)
    assert next_step(".", []).endswith("\n  mpirun -n 2 trimtab couple check .")
    assert next_step(".", [Finding("restart", "bad", "")], 2).endswith("\n  mpirun -n 2 trimtab couple check .")
    (sea.parent / "libsea.so").write_bytes(b"\0libm.so.6\0")
    assert next_step(".", []).endswith("\n  trimtab train sea.toml --out run")


def test_what_was_laid_down_nobody_chose():
    author = "[training]\nwindow = 3\n"
    assert not is_chosen(LAID_DOWN) and is_chosen(CHOSEN) and is_chosen(author) and not is_chosen("[training]\nstride = 1\n")
    assert is_chosen("[ training ]\nwindow = 3\n")


@pytest.mark.parametrize(("domain", "members", "ranks", "expected"), [
    (1, 1, 0, ""), (1, 1, 1, ""), (1, 1, 4, "mpirun -n 4 "), (2, 1, 0, "mpirun -n 2 "), (2, 2, 6, "mpirun -n 4 "),
])
def test_the_launcher_stands_where_ranks_are_needed(domain, members, ranks, expected):
    assert launch_words(domain, members, ranks) == expected


def test_a_training_goes_on_with_what_can_be_pasted(tmp_path):
    path = tmp_path / "a sea.toml"
    path.write_text(divided(CHOSEN, 2))
    change = "score.leads=[1, 5]"
    options = _parser().parse_args(["train", str(path), "--out", "a run", "--set", change])
    options.launcher = launch_words(2, 1, 4)
    again = assert_accepted(train.hint(options).partition("go on with: ")[2], path)
    assert train.hint(options).startswith("go on with: mpirun -n 4 trimtab train ")
    assert (again.experiment, again.out, again.set, again.resume) == (str(path), "a run", [change], "auto")


def test_an_interrupted_training_of_a_divided_code_names_its_launcher(tmp_path, monkeypatch, capsys):
    """From the command line, as a job of two ranks ends it."""
    (tmp_path / "x.toml").write_text(TINY)
    monkeypatch.chdir(tmp_path)

    class Two(World):
        size = 2

    def interrupt(*positional, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("trimtab.parallel.mpi.get_world", Two)
    monkeypatch.setattr("trimtab.training.trainer.Trainer", interrupt)
    assert main(["train", "x.toml", "--out", "run"]) == 130
    assert "go on with: mpirun -n 2 trimtab train x.toml --out run --resume" in capsys.readouterr().err


def test_plain_scores_mark_the_best_with_a_star(capsys):
    columns = (Column("rmse_5", "RMSE, lead 5", "1", "low", "Error."), Column("rmse_9", "RMSE, lead 9", "1", "low", "Error."))
    rows = {"none": {"rmse_5": np.array([2.0]), "rmse_9": np.array([3.0])},
            "online": {"rmse_5": np.array([1.0]), "rmse_9": np.array([3.0])}}
    print_scores(ScoreTable("toy", columns, rows))
    said = capsys.readouterr().out
    assert "* 1.00" in said and said.count("*") == 2 and "; *: the best closure." in said and "bold" not in said
    print_scores(ScoreTable("toy", columns[1:], rows))
    assert "best" not in capsys.readouterr().out


def test_a_start_of_its_own_is_refused_where_there_is_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("x.toml").write_text(TINY)
    assert main(["run", "x.toml", "--solver-only", "--steps", "2", "--start", "own", "--out", "x.nc"]) == 2
    assert "--start own: lorenz63 has no start of its own" in capsys.readouterr().err and not Path("x.nc").exists()


@needs_mpi
@pytest.mark.parametrize("arguments", [["train", "x.toml"], ["couple", "check", "."]])
def test_a_refusal_is_said_once(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x.toml", "y.toml"):
        Path(name).write_text(TINY)
    code, output = mpirun(3, "-m", "trimtab", *arguments)
    assert code == 2 and len(re.findall(r"^trimtab: ", output, re.MULTILINE)) == 1, output
    assert "Terminated" not in output and "go on with" not in output and "(rank" not in output, output


@needs_mpi
def test_a_rank_that_another_one_ends_says_nothing(tmp_path, monkeypatch):
    """One rank fails while the others are at work, rank 0 too; a rank that a user ends by itself says so."""
    monkeypatch.chdir(tmp_path)
    Path("job.py").write_text(
        "import os, signal, sys, time\nfrom trimtab import __main__\nfrom trimtab.core.errors import SolverError\n"
        "from trimtab.parallel.mpi import get_world\nfrom trimtab.cli.commands import train\n"
        "def run(options):\n    world = get_world()\n    world.wait()\n    if world.rank == 1:\n"
        "        if options.experiment == 'killed':\n            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        raise SolverError('the pump is broken.')\n    time.sleep(30)\n"
        "train.run = run\nsys.exit(__main__.main(['train', sys.argv[1]]))\n")
    code, output = mpirun(3, "job.py", "broken")
    assert code == 1 and output.count("trimtab: the pump is broken. (rank 1)") == 1 and "Terminated" not in output, output
    code, output = mpirun(3, "job.py", "killed")
    assert code == 143 and output.count("Terminated; go on with: mpirun -n 3 trimtab train killed --resume (rank 1)") == 1, output
    assert output.count("Terminated") == 1, output
