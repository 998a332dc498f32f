# SPDX-License-Identifier: MIT
"""`trimtab run`."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

import trimtab

TEXT = "run the hybrid forward into a netCDF file"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.cli.commands`."""
    parser.add_argument("run", metavar="RUN", help="run folder; with --solver-only also an experiment")
    parser.add_argument("--steps", type=int, required=True, metavar="N", help="time steps of the solver")
    parser.add_argument("--out", required=True, metavar="FILE.nc", help="the file to write")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="steps between two records (default: 1)")
    parser.add_argument("--members", type=int, default=0, metavar="B",
                     help="initial states (default: one held-out start, or all of the --start file)")
    parser.add_argument("--start", metavar="FILE|own",
                     help="start from the last record of a netCDF file, or with \"own\" where the code itself starts "
                          "(default: the held-out runs)")
    parser.add_argument("--checkpoint", choices=("best", "last", "offline"), default="best",
                     help="which of the run's networks (default: best)")
    parser.add_argument("--solver-only", action="store_true", help="leave the correction out")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE.nc when it is there")


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.cli.commands`."""
    from trimtab.cli.terminal import Watch
    from trimtab.config.experiment import load_experiment
    from trimtab.config.input_files import PHYSICS
    from trimtab.core.progress import silent
    from trimtab.forecast import forecast as deploy
    from trimtab.forecast.initial_conditions import file_starts, held_out_starts, initial_start
    from trimtab.parallel.gathered_solver import local_spec, open_joined
    from trimtab.training.run_folder import check_place, load_run, run_correction, warn_of_files

    world = options.world
    trained = (Path(options.run) / "experiment.toml").is_file()
    run = load_run(options.run) if trained or not options.solver_only else None
    if run:
        check_place(run)
        if world.rank == 0:
            warn_of_files(run, PHYSICS)
    experiment = run.experiment if run else load_experiment(options.run)
    with (
        open_joined(trimtab.open_solver, world.domain, experiment.solver.name, **experiment.solver.options) as solver,
        Watch().watching() if world.rank == 0 else contextlib.nullcontext(silent) as watch,
    ):
        correction = None
        attributes = {"experiment": experiment.name, "correction": "none"}
        if run and not options.solver_only:
            correction = run_correction(run, local_spec(solver), options.checkpoint)
            attributes["correction"] = f"{run.folder / options.checkpoint}.pt"
        if options.start == "own":
            start, time = initial_start(solver, options.members), 0.0
        elif options.start:
            start, time = file_starts(options.start, solver.spec, options.members)
        else:
            start, time = held_out_starts(experiment, solver.spec, options.members or 1, watch, world), 0.0
        out = deploy.forward(solver, correction, start, options.steps, options.out, every=options.every, time=time,
                             attributes=attributes, overwrite=options.overwrite, progress=watch, writes=world.rank == 0)
    if world.rank == 0:
        print(f"{out}: {options.steps // options.every + 1} records of {len(start)} member{'s' if len(start) > 1 else ''}")
    return 0


def ranks(options: argparse.Namespace) -> Any:
    """The ranks that do it together; see `trimtab.cli.commands`."""
    from trimtab.bridge.adapter_mpi import solver_world
    from trimtab.config.experiment import load_experiment
    from trimtab.training.run_folder import load_run

    trained = (Path(options.run) / "experiment.toml").is_file()
    experiment = load_run(options.run).experiment if trained else load_experiment(options.run)
    return solver_world(experiment.solver.options, experiment.parallel.domain)


def hint(options: argparse.Namespace) -> str:
    """What an interrupted run leaves."""
    return f"{options.out} holds what was computed."
