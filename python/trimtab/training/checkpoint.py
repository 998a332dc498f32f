# SPDX-License-Identifier: MIT
"""Checkpoints: one file that holds all a run needs to go on, and all a solver needs to be corrected.

A file is a dictionary saved by torch, of tensors, numbers, strings, lists and dictionaries only, so that it is read
without running any code. Keys: format, version, experiment (TOML), state (names and shapes of the solver's fields), slots
(the same of the inputs and outputs of its named slots), coefficient (name of the one that the network answers, None for a
tendency; left out by older ones), correction (weights and normalisation), best (the same for the best epoch so far, or None),
optimiser, random, progress (position in the training), history (rows of metrics.csv), folder (in which the training ran; left out
by older ones), files (SHA-256 of each file that the experiment names when the solver was opened, by kind; left out by older
ones), versions, revision, threads. best.pt and offline.pt hold no optimiser, random states and history: they are to be
used, last.pt is to be gone on with.
"""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.config.experiment import FREE_TO_CHANGE, Experiment, changed_keys, parse_experiment
from trimtab.config.input_files import changed_files, input_digests
from trimtab.core.atomic_files import replacing
from trimtab.core.errors import CheckpointError, NoModuleError, TrimtabError
from trimtab.core.spec import Field, Slot, SolverSpec
from trimtab.corrections.factory import build_correction
from trimtab.corrections.slots import AnyCorrection
from trimtab.training.layout import check_fields

FORMAT = "trimtab checkpoint"
VERSION = 1
NAMES = ("offline", "best", "last")


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: the file.
        content: everything but format and version.

    Raises:
        OutputError: the disk is full or read-only; the checkpoint of before is there.
    """
    file = io.BytesIO()  # torch's own writer hides what the system says of a full disk
    torch.save({"format": FORMAT, "version": VERSION, **content}, file)
    with replacing(path) as partial:
        partial.write_bytes(file.getbuffer())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without running any code of its.

    Args:
        path: the file.

    Returns:
        Its content, tensors on the CPU.

    Raises:
        CheckpointError: missing, cut short, corrupt, or not one of trimtab's.
    """
    path = Path(path)
    if not path.is_file():
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder: give a checkpoint in it, as {path / 'best.pt'}.")
        raise CheckpointError(f"There is no checkpoint {path}.")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not check the sums of what it reads
            damaged = archive.testzip()
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and zipfile raise a dozen kinds for a damaged file
        raise CheckpointError(f"{path} is not a checkpoint or is damaged; use another of the run's, or start it again "
                              f"({type(error).__name__}).") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged; use another checkpoint of the run, or start it again.")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a file of torch, but no checkpoint of trimtab.")
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path} has version {content.get('version')} and this trimtab reads {VERSION}; use the "
                              f"trimtab that wrote it ({content.get('versions', {}).get('trimtab', 'unknown')}).")
    return content


def load_correction(path: str | Path, spec: SolverSpec) -> AnyCorrection:
    """The trained correction of a checkpoint, for a solver.

    Args:
        path: a checkpoint.
        spec: the solver's; a network that allows it may run on another grid than it was trained on.

    Returns:
        The correction, in evaluation mode.

    Raises:
        CheckpointError: see `read_checkpoint`; or a solver with other fields, weights that do not fit, or a network whose
            module is not found.
    """
    content = read_checkpoint(path)
    check_fields(content, spec, path)
    takes = None if spec.coefficient is None else spec.coefficient.name
    if content.get("coefficient") != takes:
        names = [f"the coefficient {one}" if one else "a tendency" for one in (content.get("coefficient"), takes)]
        raise CheckpointError(f"{path} was trained to answer {names[0]}, and the slot of the solver takes {names[1]}: open the "
                              "solver as the run's experiment.toml says.")
    try:
        correction = build_correction(parse_experiment(content["experiment"], str(path)), spec)
    except NoModuleError as error:
        folder = content.get("folder", "")
        remedy = f"it was trained in {folder}: set PYTHONPATH={folder}, or start in that folder" if folder else \
            "set PYTHONPATH to the folder that it was trained in, or start there"
        raise CheckpointError(f"{error.sentence}; {remedy}.") from error
    try:
        correction.load_state_dict(content["correction"])
    except RuntimeError as error:
        raise CheckpointError(f"The weights of {path} do not fit the network or the solver's size {spec.size}; open "
                              "the solver as the run's experiment.toml says.") from error
    return correction.eval()


def take_weights(correction: AnyCorrection, path: str | Path, spec: SolverSpec) -> None:
    """Set a correction's weights and normalisation to those of a checkpoint.

    Args:
        correction: is changed.
        path: a checkpoint of the same network, features and kind of state.
        spec: the solver's.

    Raises:
        CheckpointError: see `load_correction`; or another network or other features.
    """
    trained = load_correction(path, spec)
    try:
        if getattr(trained, "features", ()) != getattr(correction, "features", ()):
            raise RuntimeError("other features")
        correction.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise CheckpointError(f"{path} holds another network than the experiment's, or one that sees other features: give its "
                              "[network] and [correction], or another checkpoint.") from error


def check_same_experiment(content: dict[str, Any], experiment: Experiment, path: Path) -> None:
    """Refuse to go on with another experiment than a checkpoint's.

    Args:
        content: of the checkpoint.
        experiment: to be gone on with.
        path: of the checkpoint.

    Raises:
        CheckpointError: a key other than `FREE_TO_CHANGE` differs, or the content of a file that the experiment names.
    """
    try:
        saved = parse_experiment(content["experiment"], str(path))
    except TrimtabError as error:
        raise CheckpointError(f"The experiment in {path} is not one of this trimtab's: {error}") from error
    if "first_validation" not in content["progress"]:
        raise CheckpointError(f"{path} is of an earlier trimtab, whose loss was in the square of the state's unit; the loss now "
                              "has no unit, so that its validations cannot be compared. Train into another folder.")
    changed = [key for key in changed_keys(saved, experiment)
               if key not in FREE_TO_CHANGE and key.split(".")[0] not in FREE_TO_CHANGE]
    if changed:
        raise CheckpointError(f"{path} belongs to another experiment: {', '.join(changed)} changed. Undo that, or "
                              "train into another folder; only training.epochs and [score] may change on resume.")
    files = changed_files(content.get("files", {}), input_digests(saved))
    if files:
        raise CheckpointError(f"{path} was trained with other files: {', '.join(files)} changed since, and going on would mix "
                              "two solvers in one training. Put them back, or train into another folder.")


def state_of(spec: SolverSpec) -> list[dict[str, Any]]:
    """Names and shapes of the fields, as a checkpoint holds them."""
    return [{"name": one.name, "units": one.units, "dims": list(one.dims), "shape": list(one.shape)}
            for one in spec.fields]


def layout_of(whole: SolverSpec, spec: SolverSpec) -> dict[str, Any]:
    """What a checkpoint says of the solver: its fields, undivided, and what its slots take."""
    return {"state": state_of(whole), "slots": slots_of(spec), "coefficient": spec.coefficient and spec.coefficient.name}


def slots_of(spec: SolverSpec) -> list[dict[str, Any]]:
    """Names, inputs and outputs of the named slots, as a checkpoint holds them."""
    return [{"name": slot.name, **{kind: [{"name": one.name, "units": one.units, "dims": list(one.dims), "shape": list(one.shape)}
                                          for one in getattr(slot, kind)] for kind in ("inputs", "outputs")}}
            for slot in spec.slots]


def saved_spec(path: str | Path) -> SolverSpec:
    """What a checkpoint says of the solver it was trained in, so that its correction can be built where that solver is not open.

    Args:
        path: the checkpoint.

    Returns:
        Fields without coordinates, named slots, and the parameters that the experiment gives.

    Raises:
        CheckpointError: see `read_checkpoint`.
    """
    content = read_checkpoint(path)
    solver = parse_experiment(content["experiment"], str(path)).solver
    slots = tuple(Slot(one["name"], _fields(one["inputs"]), _fields(one["outputs"])) for one in content.get("slots", []))
    dt = float(solver.options.get("dt", 0.0))
    return SolverSpec(solver.name, dt, 0, _fields(content["state"]), "1", dict(solver.options), slots)


def _fields(saved: list[dict[str, Any]]) -> tuple[Field, ...]:
    return tuple(Field(one["name"], one["name"], one["units"], tuple(one["dims"]), tuple(one["shape"])) for one in saved)


def random_states() -> dict[str, Any]:
    """All random states of this process: torch's (and its devices'), numpy's and Python's."""
    kind, words, *rest = np.random.get_state()  # noqa: NPY002  a user's network may draw from the global one
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(words, dtype=np.int64)), *rest],
        "python": random.getstate(),
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` gave."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    kind, words, *rest = states["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(states["python"])
