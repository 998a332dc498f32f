# SPDX-License-Identifier: MIT
"""Files that were edited after a training: named wherever the run is used, refused where a training would go on with them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from helpers.coupled import build
from helpers.experiments import refusal
from trimtab.__main__ import main
from trimtab.config.experiment import load_experiment, parse_experiment
from trimtab.config.input_files import changed_files, file_digests, input_digests, named_files
from trimtab.training.checkpoint import read_checkpoint, save_checkpoint

SMALL = ["--set", "training.epochs=1", "training.steps_per_epoch=2", "training.window=2", "training.batch=2", "offline.steps=0",
         "training.validate_windows=2", "reference.snapshots=12", "reference.training_runs=2", "reference.validation_runs=1",
         "reference.test_runs=1", "reference.spin_up=0.0", "reference.perturbation=0.01", "score.leads=[2]", "score.starts=1",
         "score.long_steps=5", "reference.solver={decay=0.1}", "parallel.timeout=60.0"]
EDITED = "&control dt=0.005 kappa=2e-3 /\n"
BEFORE = "&control dt=0.005 /\n"


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coupled code with a trained and scored run."""
    folder = build(tmp_path_factory.mktemp("files") / "spin")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["train", "spin.toml", "--out", "run", *SMALL]) == 0
        assert main(["score", "run"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def place(ring, tmp_path, monkeypatch) -> Path:
    """A copy of its folder, in another place, as the current one."""
    folder = tmp_path / "moved"
    shutil.copytree(ring, folder)
    monkeypatch.chdir(folder)
    return folder


def said(capsys, caplog, *arguments: str) -> tuple[str, str]:
    """What a command that succeeds prints, and what it warns of."""
    capsys.readouterr()
    caplog.clear()
    assert main(arguments) == 0
    return capsys.readouterr().out, " ".join(one.getMessage() for one in caplog.records if one.levelname == "WARNING")


def test_an_untouched_run_works_in_another_place_without_a_word(place, capsys, caplog):
    out, warned = said(capsys, caplog, "score", "run")
    assert "As stored, nothing was computed; --again computes anew." in out and not warned
    assert "other files" not in said(capsys, caplog, "run", "run", "--steps", "2", "--out", "x.nc")[1]
    assert main(["train", "run/experiment.toml", "--out", "run", "--resume"]) == 0
    files = read_checkpoint("run/best.pt")["files"]
    assert files["solver"] == file_digests(["./libspin.so", "spin.nml"]) and len(files["solver"]["spin.nml"]) == 64


def test_an_edited_namelist_is_named_and_scores_are_computed_anew(place, capsys, caplog):
    before = Path("run/scores.csv").read_text()
    Path("spin.nml").write_text(EDITED)
    for command in (("run", "run", "--steps", "2", "--out", "x.nc"), ("score", "run"), ("report", "run"),
                    ("ensemble", "run", "--members", "2", "--steps", "2", "--out", "e.nc"),
                    ("gradcheck", "run", "--windows", "2", "--directions", "1", "--gradients", "static")):
        out, warned = said(capsys, caplog, *command)
        assert warned.count("run was trained with other files: spin.nml changed since, and") == 1, (command, warned)
        assert "As stored" not in out
    assert Path("run/scores.csv").read_text() != before
    out, warned = said(capsys, caplog, "score", "run")  # of the files as they are
    assert "As stored" in out and "spin.nml changed since" in warned
    Path("spin.nml").write_text(BEFORE)
    out, warned = said(capsys, caplog, "score", "run")
    assert "As stored" not in out and not warned and Path("run/scores.csv").read_text() == before


def test_a_training_does_not_go_on_with_other_files(place, capsys):
    weights = read_checkpoint("run/last.pt")["correction"]
    again = ("train", "run/experiment.toml", "--out", "run", "--resume", "--set", "training.epochs=2")
    Path("spin.nml").write_text(EDITED)
    assert "spin.nml changed since, and going on would mix two solvers" in refusal(capsys, *again)
    Path("spin.nml").unlink()
    assert "spin.nml (missing) changed since" in refusal(capsys, *again)
    kept = read_checkpoint("run/last.pt")["correction"]
    assert all(torch.equal(kept[name], weights[name]) for name in weights)
    Path("spin.nml").write_text(BEFORE)
    assert main(again) == 0


def test_another_library_is_named(place, capsys, caplog):
    Path("spin.f90").write_text(Path("spin.f90").read_text().replace("kappa = 1e-3", "kappa = 2e-3"))
    subprocess.run(["make"], cwd=place, check=True, capture_output=True)
    assert "./libspin.so changed since" in said(capsys, caplog, "report", "run")[1]


def test_a_run_of_an_earlier_trimtab_is_not_judged(place, capsys, caplog):
    for path in Path("run").glob("*.pt"):
        content = read_checkpoint(path)
        del content["files"]
        save_checkpoint(path, content)
    Path("spin.nml").write_text(EDITED)
    assert not said(capsys, caplog, "report", "run")[1]


def test_the_files_of_weight_truth_and_folders_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input" / "deep").mkdir(parents=True)
    for name in ("lib.so", "stdin", "input/a", "input/deep/b", "w.npz", "truth.so", "r.nc"):
        Path(name).write_text(name)
    experiment = parse_experiment(
        '[solver]\nname = "x"\nlibrary = "lib.so"\nfiles = ["input"]\nstdin = "stdin"\nweight = { components = "w.npz" }\n'
        '[reference]\nfile = "r.nc"\nsolver = { library = "truth.so" }\n', "test")
    assert named_files(experiment) == {"solver": ["lib.so", "input", "stdin"], "truth": ["truth.so"], "reference": ["r.nc"],
                                       "weight": ["w.npz"]}
    before = input_digests(experiment)
    assert list(before["solver"]) == ["lib.so", "input/a", "input/deep/b", "stdin"]
    for name in ("input/deep/b", "w.npz", "r.nc"):
        Path(name).write_text("other")
    Path("input/a").unlink()
    Path("input/c").write_text("c")
    now = input_digests(experiment)
    assert changed_files(before, now) == ["input/a (missing)", "input/c (new)", "input/deep/b", "r.nc", "w.npz"]
    assert changed_files(before, now, ["weight"]) == ["w.npz"] and changed_files(before, before) == []
    assert file_digests([""]) == {} and input_digests(load_experiment("lorenz63")) == {}
