# SPDX-License-Identifier: MIT
"""`trimtab reproduce`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

TEXT = "reproduce the paper's results and ours: tables against what is expected, and figures"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.cli.commands`."""
    parser.add_argument("names", metavar="NAME", nargs="*", help="results (default: all); see --list")
    parser.add_argument("--out", metavar="DIR", help="folder (default: runs/reproduce, or runs/reproduce-quick)")
    parser.add_argument("--quick", action="store_true", help="the same in seconds, to see that it runs; the numbers mean nothing")
    parser.add_argument("--list", action="store_true", help="say what there is and what it costs")


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.cli.commands`."""
    from trimtab.bridge.threads import configure_runtime
    from trimtab.cli.terminal import Watch, print_checks, print_pairs
    from trimtab.reproduce import RESULTS, result
    from trimtab.reproduce.cache import Stopped
    from trimtab.reproduce.runner import cost, reproduce

    if options.list:
        print_pairs("", {name: f"{result(name).TEXT}; {cost(result(name).MINUTES)}" for name in RESULTS}.items())
        return 0
    configure_runtime()
    out = Path(options.out or ("runs/reproduce-quick" if options.quick else "runs/reproduce"))
    watch = Watch()
    try:
        with watch.watching():
            tables = reproduce(options.names, out, quick=options.quick, progress=watch, announce=watch.say)
    except Stopped as stop:
        print(f"Stopped, and all that is finished is kept; {hint(options)}", file=sys.stderr)
        return stop.exit_code
    for table in tables:
        print_checks(table.heading, table.check_cells())
    print(f"Written: {out / 'index.html'}, {out / 'summary.md'}, {out / 'summary.csv'}")
    return 0


def hint(options: argparse.Namespace) -> str:
    """How to go on after an interrupt."""
    words = [*options.names, *(["--out", options.out] if options.out else []), *(["--quick"] if options.quick else [])]
    return f"go on with: {shlex.join(['trimtab', 'reproduce', *words])}"
