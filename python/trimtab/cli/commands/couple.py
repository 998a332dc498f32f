# SPDX-License-Identifier: MIT
"""`trimtab couple init` and `trimtab couple check`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

TEXT = "couple a Fortran code of your own: lay down an adapter, check what was filled in"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.cli.commands`."""
    parts = parser.add_subparsers(dest="part", required=True, metavar="init | check")
    init = parts.add_parser("init", help="lay down adapter, build files, TOML and network")
    init.add_argument("folder", metavar="DIR", help="where to")
    init.add_argument("--name", required=True, help="the code's name, as a Fortran name")
    init.add_argument("--fixed", action="store_true", help="the adapter in fixed form")
    check = parts.add_parser("check", help="restart, weight of the correction, gradient, cost: one table, one remedy a line")
    check.add_argument("source", nargs="?", default=".", metavar="DIR|TOML",
                       help="the TOML, or the folder that holds one (default: this folder)")
    check.add_argument("--keep", action="store_true", help="write neither weight nor training into the TOML")
    check.add_argument("--debug", action="store_true", help="print the traceback of an error that ends a check")


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.cli.commands`. `check` ends with 1 when something is bad."""
    if options.part == "init":
        from trimtab.coupling.templates import lay_down

        for path in lay_down(options.folder, options.name, fixed=options.fixed):
            print(path)
        print("Fill in what is marked FILL in the adapter, the Makefile and the TOML; README.md there says how.")
        return 0
    from trimtab.cli.tables import print_findings
    from trimtab.coupling.next_command import next_step
    from trimtab.coupling.parallel_check import check_together
    from trimtab.coupling.report import check_coupling

    def tell(name: str) -> None:
        if options.world.rank == 0:
            print(f"checking: {name}", file=sys.stderr, flush=True)

    if options.world.size > 1:
        findings = check_together(options.source, options.world, write=not options.keep, tell=tell)
    else:
        findings = check_coupling(options.source, write=not options.keep, tell=tell, debug=options.debug)
    if options.world.rank == 0:
        print_findings(findings)
        print(next_step(options.source, findings, options.world.size))
    return int(any(one.state == "bad" for one in findings))


def ranks(options: argparse.Namespace) -> Any:
    """The ranks that check together; see `trimtab.cli.commands`."""
    from trimtab.bridge.adapter_mpi import solver_world
    from trimtab.config.experiment import load_experiment
    from trimtab.coupling.report import find_toml, in_folder
    from trimtab.parallel.world import World

    if options.part == "init":
        return World()
    path = find_toml(options.source)
    experiment = load_experiment(path)
    with in_folder(path):
        return solver_world(experiment.solver.options, experiment.parallel.domain)
