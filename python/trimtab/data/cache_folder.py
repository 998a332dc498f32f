# SPDX-License-Identifier: MIT
"""Where reference runs are kept: the folder that TRIMTAB_CACHE names, else .trimtab-cache in the current folder, else, where that
cannot be written, a folder of the user's cache that is for the current folder alone."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

HERE = Path(".trimtab-cache")


def find_cached(name: str) -> Path:
    """The path of a file in the cache, there or not.

    Args:
        name: of the file.

    Returns:
        Where it is; else where it can be written. What TRIMTAB_CACHE names is taken as it is.
    """
    named = os.environ.get("TRIMTAB_CACHE")
    if named:
        return Path(named) / name
    folders = [HERE, _elsewhere()]
    there = [folder / name for folder in folders if (folder / name).is_file()]
    return there[0] if there else next((folder for folder in folders if can_be_written(folder)), HERE) / name


def can_be_written(folder: Path) -> bool:
    """Whether a folder, or the first that is there above it, takes new files."""
    for place in (folder, *folder.absolute().parents):
        if place.exists() or place.is_symlink():
            return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return False


def _elsewhere() -> Path:
    """The user's folder for what is computed in the current one: experiments of one name in two folders are two."""
    here = Path.cwd()
    base = os.environ.get("XDG_CACHE_HOME")
    if not base:
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError:  # a user without an entry and without HOME
            base = ""
    folder = Path(base) / "trimtab" if base else None
    if folder is None or not can_be_written(folder):
        folder = Path(tempfile.gettempdir()) / f"trimtab-{os.getuid()}"
    return folder / "reference" / f"{here.name}-{hashlib.sha256(os.fsencode(here)).hexdigest()[:12]}"
