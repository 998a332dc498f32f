# SPDX-License-Identifier: MIT
"""The chapter "Bring your own Fortran" of the README, followed to the letter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import netCDF4
import numpy as np
import pytest

import trimtab
from helpers import ROOT
from helpers.coupled import build as build_ring
from trimtab.config.experiment import load_experiment
from trimtab.evaluation.table import read_table
from trimtab.training.checkpoint import load_correction

README = (ROOT / "README.md").read_text()
PRODUCTION = re.search(r"## Production: Fortran drives\n(.*?)\n## ", README, re.DOTALL)[1]
CHAPTER = re.search(r"## Bring your own Fortran\n(.*?)\n## ", README, re.DOTALL)[1]
SHELL = re.findall(r"```sh\n(.*?)```", CHAPTER, re.DOTALL)
(FORTRAN,) = re.findall(r"```fortran\n! lake/adapter.f\n(.*?)```", CHAPTER, re.DOTALL)
LAY_DOWN, ONE_LINE, BUILD, CHECK, TRAIN = SHELL


def shell(text: str, folder: Path, code: int = 0) -> str:
    """Run a block of the chapter; what it printed."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["sh", "-e", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


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
    before, after = (path.read_text().splitlines() for path in (ROOT / "tests/codes/lake/lake.f", lake / "lake.f"))
    assert [line for line in after if line not in before] == ["      CALL LAKE_CORRECT"] and len(after) == len(before) + 1
    assert len([line for line in (lake / "adapter.f").read_text().splitlines() if line.strip() and line[0] not in "!C"]) < 100


def test_the_doctor_says_what_the_chapter_shows(lake):
    said = re.sub(r"\s+", " ", shell(CHECK, lake))
    for expected in ("the same bits for n = 1, 3, 8, 33", "empty, and filled with zeros: the same bits", "1 call a step",
                     "one step moves u by 2 c h, u_old by 0.1", "0 bad", "STOP LAKE: TOO HIGH",
                     "after 1 step u by 0.0016 m/s (0.04 σ); after 10 steps u by", "take away 100% of the difference",
                     "written into lake.toml: offline.steps, training.window", "trimtab train lake.toml --out run"):
        assert expected in said, said
    weight = load_experiment(lake / "lake.toml").solver.options["weight"]
    assert weight == {"stride": 1, "steady": {"u": 1.0}, "step": {"u": {"u": 2.0, "u_old": 0.1}}}


@pytest.fixture(scope="module")
def run(lake: Path) -> str:
    """What the last step prints; the weight is written before it, as the chapter has it."""
    if "weight" not in (lake / "lake.toml").read_text():
        shell(CHECK, lake)
    commands = TRAIN.replace("train lake.toml", "train lake.toml --set training.epochs=4 training.validate_windows=32 "
                             "offline.steps=400 reference.snapshots=60 reference.training_runs=3 score.long_steps=50")
    return shell(commands, lake)


def test_training_finds_the_friction(lake, run):
    assert "Scores of lake" in run and "online is better than no closure at 4 of 4" in run
    with netCDF4.Dataset(lake / "forecast.nc") as file:
        assert file["u"].shape == (201, 1, 63) and file["u"].units == "m/s" and file["time"].units == "s"
    rows = [row.split(",") for row in (lake / "run" / "metrics.csv").read_text().splitlines()]
    longest = f"rmse_{max(load_experiment(lake / 'lake.toml').score.leads)}"
    scores = {row: float(np.mean(values[longest])) for row, values in read_table(lake / "run" / "scores.json").rows.items()}
    assert scores["online"] < 0.2 * scores["none"], scores
    seconds = dict(zip(rows[0], rows[-1], strict=True))
    assert 0 < float(seconds["network"]) < float(seconds["solver"]) + float(seconds["network"])
    log = (lake / "run" / "log.txt").read_text()
    assert "online epoch 0, step 0: loss –, validation" in log and "nan" not in log


def test_a_run_from_elsewhere_says_where_it_belongs(lake, run, tmp_path):
    for command in (f"trimtab run {lake}/run --steps 5 --out x.nc", f"trimtab score {lake}/run --again"):
        said = shell(command, tmp_path, code=2)
        assert f"{lake}/run was trained in {lake}, where its ./liblake.so lies" in said and f"call trimtab in {lake}." in said
    assert f"PYTHONPATH={lake}" in shell(f"trimtab export {lake}/run --out x", tmp_path, code=2)


def test_another_stride_is_refused_before_anything_is_computed(lake, run):
    before = sorted((lake / ".trimtab-cache").iterdir())
    said = shell("trimtab train lake.toml --out other --set training.stride=5", lake, code=2)
    assert "solver.weight was measured at training.stride = 1, and 5 is asked for" in said
    assert sorted((lake / ".trimtab-cache").iterdir()) == before


def test_production_as_it_stands_there(lake, run, monkeypatch):
    """The lines for `PROGRAM`, compiled, linked and started: the Python-driven run's level, to its last printed digit."""
    change, build = re.findall(r"```sh\n(.*?)```", PRODUCTION, re.DOTALL)
    shell(change, lake)
    said = shell(build, lake)
    monkeypatch.chdir(lake)
    monkeypatch.syspath_prepend(str(lake))
    experiment = load_experiment("run/experiment.toml")
    with trimtab.open_solver(experiment.solver.name, **experiment.solver.options) as solver:
        corrections = (load_correction("run/best.pt", solver.spec), None)
        states = [solver.advance(solver.initial_state(), 100, correction=one).states[-1] for one in corrections]
        hybrid, alone = (np.float32(solver.spec.split(one)["h"][0, 0]) for one in states)
    shell("trimtab run run --steps 100 --every 100 --start own --out own.nc", lake)
    with netCDF4.Dataset(lake / "own.nc") as file:  # from the code's own start, too
        assert np.float32(file["h"][-1, 0, 0]) == hybrid
    assert np.float32(re.search(r"STEP\s+100\s+LEVEL\s+(\S+)", said)[1]) == hybrid != alone


def test_a_module_gets_a_main_of_its_own(tmp_path):
    """The main program of the chapter drives tests/codes/spin as a module; without a run it says so."""
    (main,) = re.findall(r"```fortran\n(program main.*?)```", PRODUCTION, re.DOTALL)
    folder = build_ring(tmp_path / "spin")
    (folder / "main.f90").write_text(main)
    _, build = re.findall(r"```sh\n(.*?)```", PRODUCTION, re.DOTALL)
    build = build.replace("-O2", "-O2 -fdefault-real-8").replace("corrected.f adapter.f", "spin.f90 adapter.f90 main.f90")
    said = shell(build.replace(" < lake.nml", ""), folder, code=1)
    assert "there is no correction run" in said
