# SPDX-License-Identifier: MIT
"""A common limit for work whose every piece ends the solver's process: after the first few the work ends, with the code's last
words.

A process that ends costs the start of another one, a second or more, and a reference run that is not sound may end thousands.
Work in which some pieces succeed goes on. A stage says what its pieces are, a solver in a process of its own reports how each
ended:

    failures = Failures("windows of the offline phase", "is the truth sound?")
    with failures.watching():
        solver.advance(..., on_blow_up="mark")
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from trimtab.core.errors import SolverStopped

FIRST = 8     # pieces from the beginning, of which none succeeded
HYBRID = 16   # the same where a network acts, which may be unstable in half of the pieces and yet learn
LATER = 64    # pieces in a row after one has succeeded
TRUTH = ("is the truth sound, and are its states such as the code can start from (a hidden field that is missing, the order of "
         "the fields, another unit)?")
UNSTABLE = "is the solver stable from these states, and the correction of this solver and time step?"
NETWORK = ("is the truth sound, and the solver alone stable from its states? If so, the network drives the code too far: shorten "
           "the windows, lower training.rate, or set training.clip.")

_present: ContextVar[Failures | None] = ContextVar("failures", default=None)


class Failures:
    """Counts the pieces of one stage that ended the solver's process, in a row.

    Args:
        what: the pieces, in the plural.
        advice: a question or remedy, the end of the sentence.
        first: so many from the beginning end the stage.
        later: so many in a row end it after a piece has succeeded; 0 for no such limit.
    """

    def __init__(self, what: str, advice: str, *, first: int = FIRST, later: int = LATER):
        self.what, self.advice, self.first, self.later = what, advice, first, later
        self._in_a_row, self._succeeded = 0, False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """What `report` is told inside the block is counted here."""
        before = _present.set(self)
        try:
            yield
        finally:
            _present.reset(before)

    def add(self, stopped: SolverStopped | None) -> None:
        """Count one piece.

        Args:
            stopped: how it ended the process; None when it did not.

        Raises:
            SolverStopped: it is one too many.
        """
        if stopped is None:
            self._in_a_row, self._succeeded = 0, True
            return
        self._in_a_row += 1
        if self._in_a_row != (self.later if self._succeeded else self.first):
            return
        many = f"{self._in_a_row} {self.what} in a row" if self._succeeded else f"{self.first} of {self.first} {self.what}"
        raise SolverStopped(f"{many} ended the solver's process (STOP, a crash or the time limit): {self.advice} The last one: "
                            f"{stopped}", stopped.member, stopped.step, stopped.code, stopped.output, stopped.log)


def report(stopped: SolverStopped | None) -> None:
    """Tell the stage that is under way, if any, how a piece ended; see `Failures.add`."""
    failures = _present.get()
    if failures is not None:
        failures.add(stopped)
