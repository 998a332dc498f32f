# SPDX-License-Identifier: MIT
"""Gradient error against the outer step h when the solver inside is adaptive or implicit, and on a stiff system.

Lorenz 63 without its damping, T = 0.2, MLP 3-3-3-3, loss mean(u_n^2), relative error of d loss / d theta against `discrete`,
which is autograd through the torch twin to rounding (tests/gradient/test_adaptive.py, test_implicit.py). The
orders are those of `convergence`: dopri5 with tolerances of 1e-11 leaves the quadrature's, ars222 and ars443 bound it by 2 and 3.

Van der Pol with stiffness 1e4 on its slow curve, T = 0.4, without its slow equation. Steps are 25 to 400 times the fast scale.
lambda has a layer there: what the loss asks of the fast variable is gone after one step backwards. `euler` multiplies it by
h stiffness instead. `static` carries it through the window, and with it whatever the network says in the fast equation. `tangent`
kills it as the step does; only the last interval's weight of it is wrong, which is why its error is O(h) with every quadrature.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trimtab
from trimtab.data.reference import Progress
from trimtab.reproduce.cache import Pieces
from trimtab.reproduce.drawing import drawn, style
from trimtab.reproduce.gradient_metrics import gradient_of, relative_error
from trimtab.reproduce.results.convergence import slope
from trimtab.reproduce.table import Check, Column, Table

TEXT = "gradient error against h with an adaptive and an implicit solver inside, and on a stiff system"
MINUTES = 1.0
VARIANTS = ("none", "static", "euler", "tangent", "tangent, trapezoid", "tangent, gregory", "ensemble")
LORENZ: Mapping[str, Any] = {"name": "lorenz63", "beta": 0.0}
STIFF: Mapping[str, Any] = {"name": "vanderpol", "stiffness": 1e4, "restoring": 0.0}
TIGHT: Mapping[str, Any] = {"integrator": "dopri5", "rtol": 1e-11, "atol": 1e-11}
# Solver, horizon, outer steps, initial states, and the order of "tangent, gregory".
SETTINGS: Mapping[str, tuple[dict[str, Any], float, tuple[float, ...], float]] = {
    "Lorenz 63, dopri5": ({**LORENZ, **TIGHT}, 0.2, (0.02, 0.01, 0.005, 0.0025, 0.00125), 4.0),
    "Lorenz 63, ars222": ({**LORENZ, "integrator": "ars222"}, 0.2, (0.02, 0.01, 0.005, 0.0025), 2.0),
    "Lorenz 63, ars443": ({**LORENZ, "integrator": "ars443"}, 0.2, (0.02, 0.01, 0.005, 0.0025), 3.0),
    "van der Pol, stiff, ars222": ({**STIFF, "integrator": "ars222"}, 0.4, (0.04, 0.02, 0.01, 0.005, 0.0025), 1.0),
    "van der Pol, stiff, ars443": ({**STIFF, "integrator": "ars443"}, 0.4, (0.04, 0.02, 0.01, 0.005, 0.0025), 1.0),
}
STARTS = {"lorenz63": [[5.0, 6.0, 20.0], [-7.0, -3.0, 28.0]],
          "vanderpol": [[x, x - x**3 / 3] for x in (2.0, 1.7, -1.9)]}


def run(out: Path, quick: bool, progress: Progress) -> Table:
    """See `trimtab.reproduce`."""
    pieces = Pieces(out, progress, sum(len(sizes) for _, _, sizes, _ in SETTINGS.values()), "stepping")
    curves: dict[str, dict[float, dict[str, float]]] = {}
    for setting, (options, horizon, sizes, _) in SETTINGS.items():
        curves[setting] = {}
        for h in sizes[:2] if quick else sizes:
            time = 2 * h if quick else horizon
            name = f"{setting.replace(', ', '-').replace(' ', '-')}-{h:g}"
            asked: dict[str, Any] = {"options": options, "horizon": time, "h": h}
            curves[setting][h] = pieces.get(name, asked, partial(_errors, **asked))
    rows = [{"setting": setting, "h": h, **errors} for setting, curve in curves.items() for h, errors in curve.items()]
    columns = (Column("setting", "setting"), Column("h", "h", "time units"), *(Column(name, name) for name in VARIANTS))
    _draw(out / "stepping.png", curves)
    return Table("stepping", TEXT, columns, rows, _checks(curves), ("stepping.png",),
                 ("|g - g_discrete| / |g_discrete|, loss at the last state alone.",), quick)


def _errors(options: dict[str, Any], horizon: float, h: float) -> dict[str, float]:
    name = options["name"]
    with trimtab.open_solver(**options, dt=h) as solver:
        torch.manual_seed(0)
        size = solver.spec.size
        correction = trimtab.Correction(trimtab.networks.MLP((size, 3, 3, size)).double(), solver.spec)
        u0, steps = np.array(STARTS[name]), round(horizon / h)

        def found(variant: str) -> torch.Tensor:
            return gradient_of(solver, correction, u0, steps, variant, lambda states: states[-1].square().mean())[0]

        yardstick = found("discrete")
        return {variant: relative_error(found(variant), yardstick) for variant in VARIANTS}


def _checks(curves: dict[str, dict[float, dict[str, float]]]) -> tuple[Check, ...]:
    checks = []
    for setting, curve in curves.items():
        expected = SETTINGS[setting][3]
        errors = {h: one["tangent, gregory"] for h, one in curve.items()}
        below = np.inf if "stiff" in setting else 5.1e-3  # the raw states saturate the network: rough integrands
        checks.append(Check(f"{setting}: order of tangent, gregory", slope(errors, below), expected, "within", 0.15,
                            "the lower of quadrature and scheme; with a stiff layer at the end O(h)"))
        first, last = max(curve), min(curve)
        checks.append(Check(f"{setting}, static: error at the smallest h over that at the largest",
                            curve[last]["static"] / curve[first]["static"], 0.8, "at least", 0.0, "does not converge"))
    return tuple(checks)


def _draw(path: Path, curves: dict[str, dict[float, dict[str, float]]]) -> None:
    with drawn(path, 14, 3.6) as figure:
        for axes, (setting, curve) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
            for name in VARIANTS:
                values = [one[name] if np.isfinite(one[name]) else np.nan for one in curve.values()]
                axes.plot(list(curve), values, label=name, **style(name))
            axes.set(xscale="log", yscale="log", xlabel="outer step h", title=setting.replace(", ", "\n", 1), ylim=(1e-9, 1e2))
            axes.set_xticks(list(curve), [f"{h:g}" for h in curve], fontsize=7)
            axes.minorticks_off()
        figure.axes[0].set_ylabel("relative error of d loss / d theta")
        figure.axes[-1].legend(fontsize=7, loc="lower left")
