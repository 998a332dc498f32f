# SPDX-License-Identifier: MIT
"""Process-wide settings that decide speed: threads from the affinity mask, and an allocator that keeps its memory.

    TRIMTAB_THREADS=k   threads of torch in this process; default: OMP_NUM_THREADS, else (also when that is empty or unreadable)
                        the cores this process may use, and under mpirun or srun one, so that the bits do not depend on the
                        number of ranks
    TRIMTAB_MALLOC=0    leave the C library's allocator alone; default: buffers up to 1 GiB come from the heap and stay
                        there, instead of being mapped and unmapped at every call of a convolution
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from dataclasses import dataclass

import torch

from trimtab.parallel.launcher import asked_threads, launched, threads_of_openmp

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of the GNU C library
_HEAP_BYTES = 2**30


@dataclass(frozen=True)
class Runtime:
    """The settings in force: torch threads, and whether the allocator keeps large buffers."""

    threads: int
    keeps_buffers: bool

    def __str__(self) -> str:
        kept = "kept" if self.keeps_buffers else "left to the C library"
        return f"{self.threads} threads, large buffers {kept}"


@functools.cache
def configure_runtime() -> Runtime:
    """Apply the settings once; later calls return what was applied.

    Returns:
        What is in force.

    Raises:
        ConfigError: see `asked_threads`.
    """
    wanted = asked_threads()
    if wanted:
        torch.set_num_threads(wanted)
    elif not threads_of_openmp() and launched()[0]:
        torch.set_num_threads(1)
    elif not threads_of_openmp():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(min(cores, torch.get_num_threads()))  # a count set lower by the user stays
    return Runtime(torch.get_num_threads(), _keep_buffers())


def _keep_buffers() -> bool:
    if os.environ.get("TRIMTAB_MALLOC") == "0" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return all(mallopt(setting, _HEAP_BYTES) == 1 for setting in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD))
