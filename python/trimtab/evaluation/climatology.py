# SPDX-License-Identifier: MIT
"""The climate of the held-out truth: spectra, PDF, attractor, and how far a long run is from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trimtab.config.experiment import ScoreConfig
from trimtab.core.spec import SolverSpec, grid_length, is_vorticity, resolved_wavenumber
from trimtab.evaluation import metrics as scores

Curves = dict[str, np.ndarray]

DISCARDED = 0.2      # share of a long run that is left to forget the truth's initial state
VALUES = 25_000_000  # most numbers kept of the truth or of a long run
SNAPSHOTS = 200      # most snapshots of a grid that make a spectrum or a PDF
POINTS = 4000        # most points of an attractor in a figure


@dataclass(frozen=True)
class Statistics:
    """Time means of one sample of states.

    Args:
        values: (M, C) all values, one column a component; one column on a grid, whose points are alike.
        energy, enstrophy: (K,) spectra; empty without a grid.
        density: (P,) PDF; empty without a grid.
    """

    values: np.ndarray
    energy: np.ndarray = field(default_factory=lambda: np.empty(0))
    enstrophy: np.ndarray = field(default_factory=lambda: np.empty(0))
    density: np.ndarray = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class Components:
    """A few components of a state that figures show.

    Args:
        places: (P,) int, where they are.
        labels: their names, 1-based and in Fortran's order of indices, with units.
        scale: (P,) what the state was divided by there.
    """

    places: np.ndarray
    labels: tuple[str, ...]
    scale: np.ndarray

    def of(self, states: np.ndarray) -> np.ndarray:
        """(..., N) to (..., P), in their own units."""
        return states[..., self.places] * self.scale


def lively_components(spec: SolverSpec, states: np.ndarray, scale: np.ndarray | None = None) -> Components:
    """Up to three components that vary: the liveliest of each field, or three of the only field.

    Args:
        spec: the solver's, without hidden fields.
        states: (..., N) truth.
        scale: (N,) what it was divided by; None for 1.

    Returns:
        The components; the first one of the state where nothing varies.
    """
    moves = states.reshape(-1, spec.size).std(axis=0)
    places, start = [], 0
    for one in spec.fields:
        here = start + np.flatnonzero(moves[start : start + one.size] > 0)
        if here.size and len(spec.fields) == 1:
            places = list(here[np.unique(np.linspace(0, here.size - 1, 3).astype(int))])
        elif here.size and len(places) < 3:
            places.append(int(here[np.argmax(moves[here])]))
        start += one.size
    chosen = np.array(places or [0])
    labels = tuple(_component_label(spec, int(place)) for place in chosen)
    return Components(chosen, labels, np.ones(len(chosen)) if scale is None else scale[chosen])


def _component_label(spec: SolverSpec, place: int) -> str:
    for one in spec.fields:
        if place < one.size:
            break
        place -= one.size
    index = [int(i) + 1 for i in reversed(np.unravel_index(place, one.shape))] if one.shape else []
    if len(index) == 1 and len(one.name) == 1:
        name = f"${one.name}_{{{index[0]}}}$"
    else:
        name = f"{one.name}({', '.join(map(str, index))})" if index else one.name
    return name if one.units in ("1", "") else f"{name} ({one.units})"


class Climate:
    """Statistics of the held-out truth.

    Args:
        spec: the solver's.
        config: the scores'.
        test: (R, T, N) held-out truth, anything that slices to numpy arrays.
        components: those that figures show.

    Attributes:
        deviation: climatological standard deviation, root mean square over the components, in the state's unit.
        counted: (N,) bool, components whose distributions are compared (`scores.varying`); None on a grid.
        band: stable band of the mean square.
        truth_row: scores of each held-out run against the others: how far apart two samples of one climate are; empty
            for a single run.
        curves: what figures need of the truth.
    """

    def __init__(self, spec: SolverSpec, config: ScoreConfig, test: Any, components: Components):
        self.components = components
        self.spec, self.gridded = spec, is_vorticity(spec)
        runs, length = len(test), test.shape[1]
        most = SNAPSHOTS if self.gridded else max(1, VALUES // (runs * spec.size))
        picked = slice(0, length, max(1, -(-length // most)))
        states = np.stack([np.asarray(test[run, picked], dtype=float) for run in range(runs)])
        self.deviation = float(states.std() if self.gridded else np.sqrt(states.var(axis=(0, 1)).mean()))
        self.counted = None if self.gridded else scores.varying(spec, states.reshape(-1, spec.size))
        mean_square = np.square(states).mean(axis=2)
        self.band = scores.stable_band(mean_square)
        self.curves: Curves = {"deviation": np.array(self.deviation), "band": np.array(self.band),
                               "truth/mean_square_range": np.array([mean_square.min(), mean_square.max()])}
        if self.gridded:
            self.kmax = config.max_wavenumber or resolved_wavenumber(spec)
            self.edges = scores.pdf_edges(states, self.deviation)
            self.curves["max_wavenumber"] = np.array(self.kmax)
            self.curves["pdf_centres"] = 0.5 * (self.edges[1:] + self.edges[:-1])
        self.truth = self._statistics(states)
        self._keep("truth", [self._statistics(run) for run in states])
        others = [self._statistics(np.delete(states, run, 0)) for run in range(runs)] if runs > 1 else []
        parts = [self._distances(self._statistics(states[run]), other) for run, other in enumerate(others)]
        self.truth_row = _columns(parts) if parts else {}

    def judge(self, states: np.ndarray, times: np.ndarray, closure: str) -> dict[str, np.ndarray]:
        """Scores of a long run; its curves are added to `curves`.

        Args:
            states: (K+1, B, N), NaN after a blow-up.
            times: (K+1,) since the start.
            closure: its name.

        Returns:
            Column key -> (B,).
        """
        with np.errstate(over="ignore", invalid="ignore"):
            mean_square = np.square(states).mean(axis=2)
            self.curves["long_times"], self.curves[f"{closure}/mean_square"] = times, mean_square
            late = states[int(DISCARDED * len(states)) :]
            members = [self._statistics(late[:, member]) for member in range(late.shape[1])]
            self._keep(closure, members)
            distances = _columns([self._distances(member, self.truth) for member in members])
        return {**distances, "stable_until": scores.stable_until(mean_square, times, self.band)}

    def _statistics(self, states: np.ndarray) -> Statistics:
        if not self.gridded:
            return Statistics(states.reshape(-1, self.spec.size))
        fields = states.reshape(-1, *self.spec.grid)
        self.curves["wavenumbers"], energy, enstrophy = scores.spectra(fields, grid_length(self.spec))
        return Statistics(fields.reshape(-1, 1), energy.mean(0), enstrophy.mean(0),
                          scores.pdf(fields / self.deviation, self.edges))

    def _keep(self, name: str, members: list[Statistics]) -> None:
        if self.gridded:
            self.curves[f"{name}/energy"] = np.array([one.energy for one in members])
            self.curves[f"{name}/enstrophy"] = np.array([one.enstrophy for one in members])
            self.curves[f"{name}/pdf"] = np.array([one.density for one in members])
        else:
            points = np.concatenate([self.components.of(one.values) for one in members])
            self.curves[f"{name}/attractor"] = points[:: max(1, len(points) // POINTS)]

    def _distances(self, sample: Statistics, truth: Statistics) -> dict[str, float]:
        counted = slice(None) if self.counted is None else self.counted
        far = scores.marginal_distance(sample.values[:, counted], truth.values[:, counted])
        if not self.gridded:
            return {"attractor_distance": far}
        floor = 10 / (truth.values.size * (self.edges[1] - self.edges[0]))
        return {
            "energy_error": float(scores.log_spectrum_error(sample.energy, truth.energy, self.kmax)),
            "enstrophy_error": float(scores.log_spectrum_error(sample.enstrophy, truth.enstrophy, self.kmax)),
            "pdf_distance": far,
            "pdf_tail_error": float(scores.tail_error(sample.density, truth.density, self.edges, floor)),
        }


def _columns(parts: list[dict[str, float]]) -> dict[str, np.ndarray]:
    return {key: np.array([part[key] for part in parts]) for key in parts[0]}
