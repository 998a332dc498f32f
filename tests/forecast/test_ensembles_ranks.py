# SPDX-License-Identifier: MIT
"""Ensembles under mpirun: the same bytes for any number of ranks, also after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from trimtab.__main__ import main


def launch(ranks: int, *arguments: str, wait: bool = True) -> Any:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = [sys.executable, "-m", "trimtab", *arguments]
    if ranks:
        command = ["mpirun", "--oversubscribe", "-n", str(ranks), *command]
    if not wait:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


needs_mpi = pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun")


@needs_mpi
def test_any_number_of_ranks_writes_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    given = ["ensemble", str(runs / "run0"), str(runs / "run1"), "--members", "10", "--steps", "40", "--every", "8",
             "--starts", "2", "--group", "2", "--perturb", "bred", "--out"]
    assert main([*given, str(tmp_path / "serial.nc")]) == 0
    for ranks in (1, 2, 4):
        done = launch(ranks, *given, str(tmp_path / f"{ranks}.nc"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"on {ranks} rank") == 1
        assert (tmp_path / f"{ranks}.nc").read_bytes() == (tmp_path / "serial.nc").read_bytes()


@needs_mpi
def test_a_killed_job_goes_on_with_another_number_of_ranks(runs: Path, tmp_path: Path) -> None:
    given = ["ensemble", str(runs / "run0"), "--members", "6", "--group", "1", "--steps", "3000", "--every", "100", "--out"]
    job = launch(0, *given, str(tmp_path / "cut.nc"), wait=False)
    parts = tmp_path / "cut.nc.parts"
    until = time.monotonic() + 60
    while len(list(parts.glob("*.part"))) < 2 and time.monotonic() < until and job.poll() is None:
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait(20)
    assert parts.is_dir() and not (tmp_path / "cut.nc").exists()
    done = launch(2, *given, str(tmp_path / "cut.nc"))
    assert done.returncode == 0, done.stderr
    assert main([*given, str(tmp_path / "whole.nc")]) == 0
    assert (tmp_path / "cut.nc").read_bytes() == (tmp_path / "whole.nc").read_bytes()


@needs_mpi
def test_a_mistake_under_mpirun_ends_with_its_sentence(runs: Path, tmp_path: Path) -> None:
    done = launch(2, "ensemble", str(runs / "run0"), "--members", "2", "--steps", "7", "--every", "2", "--out",
                  str(tmp_path / "e.nc"))
    assert done.returncode == 2 and "multiple" in done.stderr and "Traceback" not in done.stderr
