# SPDX-License-Identifier: MIT
"""The command line: finds the command (`commands/`), runs it, turns an exception into a sentence and an exit code."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # the working folder, which `python -m trimtab` puts first: a queue.py there is not Python's

import argparse
import contextlib
import io
import os
import signal
import traceback
from collections.abc import Sequence
from typing import Any

import trimtab
from trimtab.cli.commands import COMMANDS, command
from trimtab.core.announcements import heard
from trimtab.core.errors import ConfigError, SolverError, TrimtabError

ALONE = ("experiments", "score", "run", "report", "gradcheck", "couple", "export", "reproduce",
         "version")  # commands that one rank does, whoever else is there


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; `sys.argv[1:]` by default.

    Returns:
        Exit code: 0; 2 for something to fix in what was given; 1 for a failure while running; 130 after an interrupt (SIGINT),
        143 after SIGTERM or SIGUSR1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an encoding without ± or é gets a ?, never an exception after hours of work
            stream.reconfigure(errors="replace")
    # Threads that spin while they wait take the cores from the one they wait for, where anything else runs beside. It is read
    # once, when torch's OpenMP library is loaded, and handed on to the processes of ours.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = _parser().parse_args(arguments)
    from trimtab.core.signals import Interrupted, exit_code, obeyed

    try:
        with obeyed():
            return _run(options)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        word = "Interrupted" if number == signal.SIGINT else "Terminated"
        return _end(f"\n{word}; {options.hint(options)}", exit_code(number))


def _run(options: argparse.Namespace) -> int:
    """One command, and an exit code in place of an exception."""
    from trimtab.parallel.launcher import launched  # it wants numpy, which `--help` need not wait for

    try:
        if options.command_name in ALONE:
            options.world = options.ranks(options)  # once: ranks that share something find each other here
            if launched()[1] and options.world.size == 1:
                return 0  # rank 0 does it
        with heard(_say) if launched()[1] == 0 else contextlib.nullcontext():
            code: int = options.command(options)
            return code
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (TrimtabError, OSError, ImportError) as error:
        trace = traceback.format_exc() if options.debug else ""
        code = 1 if isinstance(error, SolverError | OSError | ImportError) else 2
        return _end(f"{trace}trimtab: {_sentence(error)}", code)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _end(text: str, code: int) -> int:
    """Say it, and end the other ranks, which would wait for this one."""
    from trimtab.parallel.launcher import launched
    from trimtab.parallel.mpi import get_world

    if launched()[0] < 2:
        print(text, file=sys.stderr, flush=True)
        return code
    try:
        world = get_world()
    except ConfigError:  # no MPI to speak through: every process says it and ends by itself
        print(text, file=sys.stderr, flush=True)
        return code
    return world.fail(f"{text} (rank {world.rank})" if world.rank else text, code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trimtab", description="Train a neural correction inside a Fortran solver that nobody can differentiate.")
    parser.add_argument("--version", action="version", version=f"trimtab {trimtab.__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    listed = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = command(name)
        sentence = f"{module.TEXT[0].upper()}{module.TEXT[1:]}."
        one = listed.add_parser(name, parents=[shared], help=module.TEXT, description=sentence)
        one.set_defaults(command_name=name, command=module.run, hint=getattr(module, "hint", _hint),
                         ranks=getattr(module, "ranks", _alone))
        module.arguments(one)
    return parser


def _alone(options: argparse.Namespace) -> Any:
    from trimtab.parallel.world import World

    return World()


def _hint(options: argparse.Namespace) -> str:
    return "start it again, nothing is half written."


def _sentence(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("trimtab."):
        return f"The part {error.name} of trimtab is missing: install trimtab again, with `pip install .` in its folder."
    if isinstance(error, ModuleNotFoundError):
        return f"The package {error.name} is not installed: pip install {error.name}."
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    return str(error) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
