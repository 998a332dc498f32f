# SPDX-License-Identifier: MIT
"""The chapter "Bring your own Fortran" of the README, followed to the letter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import netCDF4
import pytest

from trimtab.config import load_experiment

ROOT = Path(__file__).parent.parent
CHAPTER = re.search(r"## Bring your own Fortran\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.DOTALL)[1]
SHELL = re.findall(r"```sh\n(.*?)```", CHAPTER, re.DOTALL)
(FORTRAN,) = re.findall(r"```fortran\n! lake/adapter.f\n(.*?)```", CHAPTER, re.DOTALL)
LAY_DOWN, ONE_LINE, BUILD, CHECK, TRAIN = SHELL


def shell(text: str, folder: Path) -> str:
    """Run a block of the chapter; what it printed."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["sh", "-e", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def filled_in(template: str) -> str:
    """The laid-down adapter with the chapter's procedures in place of its own."""
    for procedure in re.findall(r"^ {6}subroutine .*?^ {6}end\n", FORTRAN, re.DOTALL | re.MULTILINE):
        name = re.match(r" {6}subroutine (\w+)", procedure)[1]
        pattern = rf"^ {{6}}subroutine {name}\b.*?^ {{6}}end\n"
        assert len(re.findall(pattern, template, re.DOTALL | re.MULTILINE)) == 1, name
        template = re.sub(pattern, lambda _, text=procedure: text, template, flags=re.DOTALL | re.MULTILINE)
    return template


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after step 4."""
    folder = tmp_path_factory.mktemp("chapter")
    (folder / "tests").symlink_to(ROOT / "tests")
    shell(LAY_DOWN, folder)
    lake = folder / "lake"
    shell(ONE_LINE, lake)
    adapter = lake / "adapter.f"
    adapter.write_text(filled_in(adapter.read_text()))
    shell(BUILD, lake)
    return lake


def test_few_lines(lake):
    """Fewer than 10 changed lines in the code, fewer than 100 in the adapter."""
    before, after = (path.read_text().splitlines() for path in (ROOT / "tests/legacy/lake/lake.f", lake / "lake.f"))
    assert [line for line in after if line not in before] == ["      CALL LAKE_CORRECT"] and len(after) == len(before) + 1
    assert len([line for line in (lake / "adapter.f").read_text().splitlines() if line.strip() and line[0] not in "!C"]) < 100


def test_the_doctor_says_what_the_chapter_shows(lake):
    said = re.sub(r"\s+", " ", shell(CHECK, lake))
    for expected in ("the same bits for n = 1, 3, 8, 33", "empty, and filled with zeros: the same bits", "1 call a step",
                     "one step moves u by 2 c h, u_old by 0.1", "0 bad", "STOP LAKE: TOO HIGH"):
        assert expected in said, said
    weight = load_experiment(lake / "lake.toml").solver.options["weight"]
    assert weight == {"stride": 1, "steady": {"u": 1.0}, "step": {"u": {"u": 2.0, "u_old": 0.1}}}


def test_training_finds_the_friction(lake):
    commands = TRAIN.replace("train lake.toml", "train lake.toml --set training.epochs=6 training.rate=5e-3 training.batch=32 "
                             "reference.snapshots=60 reference.training_runs=3 score.long_steps=50")
    said = shell(commands, lake)
    scores = (lake / "run" / "scores.csv").read_text()
    assert "online" in scores and "Scores of lake" in said
    with netCDF4.Dataset(lake / "forecast.nc") as file:
        assert file["u"].shape == (201, 1, 63) and file["u"].units == "m/s" and file["time"].units == "s"
    rows = (lake / "run" / "metrics.csv").read_text().splitlines()
    first, last = (float(row.split(",")[6]) for row in (rows[1], rows[-1]))
    assert last < 0.05 * first
