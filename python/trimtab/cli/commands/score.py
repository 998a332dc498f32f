# SPDX-License-Identifier: MIT
"""`trimtab score`."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

TEXT = "score a run; of several runs (seeds), print mean and spread"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.cli.commands`."""
    parser.add_argument("run", metavar="RUN", nargs="+", help="run folder")
    parser.add_argument("--again", action="store_true", help="score even when the stored scores are up to date")
    parser.add_argument("--ensemble", metavar="FILE.nc", nargs="+", default=[],
                        help="score ensembles of `trimtab ensemble` against RUN's held-out truth, in place of RUN itself")
    parser.add_argument("--out", metavar="DIR", help="folder for the scores of several runs together")


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.cli.commands`."""
    if options.ensemble:
        return _ensembles(options)
    from trimtab.cli.terminal import Watch, print_scores
    from trimtab.core.progress import silent
    from trimtab.evaluation.report import write_report
    from trimtab.evaluation.score_run import score_run, score_runs

    world, computed = options.world, False

    def tell(fraction: float, text: str) -> None:
        nonlocal computed
        computed = True
        watch(fraction, text)

    with Watch().watching() if world.rank == 0 else contextlib.nullcontext(silent) as watch:
        if len(options.run) == 1:
            table = score_run(options.run[0], again=options.again, progress=tell, world=world)
            where = write_report(Path(options.run[0])) if world.rank == 0 else None
        else:
            from trimtab.evaluation.figures import draw_seeds

            first = Path(options.run[0])
            out = Path(options.out) if options.out else first.parent / f"{first.name}-and-{len(options.run) - 1}-more"
            table, curves = score_runs(options.run, out, again=options.again, progress=tell, world=world)
            where = draw_seeds(curves, out / "figures") if world.rank == 0 else None
    if world.rank:
        return 0
    print_scores(table)
    if not computed:
        print("As stored, nothing was computed; --again computes anew.")
    print(f"Written: {where}")
    return 0


def ranks(options: argparse.Namespace) -> Any:
    """The ranks that do it together; see `trimtab.cli.commands`."""
    from trimtab.bridge.adapter_mpi import solver_world
    from trimtab.parallel.world import World
    from trimtab.training.run_folder import load_run

    experiment = load_run(options.run[0]).experiment
    return World() if options.ensemble else solver_world(experiment.solver.options, experiment.parallel.domain)


def _ensembles(options: argparse.Namespace) -> int:
    from trimtab.cli.terminal import Watch, print_leads
    from trimtab.core.errors import ConfigError
    from trimtab.evaluation.ensemble_metrics import picked_leads
    from trimtab.evaluation.report import write_report
    from trimtab.evaluation.score_ensemble import FOLDER, score_ensemble

    if len(options.run) > 1:
        raise ConfigError("Give one RUN with --ensemble: the one whose held-out runs the ensembles started from.")
    with Watch().watching() as watch:
        found = [score_ensemble(options.run[0], path, watch) for path in options.ensemble]
        where = write_report(Path(options.run[0]))
    for one in found:
        print_leads(f"Scores of the ensemble {one.name}", [one.rows[lead] for lead in picked_leads(len(one.rows))])
        print(f"Written: {Path(options.run[0]) / FOLDER / one.name}.csv")
    print(f"Written: {where}")
    return 0
