# SPDX-License-Identifier: MIT
"""A code that is divided among MPI ranks, coupled."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from helpers import CODES
from trimtab.coupling.templates import lay_down
from trimtab.training.checkpoint import read_checkpoint

LEGACY = CODES / "blocks"


LIMIT = 120  # seconds that any job may take here, on a busy machine


CHANGED = {"    comm = MPI_COMM_WORLD\n": "    if (comm == MPI_COMM_NULL) comm = MPI_COMM_WORLD\n",
           "  end subroutine tendency\n": "    call blocks_correct(c)\n  end subroutine tendency\n"}


needs_mpi = pytest.mark.skipif(not (shutil.which("mpirun") and shutil.which("mpif90")), reason="no mpirun or no mpif90 here")


def changed(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def build(folder: Path, *, made: bool = True, **changes: dict[str, str]) -> Path:
    """The code's library in a folder of its own, as the chapter says; more changes of its sources by file; not yet `made`."""
    lay_down(folder, "blocks")
    for one in LEGACY.iterdir():
        if one.is_file():
            shutil.copy(one, folder)
    (folder / "blocks.f90").write_text(changed((LEGACY / "blocks.f90").read_text(), CHANGED))
    for name, several in changes.items():
        file = folder / f"{name}.f90"
        file.write_text(changed(file.read_text(), several))
    make = (folder / "Makefile").read_text()
    make = re.sub(r"^SOURCES =.*", "SOURCES = blocks.f90", make, flags=re.MULTILINE)
    (folder / "Makefile").write_text(re.sub(r"^FC =.*", "FC = mpif90", make, flags=re.MULTILINE))
    if made:
        subprocess.run(["make"], cwd=folder, check=True, capture_output=True, timeout=LIMIT)
    return folder


def mpirun(ranks: int, folder: Path, *command: object, **environment: str) -> tuple[int, str]:
    """Exit code and output of a job; one that does not end by itself is ended, and fails the test."""
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1",
                   "OMPI_MCA_rmaps_base_oversubscribe": "1", "PYTHONPATH": str(folder), **environment}
    job = subprocess.Popen(["mpirun", "-n", str(ranks), *map(str, command)], env=environment, text=True, cwd=folder,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        output, _ = job.communicate(timeout=LIMIT)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    return job.returncode, output


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "last.pt")["correction"]


def assert_same_training(run: Path, one: Path) -> None:
    """Normalisation to the last bit, weights but for the order of the sum over blocks."""
    found, expected = weights(run), weights(one)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0 if key.endswith(("mean", "scale")) else 1e-12, atol=0)
    assert read_checkpoint(run / "last.pt")["state"] == read_checkpoint(one / "last.pt")["state"]
