# SPDX-License-Identifier: MIT
"""A place of its own for each instance: working folder, input files, standard input, and a log of what it prints."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.core.errors import ConfigError

LONGEST_LOG = 2**24  # bytes, after which a log begins anew, unless everything is kept
KEPT_FAILURES = 5  # folders of instances that stopped, kept to be looked at; of more the logs alone
_LINES, _BYTES = 20, 4000


@dataclass(frozen=True)
class Place:
    """One instance's.

    Args:
        folder: its working folder.
        log: what it prints; beside the folder, where the solver's code does not look.
    """

    folder: Path
    log: Path

    def output(self, start: int = 0) -> str:
        """The last lines of the log, those after byte `start` when there are any."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start if start < size else 0, size - _BYTES))
            text = file.read().decode(errors="replace")
        lines = [line for line in text.splitlines() if not line.startswith("Extension modules:")]  # of Python's fault handler
        return "\n".join(lines[-_LINES:]).strip()


class Scratch:
    """The folder under which all instances of a solver have theirs.

    Args:
        folder: where; None for a temporary one. It is made when it is not there, and never shared with another solver.
        files: copied into each instance's working folder; a folder is copied with all that is in it.
        links: put there as symbolic links, for large files that the code only reads.
        stdin: file to be standard input; None for nothing.
        keep: keep everything; else folders are removed, but for those of instances that stopped.

    Attributes:
        base: the folder in use.

    Raises:
        ConfigError: a file that is not there, two of one name, or a folder that cannot be made.
    """

    def __init__(self, folder: str | Path | None = None, files: Sequence[str | Path] = (), links: Sequence[str | Path] = (),
                 stdin: str | Path | None = None, keep: bool = False):
        self._files = [Path(one).absolute() for one in files]
        self._links = [Path(one).absolute() for one in links]
        self.stdin = None if stdin is None else Path(stdin).absolute()
        for path in (*self._files, *self._links, *([self.stdin] if self.stdin else [])):
            if not path.exists():
                raise ConfigError(f"The solver's input {path} does not exist: check files, links and stdin.")
        names = [path.name for path in (*self._files, *self._links)]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"Two of the solver's files and links are called {name}: one would hide the other.")
        try:
            if folder is not None:
                Path(folder).mkdir(parents=True, exist_ok=True)
            self.base = Path(tempfile.mkdtemp(prefix="solver-" if folder else "trimtab-", dir=folder)).absolute()
        except OSError as error:
            raise ConfigError(f"No folder can be made for the solver: {error}; set folder, or TMPDIR.") from error
        self._keep, self._kept, self._made = keep, 0, 0

    def place(self, name: str) -> Place:
        """A new place, with the files in it."""
        place = self.reserve(name)
        place.folder.mkdir()
        for path in self._files:
            if path.is_dir():
                shutil.copytree(path, place.folder / path.name, symlinks=True)
            else:
                shutil.copy2(path, place.folder / path.name)
        for path in self._links:
            (place.folder / path.name).symlink_to(path)
        return place

    def reserve(self, name: str) -> Place:
        """A new place of which nothing is made yet."""
        self._made += 1
        folder = self.base / f"{name}-{self._made}"
        return Place(folder, folder.with_suffix(".log"))

    def log_position(self, place: Place) -> int:
        """Where in an instance's log the output of its next job will begin; a log that has grown long begins anew."""
        size = place.log.stat().st_size if place.log.exists() else 0
        if size > LONGEST_LOG and not self._keep:
            os.truncate(place.log, 0)  # it is opened to append
            return 0
        return size

    def release(self, place: Place, failed: bool = False) -> bool:
        """Remove what an instance left, unless it is to be kept; True when it is still there."""
        if self._keep:
            return True
        if failed and self._kept < KEPT_FAILURES:
            self._kept += 1
            return True
        shutil.rmtree(place.folder, ignore_errors=True)
        place.log.unlink(missing_ok=True)
        return False

    def close(self) -> None:
        """Remove the folder when there is nothing in it to be kept."""
        if self.base.exists() and not any(self.base.iterdir()):
            self.base.rmdir()
