# SPDX-License-Identifier: MIT
"""Where a code runs: a scratch folder with its files, its standard input, and a log for what it prints."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import f90nml

from trimtab.errors import ConfigError

SAID = 4000  # bytes at a log's end that are looked at


class Surroundings:
    """A scratch folder of one instance of a code.

    Args:
        name: the code's, for the folder's name.
        files: files and folders that are copied into it.
        stdin: the one of them that the code reads as standard input; "" for an empty one.
        namelist: file -> group -> variable -> value, changed in the copies.
        alone: the current folder is the scratch folder already, and what the process prints is the code's.

    Attributes:
        folder: the scratch folder, gone when this object is.
        log: what the code printed.
        copied: names of the files in it that were given.

    Raises:
        ConfigError: a file that is not there, not in the list, or no namelist.
    """

    def __init__(self, name: str, files: Sequence[str], stdin: str, namelist: Mapping[str, Any], *,
                 alone: bool = False):
        self._alone = alone
        self.folder = Path.cwd() if alone else Path(tempfile.mkdtemp(prefix=f"trimtab-{name}-"))
        self._finalizer = weakref.finalize(self, _remove, None if alone else self.folder)
        self.log = self.folder / "trimtab.log"
        self.copied: list[str] = []
        for one in dict.fromkeys([*files, *([stdin] if stdin else [])]):
            path = Path(one)
            self.copied.append(path.name)
            if path.is_dir():
                shutil.copytree(path, self.folder / path.name)
            elif path.is_file():
                shutil.copy(path, self.folder / path.name)
            else:
                raise ConfigError(f"There is no file {one!r} in {Path.cwd()}; mend solver.files, stdin or namelist.")
        for one, groups in namelist.items():
            if Path(one).name not in self.copied:
                raise ConfigError(f"solver.namelist changes {one!r}, which is in neither solver.files nor stdin: name it there.")
            _patch(self.folder / Path(one).name, groups)
        if alone:
            self._stdin = self._log = -1
            if stdin:
                with open(self.folder / Path(stdin).name, "rb") as file:
                    os.dup2(file.fileno(), 0)
            return
        self._stdin = os.open(self.folder / Path(stdin).name if stdin else os.devnull, os.O_RDONLY)
        self._log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @property
    def descriptors(self) -> tuple[int, int]:
        """Of the standard input and of the log."""
        return self._stdin, self._log

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The process stands in the scratch folder, reads its standard input from the file and prints into the log."""
        if self._alone:
            yield
            return
        sys.stdout.flush()
        sys.stderr.flush()
        before, kept = os.getcwd(), [os.dup(one) for one in (0, 1, 2)]
        os.chdir(self.folder)
        try:
            for number, opened in enumerate((self._stdin, self._log, self._log)):
                os.dup2(opened, number)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, one in enumerate(kept):
                os.dup2(one, number)
                os.close(one)
            os.chdir(before)

    def said(self, lines: int = 3) -> str:
        """The last lines of the log, as a sentence's end; "" when it is empty."""
        text: list[str] = []
        if self.log.exists():
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - SAID))
                text = file.read().decode(errors="replace").strip().splitlines()[-lines:]
        return f"; the code printed last: {' / '.join(line.strip() for line in text)}" if text else ""

    def close(self) -> None:
        """Remove the folder."""
        if self._finalizer.detach() and not self._alone:
            os.close(self._stdin)
            os.close(self._log)
            _remove(self.folder)


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _patch(path: Path, groups: Any) -> None:
    try:
        known = f90nml.read(path)
    except Exception as error:  # f90nml raises a dozen kinds for text that is no namelist
        raise ConfigError(f"{path.name} cannot be read as a namelist: {error}.") from error
    for group in groups:
        if group.lower() not in known:
            raise ConfigError(f"The namelist {path.name} has no group {group!r}; it has {', '.join(known)}.")
    patched = path.with_suffix(".patched")
    f90nml.patch(path, {group: dict(values) for group, values in groups.items()}, patched)
    patched.replace(path)
