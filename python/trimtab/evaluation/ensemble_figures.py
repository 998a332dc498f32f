# SPDX-License-Identifier: MIT
"""Figures of the ensembles that were scored in a run folder, drawn from their curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from trimtab.core.atomic_files import replacing
from trimtab.evaluation.climatology import Curves
from trimtab.evaluation.ensemble_metrics import PROBABILITY_BINS
from trimtab.evaluation.figures import RC

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")  # Okabe and Ito
MOST_RANKS = 33  # bars of a histogram


def draw_ensembles(ensembles: Mapping[str, Curves], folder: Path) -> list[Path]:
    """Error and spread, CRPS, rank histograms, reliability, and error where the spread is alike.

    Args:
        ensembles: name -> curves, see `trimtab.evaluation.score_ensemble`.
        folder: where the PNG files go; made when missing.

    Returns:
        The files, in the order in which to read them; none without ensembles.
    """
    if not ensembles:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with matplotlib.rc_context(RC):
        for name, figure in (("ensemble_error", error(ensembles)), ("ensemble_ranks", rank_histograms(ensembles)),
                             ("ensemble_reliability", reliability(ensembles))):
            with replacing(folder / f"{name}.png") as partial:
                figure.savefig(partial, format="png")
            drawn.append(folder / f"{name}.png")
    return drawn


def error(ensembles: Mapping[str, Curves]) -> Figure:
    """RMSE of the ensemble mean with the spread, and CRPS with that of the climatology, by lead time."""
    figure = Figure(figsize=(9.6, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, curves), colour in zip(ensembles.items(), _colours(ensembles), strict=True):
        times = curves["lead_time"]
        left.plot(times, curves["rmse"], color=colour, label=f"{name}: RMSE of the mean")
        left.plot(times, curves["spread"], color=colour, linestyle=(0, (5, 2)), label=f"{name}: spread")
        right.plot(times, curves["crps"], color=colour, label=name)
    curves = next(iter(ensembles.values()))
    right.plot(curves["lead_time"], curves["crps_climate"], color="#7f7f7f", linestyle=":", label="climatology")
    unit, time = (_in_brackets(curves[key]) for key in ("units", "time_units"))
    left.set(title="error and spread", ylabel=f"RMSE, spread{unit}")
    right.set(title="continuous ranked probability score", ylabel=f"CRPS{unit}")
    for axes in (left, right):
        axes.set(xlabel=f"lead time{time}", xlim=(0, None), ylim=(0, None))
        axes.legend()
    return figure


def rank_histograms(ensembles: Mapping[str, Curves]) -> Figure:
    """Share of the truth by its rank among the members, one row an ensemble, at three lead times; flat is right."""
    figure = Figure(figsize=(9.6, 2.5 * len(ensembles) + 0.3), layout="constrained")
    rows = figure.subplots(len(ensembles), 3, squeeze=False)
    for axes_row, (name, curves), colour in zip(rows, ensembles.items(), _colours(ensembles), strict=True):
        for axes, lead in zip(axes_row, _leads(curves), strict=True):
            counts = curves["rank_counts"][lead]
            parts = np.array_split(counts, min(MOST_RANKS, counts.size))
            share = np.array([part.sum() / part.size for part in parts]) / counts.sum() * counts.size
            edges = np.concatenate([[0], np.cumsum([part.size for part in parts])])
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.75)
            axes.axhline(1.0, color="black", linewidth=1)
            axes.set(title=_lead_title(curves, lead), xlim=(0, edges[-1]), ylim=(0, None), xlabel="rank of the truth")
        axes_row[0].set_ylabel(f"{name}\nshare over that of a flat one")
    return figure


def reliability(ensembles: Mapping[str, Curves]) -> Figure:
    """Observed frequency by forecast probability, and RMSE by spread, at three lead times; the diagonal is right."""
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    top, bottom = figure.subplots(2, 3)
    for (name, curves), colour in zip(ensembles.items(), _colours(ensembles), strict=True):
        for column, lead in enumerate(_leads(curves)):
            forecast, frequency = curves["diagram"][lead]
            seen = curves["cases"][lead] > 0
            top[column].plot(forecast[seen], frequency[seen], color=colour, marker="o", markersize=4, label=name)
            spread, rmse = curves["spread_bins"][lead]
            bottom[column].plot(spread, rmse, color=colour, marker="o", markersize=4, label=name)
            top[column].set_title(_lead_title(curves, lead))
    curves = next(iter(ensembles.values()))
    for axes in top:
        axes.plot([0, 1], [0, 1], color="black", linewidth=1)
        axes.set(xlabel=f"forecast probability (bins of 1/{PROBABILITY_BINS})", xlim=(0, 1), ylim=(0, 1))
    for axes in bottom:
        far = max(axes.get_xlim()[1], axes.get_ylim()[1])
        axes.plot([0, far], [0, far], color="black", linewidth=1)
        axes.set(xlabel=f"spread{_in_brackets(curves['units'])}", xlim=(0, None), ylim=(0, None))
    top[0].set_ylabel("observed frequency of\nvalues in the upper tercile")
    bottom[0].set_ylabel("RMSE where the spread is alike")
    top[0].legend()
    return figure


def _colours(ensembles: Mapping[str, Curves]) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(ensembles))]


def _leads(curves: Curves) -> list[int]:
    """An early, a middle and the last lead time, lead 0 left out."""
    last = len(curves["lead_time"]) - 1
    return [max(1, round(last * share)) for share in (0.2, 0.6, 1.0)]


def _lead_title(curves: Curves, lead: int) -> str:
    unit = "" if str(curves["time_units"]) == "1" else f" {curves['time_units']}"
    return f"lead time {curves['lead_time'][lead]:.3g}{unit}"


def _in_brackets(units: object) -> str:
    return "" if str(units) in ("1", "") else f" ({units})"
