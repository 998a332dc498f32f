# SPDX-License-Identifier: MIT
"""Signals that ask a program to stop: an exception while a command runs, a wish that a training grants between two steps."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
AGAIN = 1.0  # seconds after which an exception that somebody's finalizer swallowed is raised once more


class Interrupted(KeyboardInterrupt):
    """A signal asks this program to stop; as `KeyboardInterrupt` no `except Exception`, so that a network's cannot swallow it.

    Args:
        number: of the signal.
        agreed: all ranks know of it, and stop at the same place.
    """

    def __init__(self, number: int, *, agreed: bool = False):
        super().__init__(signal.Signals(number).name)
        self.number, self.agreed = number, agreed


def exit_code(number: int) -> int:
    """What a program that was asked to stop exits with: 130 after SIGINT; 143 after SIGTERM, and SIGUSR1 by which batch systems
    announce it."""
    return 130 if number == signal.SIGINT else 143


@contextlib.contextmanager
def obeyed() -> Iterator[None]:
    """Raise `Interrupted` on SIGTERM, SIGUSR1 and SIGINT inside the block, wherever the main thread is; for a whole command.

    A signal that comes while the exception of the first one unwinds is not looked at (`timeout` sends two at once), or it would
    cut short what closes files and ends processes; a second SIGINT does not wait. A signal that the program was started to
    ignore stays ignored, and outside the main thread the host program keeps handling them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if number == signal.SIGALRM and not first:
            return
        hurried = first == number == signal.SIGINT
        first = first or number
        if hurried or not _unwinding():
            signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
            raise Interrupted(first)

    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.signal(number, handle) for number in (*ASKING, signal.SIGALRM) if signal.getsignal(number) in usual}
    try:
        yield
    finally:
        if first:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _unwinding() -> bool:
    """Whether an `except`, `finally` or `with` is handling an interrupt at this moment."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


class StopSignal:
    """SIGTERM, SIGUSR1 and SIGINT as a wish to stop, to be looked at when it suits; a second SIGINT does not wait.

    Attributes:
        number: of the signal that came, 0 before.
    """

    def __init__(self) -> None:
        self.number = 0
        self._raises = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Handle the signals inside the block; outside the main thread the host program keeps doing it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in ASKING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise `Interrupted` inside the block, at once: for long work of which nothing is lost, or little.

        Raises:
            Interrupted: a signal comes inside, or came before.
        """
        self._raises = True
        try:
            self.check()
            yield
        finally:
            self._raises = False

    def check(self) -> None:
        """Grant the wish.

        Raises:
            Interrupted: a signal came.
        """
        if self.number:
            raise Interrupted(self.number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        known, self.number = self.number, number
        if self._raises and not known:
            raise Interrupted(number)
