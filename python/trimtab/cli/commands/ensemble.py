# SPDX-License-Identifier: MIT
"""`trimtab ensemble`."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

TEXT = "run an ensemble of a hybrid into one netCDF file, alone or under mpirun"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.cli.commands`."""
    parser.add_argument("run", metavar="RUN", nargs="+",
                        help="run folder; several (seeds) take turns among the members; with --solver-only an experiment")
    parser.add_argument("--members", type=int, required=True, metavar="M", help="members, each start")
    parser.add_argument("--steps", type=int, required=True, metavar="N", help="time steps of the solver")
    parser.add_argument("--out", required=True, metavar="FILE.nc",
                        help="output file; rerun the same command to resume an interrupted run")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="steps between two records (default: 1)")
    parser.add_argument("--starts", type=int, default=1, metavar="S", help="held-out snapshots to start from (default: 1)")
    parser.add_argument("--start", metavar="FILE", help="start from the last record of a netCDF file instead")
    parser.add_argument("--perturb", choices=("spectral", "bred", "climatology", "none"), default="spectral",
                        help="how members differ at the start (default: spectral)")
    parser.add_argument("--amplitude", type=float, default=0.05, metavar="A",
                        help="of the perturbations, over the deviation of the climatology (default: 0.05)")
    parser.add_argument("--slope", type=float, default=2.0, metavar="S",
                        help="spectral: amplitudes fall as (1 + k)^-S (default: 2)")
    parser.add_argument("--cycles", type=int, default=10, metavar="C", help="bred: cycles before the start (default: 10)")
    parser.add_argument("--displaced", action="store_true",
                        help="move each start by one more perturbation, as an analysis is off the truth")
    parser.add_argument("--vary", nargs="+", action="extend", default=[], metavar="NAME=SPREAD",
                        help="vary parameters of the solver among the members, by exp(SPREAD times a normal number)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    parser.add_argument("--group", type=int, default=8, metavar="G",
                        help="members advanced together (default: 8); never depends on the ranks")
    parser.add_argument("--checkpoint", choices=("best", "last", "offline"), default="best",
                        help="which of the runs' networks (default: best)")
    parser.add_argument("--solver-only", action="store_true", help="leave the correction out")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE.nc, drop what is unfinished of it")


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.cli.commands`."""
    from trimtab.cli.terminal import Watch
    from trimtab.core.errors import ConfigError
    from trimtab.core.progress import silent
    from trimtab.forecast.ensemble import Ensemble
    from trimtab.forecast.ensemble_netcdf import write_ensemble
    from trimtab.forecast.initial_conditions import Perturbation
    from trimtab.parallel.mpi import get_world

    varied = {}
    for one in options.vary:
        name, _, spread = one.partition("=")
        try:
            varied[name] = float(spread)
        except ValueError as error:
            raise ConfigError(f"--vary {one!r} is not of the form NAME=SPREAD, as in viscosity=0.1.") from error
    world, watch = get_world(), Watch()
    progress = silent if world.rank else watch
    with watch.watching() if world.rank == 0 else contextlib.nullcontext():
        ensemble = Ensemble.from_runs(
            options.run, options.members, steps=options.steps, every=options.every, starts=options.start or options.starts,
            checkpoint=None if options.solver_only else options.checkpoint, varied=varied, seed=options.seed,
            perturbation=Perturbation(options.perturb, options.amplitude, options.slope, options.cycles, options.displaced),
            group=options.group, progress=progress)
        groups = len(ensemble.groups())
        if world.rank == 0 and groups < world.size:
            print(f"Only {groups} of {world.size} ranks have a group of members to run; a smaller --group makes more.")
        out = write_ensemble(ensemble, options.out, overwrite=options.overwrite, progress=progress)
    if world.rank == 0:
        starts = len(ensemble.starts.states)
        print(f"{out}: {ensemble.records + 1} records of {starts} start{'s' if starts > 1 else ''}, {ensemble.members} members "
              f"each, in {groups} groups on {world.size} rank{'s' if world.size > 1 else ''}")
    return 0


def hint(options: argparse.Namespace) -> str:
    """What an interrupted ensemble leaves."""
    return f"{Path(options.out).name}.parts holds what was computed, the same command goes on."
