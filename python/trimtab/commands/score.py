# SPDX-License-Identifier: MIT
"""`trimtab score`."""

from __future__ import annotations

import argparse
from pathlib import Path

TEXT = "score a run; of several runs (seeds), print mean and spread"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.commands`."""
    parser.add_argument("run", metavar="RUN", nargs="+", help="run folder")
    parser.add_argument("--again", action="store_true", help="score even when the stored scores are up to date")
    parser.add_argument("--out", metavar="DIR", help="folder for the scores of several runs together")


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.commands`."""
    from trimtab.report import write_report
    from trimtab.scoring import score_run, score_runs
    from trimtab.terminal import Watch, print_scores

    with Watch().watching() as watch:
        if len(options.run) == 1:
            table = score_run(options.run[0], again=options.again, progress=watch)
            where = write_report(Path(options.run[0]))
        else:
            from trimtab.figures import draw_seeds

            first = Path(options.run[0])
            out = Path(options.out) if options.out else first.parent / f"{first.name}-and-{len(options.run) - 1}-more"
            table, curves = score_runs(options.run, out, again=options.again, progress=watch)
            where = draw_seeds(curves, out / "figures")
    print_scores(table)
    print(f"Written: {where}")
    return 0
