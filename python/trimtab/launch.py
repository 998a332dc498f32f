# SPDX-License-Identifier: MIT
"""Whether mpirun or srun started this process, and as which of how many; MPI itself is not asked.

    TRIMTAB_MPI=1       start MPI even if no launcher is recognised;  TRIMTAB_MPI=0: never
"""

from __future__ import annotations

import os

from trimtab.errors import ConfigError

# (number of processes, this one's number) as launchers say it: Open MPI; Hydra, Intel MPI, Cray PALS; MVAPICH; a step of srun.
LAUNCHERS = (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK"),
             ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"), ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"))
OWNER = "TRIMTAB_RANK_PROCESS"  # process number of a rank, in the environment of what it starts


def launched() -> tuple[int, int]:
    """How many processes mpirun or srun says it started, and which this one is; (0, 0) when it was started by hand."""
    switch = os.environ.get("TRIMTAB_MPI", "")
    if switch not in ("", "0", "1"):
        raise ConfigError(f"TRIMTAB_MPI={switch!r}: give 1 to start MPI, 0 never to, or leave it unset.")
    if os.environ.get(OWNER, str(os.getpid())) != str(os.getpid()):
        return 0, 0  # started by a rank, and none itself
    if switch != "0":
        for size, rank in LAUNCHERS:
            if size in os.environ and (size != "SLURM_STEP_NUM_TASKS" or "SLURM_STEP_ID" in os.environ):
                return int(os.environ[size]), int(os.environ.get(rank, 0))
    return (1, 0) if switch == "1" else (0, 0)
