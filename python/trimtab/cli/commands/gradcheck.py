# SPDX-License-Identifier: MIT
"""`trimtab gradcheck`."""

from __future__ import annotations

import argparse
from pathlib import Path

from trimtab.cli.commands import changes_argument, integers, names

TEXT = "tell which gradient to trust, at which window, from forward runs only"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.cli.commands`."""
    parser.add_argument("source", metavar="EXPERIMENT|RUN", help="an experiment (untrained network), or a run (best checkpoint)")
    parser.add_argument("--windows", type=integers, default=[], metavar="N,N,...",
                       help="window lengths in outer steps (default: around training.window)")
    parser.add_argument("--gradients", type=names, default=[], metavar="NAME,NAME,...",
                       help="variants (default: static, ensemble and the experiment's own)")
    changes_argument(parser, "change the experiment")
    parser.add_argument("--starts", type=int, default=4, metavar="B", help="validation windows in the loss (default: 4)")
    parser.add_argument("--directions", type=int, default=8, metavar="M", help="random directions (default: 8)")
    parser.add_argument("--fit", type=int, default=0, metavar="N",
                       help="of an experiment: steps of offline fitting before the check (gradients differ most near the truth)")
    parser.add_argument("--out", metavar="DIR", help="folder for the files (default: the run's, or runs/NAME)")


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.cli.commands`."""
    from trimtab.cli.tables import print_gradcheck
    from trimtab.cli.terminal import Watch
    from trimtab.evaluation.gradcheck_report import check_gradients

    with Watch().watching() as watch:
        table, folder = check_gradients(options.source, options.out, windows=options.windows, gradients=options.gradients,
                                        changes=options.set, starts=options.starts, directions=options.directions,
                                        fit=options.fit, progress=watch)
    print_gradcheck(table)
    print(f"Written: {folder / 'gradcheck.csv'}, {folder / 'gradcheck.png'}")
    if not options.fit and not (Path(options.source) / "experiment.toml").is_file():
        print("The network is untrained, and far from the truth most gradients point down: check again near it, with --fit 300 "
              "or a run.")
    return 0
