# SPDX-License-Identifier: MIT
"""A run folder: its experiment and its checkpoints."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trimtab.config.experiment import Experiment, parse_experiment
from trimtab.config.import_path import search_working_folder
from trimtab.config.input_files import KINDS, Digests, changed_files, input_digests, named_files
from trimtab.core.errors import CheckpointError
from trimtab.core.log import log
from trimtab.core.spec import SolverSpec
from trimtab.corrections.slots import AnyCorrection
from trimtab.training.checkpoint import NAMES, load_correction, read_checkpoint


class Run(NamedTuple):
    """A run folder.

    Attributes:
        folder: the folder.
        experiment: what was trained, complete.
        checkpoints: the files that are there, by "offline", "best" and "last".
    """

    folder: Path
    experiment: Experiment
    checkpoints: dict[str, Path]


def load_run(folder: str | Path) -> Run:
    """Read what a run folder holds.

    Args:
        folder: the RUN that `Trainer` wrote.

    Returns:
        Its experiment and checkpoints.

    Raises:
        CheckpointError: not a run folder.
    """
    folder = Path(folder)
    file = folder / "experiment.toml"
    if not file.is_file():
        raise CheckpointError(f"{folder} is not a run folder, it has no experiment.toml; give the --out of a training.")
    experiment = parse_experiment(file.read_text(encoding="utf-8"), str(file))
    paths = {name: folder / f"{name}.pt" for name in NAMES}
    return Run(folder, experiment, {name: path for name, path in paths.items() if path.is_file()})


def check_place(run: Run) -> None:
    """Refuse to open a run's solver away from its files: their paths are meant from the folder in which it was trained.

    Args:
        run: see `load_run`.

    Raises:
        CheckpointError: a file of the solver, of the truth's or of the reference is in that folder, and not in the current one;
            or the module of a solver named by import path.
    """
    experiment = run.experiment
    missing = [one for names in named_files(experiment).values() for one in names if not Path(one).exists()]
    module = experiment.solver.name.partition(":")[0].partition(".")[0]
    if ":" in experiment.solver.name:
        search_working_folder()
    if ":" in experiment.solver.name and importlib.util.find_spec(module) is None:
        missing.append(f"{module}.py" if "." not in experiment.solver.name.partition(":")[0] else module)
    if not missing:
        return
    folder = _trained(run).get("folder", "")
    if folder and Path(folder, missing[0]).exists():
        raise CheckpointError(f"{run.folder} was trained in {folder}, where its {missing[0]} lies, and there is none in "
                              f"{Path.cwd()}: call trimtab in {folder}.")


def warn_of_files(run: Run, kinds: Sequence[str] = KINDS) -> None:
    """Warn, in one sentence, of files whose content is not what the run was trained with.

    Args:
        run: see `load_run`; one of an earlier trimtab, which did not record them, is not judged.
        kinds: of files that what follows depends on, see `trimtab.config.input_files`.

    Raises:
        ConfigError: a file that cannot be read.
    """
    changed = changed_files(_trained(run).get("files", {}), files_now(run, kinds), kinds)
    if changed:
        log.warning("%s was trained with other files: %s changed since, and what follows is of the solver as it is now; put them "
                    "back, or train again in another folder, for the solver that was trained.", run.folder, ", ".join(changed))


def files_now(run: Run, kinds: Sequence[str] = KINDS) -> Digests:
    """SHA-256 of the files that a run's experiment names: of those here, else of those where it was trained.

    Args:
        run: see `load_run`.
        kinds: of files, see `trimtab.config.input_files`.
    """
    return input_digests(run.experiment, _trained(run).get("folder", ""), kinds)


def _trained(run: Run) -> dict[str, Any]:
    """The content of a run's first checkpoint that is there; {} without one."""
    return next((read_checkpoint(path) for path in run.checkpoints.values()), {})


def run_checkpoint(run: Run, checkpoint: str = "best") -> Path:
    """The file of a run's checkpoint.

    Args:
        run: see `load_run`.
        checkpoint: "best", "last" or "offline".

    Returns:
        The file.

    Raises:
        CheckpointError: the run has no such checkpoint.
    """
    if checkpoint not in run.checkpoints:
        there = ", ".join(run.checkpoints) or "none yet: let the training reach its first checkpoint"
        raise CheckpointError(f"{run.folder} has no checkpoint {checkpoint!r}; there is {there}.")
    return run.checkpoints[checkpoint]


def run_correction(run: Run, spec: SolverSpec, checkpoint: str = "best") -> AnyCorrection:
    """The correction a training left behind.

    Args:
        run: see `load_run`.
        spec: of the solver it will act in.
        checkpoint: "best", "last" or "offline".

    Returns:
        The correction, to be given to `Solver.advance`.

    Raises:
        CheckpointError: the run has no such checkpoint, or it does not fit.
    """
    return load_correction(run_checkpoint(run, checkpoint), spec)
