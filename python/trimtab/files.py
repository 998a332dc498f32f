# SPDX-License-Identifier: MIT
"""Files that are whole or not there at all, and folders that one process at a time writes to."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from trimtab.errors import DataError, OutputError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says about a file that cannot be written, as one sentence.

    Args:
        path: the file.

    Raises:
        OutputError: in place of the block's OSError.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}): make room or give another folder; files "
                          "written before are as they were.") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file so that a reader, or a run killed at any moment, sees the old one or the new one, never a part.

    Args:
        path: the file; its folder must exist. One process at a time may write it.

    Yields:
        A path in the same folder, to be written; renamed to `path` when the block ends without an exception.

    Raises:
        OutputError: the disk is full, or the folder cannot be written to.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            yield partial
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):  # a folder that cannot be written to has said so already
                partial.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def only_writer(folder: Path, *, wait: bool = False, waiting: Callable[[], None] = lambda: None,
                patience: float = 0.0) -> Iterator[None]:
    """Hold a folder: a second process waits or is refused. The lock ends with the process, however it ends.

    Args:
        folder: an existing folder.
        wait: wait for the other process instead of refusing.
        waiting: called twice a second while it waits.
        patience: seconds to wait before refusing, for a process that has been killed and is about to be gone.

    Raises:
        DataError: another process holds it, and wait is False.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if wait:
                    waiting()
                    time.sleep(0.45)
                elif time.monotonic() >= until:
                    raise DataError(f"Another process is writing to {folder}; wait for it, or give another folder.") from error
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)
