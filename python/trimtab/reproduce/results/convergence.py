# SPDX-License-Identifier: MIT
"""How every gradient variant converges with the outer step h: Lorenz 63 and the linear oscillator.

Ouala et al., arXiv 2311.10665, Theorem 2.1 and its corollaries. Core without its last term, MLP 3-3-3-3 (oscillator 2-3-3-2),
PyTorch's initialisation with seed 0; `exact` is autograd through the torch twin.

Fixed n = 20, the paper's figure: loss mean(states^2) with the initial state, 600 initial states one every 0.1 time units
of the truth from (8, 0, 30) after 5; error is the mean over the parameters of |g - g_exact|. All variants are O(h^2) below
h = 1e-2. Authors' values in `AUTHORS`.

Fixed horizon T = 0.2: loss mean(u_n^2), relative error in the 2-norm. With a Jacobian O(h), with trapezoidal weights O(h^2),
with Gregory's O(h^4) or the order of the scheme when that is lower; Static-EGA and no-gradient unrolling do not converge.
Schemes of order 1 to 4 and the adaptive one where it is built, with the twin as the yardstick.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trimtab
from trimtab.core.loss import alive
from trimtab.data.reference import Progress
from trimtab.gradient.twin.tableaux import TABLEAUX
from trimtab.reproduce.cache import Pieces
from trimtab.reproduce.drawing import drawn, style
from trimtab.reproduce.gradient_metrics import VARIANTS, gradient_of, relative_error
from trimtab.reproduce.table import Check, Column, Table

TEXT = "gradient error against the outer step, all variants, Lorenz 63 and the oscillator"
MINUTES = 2.0
SIZES = (1e-4, 5e-4, 1e-3, 3e-3, 5e-3, 8e-3, 1e-2, 3e-2, 5e-2, 8e-2, 1e-1)
HORIZON, HORIZON_SIZES = 0.2, (0.02, 0.01, 0.005, 0.0025, 0.00125, 0.000625)
STEPS = 20
AUTHORS = {1e-3: {"static": 9.1e-4, "euler": 7.6e-5, "tangent": 7.2e-5},
           1e-2: {"static": 0.109, "euler": 0.0106, "tangent": 0.0094}}
PAPER = "Ouala et al., arXiv 2311.10665"
ORDERS = {"euler": 1, "tangent": 1, "ensemble": 1, "tangent, trapezoid": 2, "tangent, gregory": 4}
# Order of the scheme, or of Gregory's weights where that is lower; those that this build has a twin for. An adaptive twin goes
# member by member, so it gets few.
SCHEMES = {name: order for name, order in {"euler": 1, "rk2": 2, "rk3": 3, "rk4": 4, "dopri5": 4}.items() if name in TABLEAUX}
MEMBERS = {"dopri5": 10}
SYSTEMS: dict[str, dict[str, Any]] = {
    "lorenz63": {"truth": {"beta": 8 / 3}, "core": {"beta": 0.0}, "sizes": (3, 3, 3, 3), "start": (8.0, 0.0, 30.0)},
    "oscillator": {"truth": {"restoring": 1.0}, "core": {"restoring": 0.0}, "sizes": (2, 3, 3, 2), "start": (5.0, 0.0)},
}


def run(out: Path, quick: bool, progress: Progress) -> Table:
    """See `trimtab.reproduce`."""
    members, sizes = (5, SIZES[2:7:4]) if quick else (600, SIZES)
    horizon_sizes = HORIZON_SIZES[:2] if quick else HORIZON_SIZES
    pieces = Pieces(out, progress, 2 * len(sizes) + len(SCHEMES) * len(horizon_sizes), "convergence")
    fixed = {system: _curve(pieces, system, sizes, members, 0.0, "rk4") for system in SYSTEMS}
    schemes = {scheme: _curve(pieces, "lorenz63", horizon_sizes, min(members, MEMBERS.get(scheme, 50)), HORIZON, scheme)
               for scheme in SCHEMES}
    horizon = schemes["rk4"]
    rows = [{"setting": setting, "h": h, **errors}
            for setting, curve in (("Lorenz 63, n = 20", fixed["lorenz63"]), ("oscillator, n = 20", fixed["oscillator"]),
                                   *((f"Lorenz 63, T = 0.2, {scheme}", curve) for scheme, curve in schemes.items()))
            for h, errors in curve.items()]
    columns = (Column("setting", "setting"), Column("h", "h", "time units"), *(Column(name, name) for name in VARIANTS
                                                                               if name != "exact"))
    _draw(out / "convergence.png", fixed, horizon)
    _draw_schemes(out / "schemes.png", schemes)
    return Table("convergence", TEXT, columns, rows, _checks(fixed, horizon, schemes), ("convergence.png", "schemes.png"), (
        "n = 20: mean over the parameters of |g - g_exact|. T = 0.2: |g - g_exact| / |g_exact|.",
        "Where members blow up (large h, core without damping) the mean is over those that do not."), quick)


def slope(errors: dict[float, float], below: float = np.inf) -> float:
    """Slope of log error against log h, over h <= below and errors above rounding."""
    pairs = np.log(np.array([(h, error) for h, error in errors.items() if h <= below and error > 1e-11]))
    return float(np.polyfit(pairs[:, 0], pairs[:, 1], 1)[0]) if len(pairs) > 1 else float("nan")


def _curve(pieces: Pieces, system: str, sizes: Sequence[float], members: int, horizon: float,
           scheme: str) -> dict[float, dict[str, float]]:
    name = f"{system}-{'horizon' if horizon else 'n'}-{scheme}"
    settings = {"members": members, "horizon": horizon, "system": SYSTEMS[system], "steps": STEPS, "scheme": scheme}
    return {h: pieces.get(f"{name}-{h:g}", settings, partial(_errors, system, h, members, horizon, scheme)) for h in sizes}


def _errors(system: str, h: float, members: int, horizon: float, scheme: str) -> dict[str, float]:
    recipe = SYSTEMS[system]
    truth = trimtab.open_solver(system, dt=1e-3, **recipe["truth"])
    u0 = truth.advance(np.array([recipe["start"]]), 50 + members, stride=100).states[50:, 0][:members]
    solver = trimtab.open_solver(system, dt=h, integrator=scheme, **recipe["core"])
    torch.manual_seed(0)
    correction = trimtab.Correction(trimtab.networks.MLP(recipe["sizes"]).double(), solver.spec)

    def mean_square(states: torch.Tensor) -> torch.Tensor:
        kept = states[:, alive(states)]
        return (kept[-1] if horizon else kept).square().mean()

    try:
        steps = round(horizon / h) if horizon else STEPS
        exact, _ = gradient_of(solver, correction, u0, steps, "exact", mean_square)
        found = {name: gradient_of(solver, correction, u0, steps, name, mean_square)[0] for name in VARIANTS if name != "exact"}
    finally:
        truth.close()
        solver.close()
    return {name: relative_error(one, exact) if horizon else float((one - exact).abs().mean()) for name, one in found.items()}


def _checks(fixed: dict[str, Any], horizon: dict[float, Any], schemes: dict[str, Any]) -> tuple[Check, ...]:
    lorenz = fixed["lorenz63"]
    checks = [Check(f"Lorenz 63, n = 20, h = {h:g}, {name}", lorenz[h][name], value, "within", 0.1, PAPER)
              for h, values in AUTHORS.items() if h in lorenz for name, value in values.items()]
    for system, curve in fixed.items():
        for name in ("static", "euler", "tangent", "ensemble"):
            errors = {h: one[name] for h, one in curve.items()}
            checks.append(Check(f"{system}, n = 20, order of {name}", slope(errors, 1.001e-2), 2.0, "within", 0.1,
                                f"{PAPER}, Theorem 2.1"))
    for name, order in ORDERS.items():
        errors = {h: one[name] for h, one in horizon.items()}
        checks.append(Check(f"Lorenz 63, T = 0.2, order of {name}", slope(errors, 1.3e-3), order, "within", 0.1,
                            "trapezoid, Gregory: order of the quadrature"))
    first, last = max(horizon), min(horizon)
    checks.append(Check("Lorenz 63, T = 0.2, static: error at the smallest h over that at the largest",
                        horizon[last]["static"] / horizon[first]["static"], 0.9, "at least", 0.1,
                        "does not converge: 0.33 to 0.31 in the prototype"))
    for scheme, order in SCHEMES.items():
        errors = {h: one["tangent, gregory"] for h, one in schemes[scheme].items()}
        checks.append(Check(f"Lorenz 63, T = 0.2, {scheme}: order of tangent, gregory", slope(errors, 1.3e-3), order, "within",
                            0.1, "the lower of the scheme's and the quadrature's order"))
        worst = max(one["discrete"] for one in schemes[scheme].values())
        checks.append(Check(f"Lorenz 63, T = 0.2, {scheme}: largest error of discrete", worst, 1e-10, "at most", 0.0,
                            "exact to rounding"))
    return tuple(checks)


def _draw(path: Path, fixed: dict[str, Any], horizon: dict[float, Any]) -> None:
    with drawn(path, 12, 4.2) as figure:
        panels = figure.subplots(1, 3)
        for axes, curve, title in zip(panels, (fixed["lorenz63"], fixed["oscillator"], horizon),
                                      ("Lorenz 63, n = 20", "oscillator, n = 20", "Lorenz 63, T = 0.2"), strict=True):
            _lines(axes, curve, [name for name in VARIANTS if name not in ("exact", "discrete")])
            axes.set(title=title, ylabel="relative error" if curve is horizon else "mean |g − g_exact|")
        for h, values in AUTHORS.items():
            panels[0].plot([h] * len(values), list(values.values()), linestyle="none", marker="o", markersize=10,
                           markerfacecolor="none", color="#000000", label="the authors" if h == 1e-3 else None)
        panels[0].legend(fontsize=7.5)


def _draw_schemes(path: Path, schemes: dict[str, Any]) -> None:
    with drawn(path, 12, 3.6) as figure:
        for axes, (scheme, curve) in zip(figure.subplots(1, len(schemes), sharey=True), schemes.items(), strict=True):
            _lines(axes, curve, ["static", "tangent", "tangent, trapezoid", "tangent, gregory"])
            axes.set(title=f"{scheme} (order {SCHEMES[scheme]}), T = 0.2")
        axes.legend(fontsize=8)


def _lines(axes: Any, curve: dict[float, dict[str, float]], names: Sequence[str]) -> None:
    for name in names:
        axes.plot(list(curve), [one[name] for one in curve.values()], label=name, **style(name))
    axes.set(xscale="log", yscale="log", xlabel="outer step h")
