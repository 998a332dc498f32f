# SPDX-License-Identifier: MIT
"""One caller at a time in a solver: a second thread waits, and what would wait for itself is told so."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from trimtab.core.errors import SolverError

T = TypeVar("T", bound=Callable[..., Any])
SURROUNDINGS = threading.RLock()  # of codes in this process, which has one working folder and one standard output


class Turn:
    """The lock of one solver, or of several that share something.

    torch releases Python's lock while a network runs, and Python switches threads there: a second one that entered the same
    Fortran would find, and leave, another's slot and work arrays.

    Args:
        name: the solver's, for the sentence.
        shared: a lock that is taken besides, by all that share what must not be shared (the process's working folder).
    """

    def __init__(self, name: str, shared: Any = None):
        self.name, self._shared = name, shared or contextlib.nullcontext()
        self._lock, self._owner = threading.Lock(), 0

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Hold the solver inside the block; another thread waits for it.

        Raises:
            SolverError: this thread holds it already: a network calls the solver in which it runs.
        """
        if self._owner == threading.get_ident():
            raise SolverError(f"The solver {self.name} is called while it runs, by the network in its slot or what that calls: "
                              "a solver advances one thing at a time; open a second one for it.")
        with self._shared, self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = 0


def in_turn(method: T) -> T:
    """A method of a solver that has a `Turn` as `turn`: called by one thread at a time."""
    @functools.wraps(method)
    def taken(self: Any, *positional: Any, **named: Any) -> Any:
        with self.turn.taken():
            return method(self, *positional, **named)

    return taken  # type: ignore[return-value]
