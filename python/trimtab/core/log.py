# SPDX-License-Identifier: MIT
"""The log of a run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from trimtab.core.atomic_files import check_file, writing

log = logging.getLogger("trimtab")


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Raise what logging would print: a disk that is full for the log is full for all else."""
        with writing(Path(self.baseFilename)):
            raise


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Append what trimtab logs to a file.

    Raises:
        OutputError: the file cannot be written.
    """
    check_file(path)
    with writing(path):
        handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
        with contextlib.suppress(OSError):  # what could not be written has been said
            handler.close()


@contextlib.contextmanager
def warned(say: Callable[[str], None]) -> Iterator[None]:
    """Have trimtab's warnings said where somebody watches, besides the log.

    Args:
        say: given each as a line.
    """
    class Said(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.WARNING:  # an error is an exception, which is said anyway
                say(record.getMessage())

    handler = Said(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Say nothing: what rank 0 logs is enough."""
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before
