# SPDX-License-Identifier: MIT
"""`trimtab train`."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys

from trimtab.cli.commands import changes_argument
from trimtab.core.errors import ConfigError

TEXT = "train a correction, score it on held-out runs, write figures and a report"

AUTO = "auto"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.cli.commands`."""
    parser.add_argument("experiment", metavar="EXPERIMENT", nargs="?", default="",
                        help="a name from `trimtab experiments`, or a TOML file")
    parser.add_argument("--out", metavar="DIR", help="run folder (default: runs/NAME)")
    changes_argument(parser, "change the experiment, as in training.epochs=5 training.seed=1")
    parser.add_argument("--resume", nargs="?", const=AUTO, default="", metavar=AUTO,
                        help="go on with what the run folder holds, or begin when it holds nothing")


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.cli.commands`."""
    from trimtab.bridge.threads import configure_runtime
    from trimtab.cli.terminal import Watch, print_scores, print_warning
    from trimtab.config.experiment import load_experiment
    from trimtab.core.log import warned
    from trimtab.core.progress import silent
    from trimtab.evaluation.report import write_report
    from trimtab.evaluation.score_run import check_scores, score_run
    from trimtab.parallel.launcher import launch_words
    from trimtab.parallel.mpi import get_world
    from trimtab.training.trainer import Trainer

    if options.resume not in ("", AUTO) and not options.experiment:  # as in `train --resume EXPERIMENT`
        options.experiment, options.resume = options.resume, AUTO
    if options.resume not in ("", AUTO) or not options.experiment:
        raise ConfigError(f"Give one EXPERIMENT, and `--resume` or `--resume {AUTO}`.")
    world = get_world()
    experiment = load_experiment(options.experiment, options.set)
    check_scores(experiment)
    options.launcher = launch_words(experiment.parallel.domain, experiment.parallel.members, world.size)
    world = world.place(experiment.parallel.domain, experiment.parallel.members)
    runtime, placement = configure_runtime(), world.placement()
    if world.rank == 0:
        print(f"{experiment.name}: {placement}, {runtime}", flush=True)
    with Watch().watching() if world.rank == 0 else contextlib.nullcontext(silent) as watch:
        trainer = Trainer(experiment, options.out, resume=bool(options.resume), progress=watch, world=world)
        options.out = str(trainer.folder)
        with warned(watch.say) if isinstance(watch, Watch) else contextlib.nullcontext():
            result = trainer.fit()
        shared, told = world.blocks > 1, world.telling(watch)  # where ranks share a solver, all score, each with its block of it
        if not result.exit_code and (shared or world.rank == 0):
            table = score_run(trainer.folder, progress=told, world=world if shared else None)
        if world.rank == 0 and isinstance(watch, Watch):
            if result.exit_code:
                watch.leave(result.status)
            else:
                told(0.0, "report: figures")
                report = write_report(trainer.folder)
    world.doing = "the scores of rank 0"
    world.wait()  # asleep, while rank 0 scores
    if world.rank == 0 and result.exit_code:
        saved = " and saved" if (trainer.folder / "last.pt").is_file() else ""  # or it had not got so far
        print(f"The training was {result.status}{saved}; {hint(options)}", file=sys.stderr, flush=True)
    elif world.rank == 0:
        print_scores(table)
        print(f"Run folder {trainer.folder}, report {report}")
        if result.verdict:
            print_warning(result.verdict)
    return result.exit_code


def hint(options: argparse.Namespace) -> str:
    """How to go on after an interrupt: a command that can be pasted, with the launcher where the experiment needs ranks."""
    from trimtab.parallel.launcher import launch_words, launched

    launcher = getattr(options, "launcher", None)
    if launcher is None:  # before the experiment was read
        launcher = launch_words(1, 1, launched()[0])
    out = ["--out", options.out] if options.out else []
    changes = ["--set", *options.set] if options.set else []
    return f"go on with: {launcher}{shlex.join(['trimtab', 'train', options.experiment, *out, *changes, '--resume'])}"
