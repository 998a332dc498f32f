# SPDX-License-Identifier: MIT
"""Burgers with a shock-capturing scheme: where each gradient breaks at shocks, and training through them.

MUSCL on 64 cells (`fortran/burgers.f90`), h = 0.02, rk2; random smooth fields of 1 to 5 waves steepen into shocks after about
0.3 time units. What the core lacks is a drag of 0.5, or the truth's viscosity of 0.05, which acts nowhere but at shocks.

Gradients: the loss looks at the last state alone, so that the window has to be bridged; the network has had 60 steps of
training. `trimtab.gradcheck` gives cosine and relative error against central differences of forward runs, which know of no
derivative at a kink. Beside it the cosine of d loss / d u_0 to that of `discrete`. What was found:

- Kinks of limiter and flux do no harm: they are met with probability 0, and `discrete` equals the differences through shocks as
  before them, to 7e-6 and mostly to rounding.
- `static` breaks: cosine down to 0.87 where a drag is missing and to 0.66 where the missing term lives at the shocks, 0.15 for
  d loss / d u_0. It leaves a front where it found it, while the flow carries it on and swallows what runs into it.
- `euler`, `tangent` and `ensemble` hold: cosine above 0.985 for d loss / d theta, above 0.93 for d loss / d u_0.

Training: experiment `burgers`, windows of 20 steps of which the loss sees the last state alone, equal settings, 200 steps, one
seed. All find the missing term through shocks (similarity 0.82 to 0.92), no-gradient unrolling included, and the order of the
variants is not that of their cosines: here a better gradient does not buy a better network.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trimtab
from trimtab.config.experiment import Experiment, load_experiment
from trimtab.core.random_fields import random_line
from trimtab.core.solver import Solver
from trimtab.data.reference import Progress
from trimtab.gradient.gradcheck.check import gradcheck
from trimtab.reproduce.cache import Pieces
from trimtab.reproduce.drawing import drawn, style
from trimtab.reproduce.table import Check, Column, Table
from trimtab.reproduce.training_sweep import judged, numbers

TEXT = "Burgers: where each gradient breaks at shocks, and training through them"
MINUTES = 8.0
WINDOWS = (5, 20, 40, 80)
VARIANTS = ("none", "static", "euler", "tangent", "ensemble", "discrete")
COMMON = {"dt": 0.02, "integrator": "rk2"}
# Core, and what the truth has besides.
SETTINGS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "drag missing, viscous, vanleer": ({"viscosity": 0.05, "limiter": "vanleer"}, {"drag": 0.5}),
    "drag missing, inviscid, minmod": ({"limiter": "minmod"}, {"drag": 0.5}),
    "drag missing, inviscid, no limiter": ({"limiter": "none"}, {"drag": 0.5}),
    "viscosity missing, minmod": ({"limiter": "minmod"}, {"viscosity": 0.05}),
}
MEMBERS, WARM_UP = 8, 60
SPARSE = 20
TRUTHS = {"viscosity missing": "{viscosity = 0.05}", "drag missing, sharp shocks": "{drag = 0.5}"}
TRAINED = ("none", "static", "tangent")
LEAD = 25


def run(out: Path, quick: bool, progress: Progress) -> Table:
    """See `trimtab.reproduce`."""
    windows, cells, members, warm_up = ((2, 4), 16, 2, 3) if quick else (WINDOWS, 64, MEMBERS, WARM_UP)
    settings = dict(list(SETTINGS.items())[-1:]) if quick else SETTINGS
    experiments = _experiments(quick)
    pieces = Pieces(out, progress, len(settings) * len(windows) + len(experiments), "burgers")
    rows: list[dict[str, Any]] = []
    for name, (core, extra) in settings.items():
        for steps in windows:
            asked: dict[str, Any] = {"core": core, "extra": extra, "cells": cells, "steps": steps, "members": members,
                                     "warm_up": warm_up}
            key = f"{name.replace(', ', '-').replace(' ', '-')}-{steps}"
            found = pieces.get(key, asked, partial(_check, **asked, directions=2 if quick else 8))
            rows += [{"setting": name, "n": steps, "gradient": gradient, **one} for gradient, one in found.items()]
    gradients = list(rows)
    for (truth, gradient), experiment in experiments.items():
        key = f"{truth.replace(', ', '-').replace(' ', '-')}-{gradient}"
        done = pieces.train(key, experiment, lambda trainer, result: _judge(trainer.experiment, trainer))
        rows.append({"setting": f"training, {truth}", "n": experiment.training.window, "gradient": gradient,
                     "rmse": done[f"rmse_{_lead(quick)}"], "similarity": done[f"similarity_{_lead(quick)}"]})
    columns = (Column("setting", "setting"), Column("n", "n"), Column("gradient", "gradient"), Column("cosine", "cosine"),
               Column("error", "relative error"), Column("cosine_u0", "cosine, d loss / d u_0"),
               Column("rmse", f"RMSE, lead {_lead(quick)}"), Column("similarity", f"similarity, lead {_lead(quick)}"))
    _draw(out / "burgers.png", gradients, rows[len(gradients):])
    return Table("burgers", TEXT, columns, rows, _checks(gradients, rows[len(gradients):]), ("burgers.png",), (
        "Cosine and error against central differences of forward runs; the loss looks at the last state alone.",
        "Training: windows whose loss sees the last state alone; similarity = 1 - RMSE / RMSE without correction."), quick)


def _lead(quick: bool) -> int:
    return 4 if quick else LEAD


def _check(core: dict[str, Any], extra: dict[str, Any], cells: int, steps: int, members: int, warm_up: int,
           directions: int) -> dict[str, dict[str, float]]:
    starts = np.stack([random_line(cells, np.random.default_rng((7, member))) for member in range(members)])
    with trimtab.open_solver("burgers", n=cells, **COMMON, **core, **extra) as solver:
        truth = solver.advance(starts, max(WINDOWS)).states
    with trimtab.open_solver("burgers", n=cells, **COMMON, **core) as solver:
        correction = _beginner(solver, truth, warm_up)
        table = gradcheck(solver, correction, starts, truth[steps : steps + 1], (steps,), leads=[steps], gradients=VARIANTS,
                          directions=directions)
        by_u0 = {name: _by_u0(solver, correction, starts, truth[steps], steps, name) for name in VARIANTS}
    return {row.gradient: {"cosine": row.cosine, "error": row.error,
                           "cosine_u0": float(torch.nn.functional.cosine_similarity(by_u0[row.gradient], by_u0["discrete"], 0))}
            for row in table.rows if row.gradient in VARIANTS}


def _beginner(solver: Solver, truth: np.ndarray, warm_up: int) -> trimtab.Correction:
    """A network after some steps of training, as the steps that follow would meet it."""
    torch.manual_seed(0)
    network = trimtab.networks.PeriodicCNN((1, 8, 8, 1), 3, "tanh", dimensions=1).double()
    correction = trimtab.Correction(network, solver.spec, features=("u",))
    optimiser, generator = torch.optim.Adam(correction.parameters(), 1e-2), np.random.default_rng(0)
    for _ in range(warm_up):
        first = int(generator.integers(0, len(truth) - 11))
        states = trimtab.rollout(solver, correction, truth[first], 10)
        loss = (states[1:] - torch.from_numpy(truth[first + 1 : first + 11])).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return correction


def _by_u0(solver: Solver, correction: trimtab.Correction, starts: np.ndarray, target: np.ndarray, steps: int,
           gradient: str) -> torch.Tensor:
    u0 = torch.tensor(starts, requires_grad=True)
    states = trimtab.rollout(solver, correction, u0, steps, gradient=gradient)
    (found,) = torch.autograd.grad((states[-1] - torch.from_numpy(target)).square().mean(), u0)
    return found.flatten()


def _experiments(quick: bool) -> dict[tuple[str, str], Experiment]:
    window = 4 if quick else SPARSE
    cut: tuple[str, ...] = (
        "solver.n=16", "reference.snapshots=12", "reference.training_runs=2", "reference.test_runs=2", "training.epochs=1",
        "training.steps_per_epoch=2", "training.batch=2", "training.validate_windows=2", "score.starts=2", "score.long_steps=8",
        "score.leads=[4]")
    if not quick:
        cut = ("training.epochs=8", "training.batch=16", f"score.leads=[{LEAD}]")
    return {(truth, gradient): load_experiment("burgers", (
        *cut, f"reference.solver={solver}", f"training.gradient={gradient}", f"training.window={window}",
        f"training.loss_at=[{window}]")) for truth, solver in TRUTHS.items() for gradient in TRAINED}


def _judge(experiment: Experiment, trainer: Any) -> dict[str, Any]:
    done = judged(experiment, trainer.solver, trainer.targets, {"none": None, "online": trainer.correction})
    return numbers(done, "online")


def _checks(gradients: list[dict[str, Any]], trained: list[dict[str, Any]]) -> tuple[Check, ...]:
    def worst(name: str, key: str) -> float:
        values = [row[key] for row in gradients if row["gradient"] == name]
        return max(values) if key == "error" else min(values)

    similarity = {(row["setting"], row["gradient"]): row["similarity"] for row in trained}
    return (
        Check("discrete through shocks: largest error", worst("discrete", "error"), 1e-2, "at most", 0.0,
              "the derivative of the numbers computed, kinks have measure 0"),
        Check("tangent through shocks: lowest cosine", worst("tangent", "cosine"), 0.98, "at least", 0.0,
              "its error is the quadrature's"),
        Check("ensemble through shocks: lowest cosine", worst("ensemble", "cosine"), 0.95, "at least", 0.0,
              "forward runs only"),
        Check("static at shocks: lowest cosine", worst("static", "cosine"), 0.8, "at most", 0.0,
              "it leaves a front where it found it"),
        Check("static at shocks: lowest cosine of d loss / d u_0", worst("static", "cosine_u0"), 0.3, "at most", 0.0,
              "the same"),
        *(Check(f"{truth}: similarity, tangent", similarity[f"training, {truth}", "tangent"], 0.8, "at least", 0.0,
                "trained through shocks from the end of the window alone") for truth in TRUTHS),
    )


def _draw(path: Path, gradients: list[dict[str, Any]], trained: list[dict[str, Any]]) -> None:
    settings = list(dict.fromkeys(row["setting"] for row in gradients))
    with drawn(path, 3.2 * (len(settings) + 1), 3.6) as figure:
        *panels, last = figure.subplots(1, len(settings) + 1)
        for axes, setting in zip(panels, settings, strict=True):
            for name in VARIANTS:
                rows = [row for row in gradients if (row["setting"], row["gradient"]) == (setting, name)]
                axes.plot([row["n"] for row in rows], [max(row["error"], 1e-8) for row in rows], label=name, **style(name))
            steps = sorted({row["n"] for row in gradients})
            axes.set(yscale="log", xlabel="window n", title=setting.replace(", ", "\n", 1), ylim=(1e-8, 2))
            axes.set_xticks(steps, map(str, steps))
        panels[0].set_ylabel("relative error of d loss / d theta (1e-8: that or less)")
        panels[0].legend(fontsize=7.5)
        for number, setting in enumerate(dict.fromkeys(row["setting"] for row in trained)):
            for place, name in enumerate(TRAINED):
                (row,) = [one for one in trained if (one["setting"], one["gradient"]) == (setting, name)]
                last.bar(number + 0.25 * (place - 1), max(0.0, row["similarity"]), 0.22, color=style(name)["color"],
                         label=name if number == 0 else None)
        last.set_xticks(range(len(TRUTHS)), [name.replace(", ", "\n") for name in TRUTHS], fontsize=8)
        last.set(title="trained from the end\nof windows of 20 steps", ylabel="similarity", ylim=(0, 1))
        last.legend(fontsize=7.5, loc="lower center")
