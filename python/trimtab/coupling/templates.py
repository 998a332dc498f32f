# SPDX-License-Identifier: MIT
"""What `trimtab couple init` lays down: the files of bridge/adapter, with the name filled in."""

from __future__ import annotations

import re
from pathlib import Path

from trimtab.core.atomic_files import check_folder, replacing_in
from trimtab.core.errors import ConfigError

ADAPTER = Path(__file__).parent / "adapter"


def lay_down(folder: str | Path, name: str, *, fixed: bool = False) -> list[Path]:
    """Write the templates for a code into a folder.

    Args:
        folder: made when it is not there.
        name: of the code: letters, digits and underscores, as a Fortran name.
        fixed: the adapter in fixed form.

    Returns:
        The files.

    Raises:
        ConfigError: a name that is none in Fortran, or a file that is already there.
        OutputError: the disk is full, or the folder cannot be written to; then no file is laid down.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name):
        raise ConfigError(f"--name {name!r} must be small letters, digits and underscores, beginning with a letter: it becomes "
                          "the "
                          "Fortran procedure NAME_correct.")
    folder = Path(folder)
    check_folder(folder)
    adapter, other = ("adapter.f", "adapter.f90") if fixed else ("adapter.f90", "adapter.f")
    written = {folder / path.name.replace("NAME", name): path.read_text(encoding="utf-8") for path in sorted(ADAPTER.iterdir())
               if path.is_file() and path.name != other}
    there = [path.name for path in written if path.exists()]
    if there:
        raise ConfigError(f"{folder} already holds {', '.join(there)}: give a folder of its own, such as "
                          f"{folder / 'trimtab'}, and name your sources from there in its Makefile (SOURCES = ../a.f90 ...).")
    with replacing_in(folder) as partial:
        for path, text in written.items():
            filled = re.sub(r"NAME(?=[^A-Z]|$)", name, text).replace("ADAPTER", adapter)
            (partial / path.name).write_text(filled, encoding="utf-8")
    return list(written)
