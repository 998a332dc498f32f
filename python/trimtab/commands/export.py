# SPDX-License-Identifier: MIT
"""`trimtab export`."""

from __future__ import annotations

import argparse
from pathlib import Path

import trimtab

TEXT = "write the correction as files that need neither Python nor trimtab"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.commands`."""
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--out", metavar="DIR", help="folder to write (default: RUN/export)")
    parser.add_argument("--checkpoint", choices=("best", "last", "offline"), default="best",
                        help="which of the run's networks (default: best)")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds something")


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.commands`."""
    from trimtab import deploy, export
    from trimtab.checkpoint import load_run

    run = load_run(options.run)
    solver = run.experiment.solver
    with trimtab.open_solver(solver.name, **solver.options) as opened:
        correction = deploy.run_correction(run, opened.spec, options.checkpoint)
        fields = ", ".join(f"{one.name} [{one.units}] ({', '.join(one.dims)})" for one in opened.spec.fields)
    about = {"solver": solver.name, "state": fields, "network": run.experiment.network.name, "checkpoint": options.checkpoint,
             "features": ", ".join(correction.features)}
    done = export.export_correction(correction, options.out or Path(options.run) / "export", about, overwrite=options.overwrite)
    print(f"{done.folder}: {', '.join(done.files)}")
    for sentence in done.missing:
        print(sentence)
    return 0
