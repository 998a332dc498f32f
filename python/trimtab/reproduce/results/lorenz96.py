# SPDX-License-Identifier: MIT
"""Two-scale Lorenz 96: a closure of the slow ring learned offline, and online with static and tangent over several windows.

The second system of Frezat et al., arXiv 2310.19385 (online learning with approximate gradients): K = 8, J = 20, b = c = 10,
coupling 1, F = 18; truth RK4 with 1e-3, coarse step 0.02. Experiment `lorenz96`: a CNN of 385 parameters, float64, offline,
then fine-tuned for 200 steps from the offline network, or trained from scratch for 1,000. Similarity is 1 - RMSE / RMSE of no
closure. The memory of the fast ring makes a deterministic closure of the present state imperfect: its error is what limits all.

Expected, as Frezat et al. find: online closures beat the offline one where they are trained to, in forecasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.config.experiment import Experiment, load_experiment
from trimtab.data.reference import Progress
from trimtab.reproduce.cache import Pieces, described
from trimtab.reproduce.drawing import drawn, style
from trimtab.reproduce.table import Check, Column, Table
from trimtab.reproduce.training_sweep import Found, judged, mean, numbers, opened, summary, train_family

TEXT = "two-scale Lorenz 96: closure offline, static and tangent at n = 10 to 50, scores over 3 seeds"
MINUTES = 12.0
SEEDS = 3
WINDOWS = (10, 25, 50)
STEPS, SCRATCH_STEPS = 200, 1000
SMALL = ("reference.snapshots=120", "reference.training_runs=1", "reference.spin_up=0.5", "score.leads=[5, 10]",
         "score.starts=2", "score.long_steps=50", "training.validate_windows=4")


def run(out: Path, quick: bool, progress: Progress) -> Table:
    """See `trimtab.reproduce`."""
    seeds, windows, steps, cut = (1, (4, 8), 1, SMALL) if quick else (SEEDS, WINDOWS, STEPS, ())
    names = _names(windows, steps, 1 if quick else SCRATCH_STEPS)
    pieces = Pieces(out, progress, 1 + seeds * (1 + len(names)), "lorenz96")
    base_experiment = load_experiment("lorenz96", cut)
    base = pieces.get("baseline", {"experiment": described(base_experiment)}, lambda: _baseline(base_experiment, pieces.tell))
    found = train_family(pieces, "lorenz96", cut, ("offline.steps=2",) if quick else (), names, seeds)
    leads = base_experiment.score.leads
    keys = (*(f"similarity_{lead}" for lead in leads), "valid_time", "attractor_distance", "stable_until")
    rows = [summary(name, several, keys, f"similarity_{leads[-1]}")
            for name, several in (("no closure", [base]), *found.items())]
    columns = (Column("closure", "closure"), Column("seeds", "seeds"), Column("n", "n"),
               *(Column(f"similarity_{lead}", f"similarity, lead {lead}") for lead in leads),
               Column("spread", f"± at lead {leads[-1]}, over seeds"), Column("valid_time", "valid time", "time units"),
               Column("attractor_distance", "attractor distance"), Column("stable_until", "stable until", "time units"),
               Column("seconds", "training", "s"))
    _draw(out / "scores.png", found, windows, leads)
    return Table("lorenz96", TEXT, columns, rows, _checks(found, base, windows, leads), ("scores.png",), (
        f"Attractor distance of one held-out run of the truth to the other: {base['truth']:.3g}. Leads in steps of 0.02.",
        "Times were taken on a machine that may have been busy."), quick)


def _names(windows: Sequence[int], steps: int, scratch: int) -> dict[str, tuple[str, ...]]:
    def window(n: int, count: int) -> tuple[str, ...]:
        return f"training.window={n}", "training.epochs=4", f"training.steps_per_epoch={-(-count // 4)}"

    found = {"static from scratch": (*window(windows[0], scratch), "training.rate=1e-2")}
    for n in windows:
        found[f"static, n = {n}"] = window(n, steps)
        found[f"tangent, n = {n}"] = (*window(n, steps), "training.gradient=tangent",
                                      "training.gradient_options={quadrature = \"gregory\"}")
    return found


def _baseline(experiment: Experiment, tell: Any) -> dict[str, Any]:
    solver, targets = opened(experiment, tell)
    try:
        done = judged(experiment, solver, targets, {"none": None})
        return {**numbers(done, "none"), "truth": done.table.mean("truth", "attractor_distance")}
    finally:
        targets.close()
        solver.close()


def _checks(found: Found, base: dict[str, Any], windows: Sequence[int], leads: Sequence[int]) -> tuple[Check, ...]:
    near, first, last = f"similarity_{leads[1]}", windows[0], windows[-1]
    source = "online beats offline in forecasts (Frezat et al., arXiv 2310.19385)"
    rmse = f"rmse_{leads[1]}"
    return (
        Check(f"RMSE at lead {leads[1]}, static n = {first} over offline",
              mean(found, f"static, n = {first}", rmse) / mean(found, "offline", rmse), 1.0, "at most", 0.0, source),
        Check(f"RMSE at lead {leads[1]}, tangent n = {first} over offline",
              mean(found, f"tangent, n = {first}", rmse) / mean(found, "offline", rmse), 1.0, "at most", 0.0, source),
        Check(f"similarity at lead {leads[1]}, static from scratch over offline",
              mean(found, "static from scratch", near) / mean(found, "offline", near), 1.0, "at least", 0.05,
              "online needs no label of the fast ring"),
        Check(f"similarity at lead {leads[1]}, tangent over static, n = {last}",
              mean(found, f"tangent, n = {last}", near) / mean(found, f"static, n = {last}", near), 1.0, "at least", 0.0,
              "long windows want a Jacobian"),
        Check(f"attractor distance, tangent n = {first} over no closure",
              mean(found, f"tangent, n = {first}", "attractor_distance") / base["attractor_distance"], 0.5, "at most", 0.0,
              "the climate is that of the truth"),
    )


def _draw(path: Path, found: Found, windows: Sequence[int], leads: Sequence[int]) -> None:
    with drawn(path, 12, 3.9) as figure:
        panels = figure.subplots(1, 3)
        for axes, key, title in zip(panels, (f"similarity_{leads[1]}", "valid_time", "attractor_distance"), (
                f"similarity, lead {leads[1]}", "valid time, time units", "attractor distance"), strict=True):
            for kind in ("static", "tangent"):
                values = np.array([[one[key] for one in found[f"{kind}, n = {n}"]] for n in windows])
                axes.plot(windows, values.mean(1), label=f"offline + {kind}", **style(kind))
                axes.fill_between(windows, values.min(1), values.max(1), color=style(kind)["color"], alpha=0.15)
            for name, look in (("offline", "offline"), ("static from scratch", "euler")):
                axes.axhline(mean(found, name, key), label=name, color=style(look)["color"], linestyle=(0, (4, 2)))
            axes.set(xlabel="window n", title=title)
            axes.set_xticks(windows, map(str, windows))
        panels[0].legend(fontsize=8)
