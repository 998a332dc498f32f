# SPDX-License-Identifier: MIT
"""`trimtab train`."""

from __future__ import annotations

import argparse
import sys

from trimtab.commands import changes_argument

TEXT = "train a correction, score it on held-out runs, write figures and a report"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.commands`."""
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a name from `trimtab experiments`, or a TOML file")
    parser.add_argument("--out", metavar="DIR", help="run folder (default: runs/NAME)")
    changes_argument(parser, "change the experiment, as in training.epochs=5 training.seed=1")
    parser.add_argument("--resume", action="store_true", help="go on with what the run folder holds, if anything")


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.commands`."""
    from trimtab.bridge.runtime import configure_runtime
    from trimtab.config import load_experiment
    from trimtab.report import write_report
    from trimtab.scoring import check_scores, score_run
    from trimtab.terminal import Watch, print_scores
    from trimtab.trainer import Trainer

    experiment = load_experiment(options.experiment, options.set)
    check_scores(experiment)
    print(f"{experiment.name}: {configure_runtime()}")
    with Watch().watching() as watch:
        trainer = Trainer(experiment, options.out, resume=options.resume, progress=watch)
        options.out = str(trainer.folder)
        result = trainer.fit()
        if result.exit_code:
            watch.leave(result.status)
        else:
            table = score_run(trainer.folder, progress=watch)
            watch(0.0, "report: figures")
            report = write_report(trainer.folder)
    if result.exit_code:
        print(f"The training was {result.status} and saved; {hint(options)}", file=sys.stderr)
        return result.exit_code
    print_scores(table)
    print(f"Run folder {trainer.folder}, report {report}")
    return 0


def hint(options: argparse.Namespace) -> str:
    """How to go on after an interrupt."""
    out = f" --out {options.out}" if options.out else ""
    changes = f" --set {' '.join(options.set)}" if options.set else ""
    return f"go on with: trimtab train {options.experiment}{out}{changes} --resume"
