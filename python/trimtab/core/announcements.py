# SPDX-License-Identifier: MIT
"""What takes long without a progress bar says so, in a line now and then: a compiler, another process that is waited for.

It goes to trimtab's log; the command line says it on standard error, too. A script hears of it through `logging`.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

log = logging.getLogger("trimtab")
SECONDS = 10.0  # between two lines


class Clock:
    """Says what is being done when it begins, every `SECONDS`, and when it ends.

    Args:
        what: is being done, in words.
    """

    def __init__(self, what: str):
        self.what, self.began = what, time.monotonic()
        self.told = self.began
        _say(f"{what}: begins")

    def tick(self) -> None:
        """Call it twice a second or so."""
        now = time.monotonic()
        if now - self.told >= SECONDS:
            self.told = now
            _say(f"{self.what}: {now - self.began:.0f} s so far")

    def end(self) -> None:
        """It is done."""
        _say(f"{self.what}: done in {time.monotonic() - self.began:.0f} s")


@contextlib.contextmanager
def heard(say: Callable[[str], None]) -> Iterator[None]:
    """Have that said where somebody watches, besides the log.

    Args:
        say: given each as a line.
    """
    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "aloud", False):
                say(record.getMessage())
            elif record.levelno >= logging.WARNING and log.handlers == [self] and not logging.getLogger().handlers:
                print(record.getMessage(), file=sys.stderr)  # as logging does where nobody handles it

    handler, before = Heard(logging.INFO), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def _say(text: str) -> None:
    log.info("%s", text, extra={"aloud": True})
