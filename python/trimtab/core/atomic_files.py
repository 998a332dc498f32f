# SPDX-License-Identifier: MIT
"""Files that are whole or not there at all, and folders that one process at a time writes to."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from trimtab.core.errors import ConfigError, DataError, OutputError, TrimtabError

FULL = 2**12  # bytes that are left on a disk that is full
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe (FIFO)",
         stat.S_IFSOCK: "a socket"}


def check_file(path: Path) -> None:
    """Refuse to write what exists and is no regular file, links to such included: a device would be replaced, a pipe waited for.

    Args:
        path: a file that is to be written, there or not.

    Raises:
        ConfigError: it is a folder, a device, a pipe or a socket.
    """
    kind = _kind(path)
    if kind not in (0, stat.S_IFREG):
        raise ConfigError(f"{path} is {KINDS.get(kind, 'something else')}, no regular file, and is left alone: give another "
                          "name, or remove it.")


def check_folder(path: Path) -> None:
    """Refuse a folder to write into that is something else.

    Args:
        path: a folder, there or not.

    Raises:
        ConfigError: a file or anything else has that name.
    """
    kind = _kind(path)
    if kind not in (0, stat.S_IFDIR):
        raise ConfigError(f"{path} is {KINDS.get(kind, 'a file')}, no folder, and is left alone: give another name, or remove "
                          "it.")


def _kind(path: Path) -> int:
    """What stands there, behind any links; 0 for nothing."""
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except OSError:  # what cannot be looked at cannot be written either, and writing says why
        return 0


def is_writable(folder: Path) -> bool:
    """Whether a file can be made in a folder; tried, as root may write where a read-only file system does not let it."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


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
        folder: made when it is not there. A second process that writes to it is refused.

    Yields:
        A new folder in it, or beside it, to be filled; its files replace those of the same names when the block ends without an
        exception.

    Raises:
        OutputError: the disk is full, or the folder cannot be written to.
        ConfigError: it is no folder, or one of its files is no regular file.
        DataError: another process is writing to it.
    """
    folder = folder.resolve()  # "." has no name
    check_folder(folder)
    partial = (folder if folder.is_dir() else folder.parent) / f".{folder.name}.partial"  # beside it may be another file system
    with writing(folder), contextlib.ExitStack() as stack:
        partial.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(only_writer_of(partial))
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            yield partial
            for one in partial.iterdir():
                check_file(folder / one.name)
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
        path: the file; its folder must exist. A second process that writes it waits.

    Yields:
        A path in the same folder, to be written; renamed to `path` when the block ends without an exception.

    Raises:
        OutputError: the disk is full, or the folder cannot be written to.
        ConfigError: the name is that of a device, a pipe or a folder.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing(path), only_writer_of(path, wait=True):
        check_file(path)
        check_file(partial)
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

    Raises:
        ConfigError: something else has that name.
    """
    check_file(path)
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


@contextlib.contextmanager
def only_writer_of(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a name of a file or folder that is about to be written, there or not; see `only_writer`.

    Args:
        path: the name; its folder must exist. While it is held, a file .NAME.lock lies there; one left by a process that was
            killed is of no consequence.
        wait: wait for the other process instead of refusing.

    Raises:
        DataError: another process holds it, and wait is False.
        OSError: the folder cannot be written to.
    """
    lock = path.with_name(f".{path.name}.lock")
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(lock, handle):
                break
        except BlockingIOError as error:
            if not wait:
                os.close(handle)
                raise DataError(f"Another process is writing {path}; wait for it, or give another --out.") from error
            time.sleep(0.05)
        os.close(handle)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(handle)


def _is_still(path: Path, handle: int) -> bool:
    """Whether a file that was opened still has its name: who held it before removes it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
