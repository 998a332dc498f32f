# SPDX-License-Identifier: MIT
"""The corner that a black box leaves: targets far apart, hence long windows, and no adjoint; offline, static, ensemble.

The truth is seen every m-th step and never between, so that no window can be shorter than m. Every closure is trained from
scratch on windows of n = m, the shortest there are, with one target at the end. Nothing here asks more of a solver than to run
forward:

- `offline`: finite differences of what there is, (y(t + mh) - Psi^m(u)) / mh as a label at u(t) (`trimtab.training.offline`);
- `static`: Static-EGA, J = I, for as many optimiser steps as the ensemble, and at the corner once more for as many solver
  steps ("static, equal cost");
- `ensemble`: Ensemble-EGA. Lorenz 63: as many runs as components, 3. Lorenz 96: 12 runs for 36 components, localised on a
  stencil of 5 points.

Rate, clipping, batch, network, data, number of optimiser steps and seeds (3 at the corner, else 1) are the same for all of a
system. RMSE is of held-out forecasts at one lead for all m, over that of no closure: 1 is nothing learnt.

Beside it what `trimtab gradcheck` says of n = m before the training, with forward runs and targets alone, of the network after
200 offline steps on the same sparse targets: the cosine of static and of ensemble to the true gradient.

- Lorenz 63 (`lorenz63-sparse`, all three components, noise of a twentieth of the climate's deviation): MLP 3-32-32-3, h = 0.01;
  the core lacks -beta u_3; a Lyapunov time is 110 steps.
- Lorenz 96, two scales, K = 36, J = 10, F = 10: a CNN on the ring, h = 0.02, a Lyapunov time of the slow ring alone is 22 steps.

Measured, RMSE over no closure, mean of the seeds (windows in Lyapunov times of 0.36 and 1.8 at the corners):

                                    offline   static   static, equal cost   ensemble   gradcheck: static, ensemble
    Lorenz 63, every 10th step      0.97      0.072                         0.068      0.72, 1.00
    every 20th                      0.89      0.071                         0.034      0.18, 1.00
    every 40th: the corner          0.84      0.75     0.98                 0.033      -0.01, 1.00
    every 80th                      0.98      0.66                          0.59       0.92, 1.00
    Lorenz 96, every 20th step      1.25      0.29                          0.15       0.47, 0.99
    every 40th: the corner          0.92      0.79     1.23                 0.16       0.91, 0.99

A smaller rate does not save static: 1e-3 at the corners gives 0.92 (300 steps) and 0.98 (1,200) on Lorenz 63, 0.60 (300) on
Lorenz 96. At every 80th step even the true gradient learns nothing from scratch in 300 steps (nor does it in 600): the loss
itself, of states that have forgotten where they began, leads nowhere; there a training has to begin from what denser data or a
shorter window taught. gradcheck does not see that: it compares gradients at the network as it is, and where that is far from the
truth all point down. But wherever static fails it did not trust it.

The method: Ouala et al., arXiv 2311.10665, whose windows are 10 steps with a target at each; the question of sparse targets is
ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.config.experiment import Experiment, load_experiment
from trimtab.data.reference import Progress
from trimtab.evaluation.gradcheck_report import beginner
from trimtab.gradient import get_gradient
from trimtab.gradient.gradcheck.check import gradcheck
from trimtab.reproduce.cache import Pieces, described
from trimtab.reproduce.drawing import drawn, style
from trimtab.reproduce.table import Check, Column, Table
from trimtab.reproduce.training_sweep import judged, numbers, opened
from trimtab.training.trainer import Result, Trainer

TEXT = "the corner: a black box, targets far apart, long windows: offline, static and ensemble"
MINUTES = 10.0
SEEDS = 3
GOOD = 0.95  # cosine from which gradcheck trusts a gradient, as in `map`
CLOSURES = ("offline", "static", "ensemble")
EQUAL = "static, equal cost"
EPOCHS, OFFLINE_STEPS, FIT = 15, 1500, 200
Shares = dict[tuple[str, int, str], list[float]]       # RMSE over no closure, by system, gap and closure, of each seed
Checked = dict[tuple[str, int], dict[str, float]]      # cosines, by system and gap


@dataclass(frozen=True)
class System:
    """A system and the gaps between its targets.

    Args:
        source: shipped experiment.
        changes: of it.
        gaps: outer steps m from target to target, each a divisor of `lead`.
        corner: of these, the one that is judged.
        steps: optimiser steps of every online training.
        lead: of the forecasts that judge, in outer steps.
        lyapunov: Lyapunov time in outer steps.
        snapshots: of a run, times the gap.
        ensemble: options of the ensemble, as TOML.
        cost: solver steps of an ensemble's optimiser step over those of static's.
    """

    source: str
    changes: tuple[str, ...]
    gaps: tuple[int, ...]
    corner: int
    steps: int
    lead: int
    lyapunov: float
    snapshots: int
    ensemble: str
    cost: int


SYSTEMS = {
    "Lorenz 63": System("lorenz63-sparse", ("observation.components=[]",), (10, 20, 40, 80), 40, 300, 80, 110.4, 24000, "{}", 4),
    "Lorenz 96, two scales": System("lorenz96", (
        "solver.n=36", "solver.forcing=10.0", "training.batch=16", "training.clip=0.8",
        "reference.solver={name = \"lorenz96_two_scale\", n = 36, fast = 10, forcing = 10.0, coupling = 1.0, b = 10.0, c = 10.0, "
        "dt = 0.001}"), (20, 40), 40, 150, 40, 22.0, 1600,
        "{members = 12, aim = 0, spectrum = \"white\", localisation = 2}", 13),
}


def run(out: Path, quick: bool, progress: Progress) -> Table:
    """See `trimtab.reproduce`."""
    seeds = 1 if quick else SEEDS
    plan = [(name, gap) for name, one in SYSTEMS.items() for gap in ((one.corner,) if quick else one.gaps)]
    trainings = [_closures(SYSTEMS[name], gap, seed) for name, gap in plan for seed in range(seeds)]
    pieces = Pieces(out, progress, 2 * len(plan) + sum(map(len, trainings)), "corner")
    found: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    checked: Checked = {}
    alone: dict[tuple[str, int], float] = {}
    for name, gap in plan:
        first = _experiment(SYSTEMS[name], gap, "static", 0, quick)
        label = f"{_short(name)}-{gap}"
        alone[name, gap] = pieces.get(f"{label}-alone", {"experiment": described(first)}, partial(_alone, first, pieces.tell))
        checked[name, gap] = pieces.get(f"{label}-gradcheck", {"experiment": described(first), "of": SYSTEMS[name].ensemble},
                                        partial(_gradcheck, first, SYSTEMS[name], gap, quick))
    for seed in range(seeds):
        for name, gap in plan:
            for closure in _closures(SYSTEMS[name], gap, seed):
                one = pieces.train(f"{_short(name)}-{gap}-{_short(closure)}-{seed}",
                                   _experiment(SYSTEMS[name], gap, closure, seed, quick), _judge)
                found.setdefault((name, gap, closure), []).append(one)
    rows = [_row(SYSTEMS[name], key, several, alone[name, gap], checked[name, gap])
            for key, several in found.items() for name, gap in [key[:2]]]
    columns = (Column("system", "system"), Column("gap", "targets every", "steps"), Column("time", "every", "Lyapunov times"),
               Column("closure", "closure"), Column("seeds", "seeds"), Column("share", "RMSE over no closure"),
               Column("worst", "worst seed"), Column("rmse", "RMSE"), Column("valid_time", "valid time"),
               Column("cosine", "gradcheck: cosine"), Column("trusted", "gradcheck trusts it"),
               Column("steps", "optimiser steps"),
               Column("seconds", "training", "s"))
    shares = {key: [one["rmse"] / alone[key[:2]] for one in several] for key, several in found.items()}
    _draw(out / "corner.png", shares, checked)
    notes = [f"{name}: RMSE at lead {one.lead} steps; windows n = m, a target at the end." for name, one in SYSTEMS.items()]
    return Table("corner", TEXT, columns, rows, _checks(shares, checked), ("corner.png",), (
        *notes, "Valid time in Lyapunov times (Lorenz 63) and time units (Lorenz 96).",
        "Times were taken on a machine that may have been busy."), quick)


def _closures(system: System, gap: int, seed: int) -> tuple[str, ...]:
    """What is trained: at the corner `SEEDS` times, around it once, and once for as many solver steps."""
    if gap != system.corner:
        return () if seed else CLOSURES
    return CLOSURES if seed else (*CLOSURES, EQUAL)


def _experiment(system: System, gap: int, closure: str, seed: int, quick: bool) -> Experiment:
    interval = gap * float(load_experiment(system.source).solver.options["dt"])
    steps = 1 if quick else system.steps // EPOCHS * (system.cost if closure == EQUAL else 1)
    snapshots = max(60, 600 // gap) if quick else system.snapshots // gap
    cut = ("score.starts=2", "training.validate_windows=4", "training.batch=4") if quick else (
        "score.starts=32", "training.validate_windows=128")
    gradient = "ensemble" if closure == "ensemble" else "static"
    if closure == "offline":
        how: tuple[str, ...] = ("training.epochs=0", f"offline.steps={2 if quick else OFFLINE_STEPS}", "training.warm_start=true")
    else:
        how = ("offline.steps=0", f"training.epochs={1 if quick else EPOCHS}", f"training.steps_per_epoch={steps}",
               f"training.gradient={gradient}",
               f"training.gradient_options={system.ensemble if gradient == 'ensemble' else '{}'}")
    return load_experiment(system.source, (
        *system.changes, *how, *cut, f"reference.interval={interval!r}", f"reference.snapshots={snapshots}",
        f"training.window={gap}", "training.rate=1e-2", "training.rate_end=1e-4",
        "score.long_steps=200", f"score.leads=[{system.lead}]", f"training.seed={seed}"))


def _alone(experiment: Experiment, tell: Any) -> float:
    """RMSE of no closure."""
    solver, targets = opened(experiment, tell)
    try:
        done = judged(experiment, solver, targets, {"none": None})
        return float(numbers(done, "none")[f"rmse_{experiment.score.leads[0]}"])
    finally:
        targets.close()
        solver.close()


def _judge(trainer: Trainer, result: Result) -> dict[str, Any]:
    done = numbers(judged(trainer.experiment, trainer.solver, trainer.targets, {"online": trainer.correction}), "online")
    rmse = float(done[f"rmse_{trainer.experiment.score.leads[0]}"])
    return {"rmse": rmse if np.isfinite(rmse) else float("inf"), "valid_time": done["valid_time"]}


def _gradcheck(experiment: Experiment, system: System, gap: int, quick: bool) -> dict[str, float]:
    """Cosine of each gradient, from forward runs and the sparse targets alone."""
    solver, targets = opened(experiment, lambda text, share: None)
    options = load_experiment(system.source, (f"training.gradient_options={system.ensemble}",)).training.gradient_options
    try:
        windows = targets.windows("validation", gap)
        chosen = windows.spread(1 if quick else 16)
        correction = beginner(experiment, solver, targets, 2 if quick else FIT)
        table = gradcheck(solver, correction, windows.start(chosen), windows.observe(chosen, [gap]), [gap], leads=[gap],
                          gradients=["static", get_gradient("ensemble", **options)], directions=1 if quick else 8)
        return {one: table.of(one)[0].cosine for one in ("static", "ensemble")}
    finally:
        targets.close()
        solver.close()


def _row(system: System, key: tuple[str, int, str], several: list[dict[str, Any]], alone: float,
         checked: dict[str, float]) -> dict[str, Any]:
    name, gap, closure = key
    errors = np.array([one["rmse"] for one in several])
    row = {"system": name, "gap": gap, "time": gap / system.lyapunov, "closure": closure, "seeds": len(several),
           "rmse": float(errors.mean()), "share": float(errors.mean()) / alone, "worst": float(errors.max()) / alone,
           "valid_time": float(np.mean([one["valid_time"] for one in several])), "steps": several[0]["steps"],
           "seconds": float(np.mean([one["online_seconds"] + one["offline_seconds"] for one in several]))}
    if closure in checked:
        row |= {"cosine": checked[closure], "trusted": checked[closure] >= GOOD}
    return row


def _checks(shares: Shares, checked: Checked) -> tuple[Check, ...]:
    checks = []
    for name, system in SYSTEMS.items():
        where = f"{name}, targets every {system.corner} steps"
        share = {closure: float(np.mean(shares[name, system.corner, closure])) for closure in (*CLOSURES, EQUAL)}
        checks.append(Check(f"{where}: RMSE of ensemble over no closure, worst seed",
                            max(shares[name, system.corner, "ensemble"]), 0.2, "at most", 0.0,
                            "forward runs of a black box are enough"))
        for closure in ("offline", "static", EQUAL):
            checks.append(Check(f"{where}: RMSE of {closure} over ensemble", share[closure] / share["ensemble"], 3.0, "at least",
                                0.0, "the corner no one else serves"))
        static, ensemble = (checked[name, system.corner][one] for one in ("static", "ensemble"))
        source = "it has to say so beforehand"
        checks.append(Check(f"{where}: gradcheck's cosine of static", static, GOOD, "at most", 0.0, source))
        checks.append(Check(f"{where}: gradcheck's cosine of ensemble", ensemble, GOOD, "at least", 0.0, source))
    return tuple(checks)


def _draw(path: Path, shares: Shares, checked: Checked) -> None:
    names: Sequence[str] = list(dict.fromkeys(name for name, _ in checked))
    with drawn(path, 5.2 * len(names), 6.4) as figure:
        panels = figure.subplots(2, len(names), squeeze=False, height_ratios=(2, 1))
        for i, name in enumerate(names):
            gaps = [gap for one, gap in checked if one == name]
            for closure in (*CLOSURES, EQUAL):
                own = [(gap, value) for gap in gaps for value in shares.get((name, gap, closure), [])]
                look = {**style("static"), "marker": "D", "markerfacecolor": "none"} if closure == EQUAL else style(closure)
                panels[0][i].plot(*zip(*own, strict=True), label=closure, **{**look, "linestyle": "none"})
                if closure != EQUAL:
                    panels[0][i].plot(gaps, [np.mean(shares[name, gap, closure]) for gap in gaps], **{**look, "marker": ""})
            panels[0][i].axhline(1.0, color="#7f7f7f", linewidth=1, linestyle=(0, (1, 2)))
            panels[0][i].set(title=f"{name}: RMSE at lead {SYSTEMS[name].lead} over no closure", yscale="log")
            for one in ("static", "ensemble"):
                panels[1][i].plot(gaps, [checked[name, gap][one] for gap in gaps], **style(one))
            panels[1][i].axhline(GOOD, color="#7f7f7f", linewidth=1, linestyle=(0, (1, 2)))
            panels[1][i].set(title="gradcheck, beforehand: cosine to the true gradient",
                             xlabel="outer steps m from target to target")
            for axes in panels[:, i]:
                axes.set(xscale="log")
                axes.set_xticks(gaps, [f"{gap}\n({gap / SYSTEMS[name].lyapunov:.2g} Lyapunov)" for gap in gaps])
                axes.minorticks_off()
        panels[0][0].legend(fontsize=8)


def _short(name: str) -> str:
    return "".join(one for one in name.lower() if one.isascii() and one.isalnum())
