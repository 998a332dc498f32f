# SPDX-License-Identifier: MIT
"""The ranks of a job as everything but MPI sees them; of a job of one rank this is all there is. `parallel` has the others."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trimtab.core.errors import ConfigError, InputError
from trimtab.core.progress import Progress
from trimtab.parallel.subgroup import Cohort

PATIENCE = 600.0   # seconds to wait where nobody can say how long it takes: a first step, a file
LONGEST = 3600.0   # seconds that long work, a reference run for instance, may go without a sign of life
HANGS = 3.0        # times the limit, after which ranks that share a solver hang in it together


class World:
    """All ranks of a job; this class is the one of a job of one rank, and what the others have in common.

    Attributes:
        rank, size: which one this is, of how many.
        team, teams: which group of `blocks` ranks shares a solver with this one, of how many groups.
        block, blocks: which part of that solver's domain is here, of how many.
        domain: the communicator of the group (mpi4py), to be given to the solver; None when it is this rank alone.
        own: the communicator of this rank alone; None when MPI is not started.
        members: so many neighbouring teams share the members of each window's ensemble.
        cohort, holders: the ranks that share the members of this one's windows, and those that hold the other blocks of its
            states; None where there are no blocks.
        limit: seconds after which a rank that waits for the others in `table` or `sum` gives the job up.
        patience: seconds without a sign of life after which others give a rank up that is at long work (`working`).
        doing: what this rank is doing, for whoever has to say that it hangs.
    """

    rank, size = 0, 1
    team, teams = 0, 1
    block, blocks = 0, 1
    domain: Any = None
    own: Any = None
    members = 1
    holders: Cohort | None = None

    def __init__(self) -> None:
        self.limit, self.patience, self.doing = math.inf, LONGEST, "starting"
        self.cohort = Cohort()

    def place(self, blocks: int, members: int = 1) -> World:
        """Group the ranks as windows x members x domain, neighbours together, so that a group lies on one node where it can.

        Args:
            blocks: ranks of a solver's domain.
            members: teams of so many ranks that share the members of an ensemble.

        Returns:
            The same ranks, grouped.

        Raises:
            ConfigError: a number of ranks that is no multiple of both.
        """
        if self.size % (blocks * members):
            asked = [f"parallel.{name} = {number}" for name, number in (("domain", blocks), ("members", members)) if number > 1]
            raise ConfigError(f"{' times '.join(asked)} does not divide the {self.size} ranks of this job: start a multiple "
                              "of it, with mpirun -n.")
        return self

    def placement(self) -> str:
        """Where the ranks are, in one sentence; every rank has to ask."""
        return "1 rank"

    def broadcast(self, thing: Any) -> Any:
        """Rank 0's object, on every rank; what the others give is not looked at. They wait for it as in `wait`."""
        return thing

    def share(self, thing: Any) -> list[Any]:
        """Every rank's object, in order of rank, on every rank; they wait as in `wait`."""
        return [thing]

    def table(self, row: np.ndarray) -> np.ndarray:
        """Every rank's row of numbers; where the ranks meet in every step.

        Args:
            row: (C,) float64, of the same length everywhere.

        Returns:
            (size, C) float64, the same on every rank.
        """
        return row[None]

    def sum(self, parts: np.ndarray, owners: Sequence[int], weights: Sequence[float]) -> np.ndarray:
        """Weighted sum of vectors, in float64 and in the order of their numbers, whoever has them.

        Args:
            parts: (k, P) float32 or float64, those that are here, in the order of their numbers.
            owners: (M,) rank that has each number; k of them are this one.
            weights: (M,) a part of weight 0 is left out, whatever is in it.

        Returns:
            (P,) in the dtype of the parts, the same bits on every rank.

        Raises:
            InputError: all weights are 0.
        """
        return ordered_sum(parts, weights)

    def wait(self, limit: float = 0.0) -> None:
        """Until every rank is here, asleep, for that many seconds; without a limit as long as the others give signs of life."""

    @contextlib.contextmanager
    def working(self, doing: str) -> Iterator[None]:
        """Work whose length nobody can tell, inside the block: whoever does it has to `sign` now and then.

        Args:
            doing: what it is.
        """
        before = self.limit, self.doing
        self.limit, self.doing = self.patience, doing
        try:
            yield
        finally:
            self.limit, self.doing = before

    def sign(self, doing: str) -> None:
        """Give a sign of life from long work.

        Args:
            doing: what it is.
        """
        self.doing = doing

    def telling(self, progress: Progress) -> Progress:
        """A progress that passes on what it is told, and is a sign of life."""
        def told(fraction: float, text: str) -> None:
            self.sign(text)
            progress(fraction, text)

        return told

    def computing(self) -> contextlib.AbstractContextManager[None]:
        """While this rank computes; a solver that several ranks share must not hang in all of them, see `ended_if_it_hangs`."""
        return contextlib.nullcontext() if self.blocks == 1 else ended_if_it_hangs(HANGS * self.limit)

    def fail(self, text: str, code: int) -> int:
        """Say why this rank cannot go on, and end the job.

        Args:
            text: one sentence, or a traceback.
            code: exit code of the job.

        Returns:
            The code, when this is the only rank and its caller ends it.
        """
        print(text, file=sys.stderr, flush=True)
        return code


@contextlib.contextmanager
def ended_if_it_hangs(seconds: float) -> Iterator[None]:
    """End this process, with a traceback and exit code 1, if what is done within takes longer.

    A code that waits for another rank in MPI holds Python's lock: no thread of ours could notice, say or end anything.
    """
    if seconds > threading.TIMEOUT_MAX:
        yield
        return
    with os.fdopen(os.dup(2), "w") as terminal:  # what a code prints on standard error meanwhile goes elsewhere
        faulthandler.dump_traceback_later(seconds, exit=True, file=terminal)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def ordered_sum(parts: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Weighted sum of vectors in float64, in their order; see `World.sum`."""
    total: np.ndarray | None = None
    for part, weight in zip(parts, weights, strict=True):
        if weight:
            term = part.astype(np.float64) * weight
            total = term if total is None else np.add(total, term, out=total)
    if total is None:
        raise InputError("There is nothing to sum: every part has weight 0.")
    return total.astype(parts.dtype)
