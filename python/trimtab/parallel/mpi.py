# SPDX-License-Identifier: MIT
"""The ranks of a job: the only module that imports mpi4py. Without mpirun or srun there is one rank, and MPI is not started.

    mpirun -n 8 trimtab train his.toml

Whatever is summed here is summed in one order, whoever holds the parts: 1, 2 or 1,000 ranks give the same bits. Ranks that
wait sleep; one that waits too long finds out who is missing, says it, and ends the job.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any

import numpy as np

from trimtab.core.errors import ConfigError
from trimtab.core.signals import exit_code
from trimtab.parallel.launcher import OWNER, launched
from trimtab.parallel.subgroup import Cohort
from trimtab.parallel.world import World, ordered_sum

_SPIN, _SLEEP, _SLOW = 2e-4, 1e-2, 0.5  # seconds of waiting without sleep, longest sleep, from when on questions are answered
_GRACE = 1.0       # seconds in which rank 0 may say first what happens to all ranks alike
_ROLL_CALL = 2.0   # seconds to answer in
_QUESTION, _ANSWER, _ENDS = 1, 2, 3


class MPIWorld(World):
    """The ranks that mpirun or srun started; `get_world` makes it.

    Args:
        mpi: the module mpi4py.MPI.
        communicator: of all ranks.
        blocks, members: see `World.place`.
    """

    def __init__(self, mpi: Any, communicator: Any, blocks: int = 1, members: int = 1):
        super().__init__()
        self._mpi, self._all, self.own = mpi, communicator, mpi.COMM_SELF
        self._talk = communicator.Dup()  # questions and answers of ranks that wait
        self.rank, self.size = communicator.rank, communicator.size
        self.blocks, self.teams = blocks, self.size // blocks
        self.team, self.block = divmod(self.rank, blocks)
        self.members = members
        if blocks > 1:
            self.domain = communicator.Split(self.team, self.rank)
            self.holders = Cohort(self.domain.Dup(), self._in_time)
        if members > 1:
            self.cohort = Cohort(communicator.Split(self.team // members * blocks + self.block, self.rank), self._in_time)
        self._turns = 0  # waits that ended; the watch sees by it whether this rank goes on
        self._waiting = False
        self._rolls = 0
        self._asked: list[Any] = []
        threading.Thread(target=self._watch, daemon=True, name="trimtab-watch").start()

    def place(self, blocks: int, members: int = 1) -> World:
        """See `World.place`."""
        super().place(blocks, members)
        same = (blocks, members) == (self.blocks, self.members)
        return self if same else MPIWorld(self._mpi, self._all, blocks, members)

    def placement(self) -> str:
        """See `World.placement`."""
        hosts: dict[str, list[int]] = {}
        for rank, host in enumerate(self.share(socket.gethostname())):
            hosts.setdefault(host, []).append(rank)
        text = f"{self.size} ranks on {len(hosts)} host{'s' * (len(hosts) > 1)}"
        if self.blocks > 1:
            text += f", {self.teams} solver{'s' * (self.teams > 1)} of {self.blocks} ranks each"
            split = [team for team in range(self.teams)
                     if not any({team * self.blocks, team * self.blocks + self.blocks - 1} <= set(ranks)
                                for ranks in hosts.values())]
            text += f", {len(split)} of them across hosts" if split else ""
        if self.members > 1:
            sharing = f"{self.members} of which" if self.teams > self.members else "which"
            text += f", {'each ' * (self.teams > self.members)}{sharing} share the members of a window"
        return text

    def broadcast(self, thing: Any) -> Any:
        """See `World.broadcast`."""
        self.wait()
        return self._all.bcast(thing, root=0)

    def share(self, thing: Any) -> list[Any]:
        """See `World.share`."""
        self.wait()
        return self._all.allgather(thing)

    def table(self, row: np.ndarray) -> np.ndarray:
        """See `World.table`."""
        rows = np.empty((self.size, row.size))
        self._finish(self._all.Iallgather(row, rows), self.limit)
        return rows

    def sum(self, parts: np.ndarray, owners: Sequence[int], weights: Sequence[float]) -> np.ndarray:
        """See `World.sum`: each rank sums one stretch of all vectors, and the stretches are put together.

        A rank with k parts sends k P and receives P numbers more, whatever the number of ranks.
        """
        bounds = np.arange(self.size + 1) * parts.shape[1] // self.size
        widths = np.diff(bounds)
        width = int(widths[self.rank])
        counts = np.bincount(owners, minlength=self.size)
        sent = np.concatenate([parts[:, first:stop].ravel() for first, stop in pairwise(bounds)])
        got = np.empty(len(owners) * width, parts.dtype)
        self._finish(self._all.Ialltoallv([sent, len(parts) * widths], [got, counts * width]), self.limit)
        order = np.argsort(np.argsort(owners, kind="stable"), kind="stable")
        total = np.empty(parts.shape[1], parts.dtype)
        stretch = ordered_sum(got.reshape(len(owners), width)[order], weights)
        self._finish(self._all.Iallgatherv(stretch, [total, widths]), self.limit)
        return total

    def wait(self, limit: float = 0.0) -> None:
        """See `World.wait`."""
        self._finish(self._all.Ibarrier(), limit or self.patience, patient=not limit)

    def sign(self, doing: str) -> None:
        """See `World.sign`."""
        super().sign(doing)
        self._turns += 1
        self._answer()

    def fail(self, text: str, code: int) -> int:
        """See `World.fail`; what happens to every rank alike is said by rank 0 alone, and a rank that the launcher ends because
        another one said it already says nothing."""
        if self.rank:
            with contextlib.suppress(KeyboardInterrupt):  # a signal: it may be the launcher's, which ends all ranks
                time.sleep(_GRACE)
        if self._ends_already():
            self._all.Abort(code)
        self._announce_the_end()
        self._end(text, code)
        return code

    def _ends_already(self) -> bool:
        """Whether another rank has said why the job ends; its message may be on its way."""
        until = time.monotonic() + _SLEEP
        while not self._talk.iprobe(tag=_ENDS):
            if time.monotonic() > until:
                return False
        return True

    def _announce_the_end(self) -> None:
        """Tell the other ranks that this one says why the job ends; they look when a signal ends them."""
        self._asked = [self._talk.isend(None, dest=other, tag=_ENDS) for other in range(self.size) if other != self.rank]

    def _in_time(self, request: Any) -> None:
        self._finish(request, self.limit)

    def _finish(self, request: Any, limit: float, *, patient: bool = False) -> None:
        """Wait for a message to be complete: at once if it is, else asleep for a twentieth of the time waited so far.

        After `limit` seconds ask the others whether they wait, too; where one may be at long work, `patient`, give it as long
        again for a sign of life.
        """
        self._waiting, began, counted = True, time.perf_counter(), 0.0
        limit *= 1 + 0.25 * min(self.rank, 2)  # rank 0 calls the roll; if it is missing, rank 1
        last = began
        while not request.Test():
            now = time.perf_counter()
            waited, counted, last = now - began, counted + min(now - last, _SLOW), now  # time in a suspended job is none
            if waited < _SPIN:
                os.sched_yield()
                continue
            time.sleep(min(waited / 20, _SLEEP))
            if waited > _SLOW:
                self._answer()
                if counted > limit:
                    self._call_the_roll(request, counted, self.patience if patient else _ROLL_CALL, patient)
                    counted, last = 0.0, time.perf_counter()
        self._turns, self._waiting = self._turns + 1, False

    def _answer(self) -> None:
        status = self._mpi.Status()
        while self._talk.iprobe(tag=_QUESTION, status=status):
            self._talk.send(self._talk.recv(source=status.source, tag=_QUESTION), dest=status.source, tag=_ANSWER)

    def _call_the_roll(self, request: Any, waited: float, until: float, patient: bool) -> None:
        """Ask who is there; whoever does not answer is what everybody waits for. Returns if all answered, or the wait is over."""
        self._rolls += 1
        missing, status, began = set(range(self.size)) - {self.rank}, self._mpi.Status(), time.monotonic()
        self._asked = [self._talk.isend(self._rolls, dest=other, tag=_QUESTION) for other in missing]
        while missing and time.monotonic() - began < until:
            self._answer()
            while self._talk.iprobe(tag=_ANSWER, status=status):
                if self._talk.recv(source=status.source, tag=_ANSWER) == self._rolls:  # and no late answer to an earlier roll
                    missing.discard(status.source)
            if request.Test():
                return
            time.sleep(_SLEEP)
        if missing:
            names, waited = ", ".join(map(str, sorted(missing))), waited + time.monotonic() - began
            how = "gives no sign of life" if patient else "hangs or is slow"
            self._announce_the_end()
            self._end(f"trimtab: rank {self.rank} has waited {waited:.0f} s for rank {names}, which {how} at {self.doing}: "
                      "the job ends, its last checkpoint is whole. Raise parallel.timeout if that may take so long.", 1)

    def _watch(self) -> None:
        """A thread that looks whether this rank goes on, and shows where it is when it does not."""
        seen, still = -1, 0.0
        while True:
            time.sleep(_SLOW)
            if self._waiting or self._turns != seen:
                seen, still = self._turns, 0.0
                continue
            before, still = still, still + _SLOW
            if before <= self.limit < still:
                frame = sys._current_frames().get(threading.main_thread().ident or 0)
                stack = "".join(traceback.format_stack(frame)[-6:]) if frame else ""
                print(f"trimtab: rank {self.rank} gives no sign of life for {still:.0f} s at {self.doing}:\n{stack}",
                      file=sys.stderr, flush=True)
            if still > 2 * self.limit:  # nobody waits for it, they all hang
                self._end(f"trimtab: rank {self.rank} gives the job up; its last checkpoint is whole.", 1)

    def _end(self, text: str, code: int) -> None:
        """The words first, then the end of all ranks."""
        print(text, file=sys.stderr, flush=True)
        time.sleep(0.1)  # mpirun passes on what is in its pipe before it says that the job was aborted
        self._all.Abort(code)


@functools.cache
def get_world() -> World:
    """The ranks of this job; MPI is started at the first call, and only under mpirun or srun.

    From then on an exception that nobody catches ends all ranks, in place of leaving the others to wait for ever.

    Returns:
        The ranks.

    Raises:
        ConfigError: a launcher started several processes, and mpi4py is missing or finds one rank alone.
    """
    size, _ = launched()
    if not size:
        return World()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # the latter when it finds no MPI library
        raise ConfigError(f"The launcher started {size} processes, but mpi4py cannot be used ({_first_line(error)}): install "
                          "trimtab[mpi] with the MPI library of that launcher, or start one process without it.") from error
    found = MPI.COMM_WORLD.size
    if found != size and "TRIMTAB_MPI" not in os.environ:
        library = MPI.Get_library_version().split(",")[0].strip("\0\n ")
        raise ConfigError(f"The launcher started {size} processes, but mpi4py's MPI library ({library}) finds {found}: two MPI "
                          "libraries are mixed; use the mpirun of that library (srun: --mpi=pmix), or install mpi4py again with "
                          "the module loaded.")
    os.environ[OWNER] = str(os.getpid())
    world = MPIWorld(MPI, MPI.COMM_WORLD)

    def end_all(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        number = getattr(error, "number", signal.SIGINT)
        world.fail(f"trimtab: rank {world.rank} failed:\n{text}",
                   exit_code(number) if isinstance(error, KeyboardInterrupt) else 1)

    if world.size > 1:
        sys.excepthook = end_all
    return world


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def mpi_library() -> str:
    """Name and version of the MPI library that mpi4py calls; MPI is not started for it.

    Raises:
        ImportError, RuntimeError: mpi4py is not installed, or finds no library.
    """
    import mpi4py

    if not launched()[0]:
        mpi4py.rc.initialize = False
    from mpi4py import MPI

    return str(MPI.Get_library_version().split(",")[0].strip("\0\n "))
