# SPDX-License-Identifier: MIT
"""Where a code runs: a scratch folder with its files, its standard input, and a log for what it prints."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.core.errors import ConfigError
from trimtab.isolation.workdir.namelist import patch_namelist
from trimtab.isolation.workdir.scratch import Scratch, by_first

LOOKED_AT = 2**20  # bytes of a file that tell whether it was changed, with its size
SAID = 4000  # bytes at a log's end that are looked at

class Surroundings:
    """A scratch folder of one instance of a code.

    Args:
        name: the code's, for the folder's name.
        files: files and folders that are copied into it.
        stdin: the one of them that the code reads as standard input; "" for an empty one.
        namelist: file -> group -> variable -> value, changed in the copies.
        alone: the current folder is the scratch folder already, and what the process prints is the code's.
        comm: communicator (mpi4py) of the ranks that share the code, and its scratch folder; None for this one alone.

    Attributes:
        folder: the scratch folder, gone when this object is.
        own: the folder of what is this rank's alone; see `Scratch`.
        log: what the code printed.
        copied: names of the files in it that were given.
        on_entry: told the descriptor of the standard error before and the log's path when the code begins to run, and (-1, None)
            when it does not run any more.

    Raises:
        ConfigError: a file that is not there, not in the list, or no namelist.
    """

    def __init__(self, name: str, files: Sequence[str], stdin: str, namelist: Mapping[str, Any], *,
                 alone: bool = False, comm: Any = None):
        self._alone = alone
        self.on_entry: Callable[[int, bytes | None], Any] | None = None
        scratch = None if alone else Scratch(name, comm)
        self.folder, self.own = (Path.cwd(), Path.cwd()) if scratch is None else (scratch.folder, scratch.own)
        self._finalizer = weakref.finalize(self, _remove, scratch)
        self.log = self.own / "trimtab.log"
        self.copied: list[str] = []
        self._given: dict[Path, tuple[int, bytes]] = {}
        self.copied, self._given = by_first(comm, lambda: self._prepared(files, stdin, namelist))
        if alone:
            self._stdin = self._log = -1
            if stdin:
                with open(self.folder / Path(stdin).name, "rb") as file:
                    os.dup2(file.fileno(), 0)
            return
        self._stdin = os.open(self.folder / Path(stdin).name if stdin else os.devnull, os.O_RDONLY)
        self._log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def _prepared(self, files: Sequence[str], stdin: str, namelist: Mapping[str, Any],
                  ) -> tuple[list[str], dict[Path, tuple[int, bytes]]]:
        """Copy and change the files; their names, and what tells whether the code changes them later."""
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
            patch_namelist(self.folder / Path(one).name, groups)
        return self.copied, {} if self._alone else {one: _fingerprint(one) for one in self.folder.rglob("*") if one.is_file()}

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
            if self.on_entry is not None:
                self.on_entry(kept[2], bytes(self.log))
            yield
        finally:
            if self.on_entry is not None:
                self.on_entry(-1, None)
            sys.stdout.flush()
            sys.stderr.flush()
            for number, one in enumerate(kept):
                os.dup2(one, number)
                os.close(one)
            os.chdir(before)

    def changed(self) -> list[str]:
        """Those of the files given that the code has written over or deleted since."""
        return [str(one.relative_to(self.folder)) for one, before in self._given.items()
                if not one.is_file() or _fingerprint(one) != before]

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
        found = self._finalizer.detach()
        if found and not self._alone:
            os.close(self._stdin)
            os.close(self._log)
            _remove(*found[2])


def _remove(scratch: Scratch | None) -> None:
    if scratch is not None:
        scratch.release()


def _fingerprint(path: Path) -> tuple[int, bytes]:
    """Size, and a digest of the first bytes."""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.sha256(file.read(LOOKED_AT)).digest()
