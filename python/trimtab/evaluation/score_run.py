# SPDX-License-Identifier: MIT
"""Score a run folder: its closures against its held-out runs; several folders together for the spread over seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab import __version__
from trimtab.bridge.opener import open_solver
from trimtab.config.experiment import Experiment, changed_keys, dump_experiment
from trimtab.config.input_files import JUDGED
from trimtab.config.sections import TrainingConfig
from trimtab.core.atomic_files import check_file, check_folder, replacing
from trimtab.core.errors import CheckpointError, ConfigError, DataError
from trimtab.core.progress import silent
from trimtab.core.solver import Solver
from trimtab.corrections.real_numbers import content
from trimtab.data.lead_times import match_times
from trimtab.data.reference import Progress, make_reference
from trimtab.data.windows import Targets
from trimtab.evaluation.climatology import Curves
from trimtab.evaluation.evaluate import Evaluation, evaluate
from trimtab.evaluation.smagorinsky_search import best_smagorinsky
from trimtab.evaluation.table import ScoreTable, combine, read_table
from trimtab.parallel.gathered_solver import local_spec, open_joined
from trimtab.parallel.world import World
from trimtab.training.checkpoint import load_correction, read_checkpoint
from trimtab.training.run_folder import Run, check_place, files_now, load_run, warn_of_files

CHECKPOINT_OF = {"offline": "offline", "online": "best"}
SEEDS = ("name", "description", "parallel", "training.seed", "observation.seed")  # may differ in runs that are averaged
SEARCH_STARTS = 8  # training states on which the Smagorinsky constant is chosen


def score_run(folder: str | Path, *, again: bool = False, progress: Progress = silent, world: World | None = None) -> ScoreTable:
    """Score a run, and leave scores.csv, scores.json and curves.npz in its folder.

    Args:
        folder: the run folder.
        again: score even when the stored scores are those of these checkpoints and settings.
        progress: told how far it is, as "scoring: what".
        world: ranks that share the run's solver, all of which call this; the first one writes.

    Returns:
        The table.

    Raises:
        CheckpointError: not a run folder, or none of the closures' checkpoints is there.
        ConfigError: lead times that fall between snapshots.
        DataError: a reference run that does not fit.
    """
    run, world = load_run(folder), world or World()
    if world.rank == 0:
        warn_of_files(run, JUDGED)
    stamp = _stamp(run)
    stored = None
    if not again and (run.folder / "scores.json").is_file() and (run.folder / "curves.npz").is_file():
        stored = read_table(run.folder / "scores.json")
    stored = world.broadcast(stored if stored is not None and stored.settings.get("stamp") == stamp else None)
    if stored is not None:
        return stored
    for name in ("scores.json", "scores.csv", "curves.npz"):  # before the work is done
        check_file(run.folder / name)
    check_place(run)
    solver = open_joined(open_solver, world.domain, run.experiment.solver.name, **run.experiment.solver.options)
    try:
        evaluation = _evaluate(run, solver, progress, world)
    finally:
        solver.close()
    table = dataclasses.replace(evaluation.table, settings={**evaluation.table.settings, "stamp": stamp})
    if world.rank == 0:
        write_scores(Evaluation(table, evaluation.curves), run.folder)
    return table


def score_runs(folders: Sequence[str | Path], out: Path, *, again: bool = False, progress: Progress = silent,
               world: World | None = None) -> tuple[ScoreTable, list[Curves]]:
    """Score several runs of one experiment, usually seeds, and put them together.

    Args:
        folders: the run folders; what is scored already is not scored again.
        out: folder for the combined scores.csv and scores.json; made when missing.
        again: score all again.
        progress: told how far it is.
        world: see `score_run`.

    Returns:
        The combined table, whose spread is over the runs, and the curves of each run.

    Raises:
        ConfigError: runs whose experiments differ in more than the seed, or do not differ at all.
        CheckpointError: see `score_run`; or a run that is not at its end.
        DataError: see `score_run`.
    """
    check_folder(out)
    _check_seeds([load_run(folder) for folder in folders])
    table = combine([score_run(folder, again=again, progress=progress, world=world) for folder in folders])
    if world is None or world.rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        _write_table(table, out)
    return table, [read_curves(Path(folder)) for folder in folders]


def _check_seeds(runs: Sequence[Run]) -> None:
    """Refuse to average what is no spread over seeds."""
    first, seeds = runs[0], dict[tuple[int, ...], Path]()
    for run in runs:
        differing = [key for key in changed_keys(first.experiment, run.experiment)
                     if key not in SEEDS and key.partition(".")[0] not in SEEDS]
        if differing:
            raise ConfigError(f"{first.folder} and {run.folder} are no seeds of one experiment, and their mean says nothing: "
                              f"they differ in {', '.join(differing)}; score them one by one.")
        seed = tuple(getattr(getattr(run.experiment, key.partition(".")[0]), key.partition(".")[2])
                     for key in SEEDS if key.endswith(".seed"))
        if seed in seeds:
            raise ConfigError(f"{seeds[seed]} and {run.folder} have the same seed, training.seed = {seed[0]}, and so are one "
                              "run: give runs of different seeds.")
        seeds[seed] = run.folder
        at = read_checkpoint(run.checkpoints["last"])["progress"] if "last" in run.checkpoints else None
        training = run.experiment.training
        if at and (at["phase"] != "online" or at["epoch"] < training.epochs) and not (
                training.early_stop and at["epoch"] - at["best_epoch"] >= training.early_stop):
            raise CheckpointError(f"{run.folder} is not at its end ({at['phase']} epoch {at['epoch']}), and is not averaged "
                                  "with others: train it with --resume first.")


def write_scores(evaluation: Evaluation, folder: Path) -> None:
    """Leave scores.csv, scores.json and curves.npz in a folder, each whole or not at all.

    Args:
        evaluation: the scores.
        folder: an existing folder.
    """
    arrays: dict[str, Any] = evaluation.curves
    with replacing(folder / "curves.npz") as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)
    _write_table(evaluation.table, folder)


def read_curves(folder: Path) -> Curves:
    """The curves that scoring left in a folder.

    Args:
        folder: a scored run folder.

    Returns:
        Arrays by name.

    Raises:
        DataError: not scored yet, a damaged file, or one of an earlier trimtab.
    """
    path = folder / "curves.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            curves = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise DataError(f"{folder} is not scored yet: run `trimtab score {folder}`.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged: run `trimtab score {folder} --again`.") from error
    if not {"labels", "wavenumbers"} & set(curves):
        raise DataError(f"{path} is of an earlier trimtab: run `trimtab score {folder} --again`.")
    return curves


def check_scores(experiment: Experiment) -> None:
    """Refuse lead times that cannot be scored, before a training rather than after it.

    Args:
        experiment: the experiment.

    Raises:
        ConfigError: no held-out run, or see `match_times`.
    """
    if experiment.reference.test_runs < 1:
        raise ConfigError("reference.test_runs = 0 leaves no held-out run to score on: give at least one.")
    dt, stride = experiment.solver.options.get("dt"), experiment.training.stride
    if dt and not experiment.reference.file:
        match_times(dt, stride, experiment.reference.interval or stride * dt, experiment.score.leads)


def _evaluate(run: Run, solver: Solver, progress: Progress, world: World) -> Evaluation:
    experiment, spec = run.experiment, solver.spec
    config, stride = experiment.score, experiment.training.stride
    closures: dict[str, Any] = {}
    notes = []
    path = make_reference(experiment, spec, progress=progress, world=world)
    targets = Targets(path, spec, experiment.reference, stride * spec.dt)
    try:
        for closure in config.closures:
            checkpoint = CHECKPOINT_OF.get(closure)
            if closure == "none":
                closures[closure] = None
            elif checkpoint in run.checkpoints:
                closures[closure] = load_correction(run.checkpoints[checkpoint], local_spec(solver))
            elif checkpoint:
                notes.append(f"No {closure} row: the run has no {checkpoint}.pt.")
            else:
                progress(0.0, "scoring: constant of the Smagorinsky closure")
                closures[closure], sentence = _smagorinsky(solver, targets, config, stride)
                notes.append(sentence)
        if set(config.closures) & set(CHECKPOINT_OF) and not set(closures) & set(CHECKPOINT_OF):
            raise CheckpointError(f"{run.folder} holds no trained network yet (neither offline.pt nor best.pt): "
                                  "let the training reach its first checkpoint.")
        result = evaluate(solver, closures, targets.runs("test"), config, interval=targets.interval, stride=stride,
                          name=experiment.name, notes=notes,
                          progress=lambda share, text: progress(share, f"scoring: {text}"))
    finally:
        targets.close()
    settings = {**result.table.settings, "reference": path.name, "seed": experiment.training.seed,
                "trimtab": __version__}
    return Evaluation(dataclasses.replace(result.table, settings=settings), result.curves)


def _smagorinsky(solver: Solver, targets: Targets, config: Any, stride: int) -> tuple[Any, str]:
    """The best constant on training runs: a few starts from each, at the longest lead time."""
    training = targets.runs("training")
    lead = max(config.leads)
    meeting = match_times(solver.spec.dt, stride, targets.interval, (lead,))
    ahead = meeting.leads[0] * meeting.skip
    runs = range(min(len(training), SEARCH_STARTS))
    begins = np.linspace(0, training.shape[1] - 1 - ahead, max(1, SEARCH_STARTS // len(runs))).astype(int)
    if begins[-1] < 0:
        raise DataError(f"The training runs hold {training.shape[1]} snapshots, too few for the longest of "
                        f"score.leads, {lead}: shorten the leads or lengthen the runs.")
    places = [(one, int(begin)) for one in runs for begin in begins]
    starts = np.stack([training[one, begin] for one, begin in places])
    truth = np.stack([training[one, begin + ahead] for one, begin in places])
    closure, errors = best_smagorinsky(solver, starts, truth, config.smagorinsky, steps=lead, stride=stride)
    tried = ", ".join(f"{constant:g}: {error:.3f}" for constant, error in errors.items())
    return closure, (f"Smagorinsky constant {closure.constant:g}, the best on training runs (RMSE at lead {lead} by "
                     f"constant: {tried}).")


def _stamp(run: Run) -> str:
    """Digest of all that the scores depend on."""
    own = run.experiment
    judged = Experiment(solver=own.solver, network=own.network, correction=own.correction, reference=own.reference,
                        score=own.score, training=TrainingConfig(stride=own.training.stride))
    digest = hashlib.sha256(f"{__version__}\n{dump_experiment(judged)}".encode())
    if files := files_now(run, JUDGED):
        digest.update(json.dumps(files, sort_keys=True).encode())
    for name in CHECKPOINT_OF.values():
        if name in run.checkpoints:  # its weights, not its bytes, which also tell when it was written
            for key, values in read_checkpoint(run.checkpoints[name])["correction"].items():
                kind = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__
                digest.update(f"{name} {key} {kind}".encode())
                digest.update(content(values))
    return digest.hexdigest()[:16]


def _write_table(table: ScoreTable, folder: Path) -> None:
    for name, text in (("scores.csv", table.to_csv()), ("scores.json", table.to_json())):
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
