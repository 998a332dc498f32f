# SPDX-License-Identifier: MIT
"""`trimtab export`."""

from __future__ import annotations

import argparse
from pathlib import Path

TEXT = "write the correction as files that need neither Python nor trimtab"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.cli.commands`."""
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--out", metavar="DIR", help="folder to write (default: RUN/export)")
    parser.add_argument("--checkpoint", choices=("best", "last", "offline"), default="best",
                        help="which of the run's networks (default: best)")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds something")


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.cli.commands`."""
    from trimtab.production import export
    from trimtab.training.run_folder import load_run

    out = options.out or Path(options.run) / "export"
    for done in export.export_run(load_run(options.run), out, options.checkpoint, overwrite=options.overwrite):
        print(f"{done.folder}: {', '.join(done.files)}")
        for sentence in done.missing:
            print(sentence)
    return 0
