# SPDX-License-Identifier: MIT
"""Pieces of a result that survive a kill: computed once for the same settings, then read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import trimtab
from trimtab.config.experiment import Experiment, dump_experiment
from trimtab.core.atomic_files import replacing
from trimtab.data.reference import Progress
from trimtab.evaluation.report import read_metrics
from trimtab.training.online import loss_scale
from trimtab.training.trainer import Result, Trainer


class Stopped(Exception):
    """A signal asked a training to stop; it is saved.

    Attributes:
        exit_code: what the program should exit with.
    """

    def __init__(self, exit_code: int):
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


class Pieces:
    """Numbers kept in the folder of a result, one JSON file a piece.

    Args:
        folder: an existing folder.
        progress: told the share done after every piece.
        count: number of pieces, for that share.
        name: of the result.
    """

    def __init__(self, folder: Path, progress: Progress, count: int, name: str):
        self.folder, self.count, self.name, self.done = folder, max(1, count), name, 0
        self._progress = progress

    def tell(self, text: str, part: float = 0.0) -> None:
        """Say what is being computed.

        Args:
            text: what.
            part: done share of the piece.
        """
        self._progress(min(1.0, (self.done + part) / self.count), f"{self.name}: {text}")

    def get(self, name: str, settings: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """A piece, computed unless it is there with the same settings.

        Args:
            name: of the piece and its file.
            settings: all that it depends on besides the code; values that JSON holds.
            compute: gives the value, of numbers, strings, lists and dicts of them.

        Returns:
            The value as JSON gives it back: tuples are lists, keys strings; NaN and infinity stay.
        """
        path = self.folder / f"{name}.json"
        asked = json.loads(json.dumps(settings))
        self.tell(name)
        held = _read(path)
        if held is None or held["settings"] != asked:
            value = compute()
            with replacing(path) as partial:
                partial.write_text(json.dumps({"settings": asked, "value": value}), encoding="utf-8")
            held = _read(path)
            assert held is not None
        self.done += 1
        return held["value"]

    def train(self, name: str, experiment: Experiment, compute: Callable[[Trainer, Result], dict[str, Any]],
              **settings: Any) -> dict[str, Any]:
        """A training in a folder of its own, and what is measured of its result.

        Args:
            name: of the piece.
            experiment: what to train.
            compute: numbers of the finished training; its solver is closed afterwards.
            settings: what `compute` depends on.

        Returns:
            Those numbers, and best_validation, mean_square (the same in the square of the state's unit), best_epoch,
            offline_validation, dropped, steps, offline_seconds and online_seconds (sums over metrics.csv, so that a training
            that was cut counts in full).

        Raises:
            Stopped: a signal; the training is saved.
        """
        def whole() -> dict[str, Any]:
            def told(fraction: float, text: str) -> None:
                self.tell(f"{name}, {text}", fraction)

            trainer = Trainer(experiment, self.training_folder(name, experiment), resume=True, progress=told)
            result = trainer.fit()
            if result.exit_code:
                raise Stopped(result.exit_code)
            try:
                own, history = compute(trainer, result), {**_history(result), "mean_square": mean_square_of(trainer, result)}
            finally:
                trainer.targets.close()
                trainer.solver.close()
            return {**own, **history}

        return dict(self.get(name, {"experiment": described(experiment), **settings}, whole))

    def training_folder(self, name: str, experiment: Experiment) -> Path:
        """Run folder of a training: another one for another experiment, so that changed settings meet no old checkpoint."""
        digest = hashlib.sha256(described(experiment).encode()).hexdigest()[:8]
        return self.folder / f"training-{name}-{digest}"


def mean_square_of(trainer: Trainer, result: Result) -> float:
    """The best validation in the square of the state's unit, as others publish it; NaN for fields of several scales.

    Args:
        trainer: its data are open.
        result: of its `fit`.
    """
    training = trainer.experiment.training
    scale = loss_scale(trainer.targets.windows("training", training.window), training.weights)
    return result.best_validation * float(scale[0]) ** 2 if bool((scale == scale[0]).all()) else math.nan


def described(experiment: Experiment) -> str:
    """All that a training depends on, as text."""
    return f"{trimtab.__version__}\n{dump_experiment(experiment)}"


def _history(result: Result) -> dict[str, Any]:
    metrics = read_metrics(result.folder / "metrics.csv")
    found: dict[str, Any] = {"best_validation": result.best_validation, "best_epoch": result.best_epoch,
                             "dropped": result.dropped, "offline_validation": math.nan, "steps": 0.0}
    for phase in ("offline", "online"):
        here = metrics["phase"] == phase
        found[f"{phase}_seconds"] = float(metrics["seconds"][here].sum())
        found["steps"] += float(metrics["step"][here].max(initial=0.0))
        if phase == "offline" and here.any():
            found["offline_validation"] = float(metrics["validation"][here].min())
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:  # not one of ours, or of another version: made again
        return None
    return held if isinstance(held, dict) and held.keys() == {"settings", "value"} else None
