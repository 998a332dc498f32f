# SPDX-License-Identifier: MIT
"""Which of the variables that a restart does not put back matter: put back by hand, one left out at a time, in copies of the
process."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Sequence

import numpy as np

from trimtab.coupling.elf import difference
from trimtab.coupling.harness import Bench

A_TRIAL = 10.0   # seconds that one may take: a code with threads of its own may hang in a copy
ALL_TRIALS = 20.0
PIECE = 2**16    # bytes of a pipe's reading

Memory = dict[str, tuple[int, bytes]]  # a variable's name -> address, bytes


def not_put_back(bench: Bench, right: Memory, wrong: Memory) -> dict[str, str]:
    """Variables that differ in what no field describes, single numbers first: the linker's name -> how it is spoken of."""
    described = bench.own.library.spans()
    found = [(len(memory[1]), name, difference(name, memory, wrong.get(name, (0, b"")), described))
             for name, memory in right.items()]
    return {name: text for _, name, text in sorted(found) if text}


def guilty(bench: Bench, names: Sequence[str], right: Memory, wrong: Memory, steps: int,
           expected: np.ndarray) -> list[str] | None:
    """Of variables that were not put back, those without which the next steps come out wrong.

    Args:
        bench: a code that was restored just now.
        names: the variables, by the linker's name.
        right, wrong: memory where the steps come out right, and here.
        steps: how many follow.
        expected: (N,) the state after them.

    Returns:
        Names; None where this cannot be told: the code is on MPI ranks (which cannot be copied), a variable moved in memory, or
        all of them together do not make the steps right.
    """
    movable = [name for name in names if right[name][0] == wrong[name][0] and len(right[name][1]) == len(wrong[name][1])]
    if bench.calls_mpi or len(movable) < len(names):
        return None
    began = time.perf_counter()
    if not _comes_right(bench, movable, right, steps, expected):
        return None
    found = []
    for name in movable:
        if time.perf_counter() - began > ALL_TRIALS:
            return None
        if _comes_right(bench, [one for one in movable if one != name], right, steps, expected) is False:
            found.append(name)
    return found or None


def _comes_right(bench: Bench, names: Sequence[str], right: Memory, steps: int, expected: np.ndarray) -> bool | None:
    """In a copy of this process: put variables back, make the steps, compare; None where the copy does not answer."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(receive)
            for name in names:
                address, held = right[name]
                ctypes.memmove(address, held, len(held))
            os.write(send, b"1" if bench.onward(steps).tobytes() == expected.tobytes() else b"0")
        finally:
            os._exit(0)  # an error in a copy is an answer that does not come
    os.close(send)
    try:
        ready = select.select([receive], [], [], A_TRIAL)[0]
        answer = os.read(receive, PIECE) if ready else b""
    finally:
        os.close(receive)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return None if not answer else answer == b"1"
