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
    from trimtab.config.input_files import JUDGED
    from trimtab.evaluation.report import write_report
    from trimtab.training.run_folder import load_run, warn_of_files

    warn_of_files(load_run(options.run), JUDGED)
    print(write_report(Path(options.run)))
    return 0
