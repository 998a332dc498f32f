# SPDX-License-Identifier: MIT
"""`trimtab doctor`: well on a machine that is, and each classic mistake in a sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.__main__ import main
from trimtab.cli import diagnose as doctor
from trimtab.core.errors import SolverError


def test_this_machine_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "torch" in out and "Solver, slot and gradient work on 1 rank" in out and "BROKEN" not in out
    assert not list(tmp_path.iterdir())


def test_what_is_broken_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["doctor", str(tmp_path / "none")]) == 1
    assert "BROKEN" in capsys.readouterr().out

    def fails() -> str:
        raise SolverError("The gradient is 1 and differences give 2.")

    monkeypatch.setattr(doctor, "self_test", fails)
    assert main(["doctor", str(tmp_path)]) == 1
    assert "Rank 0: SolverError: The gradient is 1" in " ".join(capsys.readouterr().out.split())


def test_the_self_test_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = doctor._Scaled.forward
    monkeypatch.setattr(doctor._Scaled, "forward", lambda self, u: forward(self, u) + 1e-13)
    with pytest.raises(SolverError, match="changed the bits"):
        doctor.self_test()


@pytest.mark.parametrize(("library", "launcher", "level"), [
    ("Open MPI v4.1.4", "mpirun (Open MPI) 4.1.4", "well"), ("Open MPI v4.1.4", "mpirun (Open MPI) 5.0.3", "warning"),
    ("MPICH Version: 4.2", "mpirun (Open MPI) 4.1.4", "warning"), ("Open MPI v4.1.4", "HYDRA build details:", "warning"),
    ("MPICH Version: 4.2", "HYDRA build details:", "well"), ("Open MPI v4.1.4", "", "warning"),
    ("Intel(R) MPI Library 2021.9", "Intel(R) MPI Library for Linux* OS, Version 2021.9", "well"),
])
def test_mixed_libraries_are_seen(library: str, launcher: str, level: str) -> None:
    assert doctor.mpi_finding(library, launcher).level == level


def test_too_many_threads_are_seen() -> None:
    assert not list(doctor.thread_findings("here", [2, 2], {0, 1, 2, 3}))
    (found,) = doctor.thread_findings("here", [4, 4], {0, 1, 2, 3})
    assert found.level == "warning" and "OMP_NUM_THREADS=2" in found.text and "at most" not in found.text
    (found,) = doctor.thread_findings("here", [1] * 4, {0, 1})
    assert "at most 2 ranks" in found.text


def test_low_room_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    monkeypatch.setattr(doctor, "_available_memory", lambda: 2**20)
    found = {one.what: one.level for one in doctor._room(tmp_path, doctor.World())}
    assert found == {"memory": "warning", "disk": "warning"}


def test_a_missing_compiler_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert [one.level for one in doctor._compilers()] == ["warning"] * 3


def job(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   **variables}
    return subprocess.run([*command, sys.executable, "-m", "trimtab", "doctor"], env=environment, capture_output=True, text=True,
                          timeout=180)


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun")
def test_every_rank_is_examined() -> None:
    done = job("mpirun", "--oversubscribe", "-n", "2")
    out = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "work on 2 ranks, with the same bits" in out and out.count("self-test") == 1


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun")
def test_a_launcher_that_starts_one_rank_many_times_is_seen() -> None:
    done = job(PMI_SIZE="2", PMI_RANK="0")  # what another library's mpirun leaves behind
    out = " ".join(done.stdout.split())
    assert done.returncode == 1 and "BROKEN" in out and "two MPI libraries are mixed" in out
