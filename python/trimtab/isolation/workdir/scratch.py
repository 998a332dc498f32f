# SPDX-License-Identifier: MIT
"""The scratch folder of an instance of a code: one for all ranks that share it, as its own program has one working folder."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from trimtab.core.errors import ConfigError

Made = TypeVar("Made")


class Scratch:
    """A folder, made at once and removed by `release`.

    Args:
        name: the code's, for the folder's name.
        comm: communicator (mpi4py) of the ranks that share the code, all of which do this together; None for this one alone.

    Attributes:
        folder: in which the code runs, the same on every rank.
        own: for what is this rank's alone, its log and its copy of the library; without other ranks the same as `folder`.

    Raises:
        ConfigError: ranks that see no folder together.
    """

    def __init__(self, name: str, comm: Any = None):
        ranks = 1 if comm is None else comm.size
        if ranks == 1:
            self._root = self.folder = self.own = _make(name, None, 1)
            return
        # Ranks on other hosts may not see this one's folder for temporary files; the current one holds what training writes.
        for parent in (None, Path.cwd()):
            self._root = by_first(comm, functools.partial(_make, name, parent, ranks))
            self.folder, self.own = self._root / "code", self._root / "ranks" / str(comm.rank)
            if all(comm.allgather(self.own.is_dir())):
                return
            if comm.rank == 0:
                shutil.rmtree(self._root, ignore_errors=True)
        raise ConfigError(f"The {ranks} ranks that share {name} see no folder together, neither {tempfile.gettempdir()} nor "
                          f"{Path.cwd()}: set TMPDIR to one that every host sees.")

    def release(self) -> None:
        """Remove what is this rank's, and, of the last rank to do so, everything."""
        if self.own != self._root:
            shutil.rmtree(self.own, ignore_errors=True)
            try:
                os.rmdir(self.own.parent)  # one rank alone finds it empty, and there
            except OSError:
                return
        shutil.rmtree(self._root, ignore_errors=True)


def by_first(comm: Any, work: Callable[[], Made]) -> Made:
    """What the first rank makes, on every rank; its exception, too.

    Args:
        comm: communicator (mpi4py), all of whose ranks call this; None for this one alone.
        work: called on the first rank; its answer travels.
    """
    if comm is None or comm.size == 1:
        return work()
    made: tuple[Any, Exception | None] = None, None
    if comm.rank == 0:
        try:
            made = work(), None
        except Exception as error:
            made = None, error
    answer, failure = comm.bcast(made, root=0)
    if failure is not None:
        raise failure
    found: Made = answer
    return found


def _make(name: str, parent: Path | None, ranks: int) -> Path:
    root = Path(tempfile.mkdtemp(prefix=f"trimtab-{name}-", dir=parent))
    if ranks > 1:
        (root / "code").mkdir()
        for rank in range(ranks):
            (root / "ranks" / str(rank)).mkdir(parents=True)
    return root
