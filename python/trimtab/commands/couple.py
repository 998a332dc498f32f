# SPDX-License-Identifier: MIT
"""`trimtab couple init` and `trimtab couple check`."""

from __future__ import annotations

import argparse

TEXT = "couple a Fortran code of your own: lay down an adapter, check what was filled in"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.commands`."""
    parts = parser.add_subparsers(dest="part", required=True, metavar="init | check")
    init = parts.add_parser("init", help="lay down adapter, build files, TOML and network")
    init.add_argument("folder", metavar="DIR", help="where to")
    init.add_argument("--name", required=True, help="the code's name, as a Fortran name")
    init.add_argument("--fixed", action="store_true", help="the adapter in fixed form")


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.commands`."""
    from trimtab.bridge.templates import lay_down

    for path in lay_down(options.folder, options.name, fixed=options.fixed):
        print(path)
    print("Fill in what is marked FILL in the adapter, the Makefile and the TOML; README.md there says how.")
    return 0
