# SPDX-License-Identifier: MIT
"""What a forked child has in common with the process it came from, and must not: working folder, open files, positions.

After a fork both hold the same open files: when the child reads a forcing file on, the next child begins where it left
off, and what one child writes into a work file the next one reads. So each child opens the files it finds open anew, at the
position they had, and those open for writing as a copy. Linux only: it is done by /proc/self/fd.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

_OPENING = os.O_CREAT | os.O_EXCL | os.O_TRUNC


def open_files() -> dict[int, str]:
    """Regular files that this process holds open, shared memory apart: descriptor -> path as the system says it."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{name}")
            regular = stat.S_ISREG(os.stat(f"/proc/self/fd/{name}").st_mode)
        except OSError:
            continue  # the descriptor of the listing itself
        if regular and not path.startswith("/memfd:"):
            found[int(name)] = path
    return found


def positions() -> dict[int, tuple[str, int]]:
    """Open files as (path, position)."""
    return {file: (path, os.lseek(file, 0, os.SEEK_CUR)) for file, path in open_files().items()}


def make_private(folder: Path, log: Path) -> None:
    """Give a forked child its own working folder, log and open files.

    Args:
        folder: the child's, made here as a copy of the current one. Files that nobody may write (chmod a-w) are linked, so
            that large inputs cost nothing.
        log: takes what it prints.
    """
    prepared = Path.cwd()
    shutil.copytree(prepared, folder, symlinks=True, copy_function=_copy_or_link)
    os.chdir(folder)
    printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for file in (1, 2):
        os.dup2(printed, file)
    os.close(printed)
    for file, path in open_files().items():
        if file not in (1, 2):
            _reopen(file, Path(path), prepared, folder)


def _copy_or_link(source: str, target: str) -> str:
    if os.stat(source).st_mode & 0o222:
        return str(shutil.copy2(source, target))
    os.symlink(source, target)
    return target


def _reopen(file: int, path: Path, prepared: Path, folder: Path) -> None:
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    position = os.lseek(file, 0, os.SEEK_CUR)
    if flags & os.O_ACCMODE == os.O_RDONLY:
        own = os.open(f"/proc/self/fd/{file}", flags & ~_OPENING)
    elif path.is_relative_to(prepared) and path.exists():
        own = os.open(folder / path.relative_to(prepared), flags & ~_OPENING)
    else:  # elsewhere, or without a name as Fortran's scratch files
        with tempfile.TemporaryFile(dir=folder) as copy, open(f"/proc/self/fd/{file}", "rb") as original:
            shutil.copyfileobj(original, copy)
            copy.flush()
            own = os.dup(copy.fileno())
    os.lseek(own, position, os.SEEK_SET)
    os.dup2(own, file, os.get_inheritable(file))
    os.close(own)


class Output:
    """What C and gfortran hold back of the files they write; made when the solver's libraries are loaded."""

    def __init__(self) -> None:
        self._flush = [ctypes.CDLL(None).fflush]
        self._flush += [ctypes.CDLL(path)._gfortran_flush_i4 for path in loaded_libraries("libgfortran")]

    def flush(self) -> None:
        """Write it out, all files of the process."""
        for function in self._flush:
            function(None)


def loaded_libraries(prefix: str = "") -> list[str]:
    """Paths of the shared objects in this process whose file name begins with `prefix`; none where /proc is not."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = dict.fromkeys(line.split(maxsplit=5)[5] for line in lines if line.count("/") and ".so" in line)
    return [path for path in paths if Path(path).name.startswith(prefix)]

