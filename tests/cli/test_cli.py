# SPDX-License-Identifier: MIT
"""The command line: a training from end to end, hybrid runs to netCDF, and one sentence for whatever goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import trimtab
from helpers.experiments import EXPERIMENT, refusal
from trimtab.__main__ import main
from trimtab.cli.terminal import Watch
from trimtab.core.errors import BlowUpError, DataError, InputError
from trimtab.forecast import forecast as deploy
from trimtab.forecast.initial_conditions import file_starts
from trimtab.training.checkpoint import read_checkpoint
from trimtab.training.run_folder import load_run, run_correction


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with exp.toml and two runs of it, seeds 0 and 1."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "exp.toml").write_text(EXPERIMENT)
    before = os.environ.get("TRIMTAB_CACHE")
    os.environ["TRIMTAB_CACHE"] = str(folder / "cache")
    for seed in (0, 1):
        arguments = ["train", str(folder / "exp.toml"), "--out", str(folder / f"run{seed}"), "--set"]
        assert main([*arguments, f"training.seed={seed}"]) == 0
    yield folder
    if before is None:
        del os.environ["TRIMTAB_CACHE"]
    else:
        os.environ["TRIMTAB_CACHE"] = before


def test_training_leaves_a_complete_run_folder(trained: Path) -> None:
    run = trained / "run0"
    there = {path.name for path in run.iterdir()}
    assert {"experiment.toml", "log.txt", "metrics.csv", "offline.pt", "last.pt", "best.pt", "scores.csv", "scores.json",
            "curves.npz", "figures", "report.html"} <= there
    assert {path.name for path in (run / "figures").iterdir()} == {"trajectory.png", "forecast.png", "attractor.png",
                                                                   "loss.png"}
    rows = json.loads((run / "scores.json").read_text())["rows"]
    assert list(rows) == ["truth", "none", "offline", "online"]
    assert rows["online"]["rmse_5"]["mean"] < rows["none"]["rmse_5"]["mean"]
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").is_file()


def test_scores_are_computed_once_and_again_on_demand(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = (trained / "run0" / "scores.json").read_text()
    calls = []
    from trimtab.evaluation import score_run as scoring

    evaluate = scoring.evaluate
    monkeypatch.setattr(scoring, "evaluate", lambda *args, **options: calls.append(1) or evaluate(*args, **options))
    assert main(["score", str(trained / "run0")]) == 0
    assert not calls and "no closure" in capsys.readouterr().out
    assert main(["score", str(trained / "run0"), "--again"]) == 0
    assert calls and (trained / "run0" / "scores.json").read_text() == stored  # the same bits


def test_scores_of_seeds_together(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained / "both"
    assert main(["score", str(trained / "run0"), str(trained / "run1"), "--out", str(out)]) == 0
    assert "2 runs (seeds)" in " ".join(capsys.readouterr().out.split())
    together = json.loads((out / "scores.json").read_text())["rows"]["online"]["rmse_20"]
    each = [json.loads((trained / f"run{seed}" / "scores.json").read_text())["rows"]["online"]["rmse_20"]["mean"]
            for seed in (0, 1)]
    assert together["values"] == pytest.approx(each) and together["spread"] > 0
    assert (out / "figures" / "forecast.png").is_file()


def test_training_twice_needs_resume_and_resume_of_a_finished_run_changes_nothing(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(trained / "exp.toml"), "--out", str(trained / "run0")]
    assert "resume" in refusal(capsys, *arguments)
    files = ("best.pt", "offline.pt", "last.pt")
    before = [read_checkpoint(trained / "run0" / name)["correction"] for name in files]
    scores = (trained / "run0" / "scores.json").stat().st_mtime_ns
    assert main([*arguments, "--resume"]) == 0
    after = [read_checkpoint(trained / "run0" / name)["correction"] for name in files]
    assert all(torch.equal(one[key], two[key]) for one, two in zip(before, after, strict=True) for key in one)
    assert (trained / "run0" / "scores.json").stat().st_mtime_ns == scores  # nothing to score again


def test_run_writes_what_xarray_opens(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "hybrid.nc"
    arguments = ["run", str(trained / "run0"), "--steps", "60", "--every", "20", "--members", "3", "--out", str(out)]
    assert main(arguments) == 0
    with xr.open_dataset(out) as file:
        assert dict(file.sizes) == {"time": 4, "member": 3, "component": 3}
        assert file.time.values == pytest.approx([0.0, 0.2, 0.4, 0.6])
        assert file.u.dims == ("time", "member", "component")
        assert file.u.attrs["units"] == "1" and "Lorenz" in file.u.attrs["long_name"]
        assert file.attrs["Conventions"].startswith("CF-") and file.attrs["correction"].endswith("best.pt")
        assert np.isfinite(file.u).all() and (file.failed_step == 0).all()
        states = file.u.values
    run = load_run(trained / "run0")
    with trimtab.open_solver("lorenz63", dt=0.01, beta=0.0) as solver:
        correction = run_correction(run, solver.spec)
        expected = solver.advance(states[0], 3, correction=correction, stride=20).states
        assert np.array_equal(states, expected)  # cutting a run into pieces changes no bit
        alone = solver.advance(states[0], 3, stride=20).states
    assert main([*arguments, "--solver-only", "--overwrite"]) == 0
    with xr.open_dataset(out) as file:
        assert np.array_equal(file.u.values, alone) and file.attrs["correction"] == "none"


def test_run_goes_on_from_a_file_and_from_an_experiment(trained: Path, tmp_path: Path) -> None:
    first, second, whole = (str(tmp_path / name) for name in ("first.nc", "second.nc", "whole.nc"))
    common = ["run", str(trained / "run0"), "--checkpoint", "offline", "--every", "10"]
    assert main([*common, "--steps", "50", "--out", first]) == 0
    assert main([*common, "--steps", "30", "--out", second, "--start", first]) == 0
    assert main([*common, "--steps", "80", "--out", whole]) == 0
    with xr.open_dataset(second) as after, xr.open_dataset(whole) as once:
        assert np.array_equal(after.u.values, once.u.values[5:])
        assert after.time.values == pytest.approx(once.time.values[5:])
    alone = str(tmp_path / "alone.nc")
    assert main(["run", str(trained / "exp.toml"), "--solver-only", "--steps", "10", "--out", alone]) == 0
    with xr.open_dataset(alone) as file:
        assert file.sizes["time"] == 11 and file.sizes["member"] == 1


class Explode(torch.nn.Module):
    """Leaves the finite numbers wherever the state is not 0."""

    dtype = torch.float64

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return 1e3 * u**3


def test_a_blow_up_is_told_with_its_step_and_keeps_what_was_computed(tmp_path: Path, open_solver: Any) -> None:
    solver = open_solver("lorenz63")
    start = np.array([[0.0, 0.0, 0.0], [0.02, 0.02, 0.02]])
    with pytest.raises(BlowUpError, match=r"1 of 2 members \(first member 1\) blew up at step \d+") as caught:
        deploy.forward(solver, Explode(), start, 400, tmp_path / "part.nc", every=2)
    failed = int(caught.value.steps[1])
    assert 2 < failed < 400 and caught.value.steps[0] == 0
    with xr.open_dataset(tmp_path / "part.nc") as file:
        assert file.sizes["time"] == 201 and file.failed_step.values.tolist() == [0, failed]
        lost = np.isnan(file.u.values[:, 1, 0])
        assert lost.argmax() == -(-failed // 2) and lost[lost.argmax():].all()
        assert (file.u.values[:, 0] == 0).all()
    with pytest.raises(BlowUpError, match="The run blew up at step"):
        deploy.forward(solver, Explode(), start[1:], 400, tmp_path / "all.nc", every=2)
    with xr.open_dataset(tmp_path / "all.nc") as file:
        assert file.sizes["time"] == -(-failed // 2) and np.isfinite(file.u).all()
    with pytest.raises(InputError, match="last record"):
        file_starts(tmp_path / "part.nc", solver.spec)


def test_start_files_that_do_not_fit_are_refused(tmp_path: Path, open_solver: Any) -> None:
    spec = open_solver("lorenz63").spec
    xr.Dataset({"u": (("time", "component"), np.ones((2, 4)))}).to_netcdf(tmp_path / "grid.nc")
    xr.Dataset({"w": (("time", "component"), np.ones((2, 3)))}).to_netcdf(tmp_path / "name.nc")
    xr.Dataset({"u": (("time", "component"), np.ones((2, 3)))}).to_netcdf(tmp_path / "good.nc")
    (tmp_path / "text.nc").write_text("not netCDF")
    for name, sentence in (("grid", r"shape \(4,\)"), ("name", "no variable 'u'"), ("text", "cannot be opened"),
                           ("none", "There is no file")):
        with pytest.raises(DataError, match=sentence):
            file_starts(tmp_path / f"{name}.nc", spec)
    states, at = file_starts(tmp_path / "good.nc", spec)
    assert states.shape == (1, 3) and at == 0.0


def test_every_mistake_gets_one_sentence(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = str(trained / "run0"), str(tmp_path / "x.nc")
    assert "qg-demo" in refusal(capsys, "train", "nowhere")
    assert "'epoch'" in refusal(capsys, "train", "lorenz63", "--set", "training.epoch=1")
    assert "score.leads" in refusal(capsys, "train", "lorenz63", "--set", "score.leads=[0]")
    assert "test_runs" in refusal(capsys, "train", "lorenz63", "--set", "reference.test_runs=0")
    assert "not a run folder" in refusal(capsys, "score", str(tmp_path))
    assert "not a run folder" in refusal(capsys, "report", str(tmp_path))
    assert "not a run folder" in refusal(capsys, "run", "lorenz63", "--steps", "1", "--out", out)
    assert "multiple" in refusal(capsys, "run", run, "--steps", "7", "--every", "2", "--out", out)
    assert "--members 9000" in refusal(capsys, "run", run, "--steps", "1", "--members", "9000", "--out", out)
    assert "no folder" in refusal(capsys, "run", run, "--steps", "1", "--out", str(tmp_path / "no" / "x.nc"))
    Path(out).write_text("mine")
    assert "already there" in refusal(capsys, "run", run, "--steps", "1", "--out", out)
    assert Path(out).read_text() == "mine"
    (trained / "run1" / "best.pt").rename(trained / "run1" / "gone.pt")
    try:
        assert "'best'" in refusal(capsys, "run", str(trained / "run1"), "--steps", "1", "--out", str(tmp_path / "y.nc"))
    finally:
        (trained / "run1" / "gone.pt").rename(trained / "run1" / "best.pt")


def test_a_failure_while_running_is_exit_code_1_and_debug_shows_where(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise BlowUpError("The run blew up at step 3.", np.array([3]))

    monkeypatch.setattr(deploy, "forward", explode)
    arguments = ["run", str(trained / "run0"), "--steps", "5", "--out", str(tmp_path / "x.nc")]
    assert "step 3" in refusal(capsys, *arguments, code=1)
    assert main([*arguments, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_missing_package_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trimtab.cli.terminal", raising=False)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert "pip install rich" in refusal(capsys, "experiments", code=1)
    monkeypatch.setitem(sys.modules, "trimtab.cli.terminal", None)
    assert "install trimtab again" in refusal(capsys, "experiments", code=1)


def test_interrupt_of_a_run_is_130_with_a_sentence(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(deploy, "forward", interrupted)
    assert main(["run", str(trained / "run0"), "--steps", "5", "--out", str(tmp_path / "x.nc")]) == 130
    assert "x.nc holds what was computed" in capsys.readouterr().err


def test_interrupted_training_says_how_to_resume(trained: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trimtab", "train", str(trained / "exp.toml"), "--out", str(tmp_path / "run"),
               "--set", "training.epochs=100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        metrics, deadline = tmp_path / "run" / "metrics.csv", time.monotonic() + 60
        while not (metrics.is_file() and "online,2" in metrics.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--out {tmp_path / 'run'} --set training.epochs=100000 --resume" in error and "Traceback" not in error


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    code = ("import sys, trimtab.__main__ as m\n"
            "try: m.main(['--help'])\n"
            "except SystemExit: pass\n"
            "print([name for name in ('torch', 'numpy', 'matplotlib', 'xarray', 'rich') if name in sys.modules])")
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.splitlines()[-1] == "[]"
    assert all(name in answer.stdout for name in ("train", "experiments", "score", "run", "report", "version"))


def test_experiments_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiments"]) == 0
    listed = capsys.readouterr().out
    assert "lorenz63" in listed and "qg-demo" in listed
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith(f"trimtab {trimtab.__version__} (Python ")


def test_progress_without_a_terminal_is_a_line_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    with open(tmp_path / "log", "w+", encoding="utf-8") as log:
        with Watch(log).watching() as watch:
            for fraction in (0.1, 0.4, 0.7):
                watch(fraction, f"reference: run {fraction}")
            watch(0.5, "online: epoch 1 of 2")
            watch.leave("interrupted")
        log.seek(0)
        lines = log.read().splitlines()
    assert lines[0] == "reference: begins" and any("left (reference" not in line and " left (run 0" in line for line in lines)
    assert lines[-1] == "online: interrupted" and any(line.startswith("reference: done in") for line in lines)
