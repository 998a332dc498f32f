# SPDX-License-Identifier: MIT
"""`trimtab doctor`."""

from __future__ import annotations

import argparse

TEXT = "examine the installation and, under mpirun, every rank; warn of the classic mistakes"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.cli.commands`."""
    parser.add_argument("folder", metavar="DIR", nargs="?", default=".", help="where runs are to go (default: here)")


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.cli.commands`. Exit code 1 when something is broken."""
    from trimtab.cli import diagnose as doctor
    from trimtab.cli.terminal import print_pairs
    from trimtab.parallel.launcher import launched

    found = doctor.examine(options.folder)
    if launched()[1] == 0:
        marks = {"well": "", "warning": "warning: ", "broken": "BROKEN: "}
        print_pairs("", [(one.what, f"{marks[one.level]}{one.text}") for one in found])
    return 0 if doctor.healthy(found) else 1
