# SPDX-License-Identifier: MIT
"""The command line: `trimtab train | score | run | report | gradcheck | experiments | version`. Argument parsing alone.

What a command needs is imported when it runs, so that `trimtab --help` does not wait for torch.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import trimtab
from trimtab.errors import SolverError, TrimtabError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; `sys.argv[1:]` by default.

    Returns:
        Exit code: 0; 2 for something to mend in what was given; 1 for a failure while running; 130 after an interrupt.
    """
    options = _parser().parse_args(arguments)
    if "" not in sys.path:  # as `python -m trimtab` has it: a network named by import path may lie in the current folder
        sys.path.insert(0, "")
    try:
        return options.command(options)
    except KeyboardInterrupt:
        print(f"\nInterrupted; {options.hint(options)}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (TrimtabError, OSError, ImportError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"trimtab: {_sentence(error)}", file=sys.stderr)
        return 1 if isinstance(error, SolverError | OSError | ImportError) else 2


def _train(options: argparse.Namespace) -> int:
    from trimtab.bridge.runtime import configure_runtime
    from trimtab.config import load_experiment
    from trimtab.report import write_report
    from trimtab.scoring import check_scores, score_run
    from trimtab.terminal import Watch, print_scores
    from trimtab.trainer import Trainer

    experiment = load_experiment(options.experiment, options.set)
    check_scores(experiment)
    print(f"{experiment.name}: {configure_runtime()}")
    with Watch().watching() as watch:
        trainer = Trainer(experiment, options.out, resume=options.resume, progress=watch)
        options.out = str(trainer.folder)
        result = trainer.fit()
        if result.exit_code:
            watch.leave(result.status)
        else:
            table = score_run(trainer.folder, progress=watch)
            watch(0.0, "report: figures")
            report = write_report(trainer.folder)
    if result.exit_code:
        print(f"The training was {result.status} and saved; {options.hint(options)}", file=sys.stderr)
        return result.exit_code
    print_scores(table)
    print(f"Run folder {trainer.folder}, report {report}")
    return 0


def _experiments(options: argparse.Namespace) -> int:
    from trimtab.config import load_experiment, shipped_experiments
    from trimtab.terminal import print_pairs

    print_pairs("", {name: load_experiment(name).description for name in shipped_experiments()})
    return 0


def _score(options: argparse.Namespace) -> int:
    from trimtab.report import write_report
    from trimtab.scoring import score_run, score_runs
    from trimtab.terminal import Watch, print_scores

    with Watch().watching() as watch:
        if len(options.run) == 1:
            table = score_run(options.run[0], again=options.again, progress=watch)
            where = write_report(Path(options.run[0]))
        else:
            from trimtab.figures import draw_seeds

            first = Path(options.run[0])
            out = Path(options.out) if options.out else first.parent / f"{first.name}-and-{len(options.run) - 1}-more"
            table, curves = score_runs(options.run, out, again=options.again, progress=watch)
            where = draw_seeds(curves, out / "figures")
    print_scores(table)
    print(f"Written: {where}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from trimtab import deploy
    from trimtab.checkpoint import load_run
    from trimtab.config import load_experiment
    from trimtab.terminal import Watch

    trained = (Path(options.run) / "experiment.toml").is_file()
    run = load_run(options.run) if trained or not options.solver_only else None
    experiment = run.experiment if run else load_experiment(options.run)
    with (
        trimtab.open_solver(experiment.solver.name, **experiment.solver.options) as solver,
        Watch().watching() as watch,
    ):
        correction = None
        attributes = {"experiment": experiment.name, "correction": "none"}
        if run and not options.solver_only:
            correction = deploy.run_correction(run, solver.spec, options.checkpoint)
            attributes["correction"] = f"{run.folder / options.checkpoint}.pt"
        if options.start:
            start, time = deploy.file_starts(options.start, solver.spec, options.members)
        else:
            start, time = deploy.held_out_starts(experiment, solver.spec, options.members or 1, watch), 0.0
        out = deploy.forward(solver, correction, start, options.steps, options.out, every=options.every, time=time,
                             attributes=attributes, overwrite=options.overwrite, progress=watch)
    print(f"{out}: {options.steps // options.every + 1} records of {len(start)} member{'s' if len(start) > 1 else ''}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from trimtab.report import write_report

    print(write_report(Path(options.run)))
    return 0


def _gradcheck(options: argparse.Namespace) -> int:
    from trimtab.gradient_report import check_gradients, print_gradcheck
    from trimtab.terminal import Watch

    with Watch().watching() as watch:
        table, folder = check_gradients(options.source, options.out, windows=options.windows, gradients=options.gradients,
                                        changes=options.set, starts=options.starts, directions=options.directions,
                                        fit=options.fit, progress=watch)
    print_gradcheck(table)
    print(f"Written: {folder / 'gradcheck.csv'}, {folder / 'gradcheck.png'}")
    return 0


def _version(options: argparse.Namespace) -> int:
    import importlib.metadata as metadata
    import platform

    from trimtab.bridge.runtime import configure_runtime

    packages = ("torch", "numpy", "xarray", "netCDF4", "matplotlib", "f90wrap")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    print(f"trimtab {trimtab.__version__} (Python {platform.python_version()}, {versions})\nThis process: {configure_runtime()}.")
    return 0


def _resume_hint(options: argparse.Namespace) -> str:
    out = f" --out {options.out}" if options.out else ""
    changes = f" --set {' '.join(options.set)}" if options.set else ""
    return f"go on with: trimtab train {options.experiment}{out}{changes} --resume"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trimtab", description="Train a neural correction inside a Fortran solver that nobody can differentiate.")
    parser.add_argument("--version", action="version", version=f"trimtab {trimtab.__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, function, text: str, hint=lambda options: "start it again, nothing is half written."):
        command = commands.add_parser(name, parents=[shared], help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(command=function, hint=hint)
        return command

    train = add("train", _train, "train a correction, score it on held-out runs, write figures and a report",
                _resume_hint)
    train.add_argument("experiment", metavar="EXPERIMENT", help="a name from `trimtab experiments`, or a TOML file")
    train.add_argument("--out", metavar="DIR", help="run folder (default: runs/NAME)")
    train.add_argument("--set", metavar="SECTION.KEY=VALUE", nargs="+", action="extend", default=[],
                       help="change the experiment, as in training.epochs=5 training.seed=1")
    train.add_argument("--resume", action="store_true", help="go on with what the run folder holds, if anything")

    add("experiments", _experiments, "list the experiments that come with trimtab")

    score = add("score", _score, "score a run; of several runs (seeds), print mean and spread")
    score.add_argument("run", metavar="RUN", nargs="+", help="run folder")
    score.add_argument("--again", action="store_true", help="score even when the stored scores are up to date")
    score.add_argument("--out", metavar="DIR", help="folder for the scores of several runs together")

    run = add("run", _run, "run the hybrid forward into a netCDF file",
              lambda options: f"{options.out} holds what was computed.")
    run.add_argument("run", metavar="RUN", help="run folder; with --solver-only also an experiment")
    run.add_argument("--steps", type=int, required=True, metavar="N", help="time steps of the solver")
    run.add_argument("--out", required=True, metavar="FILE.nc", help="the file to write")
    run.add_argument("--every", type=int, default=1, metavar="K", help="steps between two records (default: 1)")
    run.add_argument("--members", type=int, default=0, metavar="B",
                     help="initial states (default: one held-out start, or all of the --start file)")
    run.add_argument("--start", metavar="FILE",
                     help="start from the last record of a netCDF file (default: the held-out runs)")
    run.add_argument("--checkpoint", choices=("best", "last", "offline"), default="best",
                     help="which of the run's networks (default: best)")
    run.add_argument("--solver-only", action="store_true", help="leave the correction out")
    run.add_argument("--overwrite", action="store_true", help="replace FILE.nc when it is there")

    report = add("report", _report, "write figures and report.html of a run again")
    report.add_argument("run", metavar="RUN", help="run folder")

    check = add("gradcheck", _gradcheck, "tell which gradient to trust, at which window, from forward runs only")
    check.add_argument("source", metavar="EXPERIMENT|RUN", help="an experiment (untrained network), or a run (best checkpoint)")
    check.add_argument("--windows", type=_integers, default=[], metavar="N,N,...",
                       help="window lengths in outer steps (default: around training.window)")
    check.add_argument("--gradients", type=_names, default=[], metavar="NAME,NAME,...",
                       help="variants (default: static, ensemble and the experiment's own)")
    check.add_argument("--set", metavar="SECTION.KEY=VALUE", nargs="+", action="extend", default=[],
                       help="change the experiment")
    check.add_argument("--starts", type=int, default=4, metavar="B", help="validation windows in the loss (default: 4)")
    check.add_argument("--directions", type=int, default=8, metavar="M", help="random directions (default: 8)")
    check.add_argument("--fit", type=int, default=0, metavar="N",
                       help="of an experiment: steps of offline fitting before the check (gradients differ most near the truth)")
    check.add_argument("--out", metavar="DIR", help="folder for the files (default: the run's, or runs/NAME)")

    add("version", _version, "print versions, and the threads and allocator settings in force")
    return parser


def _integers(text: str) -> list[int]:
    numbers = [int(one) for one in text.split(",")]
    if min(numbers) < 1:
        raise ValueError(text)
    return numbers


def _names(text: str) -> list[str]:
    return [one.strip() for one in text.split(",")]


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
