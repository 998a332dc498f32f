# SPDX-License-Identifier: MIT
"""At which window, on which system, does a better gradient buy a better closure, and does `gradcheck` say so beforehand?

Systems x windows x gradients x targets (at every step of the window, or only at its end, as sparse observations force on a user).
Every cell is a training from scratch with the same number of steps, scored by the RMSE of held-out forecasts at one lead for
all windows. Static-EGA "stops" at the first window where its RMSE is more than `STOP` times that of Tangent-EGA: the
yardstick, for exact backpropagation learns the same (0.281 against 0.286 at n = 10 of Lorenz 63) at ten times the cost.

Beside it, what `trimtab gradcheck` says of the same window, loss and solver before the training, from forward runs only, with
the network after a short offline fit: the cosine of each gradient to the true one. It says "static" up to the last window where
that is at least 0.95, which is cautious: an optimiser can live with less.

- Lorenz 63: MLP 3-32-32-3, h = 0.01, one Lyapunov time is 110 steps. Three components: `ensemble` equals `tangent`.
- Lorenz 96, two scales, K = 36, J = 10, F = 10: a CNN on the ring, h = 0.02, a Lyapunov time of the slow ring alone is 22 steps.
  `ensemble` is localised on a stencil, 12 forward runs for 36 components: the black-box corner.
- QG: DNS 64² to 16², h = 0.02, CNN of 16 channels, eddy time some 10 steps. `ensemble` with 12 runs for 256 components. So
  small, because the longest window costs the ensemble 480 steps of the hybrid a window and optimiser step. A closure of 16²
  mends only a quarter of the error at lead 20, so that less counts as learnt.

Measured: static is enough at n = 10 of Lorenz 63 (0.09 Lyapunov times) and n = 5 of Lorenz 96 (0.23), with a cosine of 0.65 to
0.81; it stops at n = 40 (0.36; 0.16 to 0.24) and n = 20 (0.91; below 0), with targets at every step and at the end alone.
On QG static is enough at each window, to 2.8 eddy times (0.69 to 0.98).
`ensemble` learns what `tangent` does in each cell where that learns. gradcheck trusted static in none where it failed.

Expected from the prototype (arXiv 2311.10665's Lorenz 63 with this network): at n = 10 static equals tangent, at n = 80 it fails
(validation mean square 12 to 21 against 2e-3).
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

TEXT = "where a better gradient buys a better closure: systems x windows x gradients x sparsity, and what gradcheck predicts"
MINUTES = 25.0
STOP, GOOD = 1.25, 0.95
VARIANTS = ("static", "ensemble", "tangent")
TARGETS = ("every step", "end only")


@dataclass(frozen=True)
class System:
    """A row of the map.

    Args:
        source: shipped experiment.
        changes: of it.
        windows: in outer steps.
        steps: optimiser steps of every training.
        lead: of the forecasts that judge, in outer steps.
        scale: Lyapunov or eddy time in outer steps; 0 for the eddy time of the reference run.
        ensemble: options of the ensemble, as TOML.
        learnt: share of the RMSE of no closure below which the yardstick counts as having learnt something.
    """

    source: str
    changes: tuple[str, ...]
    windows: tuple[int, ...]
    steps: int
    lead: int
    scale: float
    ensemble: str = "{}"
    learnt: float = 0.5


# Each system clips the gradient at 10 times the square of its unit, in the unit of a loss that has none.
COMMON = ("offline.steps=0", "training.rate=1e-2", "training.rate_end=1e-4", "score.starts=32",
          "score.long_steps=50", "training.validate_windows=64")
SYSTEMS = {
    "Lorenz 63": System("lorenz63", (
        "network.sizes=[3, 32, 32, 3]", "correction.input_mean=[0.0, 0.0, 25.0]", "correction.input_scale=[15.0]",
        "correction.output_scale=[50.0]", "training.batch=64", "training.rate_drop_every=0",
        "training.clip=0.14"), (10, 40, 80), 300, 50, 110.4),
    "Lorenz 96, two scales": System("lorenz96", (
        "solver.n=36", "solver.forcing=10.0", "reference.snapshots=500", "training.batch=16", "training.clip=0.8",
        "reference.solver={name = \"lorenz96_two_scale\", n = 36, fast = 10, forcing = 10.0, coupling = 1.0, b = 10.0, c = 10.0, "
        "dt = 0.001}"), (5, 20, 40), 100, 25, 22.0, "{members = 12, aim = 0, spectrum = \"white\", localisation = 2}"),
    "QG 16²": System("qg-scaled", (
        "solver.n=16", "solver.dt=0.02", "solver.viscosity=1e-3", "network.channels=[2, 16, 1]", "reference.coarse={}",
        "reference.solver={n = 64, dt = 0.005, correction_at = \"stage\"}", "reference.spin_up=20.0", "training.batch=8",
        "training.clip=1.2", "score.max_wavenumber=5"), (5, 20, 40), 60, 20, 0.0, "{members = 12}", 0.8),
}


def run(out: Path, quick: bool, progress: Progress) -> Table:
    """See `trimtab.reproduce`."""
    systems = {"Lorenz 63": SYSTEMS["Lorenz 63"]} if quick else SYSTEMS
    variants = VARIANTS[:2] if quick else VARIANTS
    windows = {name: (4,) if quick else one.windows for name, one in systems.items()}
    cells = 2 * sum(map(len, windows.values()))
    pieces = Pieces(out, progress, len(systems) + cells * (1 + len(variants)), "map")
    rows, scales = [], {}
    for name, system in systems.items():
        first = _experiment(system, windows[name][0], "static", TARGETS[0], quick)
        base = pieces.get(f"{_short(name)}-alone", {"experiment": described(first)}, partial(_alone, first, pieces.tell))
        scales[name] = system.scale or base["eddy"]
        for targets in TARGETS:
            for n in windows[name]:
                cell = {"system": name, "targets": targets, "n": n, "time": n / scales[name], "alone": base["rmse"],
                        **_cell(pieces, name, system, n, targets, variants, quick, base["rmse"])}
                rows.append(cell)
    columns = (Column("system", "system"), Column("targets", "targets"), Column("n", "n"),
               Column("time", "window", "Lyapunov or eddy times"), Column("alone", "RMSE, no closure"),
               *(Column(one, f"RMSE, {one}") for one in variants), Column("penalty", "static over tangent"),
               *(Column(f"cosine {one}", f"gradcheck: cosine, {one}") for one in ("static", "ensemble")),
               Column("fresh", "cosine, static, untrained"), Column("predicted", "gradcheck trusts static"),
               Column("found", "static is enough"))
    _draw(out / "map.png", rows, variants)
    return Table("map", TEXT, columns, rows, _checks(rows), ("map.png",), tuple(_sentences(rows)), quick)


def _cell(pieces: Pieces, name: str, system: System, n: int, targets: str, variants: Sequence[str],
          quick: bool, alone: float) -> dict[str, Any]:
    label = f"{_short(name)}-{n}-{targets.split()[0]}"
    plain = _experiment(system, n, "static", targets, quick)
    checked = pieces.get(f"{label}-gradcheck", {"experiment": described(plain), "ensemble": system.ensemble},
                         partial(_gradcheck, plain, system, n, quick))
    found = {one: pieces.train(f"{label}-{one}", _experiment(system, n, one, targets, quick), _judge)["rmse"] for one in variants}
    yardstick = found.get("tangent", found["ensemble"])
    penalty = found["static"] / yardstick
    learnt = yardstick <= system.learnt * alone  # else no gradient taught anything in so many steps, and none is better
    return {**found, "penalty": penalty, "found": penalty <= STOP if learnt else None, **checked,
            "predicted": checked["cosine static"] >= GOOD}


def _experiment(system: System, n: int, variant: str, targets: str, quick: bool) -> Experiment:
    steps, epochs = (2, 1) if quick else (system.steps, 5)
    cut = ("reference.snapshots=1200", "score.starts=2", "training.validate_windows=4") if quick else ()
    options = system.ensemble if variant == "ensemble" else "{}"
    lead = 5 if quick else system.lead
    return load_experiment(system.source, (
        *COMMON, *system.changes, *cut, f"training.window={n}", f"training.epochs={epochs}", f"score.leads=[{lead}]",
        f"training.steps_per_epoch={steps // epochs}", f"training.gradient={variant}", f"training.gradient_options={options}",
        *((f"training.loss_at=[{n}]",) if targets == "end only" else ())))


def _alone(experiment: Experiment, tell: Any) -> dict[str, Any]:
    solver, targets = opened(experiment, tell)
    try:
        done = judged(experiment, solver, targets, {"none": None})
        return {"rmse": done.table.mean("none", f"rmse_{experiment.score.leads[0]}"),
                "eddy": 1 / float(done.curves["deviation"]) / solver.spec.dt}
    finally:
        targets.close()
        solver.close()


def _judge(trainer: Trainer, result: Result) -> dict[str, Any]:
    done = judged(trainer.experiment, trainer.solver, trainer.targets, {"online": trainer.correction})
    rmse = numbers(done, "online")[f"rmse_{trainer.experiment.score.leads[0]}"]
    return {"rmse": rmse if np.isfinite(rmse) else float("inf")}


def _gradcheck(experiment: Experiment, system: System, n: int, quick: bool) -> dict[str, float]:
    """Cosines by forward runs alone, of the fitted and of the untrained network."""
    solver, targets = opened(experiment, lambda text, share: None)
    ensemble = load_experiment(system.source, (f"training.gradient_options={system.ensemble}",)).training.gradient_options
    variants: list[Any] = ["static"] if quick else ["static", get_gradient("ensemble", **ensemble)]
    try:
        windows = targets.windows("validation", n)
        leads = targets.leads(n, experiment.training.loss_at)
        states = windows.batch(windows.spread(4 if not quick else 1), (0, *leads))
        found: dict[str, float] = {}
        for fit in (0, 2 if quick else 200):
            correction = beginner(experiment, solver, targets, fit)
            table = gradcheck(solver, correction, states[0], states[1:], [n], gradients=variants, directions=1 if quick else 8,
                              leads=leads)
            if fit:
                found |= {f"cosine {row.gradient}": row.cosine for row in table.rows if row.gradient != "exact"}
            else:
                found["fresh"] = table.of("static")[0].cosine
        return found
    finally:
        targets.close()
        solver.close()


def _sentences(rows: list[dict[str, Any]]) -> list[str]:
    """Where static stops, by system and targets, and where gradcheck had said it would."""
    found = []
    for system, targets in dict.fromkeys((row["system"], row["targets"]) for row in rows):
        own = [row for row in rows if (row["system"], row["targets"]) == (system, targets)]
        stops, said = (next((row["n"] for row in own if row[key] is False), None) for key in ("found", "predicted"))
        words = [f"up to n = {own[-1]['n']}, the longest" if n is None else f"no longer at n = {n}" for n in (stops, said)]
        lost = [str(row["n"]) for row in own if row["found"] is None]
        found.append(f"{system}, targets at {targets}: static is enough {words[0]}; gradcheck trusts it {words[1]}."
                     + (f" At n = {', '.join(lost)} no gradient learns in so many steps." if lost else ""))
    judged_rows = [row for row in rows if row["found"] is not None]
    agreed = sum(row["found"] == row["predicted"] for row in judged_rows)
    missed = sum(row["predicted"] and row["found"] is False for row in rows)
    return [*found, f"gradcheck and training agree in {agreed} of {len(judged_rows)} cells; in {missed} it trusted static "
                    "where that failed."]


def _checks(rows: list[dict[str, Any]]) -> tuple[Check, ...]:
    lorenz = [row for row in rows if row["system"] == "Lorenz 63"]
    missed = sum(row["predicted"] and row["found"] is False for row in rows)
    checks = [Check("cells in which gradcheck trusts static and static fails", float(missed), 0.0, "at most", 0.0,
                    "a check must not promise too much")]
    for row in lorenz:
        where = f"Lorenz 63, n = {row['n']}, {row['targets']}: RMSE of static over tangent"
        if row["n"] == lorenz[0]["n"] and row["targets"] == TARGETS[0]:
            checks.append(Check(where, row["penalty"], STOP, "at most", 0.0, "prototype: equal at n = 10"))
        if row["n"] == lorenz[-1]["n"] and row["targets"] == TARGETS[0]:
            checks.append(Check(where, row["penalty"], 3.0, "at least", 0.0, "prototype: static fails at n = 80"))
    for row in rows:
        if row["targets"] == TARGETS[1] and row["found"] is False:
            checks.append(Check(f"{row['system']}, n = {row['n']}, end only: RMSE of ensemble over no closure",
                                row["ensemble"] / row["alone"], 0.2, "at most", 0.0,
                                "black box, sparse targets, long window: the ensemble's corner"))
    return tuple(checks)


def _draw(path: Path, rows: list[dict[str, Any]], variants: Sequence[str]) -> None:
    systems = list(dict.fromkeys(row["system"] for row in rows))
    with drawn(path, 3.4 * (len(systems) + 1), 6) as figure:
        grid = figure.subplots(2, len(systems) + 1, squeeze=False)
        for i, targets in enumerate(TARGETS):
            for axes, system in zip(grid[i], systems, strict=False):
                own = [row for row in rows if (row["system"], row["targets"]) == (system, targets)]
                n = [row["n"] for row in own]
                for one in variants:
                    axes.plot(n, [row[one] / row["alone"] for row in own], label=one, **style(one))
                for row in own:
                    if not row["predicted"]:
                        axes.axvline(row["n"], color="#d55e00", alpha=0.18, linewidth=7)
                axes.axhline(1.0, color="#7f7f7f", linewidth=1, linestyle=(0, (5, 2)))
                axes.set(xscale="log", yscale="log", title=f"{system}, {targets}", xlabel="window n", ylabel="RMSE / no closure")
                axes.set_xticks(n, map(str, n))
                axes.minorticks_off()
            axes = grid[i][-1]
            for number, system in enumerate(systems):
                own = [row for row in rows if (row["system"], row["targets"]) == (system, targets)]
                axes.plot([row["cosine static"] for row in own], [row["penalty"] for row in own], linestyle="none",
                          marker="osD"[number], label=system)
            axes.axvline(GOOD, color="#d55e00", linewidth=1, linestyle=(0, (1, 2)))
            axes.axhline(STOP, color="#000000", linewidth=1, linestyle=(0, (1, 2)))
            axes.set(yscale="log", title="does gradcheck know?", xlabel="its cosine of static", ylabel="RMSE static / tangent")
            axes.legend(fontsize=8)
        grid[0][0].legend(fontsize=8)


def _short(name: str) -> str:
    return "".join(one for one in name.lower() if one.isascii() and one.isalnum())
