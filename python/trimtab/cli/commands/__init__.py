# SPDX-License-Identifier: MIT
"""The commands of `trimtab`, one a file: argument parsing alone.

A command's file has `TEXT` (one line of help), `arguments(parser)` and `run(options) -> exit code`; it may have
`hint(options)`, what to say after an interrupt, and `ranks(options)`, the `World` of the ranks that do together what otherwise
the first one does (`options.world` when it runs). What a command needs is imported when it runs, so that `trimtab --help` does
not wait for torch. A new command is one new file and one name below.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

COMMANDS = ("train", "experiments", "score", "run", "ensemble", "report", "gradcheck", "couple", "export", "reproduce",
            "doctor", "version")


def command(name: str) -> Any:
    """The module of a command.

    Args:
        name: one of `COMMANDS`.

    Returns:
        The module.
    """
    return importlib.import_module(f"trimtab.cli.commands.{name}")


def changes_argument(parser: argparse.ArgumentParser, text: str) -> None:
    """The option --set, for commands that take an experiment.

    Args:
        parser: gets it.
        text: its help.
    """
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", nargs="+", action="extend", default=[], help=text)


def integers(text: str) -> list[int]:
    """Positive whole numbers with commas between them.

    Raises:
        ValueError: anything else; argparse says it.
    """
    numbers = [int(one) for one in text.split(",")]
    if min(numbers) < 1:
        raise ValueError(text)
    return numbers


def names(text: str) -> list[str]:
    """Names with commas between them."""
    return [one.strip() for one in text.split(",")]
