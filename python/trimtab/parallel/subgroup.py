# SPDX-License-Identifier: MIT
"""Ranks that share the members of an ensemble: who has which, and the few ways in which they exchange numbers.

It sees no mpi4py, only a communicator that it is given, so that it works without MPI, too: a cohort of one exchanges nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trimtab.core.errors import ConfigError


class Cohort:
    """Ranks that share the members of one ensemble.

    Args:
        communicator: of the ranks (mpi4py); None for this one alone.
        finish: waits until a request is complete, and gives the job up when it takes too long; None waits as MPI does.

    Attributes:
        rank, size: which one this is, of how many.
        seconds: spent in exchange and waiting since it was last set to 0.

    Raises:
        ConfigError: no communicator.
    """

    def __init__(self, communicator: Any = None, finish: Callable[[Any], None] | None = None):
        if communicator is not None and not callable(getattr(communicator, "Iallgatherv", None)):
            raise ConfigError(f"The ranks that share an ensemble are given as an mpi4py communicator, not {communicator!r}.")
        self._all, self._finish = communicator, finish or (lambda request: request.Wait())
        self.rank: int = 0 if communicator is None else communicator.rank
        self.size: int = 1 if communicator is None else communicator.size
        self.seconds = 0.0

    def bounds(self, number: int) -> list[int]:
        """Where the stretch of each rank begins among things in a row, and behind the last; (size + 1,)."""
        return [number * rank // self.size for rank in range(self.size + 1)]

    def share(self, number: int) -> range:
        """The things in a row that are this rank's."""
        bounds = self.bounds(number)
        return range(bounds[self.rank], bounds[self.rank + 1])

    def gather(self, rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        """Everybody's rows, in order of rank.

        Args:
            rows: (k, ...) float64, this rank's.
            counts: (size,) rows of each rank.

        Returns:
            (sum of counts, ...) float64, the same on every rank.
        """
        if self._all is None:
            return rows
        found = np.empty((sum(counts), *rows.shape[1:]))
        width = int(np.prod(rows.shape[1:]))
        self._exchange(lambda: self._all.Iallgatherv(np.ascontiguousarray(rows), [found, [count * width for count in counts]]))
        return found

    def turn(self, rows: np.ndarray, counts: Sequence[int], columns: Sequence[int]) -> np.ndarray:
        """From some rows, whole, to some columns of all rows: what is sent is what this rank holds, and no more.

        Args:
            rows: (k, B, N) float64, this rank's.
            counts: (size,) rows of each rank.
            columns: (size + 1,) where the columns of each rank begin, and behind the last.

        Returns:
            (sum of counts, B, columns of this rank) float64.
        """
        if self._all is None:
            return rows
        members = rows.shape[1]
        widths = np.diff(columns)
        sent = np.concatenate([rows[..., first : first + width].ravel() for first, width in zip(columns, widths, strict=False)])
        found = np.empty((sum(counts), members, widths[self.rank]))
        out = [len(rows) * members * int(width) for width in widths]
        back = [count * members * int(widths[self.rank]) for count in counts]
        self._exchange(lambda: self._all.Ialltoallv([sent, out], [found, back]))
        return found

    def _exchange(self, begin: Callable[[], Any]) -> None:
        began = time.perf_counter()
        self._finish(begin())
        self.seconds += time.perf_counter() - began
