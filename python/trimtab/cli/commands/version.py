# SPDX-License-Identifier: MIT
"""`trimtab version`."""

from __future__ import annotations

import argparse
from pathlib import Path

import trimtab

TEXT = "print versions, the threads and allocator settings in force, and what a Fortran program links"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.cli.commands`."""
    parser.add_argument("--folder", action="store_true", help="print only the folder of what Fortran programs link")


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.cli.commands`."""
    import importlib.metadata as metadata
    import platform

    from trimtab.bridge.aot_compile import cache_folder
    from trimtab.bridge.aot_function import installed
    from trimtab.bridge.threads import configure_runtime

    if options.folder:
        print(Path(str(installed("libtrimtab_correction"))).parent)
        return 0
    packages = ("torch", "numpy", "xarray", "netCDF4", "matplotlib", "f90wrap")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    print(f"trimtab {trimtab.__version__} (Python {platform.python_version()}, {versions})\nThis process: {configure_runtime()}.")
    embed = installed("libtrimtab_embed")
    print(f"For Fortran programs to link: {installed('libtrimtab_correction')}\n"
          f"Python inside them (TRIMTAB_EMBED): {embed or 'none, this Python has no shared library'}\n"
          f"Compiled corrections are kept in {cache_folder()}")
    return 0
