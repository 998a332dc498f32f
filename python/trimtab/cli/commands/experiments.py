# SPDX-License-Identifier: MIT
"""`trimtab experiments`."""

from __future__ import annotations

import argparse

TEXT = "list the experiments that come with trimtab"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.cli.commands`."""


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.cli.commands`."""
    from trimtab.cli.terminal import print_pairs
    from trimtab.config.experiment import load_experiment, shipped_experiments

    print_pairs("", {name: load_experiment(name).description for name in shipped_experiments()}.items())
    return 0
