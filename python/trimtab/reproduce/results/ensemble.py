# SPDX-License-Identifier: MIT
"""Ensemble-EGA against d_u: 3 (Lorenz 63), 40 (Lorenz 96), 4,096, 65,536 and 262,144 (QG 64^2, 256^2, 512^2).

Which directions are worth a forward run? Each setting's gradient of one window is held against the exact one (`discrete`, which
equals autograd through the twin to rounding): relative error and cosine of d loss / d theta, cosine of d loss / d u_0, at K = 20
forward runs a step unless the setting says otherwise. The loss is the mean square distance over the window to the same solver
with another parameter; one untrained network a system, seed 0, RK4. "left" quadrature costs a few per cent of d theta alone.

Measured (relative error of d theta; cosine of d u_0), K = 20:

                                    40, n = 10     40, n = 50     4,096, n = 10  4,096, n = 50  65,536, n = 20
    static                          0.248, 0.892   0.789, 0.383   0.034, 0.777   0.374, 0.244   0.072, 0.511
    12 smooth + 8 aimed (default)   0.174, 0.947   0.651, 0.556   0.018, 0.998   0.137, 0.937   0.039, 0.985
    20 smooth                       0.205, 0.925   0.746, 0.627   0.193, 0.769   1.37,  0.240   0.457, 0.485
    20 aimed                        0.141, 0.971   0.397, 0.850   0.025, 0.996   0.375, 0.721   0.098, 0.989
    20 white, base none (paper)     0.721, 0.249   0.983, 0.218   0.857, 0.054   0.978, 0.039   0.930, 0.018
    60 white, radius 2              0.039, 1.000   0.046, 0.999

On the plane the default is the best of 20 runs at every size: smooth directions alone do harm (their regression sees what is not
there), aimed ones alone are enough at n = 10 and not at n = 50. On the ring of Lorenz 96, localise. "white, none" has the right
direction of d theta at a wrong length, for the last steps of the window alone enter it.

At 512^2 (262,144 components, measured at n = 4, 7.2 GB) the cosine of d u_0 is 0.99992 with the default, 0.984 with 20 smooth
ones, as static's.

What is measured is a gradient, not a closure; `map` shows what a gradient is worth. K forward runs cost K solver and network
steps a step and window, whatever d_u; nothing of size d_u x d_u exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trimtab
from trimtab.data.reference import Progress
from trimtab.gradient import EnsembleEGA, Gradient, get_gradient
from trimtab.reproduce.cache import Pieces
from trimtab.reproduce.drawing import drawn, style
from trimtab.reproduce.gradient_metrics import cosine, relative_error
from trimtab.reproduce.table import Check, Column, Table

TEXT = "Ensemble-EGA from 3 to 262,144 components: which directions are worth a forward run"
MINUTES = 25.0

# The settings of an ensemble, by the name that the table gives them. The first is the default.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "12 smooth + 8 aimed (default)": {},
    "20 smooth": {"aim": 0},
    "20 aimed": {"aim": 20},
    "20 white": {"aim": 0, "spectrum": "white"},
    "20 white, base none (the paper)": {"aim": 0, "spectrum": "white", "base": "none"},
    "20 white travelling, slope 2, base none": {"aim": 0, "spectrum": 2.0, "base": "none", "renew": "window"},
    "24 smooth + 16 aimed": {"members": 40, "aim": 16},
    "60 white, radius 2": {"members": 60, "aim": 0, "spectrum": "white", "localisation": 2},
}
EVERYWHERE = tuple(SETTINGS)[:5]


@dataclass(frozen=True)
class System:
    """One system of the table: its solver, what the truth has otherwise, its network, and how it is spun up."""

    name: str
    solver: Mapping[str, Any]
    truth: Mapping[str, Any]
    windows: tuple[int, ...]
    settings: tuple[str, ...]
    coarse: int = 0            # QG: grid and steps of a spin-up before the one at full size
    coarse_steps: int = 0
    steps: int = 2000          # of the spin-up
    network: Mapping[str, Any] = field(default_factory=dict)


_QG = {"viscosity": 1e-3, "drag": 0.1, "beta": 0.0, "forcing_amplitude": 4.0, "forcing_wavenumber": 4}
SYSTEMS = (
    System("lorenz63", {"dt": 0.01, "beta": 0.0}, {"beta": 8 / 3}, (10, 50), ("12 smooth + 8 aimed (default)",),
           network={"sizes": (3, 16, 3)}),
    System("lorenz96", {"dt": 0.01, "forcing": 8.0}, {"forcing": 9.0}, (10, 50), tuple(SETTINGS),
           network={"sizes": (40, 32, 40)}),
    System("qg", {**_QG, "n": 64, "dt": 5e-3}, {"viscosity": 2e-3}, (10, 50), (*EVERYWHERE, *tuple(SETTINGS)[5:7]), steps=3000),
    System("qg", {**_QG, "viscosity": 3e-4, "n": 256, "dt": 2e-3}, {"viscosity": 6e-4}, (20,), EVERYWHERE, coarse=64,
           coarse_steps=3000, steps=500),
    System("qg", {**_QG, "viscosity": 1e-4, "n": 512, "dt": 1e-3}, {"viscosity": 2e-4}, (10,), EVERYWHERE[:2], coarse=64,
           coarse_steps=3000, steps=300),
)


def run(out: Path, quick: bool, progress: Progress) -> Table:
    """See `trimtab.reproduce`."""
    systems = SYSTEMS[:2] if quick else SYSTEMS
    pieces = Pieces(out, progress, sum(len(one.windows) for one in systems), "ensemble")
    rows = []
    for system in systems:
        size = _components(system)
        for steps in (3,) if quick else system.windows:
            found = pieces.get(f"{system.name}-{size}-n{steps}", {**vars(system), "n": steps}, partial(_measure, system, steps))
            rows += [{"system": system.name, "size": size, "n": steps, "gradient": name, **one} for name, one in found.items()]
    columns = (Column("system", "system"), Column("size", "d_u"), Column("n", "n", "outer steps"), Column("gradient", "gradient"),
               Column("runs", "forward runs a step"), Column("error", "relative error of d theta"),
               Column("cosine", "cosine of d theta"), Column("cosine_u0", "cosine of d u_0"))
    _draw(out / "ensemble.png", rows)
    return Table("ensemble", TEXT, columns, rows, _checks(rows), ("ensemble.png",),
                 ("With as many runs as components (Lorenz 63) the ensemble is the whole Jacobian.",
                  "discrete is the yardstick; the error of tangent is that of the quadrature \"left\"."), quick)


def _components(system: System) -> int:
    return {"lorenz63": 3, "lorenz96": 40}.get(system.name) or int(system.solver["n"]) ** 2


def _measure(system: System, steps: int) -> dict[str, dict[str, float]]:
    with (trimtab.open_solver(system.name, **system.solver) as solver,
          trimtab.open_solver(system.name, **{**system.solver, **system.truth}) as other):
        start = _spun_up(system, solver)
        target = torch.from_numpy(other.advance(start, steps).states)
        correction = _correction(system, solver)

        def gradient(variant: str | Gradient) -> tuple[torch.Tensor, torch.Tensor]:
            u0 = torch.from_numpy(start).requires_grad_()
            states = trimtab.rollout(solver, correction, u0, steps, gradient=variant)
            loss = (states - target).square().mean()
            parts = torch.autograd.grad(loss, [*correction.parameters(), u0])
            return torch.cat([one.double().flatten() for one in parts[:-1]]), parts[-1].flatten()

        exact = gradient("discrete")
        variants = {name: (get_gradient(name), 0) for name in ("static", "tangent")}
        for name in system.settings:
            options = {**SETTINGS[name], "members": min(SETTINGS[name].get("members", 20), solver.spec.size)}
            if options["members"] == solver.spec.size:
                options["aim"] = 0
            variants[name] = EnsembleEGA(**options), options["members"]
        found = {}
        for name, (variant, runs) in variants.items():
            theta, u0 = gradient(variant)
            found[name] = {"runs": runs, "error": relative_error(theta, exact[0]), "cosine": cosine(theta, exact[0]),
                           "cosine_u0": cosine(u0, exact[1])}
        return found


def _spun_up(system: System, solver: Any) -> np.ndarray:
    """(1, N) a state on the attractor."""
    generator = np.random.default_rng(0)
    if system.name != "qg":
        truth = {**system.solver, **system.truth}
        with trimtab.open_solver(system.name, **truth) as other:
            return other.advance(5 + generator.standard_normal((1, other.spec.size)), 1, stride=system.steps).states[-1]
    n = system.coarse or int(system.solver["n"])
    x = 2 * np.pi * np.arange(n) / n
    waves = [(k, m, *generator.standard_normal(2)) for k in range(-5, 6) for m in range(1, 6)]
    state = sum(a * np.cos(k * x + m * x[:, None] + 6 * b) for k, m, a, b in waves)
    if system.coarse:
        coarse = {**system.solver, "n": n, "dt": 5e-3, "viscosity": 1e-3}
        with trimtab.open_solver("qg", **coarse) as other:
            state = other.advance(state.reshape(1, -1), 1, stride=system.coarse_steps).states[-1].reshape(n, n)
        state = _refined(state, int(system.solver["n"]))
    return solver.advance(state.reshape(1, -1), 1, stride=system.steps).states[-1]


def _refined(state: np.ndarray, n: int) -> np.ndarray:
    """A periodic field on a finer grid, its waves kept."""
    waves, m = np.fft.fftshift(np.fft.fft2(state)), len(state)
    wide = np.zeros((n, n), dtype=complex)
    first = n // 2 - m // 2
    wide[first : first + m, first : first + m] = waves
    return np.fft.ifft2(np.fft.ifftshift(wide)).real * (n / m) ** 2


def _correction(system: System, solver: Any) -> Any:
    torch.manual_seed(0)
    if system.name == "qg":
        network: Any = trimtab.networks.PeriodicCNN((2, 16, 1), 5)
        return trimtab.Correction(network.double(), solver.spec, features=("q", "psi"), input_scale=(7.0, 1.0), output_scale=2.0)
    return trimtab.Correction(trimtab.networks.MLP(**system.network).double(), solver.spec, input_scale=10.0)


def _checks(rows: list[dict[str, Any]]) -> tuple[Check, ...]:
    named = {(row["size"], row["n"], row["gradient"]): row for row in rows}
    default, source = next(iter(SETTINGS)), "as measured at first"
    checks = []
    for (size, n, gradient), row in named.items():
        if gradient != default:
            continue
        if size == 3:
            checks.append(Check(f"d_u = 3, n = {n}: error, against tangent's", row["error"], named[size, n, "tangent"]["error"],
                                "at most", 0.01, "K = d_u: the same Jacobian"))
        elif size > 40:
            checks.append(Check(f"d_u = {size}, n = {n}: cosine of d u_0", row["cosine_u0"], 0.93, "at least", 0.0, source))
            checks.append(Check(f"d_u = {size}, n = {n}: error over static's", row["error"] / named[size, n, "static"]["error"],
                                0.6, "at most", 0.0, source))
        else:
            local = named.get((size, n, "60 white, radius 2"), row)
            checks.append(Check(f"d_u = {size}, n = {n}: cosine of d u_0, localised", local["cosine_u0"], 0.99, "at least", 0.01,
                                source))
    return tuple(checks)


def _draw(path: Path, rows: list[dict[str, Any]]) -> None:
    shown = ("static", *SETTINGS)
    with drawn(path, 11, 4.2) as figure:
        panels = figure.subplots(1, 2, sharex=True)
        places = list(dict.fromkeys((row["size"], row["n"]) for row in rows))
        for number, name in enumerate(shown):
            for axes, key in zip(panels, ("error", "cosine_u0"), strict=True):
                points = [(places.index((row["size"], row["n"])), row[key]) for row in rows if row["gradient"] == name]
                look = {**style("static" if name == "static" else "ensemble"), "color": f"C{number}", "linestyle": ":"}
                axes.plot(*zip(*points, strict=True), label=name, **look) if points else None
        for axes, label in zip(panels, ("relative error of d loss / d theta", "cosine of d loss / d u_0"), strict=True):
            axes.set_xticks(range(len(places)), [f"{size:,}\nn = {n}" for size, n in places], fontsize=8)
            axes.set(xlabel="components of the state, window", ylabel=label)
        panels[0].set_yscale("log")
        panels[1].legend(fontsize=7)
