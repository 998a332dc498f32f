# SPDX-License-Identifier: MIT
"""Every command that writes, where it cannot: one sentence, a code that is not 0, no half file, earlier files as they were."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.experiments import EXPERIMENT
from trimtab.__main__ import main
from trimtab.config.experiment import dump_experiment, parse_experiment

# In a process of its own, which may write no longer file than that: how a full disk looks to all that writes, without being root.
SCRIPT = """
import contextlib, io, json, resource, sys
from trimtab.__main__ import main
import torch, netCDF4, matplotlib.figure
import trimtab.production.export, trimtab.evaluation.report, trimtab.forecast.ensemble_netcdf, trimtab.reproduce
found = []
for limit, arguments in json.loads(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    found.append([code, said.getvalue()])
print(json.dumps(found))
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_full_disk_gets_one_sentence_from_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    run, out = tmp_path / "run", tmp_path / "out"
    short = ("training.epochs=1", "training.steps_per_epoch=2", "offline.steps=4", "score.long_steps=50")
    (tmp_path / "exp.toml").write_text(dump_experiment(parse_experiment(EXPERIMENT, "test", short)))
    (tmp_path / "other.toml").write_text(dump_experiment(parse_experiment(EXPERIMENT, "test", (*short, "reference.seed=1"))))
    out.mkdir()
    assert main(["train", str(tmp_path / "exp.toml"), "--out", str(run)]) == 0
    assert main(["run", str(run), "--steps", "10", "--out", str(out / "x.nc")]) == 0
    assert main(["ensemble", str(run), "--members", "2", "--steps", "10", "--out", str(out / "e.nc")]) == 0
    cases: list[tuple[int, list[Any], str]] = [
        (30_000, ["run", run, "--steps", 2000, "--out", out / "x.nc", "--overwrite"], "x.nc"),
        (4_000, ["run", run, "--steps", 20, "--out", out / "y.nc"], "y.nc"),
        (4_000, ["ensemble", run, "--members", 2, "--steps", 400, "--out", out / "e.nc", "--overwrite"], "group-000000.part"),
        (6_000, ["ensemble", run, "--members", 2, "--steps", 400, "--every", 40, "--seed", 1, "--out", out / "f.nc"], "f.nc"),
        (4_000, ["score", run, "--again"], "curves.npz"),
        (4_000, ["report", run], "trajectory.png"),
        (100, ["gradcheck", run, "--windows", "2", "--starts", 2, "--out", out / "checks"], "gradcheck.csv"),
        (2_000, ["export", run, "--out", out / "exported"], "exported"),
        (2_000, ["couple", "init", out / "lake", "--name", "lake"], "lake"),
        (4_000, ["train", tmp_path / "other.toml", "--out", out / "new"], "run-00000.npy"),
        (50_000, ["train", tmp_path / "other.toml", "--out", out / "newer"], "reference-"),
        (100, ["reproduce", "convergence", "--quick", "--out", out / "results"], ".json"),
    ]
    before = {**contents(run), **contents(out)}
    tasks = json.dumps([[limit, [str(one) for one in arguments]] for limit, arguments, _ in cases])
    done = subprocess.run([sys.executable, "-c", SCRIPT, tasks], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for (_, arguments, name), (code, said) in zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True):
        sentences = [line for line in said.splitlines() if line.startswith("trimtab: ")]
        assert code == 1 and len(sentences) == 1 and "Traceback" not in said, (arguments, said)
        assert name in sentences[0] and "cannot be written" in sentences[0]
    after = {**contents(run), **contents(out)}
    assert {name: after[name] for name in before} == before
    made = {Path(name).name for name in after.keys() - before.keys()}
    assert not [name for name in made if name.endswith((".nc", ".partial", ".pt2", ".f90", ".png", ".npy"))], made
    assert main(["run", str(run), "--steps", "20", "--out", str(out / "y.nc")]) == 0 and (out / "y.nc").is_file()
