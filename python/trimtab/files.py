# SPDX-License-Identifier: MIT
"""Files that are whole or not there at all, and folders that one process at a time writes to."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from trimtab.errors import DataError, OutputError, TrimtabError

FULL = 2**12  # bytes that are left on a disk that is full


@contextlib.contextmanager
def writing(path: Path, *others: type[Exception]) -> Iterator[None]:
    """What the system says about a file that cannot be written, as one sentence.

    Args:
        path: the file.
        others: what a library raises for it besides OSError; netCDF4 and torch raise RuntimeError for a full disk.

    Raises:
        OutputError: in place of the block's OSError.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *others)
    try:
        yield
    except TrimtabError:
        raise
    except kinds as error:
        said = getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        with contextlib.suppress(OSError):  # where a library names another reason
            said = "No space left on device" if shutil.disk_usage(path.parent).free < FULL else said
        raise OutputError(f"{path} cannot be written ({said}): make room or give another "
                          "folder; files written before are as they were.") from error


@contextlib.contextmanager
def replacing_in(folder: Path) -> Iterator[Path]:
    """Write several files into a folder, all of them or none.

    Args:
        folder: made when it is not there.

    Yields:
        A new folder beside it, to be filled; its files replace those of the same names when the block ends without an exception.

    Raises:
        OutputError: the disk is full, or the folder cannot be written to.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            yield partial
            for one in partial.iterdir():
                with open(one, "rb+") as file:
                    os.fsync(file.fileno())
            folder.mkdir(exist_ok=True)
            for one in partial.iterdir():
                os.replace(one, folder / one.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


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
            commit(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):  # a folder that cannot be written to has said so already
                partial.unlink(missing_ok=True)
            raise


def commit(partial: Path, path: Path) -> None:
    """Give a file that is written its name, once the disk has it.

    Args:
        partial: the file, closed.
        path: its name in the same folder; a file of that name is replaced.
    """
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
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
