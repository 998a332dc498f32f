# SPDX-License-Identifier: MIT
"""A family of trainings of one experiment: one offline training a seed, and what is fine-tuned from it; their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import trimtab
from trimtab.config.experiment import Experiment, load_experiment
from trimtab.core.solver import Solver
from trimtab.data.reference import make_reference
from trimtab.data.windows import Targets
from trimtab.evaluation.evaluate import Evaluation, evaluate
from trimtab.reproduce.cache import Pieces
from trimtab.training.trainer import Result, Trainer

SCRATCH = "scratch"  # in the name of a training that does not start from the offline network
Found = dict[str, list[dict[str, Any]]]


def piece_name(name: str) -> str:
    """A name for people as one for files."""
    return "".join(one for one in name.replace(", ", "-").replace(" ", "-") if one.isalnum() or one in "-_")


def train_family(pieces: Pieces, source: str, changes: Sequence[str], offline: Sequence[str], names: Mapping[str, Sequence[str]],
                 seeds: int, curves: Sequence[str] = ()) -> Found:
    """Train, seed by seed, so that an early end leaves whole seeds.

    Args:
        pieces: of the result.
        source: a shipped experiment with an offline phase.
        changes: of all trainings.
        offline: of the offline training alone.
        names: name of a training -> its changes; it starts from the offline network of its seed, unless `SCRATCH` is in its name.
        seeds: 0 to seeds - 1.
        curves: to keep with the scores, mean over the members.

    Returns:
        "offline" and the names -> a dict a seed: scores against no closure, `curves`, "n", and what `Pieces.train` adds.
    """
    def judge(trainer: Trainer, result: Result) -> dict[str, Any]:
        closures = {"none": None, "online": trainer.correction}
        done = judged(trainer.experiment, trainer.solver, trainer.targets, closures)
        training = trainer.experiment.training
        return {**numbers(done, "online", curves), "n": training.window if training.epochs else None}

    found: Found = {"offline": [], **{name: [] for name in names}}
    for seed in range(seeds):
        first = load_experiment(source, (*changes, *offline, "training.epochs=0", f"training.seed={seed}"))
        found["offline"].append(pieces.train(f"offline-{seed}", first, judge))
        best = pieces.training_folder(f"offline-{seed}", first) / "best.pt"
        for name, own in names.items():
            warm = () if SCRATCH in name else (f"training.start_from={str(best)!r}",)
            one = load_experiment(source, ("offline.steps=0", f"training.seed={seed}", *changes, *warm, *own))
            found[name].append(pieces.train(f"{piece_name(name)}-{seed}", one, judge))
    return found


def opened(experiment: Experiment, tell: Any) -> tuple[Solver, Targets]:
    """An experiment's solver and reference run, which is made first when it is not there; both to be closed.

    Args:
        experiment: the experiment.
        tell: told what is done and the share, as `Pieces.tell`.
    """
    solver = trimtab.open_solver(experiment.solver.name, **experiment.solver.options)
    path: Path = make_reference(experiment, solver.spec, progress=lambda fraction, text: tell(text, fraction))
    return solver, Targets(path, solver.spec, experiment.reference, experiment.training.stride * solver.spec.dt)


def judged(experiment: Experiment, solver: Solver, targets: Targets, closures: Mapping[str, Any]) -> Evaluation:
    """Scores of closures on the held-out runs; "none" among them for similarities."""
    return evaluate(solver, closures, targets.runs("test"), experiment.score, interval=targets.interval,
                    stride=experiment.training.stride)


def numbers(done: Evaluation, closure: str, curves: Sequence[str] = ()) -> dict[str, Any]:
    """Means of a closure's scores by name, and of some of its curves, as JSON holds them."""
    row = done.table.rows[closure]
    return {**{key: done.table.mean(closure, key) for key in row},
            **{key: np.mean(done.curves[f"{closure}/{key}"], axis=0).tolist() for key in curves}}


def summary(name: str, several: Sequence[Mapping[str, Any]], keys: Sequence[str], spread: str) -> dict[str, Any]:
    """A row: means over the seeds.

    Args:
        name: of the training.
        several: a dict a seed.
        keys: scores to show.
        spread: score whose standard deviation over the seeds to show.

    Returns:
        "closure", "seeds", "n", "spread", "seconds" where it was trained, and the keys.
    """
    values = [one[spread] for one in several if spread in one]
    row: dict[str, Any] = {"closure": name, "seeds": len(several), "n": several[0].get("n"),
                           "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None}
    for key in keys:
        if key in several[0]:
            row[key] = float(np.mean([one[key] for one in several]))
    if "online_seconds" in several[0]:
        row["seconds"] = float(np.mean([one["online_seconds"] + one["offline_seconds"] for one in several]))
    return row


def mean(found: Found, name: str, key: str) -> float:
    """Mean of a score over the seeds."""
    return float(np.mean([one[key] for one in found[name]]))
