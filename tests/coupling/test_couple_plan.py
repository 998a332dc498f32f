# SPDX-License-Identifier: MIT
"""A first training's settings: how they are chosen, how they come into a TOML, and what is typed next."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.config.experiment import load_experiment, parse_experiment
from trimtab.coupling.finding import Finding
from trimtab.coupling.next_command import next_step
from trimtab.coupling.plan import A_TRAINING, BATCHES, EPOCHS, STEPS, WINDOW, Measured, choose, choose_window
from trimtab.coupling.settings import is_free, overrides, write_settings
from trimtab.coupling.templates import ADAPTER

CODE = Measured(dt=20.0, step=1e-4, sweep=2e-4, fit=1e-3, bears=40, loud=2, reached=0.99, norm=1.234e-5, weights=200, size=300,
                runs=6, spin_up=2000.0)


@pytest.mark.parametrize("changes, window", [
    ({}, WINDOW),
    ({"bears": 5}, 5),
    ({"bears": 1}, 1),
    ({"loud": 32}, 32),               # the difference drowns in rounding before
    ({"loud": 32, "bears": 20}, 20),  # and longer windows are not borne
    ({"sparse": 6}, 12),
    ({"sparse": 6, "bears": 4}, 6),   # no shorter window meets a target
])
def test_a_window_is_borne_and_loud(changes, window):
    assert choose_window(replace(CODE, **changes)) == window


@pytest.mark.parametrize("slower", [0.01, 1.0, 10.0, 100.0])
def test_a_training_takes_what_it_may_or_the_least_that_learns(slower):
    measured = replace(CODE, step=slower * CODE.step, sweep=slower * CODE.sweep, spin_up=200.0)
    plan = choose(measured)
    training = plan.settings["training"]
    steps = training["epochs"] * training["steps_per_epoch"]
    assert training["epochs"] == EPOCHS and steps in STEPS
    assert plan.reference + plan.training < A_TRAINING or (training["batch"], steps) == (BATCHES[-1], STEPS[-1])
    assert plan.training >= training["batch"] * steps * training["window"] * measured.sweep
    text = ADAPTER.joinpath("NAME.toml").read_text().replace("NAME", "sea")
    experiment = parse_experiment(text, "sea.toml", overrides(text, plan.settings))
    assert experiment.training.batch == training["batch"] and experiment.reference.snapshots > experiment.training.window
    assert max(experiment.score.leads) < experiment.reference.snapshots


def test_what_was_measured_decides():
    assert choose(CODE).settings["offline"]["steps"] > 0
    for changes in ({"reached": None}, {"reached": 0.1}, {"sparse": 2}):
        assert choose(replace(CODE, **changes)).settings["offline"]["steps"] == 0, changes
    assert choose(CODE).settings["training"]["clip"] == 1.2e-4
    assert choose(replace(CODE, weights=10**6)).settings["training"]["rate"] < choose(CODE).settings["training"]["rate"]
    assert choose(CODE).settings["reference"]["spin_up"] == 2000.0
    assert "reference" not in choose(replace(CODE, snapshots=50, spin_up=None)).settings
    assert choose(replace(CODE, size=10**7)).settings["reference"]["snapshots"] < choose(CODE).settings["reference"]["snapshots"]


TOML = """[solver]
name = "sea"
[reference]
solver = {drag = 2.0}
spin_up = 5.0  # mine
[training]
window = 5                     # steps; chosen by trimtab couple check: 5
batch = 9                      # chosen by trimtab couple check: 8
rate = 1e-3
[score]"""
CHOICE = {"reference": {"spin_up": 2.5}, "offline": {"steps": 100},
          "training": {"window": 7, "batch": 16, "rate": 0.003, "clip": 0.5}, "score": {"leads": [1, 7]}}


def written(path: Path, text: str, write: bool = True) -> Finding:
    path.write_text(text)
    (finding,) = write_settings(path, CHOICE, write)
    return finding


def test_its_own_lines_and_absent_ones_are_written_and_no_other(tmp_path):
    path = tmp_path / "sea.toml"
    finding = written(path, TOML)
    experiment = load_experiment(path)
    assert (experiment.training.window, experiment.training.clip, experiment.offline.steps) == (7, 0.5, 100)
    assert experiment.score.leads == (1, 7)
    assert (experiment.training.batch, experiment.training.rate, experiment.reference.spin_up) == (9, 1e-3, 5.0)
    assert "window = 7                     # steps; chosen by trimtab couple check: 7\n" in path.read_text()
    assert set(TOML.splitlines()) - set(path.read_text().splitlines()) == {TOML.splitlines()[6]}
    assert "reference.spin_up = 5.0 (2.5)" in finding.found and "training.batch = 9 (16)" in finding.found
    before = path.read_text()
    (again,) = write_settings(path, CHOICE, True)
    assert again.state == "ok" and again.found.startswith("as chosen; yours") and path.read_text() == before


def test_it_is_asked_before_it_writes(tmp_path):
    path = tmp_path / "sea.toml"
    finding = written(path, TOML, write=False)
    assert finding.state == "note" and "training.window" in finding.found and path.read_text() == TOML


@pytest.mark.parametrize("text", [
    TOML.replace("[training]", "[ training ]"),             # valid, and not how the doctor finds a section
    TOML.replace("rate = 1e-3", "clip.x = 1\nrate = 1e-3"),  # refused in any case
    TOML.replace("[score]", "score = {starts = 2}").replace("[training]\n", "") + "\n[training.gradient_options]\n",
])
def test_what_would_read_otherwise_is_left_alone(tmp_path, text):
    path = tmp_path / "sea.toml"
    finding = written(path, text)
    assert finding.state == "note" and "cannot be put into sea.toml" in finding.found and path.read_text() == text


def test_a_toml_of_its_authors_own_making_stays_as_it_is(tmp_path):
    path = tmp_path / "sea.toml"
    own = re.sub(r"#.*", "", TOML)
    finding = written(path, own)
    assert path.read_text() == own and finding.state == "ok" and "training.clip = default (0.5)" in finding.found
    assert written(path, '[solver]\nname = "sea"\n').state == "ok" and load_experiment(path).training.window == 7


def test_an_edited_line_is_its_owners_where_its_comment_stayed():
    assert is_free(TOML, "training", "window") and is_free(TOML, "training", "clip") and is_free(TOML, "offline", "steps")
    assert not any(is_free(TOML, "training", key) for key in ("batch", "rate")) and not is_free(TOML, "reference", "spin_up")


def test_all_of_the_laid_down_training_is_free():
    text = ADAPTER.joinpath("NAME.toml").read_text()
    for section, values in choose(CODE).settings.items():
        for key in values:
            assert is_free(text, section, key) and f"\n{key} = " in text, key


def test_the_next_command_can_be_pasted(tmp_path, monkeypatch):
    folder = tmp_path / "a code's"
    folder.mkdir()
    (folder / "sea.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    cost = Finding("cost", "ok", "a step 5 µs; the training of this TOML about 45 s on one core")
    assert next_step("a code's", [cost]) == \
        "Next (about 45 s on one core):\n  cd 'a code'\"'\"'s' && trimtab train sea.toml --out run"
    monkeypatch.chdir(folder)
    (folder / "run").mkdir()
    (folder / "sea.toml").write_text(TOML.replace("window = 5 ", "window = 7 ").replace("check: 5", "check: 7"))
    assert next_step(".", [], 2) == "Next:\n  mpirun -n 2 trimtab train sea.toml --set parallel.domain=2 --out run2"
    assert next_step(".", [Finding("restart", "bad", "")]) == \
        "Next: put right what is bad (restart), then\n  trimtab couple check ."
    (folder / "sea.toml").write_text(TOML.replace("{drag = 2.0}", "{}"))
    assert next_step(".", []) == "Next: say in [reference] of sea.toml what the truth is, then\n  trimtab couple check ."
