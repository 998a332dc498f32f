# SPDX-License-Identifier: MIT
"""Generate what lies between Python and `solver_api.f90`: run by meson, never by hand.

    wrap.py SOURCE KIND_MAP FOLDER

f90wrap writes `f90wrap_solver_api.f90` (plain procedures around the module) and the Python face `solver_api.py`; f2py
then writes the C module `_solver_apimodule.c`. Both write into the current folder, so they run in one of their own.
Plain f2py and not `f2py-f90wrap`: the latter takes over Ctrl-C and leaves Fortran by longjmp, over all that it holds.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

EXTENSION = "_solver_api"


def run(*command: str, folder: Path) -> str:
    """Run a Python module in a folder; returns what it said, exits with it when it failed."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{said}")
    return said


def check_kinds(source: str, kind_map: dict[str, dict[str, str]]) -> None:
    """Refuse a kind that the map lacks: arrays of it would arrive as garbage, and nothing would say so."""
    for base, kind in re.findall(r"\b(real|integer|complex|logical)\s*\(\s*(?:kind\s*=\s*)?(\w+)\s*\)", source):
        if kind not in kind_map.get(base, {}):
            sys.exit(f"solver_api.f90 uses {base}({kind}), which is not in bridge/python/kind_map: add it there")


def main(source: Path, kind_map: Path, out: Path) -> None:
    """Write the three generated files into `out`."""
    check_kinds(source.read_text(), ast.literal_eval(kind_map.read_text()))
    name = source.stem
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copy(source, folder / source.name)
        shutil.copy(kind_map, folder / "kind_map")
        said = run(
            *("f90wrap", source.name, "-m", name, "--f90-mod-name", EXTENSION, "-k", "kind_map"),
            *("--relative", "--py-max-line-length", "120"),
            folder=folder,
        )
        if not (folder / f"f90wrap_{name}.f90").exists():
            sys.exit(f"f90wrap wrote no procedure for {source.name}:\n{said}")
        run("numpy.f2py", f"f90wrap_{name}.f90", "-m", EXTENSION, folder=folder)
        wrappers = folder / f"{EXTENSION}-f2pywrappers.f"
        lines = wrappers.read_text().splitlines() if wrappers.exists() else []
        if any(line.strip() and line[0] not in "Cc!*" for line in lines):
            sys.exit("solver_api.f90 must hold subroutines only: f2py wants wrappers for its functions")
        for product in (f"f90wrap_{name}.f90", f"{EXTENSION}module.c", f"{name}.py"):
            shutil.copy(folder / product, out / product)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
