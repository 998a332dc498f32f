# SPDX-License-Identifier: MIT
"""Jobs of several ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

LIMIT = 240  # seconds that any job may take here, on a busy machine


def mpirun(ranks, *command):
    """Exit code and output of a job; one that does not end by itself is ended, and fails the test."""
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1",
                   "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_btl_base_warn_component_unused": "0"}
    job = subprocess.Popen(["mpirun", "-n", str(ranks), sys.executable, *map(str, command)], env=environment, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        output, _ = job.communicate(timeout=LIMIT)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    return job.returncode, output
