# SPDX-License-Identifier: MIT
"""`trimtab report`."""

from __future__ import annotations

import argparse
from pathlib import Path

TEXT = "write figures and report.html of a run again"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.cli.commands`."""
    parser.add_argument("run", metavar="RUN", help="run folder")


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.cli.commands`."""
    from trimtab.evaluation.report import write_report

    print(write_report(Path(options.run)))
    return 0
