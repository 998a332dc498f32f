# SPDX-License-Identifier: MIT
"""Whether mpirun or srun started this process, and as which of how many; MPI itself is not asked. And starting programs.

    TRIMTAB_MPI=1       start MPI even if no launcher is recognised;  TRIMTAB_MPI=0: never
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from trimtab.core.errors import ConfigError

# (number of processes, this one's number) as launchers say it: Open MPI; Hydra, Intel MPI, Cray PALS; MVAPICH; a step of srun.
LAUNCHERS = (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK"),
             ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"), ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"))
MOST_THREADS = 1024  # that a process may be asked to have: beyond, the system refuses some, and libraries fall over that
OWNER = "TRIMTAB_RANK_PROCESS"  # process number of a rank, in the environment of what it starts


def launched() -> tuple[int, int]:
    """How many processes mpirun or srun says it started, and which this one is; (0, 0) when it was started by hand."""
    switch = os.environ.get("TRIMTAB_MPI", "")
    if switch not in ("", "0", "1"):
        raise ConfigError(f"TRIMTAB_MPI={switch!r}: give 1 to start MPI, 0 never to, or leave it unset.")
    if started_by_a_rank():
        return 0, 0
    if switch != "0":
        for size, rank in LAUNCHERS:
            # A variable that is empty, as a job script may leave it, says nothing.
            if told(size) > 0 and (size != "SLURM_STEP_NUM_TASKS" or "SLURM_STEP_ID" in os.environ):
                return told(size), told(rank)
    return (1, 0) if switch == "1" else (0, 0)


def launch_words(domain: int, members: int = 1, ranks: int = 0) -> str:
    """What stands in front of `trimtab train` for an experiment, so that the job is not refused.

    Args:
        domain, members: of [parallel].
        ranks: of the job that says it; kept where they can be grouped so.

    Returns:
        "mpirun -n N " with a blank at its end, or "" where one rank is enough.
    """
    least = domain * members
    number = ranks if ranks and ranks % least == 0 else least
    return f"mpirun -n {number} " if number > 1 else ""


def told(name: str) -> int:
    """The whole number that an environment variable holds; 0 when it is unset, empty, or none."""
    text = os.environ.get(name, "").strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


def asked_threads() -> int:
    """Threads that TRIMTAB_THREADS asks for; 0 when it is unset or empty.

    Raises:
        ConfigError: it is not a whole number from 1 to `MOST_THREADS`; or OMP_NUM_THREADS is larger.
    """
    if threads_of_openmp() > MOST_THREADS:
        raise ConfigError(f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']!r} is more than {MOST_THREADS} threads: give as many "
                          "as there are cores.")
    wanted = os.environ.get("TRIMTAB_THREADS", "")
    if wanted and not 1 <= told("TRIMTAB_THREADS") <= MOST_THREADS:
        raise ConfigError(f"TRIMTAB_THREADS={wanted!r} is not a whole number from 1 to {MOST_THREADS}: give as many as there are "
                          "cores.")
    return told("TRIMTAB_THREADS")


def threads_of_openmp() -> int:
    """Threads that OMP_NUM_THREADS asks for, its first number; 0 when it is unset, empty or unreadable: OpenMP ignores it."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(int(text[:18]), 10**9) if text.isascii() and text.isdecimal() else 0


def started_by_a_rank() -> bool:
    """Whether this process is none that mpirun or srun started, but was started by one."""
    return os.environ.get(OWNER, str(os.getpid())) != str(os.getpid())


def run_program(command: Sequence[str], tick: Callable[[], object] = lambda: None,
                **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, in a process group of its own: an interrupt here ends it with all that it has started.

    Args:
        command: the program and its arguments.
        tick: called twice a second while it runs.
        options: of `subprocess.Popen`.

    Returns:
        Its exit code, and what it wrote as text.

    Raises:
        OSError: it cannot be started.
    """
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          process_group=0, **options) as process:
        try:
            while True:
                try:
                    output, errors = process.communicate(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    tick()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)
