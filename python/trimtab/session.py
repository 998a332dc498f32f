# SPDX-License-Identifier: MIT
"""What holds while a training runs, and is put back after it: determinism, the log."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from trimtab.files import check_file, writing

log = logging.getLogger("trimtab")


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Torch operations that give the same bits every time; those that cannot, warn."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would write every buffer twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


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
