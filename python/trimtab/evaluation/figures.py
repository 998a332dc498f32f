# SPDX-License-Identifier: MIT
"""Figures of a run, drawn from the curves a scoring leaves behind; nothing here runs a solver.

A closure has the same colour and dash in every figure. Colours are those of Okabe and Ito, which stay apart for most
colour-blind readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trimtab.core.atomic_files import replacing
from trimtab.evaluation.climatology import Curves
from trimtab.evaluation.table import LABELS

STYLE: dict[str, dict[str, Any]] = {
    "truth": {"color": "#000000", "linewidth": 2.4, "zorder": 2},
    "none": {"color": "#7f7f7f", "linestyle": (0, (5, 2)), "zorder": 3},
    "smagorinsky": {"color": "#e69f00", "linestyle": (0, (1, 1)), "linewidth": 2.2, "zorder": 4},
    "offline": {"color": "#0072b2", "linestyle": (0, (7, 2, 1.5, 2)), "zorder": 5},
    "online": {"color": "#d55e00", "zorder": 6},
}
RC: dict[Any, Any] = {
    "font.size": 10, "axes.titlesize": 10.5, "axes.labelsize": 10, "legend.fontsize": 9, "axes.grid": True,
    "grid.color": "#e3e3e3", "grid.linewidth": 0.7, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "lines.linewidth": 1.8, "figure.dpi": 110, "savefig.dpi": 150,
}


def draw_scores(curves: Curves, folder: Path) -> list[Path]:
    """Every figure that the curves of one run allow.

    Args:
        curves: see `trimtab.evaluation.evaluate`.
        folder: where the PNG files go; made when missing.

    Returns:
        The files, in the order in which to read them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(RC):
        drawn: dict[str, Figure | None]
        if "wavenumbers" in curves:
            drawn = {"snapshots": snapshots(curves), "forecast": forecast([curves]), "spectra": spectra(curves),
                     "pdf": pdf(curves), "enstrophy": mean_square(curves)}
        else:
            drawn = {"trajectory": trajectory(curves), "forecast": forecast([curves]), "attractor": attractor(curves)}
    return [_save(figure, folder / f"{name}.png") for name, figure in drawn.items() if figure is not None]


def draw_seeds(runs: Sequence[Curves], folder: Path) -> Path:
    """Error by lead time over several runs of one experiment: their middle, and the band from lowest to highest.

    Args:
        runs: the curves of each run.
        folder: where `forecast.png` goes; made when missing.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(RC):
        return _save(forecast(runs), folder / "forecast.png")


def draw_losses(metrics: Mapping[str, np.ndarray], folder: Path) -> Path | None:
    """Loss curves of the offline and the online phase.

    Args:
        metrics: columns of metrics.csv by name; "phase" is text, the others are numbers, NaN where there is none.
        folder: where `loss.png` goes; made when missing.

    Returns:
        The file, or None when nothing was trained.
    """
    phases = [phase for phase in ("offline", "online") if np.sum(metrics["phase"] == phase) > 1]
    if not phases:
        return None
    units = {"offline": "loss (1: no skill)", "online": "mean square error of the windows"}
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(4.8 * len(phases), 3.4), layout="constrained")
        for axes, phase in zip(np.atleast_1d(figure.subplots(1, len(phases))), phases, strict=True):
            here = metrics["phase"] == phase
            step, loss, validation = (metrics[key][here] for key in ("step", "loss", "validation"))
            marker = "o" if len(step) <= 40 else None
            lines = ((loss, STYLE[phase]["color"], "training"), (validation, "black", "validation"))
            for values, colour, label in lines:
                seen = np.isfinite(values)
                axes.plot(step[seen], values[seen], color=colour, marker=marker, markersize=3.5, label=label)
            if np.isfinite(validation).any():
                best = int(np.nanargmin(validation))
                axes.plot(step[best], validation[best], marker="*", markersize=13, color="#f0e442", linestyle="none",
                          markeredgecolor="black", label="best validation", clip_on=False, zorder=9)
            low, high = (reduce(np.concatenate((loss, validation))) for reduce in (np.nanmin, np.nanmax))
            axes.set(title=f"{phase} training", xlabel="optimiser step", ylabel=units[phase], xlim=(0, None),
                     yscale="log" if high > 10 * low else "linear")
            axes.legend()
        return _save(figure, folder / "loss.png")


def snapshots(curves: Curves) -> Figure:
    """Vorticity of one held-out forecast side by side: truth and closures, and below them what they miss."""
    names, times = ["truth", *_closures(curves)], curves["snapshot_times"]
    truth = curves["truth/snapshots"]
    limit = float(np.percentile(np.abs(truth), 99.7))
    error_limit = max(_reach(curves[f"{name}/snapshots"] - truth) for name in names[1:])
    rows = [(index, kind) for index in range(len(times)) for kind in ("field", "error")]
    figure = Figure(figsize=(2.1 * len(names) + 0.9, 2.15 * len(rows) + 0.3), layout="constrained")
    grid = figure.subplots(len(rows), len(names), squeeze=False)
    images: dict[str, Any] = {}
    for axes_row, (index, kind) in zip(grid, rows, strict=True):
        for axes, name in zip(axes_row, names, strict=True):
            field = curves[f"{name}/snapshots"][index] - (truth[index] if kind == "error" else 0.0)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.grid(False)
            if name == "truth" and kind == "error":
                axes.set_axis_off()
                continue
            span = limit if kind == "field" else error_limit
            images[kind] = axes.imshow(field, origin="lower", cmap="RdBu_r", vmin=-span, vmax=span)
            if not np.isfinite(field).all():
                axes.text(0.5, 0.5, "blew up", ha="center", va="center", transform=axes.transAxes)
            if kind == "field" and index == 0:
                axes.set_title(_label(name), color=STYLE.get(name, {}).get("color", "black"), fontweight="bold")
            if kind == "error":
                size = float(np.sqrt(np.mean(np.square(field))))
                axes.set_xlabel(f"RMSE {size:.2f}" if np.isfinite(size) else "")
        label = f"$t$ = {times[index]:.3g}" + (f" {_unit(curves['time_units'])}" if _unit(curves["time_units"]) else "")
        first = axes_row[0] if kind == "field" else axes_row[1]
        first.set_ylabel(f"{label}\nvorticity" if kind == "field" else "minus truth")
        figure.colorbar(images[kind], ax=list(axes_row), shrink=0.8, pad=0.01, label=_with_unit("$q$", curves["units"]))
    return figure


def forecast(runs: Sequence[Curves]) -> Figure:
    """RMSE, and on a grid correlation, by lead time; a band shows the spread over starts, or over runs when several."""
    curves = runs[0]
    gridded = f"{_closures(curves)[0]}/correlation" in curves
    figure = Figure(figsize=(9.6 if gridded else 6.4, 3.7), layout="constrained")
    panels = figure.subplots(1, 2 if gridded else 1, squeeze=False)[0]
    words = f"mean and range of {len(runs)} runs" if len(runs) > 1 else "mean and deviation over the starts"
    if not gridded:
        words = words.replace("mean", "median").replace("deviation", "range")
    for axes, quantity in zip(panels, ("rmse", "correlation"), strict=False):
        for name in _closures(curves):
            times, middle, low, high = _lead_curve(runs, name, quantity, robust=not gridded)
            style = STYLE.get(name, {})
            axes.plot(times, middle, label=_label(name), **style)
            axes.fill_between(times, low, high, color=style.get("color"), alpha=0.13, linewidth=0)
        axes.set(xlabel=_with_unit("lead time", curves["time_units"]), xlim=(0, None))
    scale = float(curves["deviation"])
    panels[0].set(ylabel=_with_unit("RMSE", curves["units"]), title=f"forecast error ({words})")
    if gridded:
        panels[0].set_ylim(0, None)
        panels[1].set(ylabel="correlation with the truth", title="forecast correlation")
        panels[1].set_ylim(None, 1.0)
    else:
        panels[0].set_yscale("log")
        valid = float(curves["threshold"]) * scale
        for level, text, side in ((scale, "deviation\nof the truth", "bottom"), (valid, "valid below", "top")):
            panels[0].axhline(level, color="#555555", linewidth=0.9, linestyle=":")
            panels[0].text(1.01, level, text, va=side, fontsize=8.5, color="#555555",
                           transform=panels[0].get_yaxis_transform())
        _lyapunov_axis(panels[0], float(curves["lyapunov_time"]))
    panels[0].legend()
    return figure


def spectra(curves: Curves) -> Figure:
    """Energy and enstrophy by annuli in long runs, and below each its ratio to the truth."""
    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, height_ratios=[2.4, 1])
    waves, kmax = curves["wavenumbers"], int(curves["max_wavenumber"])
    for (top, bottom), quantity, symbol in zip(grid.T, ("energy", "enstrophy"), ("E", "Z"), strict=True):
        truth = curves[f"truth/{quantity}"].mean(axis=0)
        shown = truth > 1e-8 * truth.max()
        for name in ("truth", *_closures(curves)):
            values = curves[f"{name}/{quantity}"]
            style = STYLE.get(name, {})
            middle = values.mean(axis=0)
            top.plot(waves[shown], middle[shown], label=_label(name), **style)
            ratio = values[:, shown] / truth[shown]
            bottom.plot(waves[shown], ratio.mean(axis=0), **style)
            bottom.fill_between(waves[shown], ratio.min(axis=0), ratio.max(axis=0), color=style.get("color"),
                                alpha=0.12, linewidth=0)
        top.set(title=f"{quantity} spectrum, long runs", xscale="log", yscale="log", ylabel=f"${symbol}(k)$",
                ylim=(0.3 * truth[shown].min(), 4 * truth.max()))
        bottom.set(xlabel="annulus $k$ (waves in the domain)", ylabel="over truth", yscale="log", ylim=(0.1, 10))
        bottom.set_yticks([0.1, 0.5, 1, 2, 10], ["0.1", "½", "1", "2", "10"])
        bottom.minorticks_off()
        ticks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if k <= waves[shown][-1]]
        bottom.set_xticks(ticks, [str(k) for k in ticks])
        for axes in (top, bottom):
            if kmax < waves[shown][-1]:
                axes.axvspan(kmax + 0.5, waves[shown][-1], color="#efefef", zorder=0, linewidth=0, label="not scored")
            axes.set_xlim(waves[0], waves[shown][-1])
    grid[0, 0].legend(loc="lower left")
    return figure


def pdf(curves: Curves) -> Figure:
    """PDF of vorticity in long runs, in standard deviations of the truth, on a scale that shows the tails."""
    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    axes = figure.subplots()
    centres = curves["pdf_centres"]
    for name in ("truth", *_closures(curves)):
        density = curves[f"{name}/pdf"].mean(axis=0)
        axes.plot(centres, np.where(density > 0, density, np.nan), label=_label(name), **STYLE.get(name, {}))
    truth = curves["truth/pdf"]
    axes.fill_between(centres, truth.min(axis=0), truth.max(axis=0), color="#000000", alpha=0.12, linewidth=0,
                      label="range of the truth")
    axes.plot(centres, np.exp(-0.5 * centres**2) / np.sqrt(2 * np.pi), color="#bbbbbb", linewidth=1, label="Gaussian",
              zorder=1)
    axes.set(yscale="log", xlabel=r"vorticity $q/\sigma_{\mathrm{truth}}$", ylabel="probability density",
             ylim=(0.5 * truth[truth > 0].min(), 1.5 * truth.max()), title="PDF of vorticity, long runs")
    axes.legend()
    return figure


def mean_square(curves: Curves) -> Figure:
    """Enstrophy of long runs in time, with the band that counts as stable."""
    figure = Figure(figsize=(8.2, 3.6), layout="constrained")
    axes = figure.subplots()
    low, high = curves["band"]
    least, most = curves["truth/mean_square_range"]
    axes.axhspan(0.5 * least, 0.5 * most, color="#000000", alpha=0.10, linewidth=0, zorder=0,
                 label="range of the truth")
    for edge in (low, high):
        axes.axhline(0.5 * edge, color="#555555", linewidth=0.9, linestyle=":")
    for edge, text, side in ((high, "stable below", "top"), (low, "stable above", "bottom")):
        axes.text(1.0, 0.5 * edge, text, ha="right", va=side, fontsize=8.5, color="#555555",
                  transform=axes.get_yaxis_transform())
    for name in _closures(curves):
        values = 0.5 * curves[f"{name}/mean_square"]
        for member, line in enumerate(np.clip(values, 0, 4 * high).T):
            axes.plot(curves["long_times"], line, label=_label(name) if member == 0 else None, **STYLE.get(name, {}))
    axes.set(xlabel=_with_unit("time", curves["time_units"]), ylabel=r"enstrophy $\frac{1}{2}\langle q^2\rangle$",
             ylim=(0, 0.55 * high), xlim=(0, curves["long_times"][-1]), title="long runs, one line a held-out run")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def trajectory(curves: Curves) -> Figure:
    """Components of one held-out forecast in time, truth and closures; see `climate.lively_components`."""
    shown = curves["labels"]
    figure = Figure(figsize=(8.2, 1.7 * len(shown) + 0.7), layout="constrained")
    rows = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    times = curves["lead_times"]
    for component, (axes, label) in enumerate(zip(rows, shown, strict=True)):
        for name in ("truth", *_closures(curves)):
            values = curves[f"{name}/trajectory"][:, component]
            axes.plot(times, values, label=_label(name), **STYLE.get(name, {}))
        reference = curves["truth/trajectory"][:, component]
        margin = 0.25 * np.ptp(reference) or 1.0
        axes.set(ylabel=label, ylim=(reference.min() - margin, reference.max() + margin))
    rows[0].set_title("one held-out forecast")
    rows[0].legend(ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.12))
    rows[-1].set(xlabel=_with_unit("lead time", curves["time_units"]), xlim=(0, times[-1]))
    return figure


def attractor(curves: Curves) -> Figure | None:
    """The attractor of long runs, first against last of the components shown, one panel a closure; None for a single one."""
    if curves["truth/attractor"].shape[1] < 2:
        return None
    names = ["truth", *_closures(curves)]
    figure = Figure(figsize=(2.6 * len(names), 2.9), layout="constrained")
    truth = curves["truth/attractor"]
    last = truth.shape[1] - 1
    for axes, name in zip(figure.subplots(1, len(names), sharex=True, sharey=True), names, strict=True):
        points = curves[f"{name}/attractor"]
        axes.plot(points[:, 0], points[:, last], ".", markersize=1.1, color=STYLE.get(name, {}).get("color"))
        axes.set(title=_label(name), xlabel=curves["labels"][0])
    first = figure.axes[0]
    spans = [(truth[:, one].min(), truth[:, one].max()) for one in (0, last)]
    (left, right), (bottom, top) = ((a - 0.2 * (b - a or 1.0), b + 0.2 * (b - a or 1.0)) for a, b in spans)
    first.set(ylabel=curves["labels"][last], xlim=(left, right), ylim=(bottom, top))
    return figure


def _closures(curves: Curves) -> list[str]:
    return [str(name) for name in curves["closures"]]


def _label(name: str) -> str:
    return "truth" if name == "truth" else LABELS.get(name, name)


def _unit(units: Any) -> str:
    return "" if str(units) in ("1", "") else str(units)


def _with_unit(text: str, units: Any) -> str:
    return f"{text} ({_unit(units)})" if _unit(units) else text


def _lead_curve(
    runs: Sequence[Curves], name: str, quantity: str, *, robust: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lead times, middle, and the two edges of the spread, without lead 0 where every error is 0.

    Errors that grow exponentially are summed up by their median (robust), or a mean would show the worst start alone.
    """
    average = np.median if robust else np.mean
    values = runs[0][f"{name}/{quantity}"]
    if len(runs) > 1:
        values = np.stack([average(one[f"{name}/{quantity}"], axis=1) for one in runs], axis=1)
    middle, low, high = average(values, axis=1), values.min(axis=1), values.max(axis=1)
    if len(runs) == 1 and not robust:
        spread = values.std(axis=1, ddof=min(1, values.shape[1] - 1))
        low, high = middle - spread, middle + spread
    return runs[0]["lead_times"][1:], middle[1:], low[1:], high[1:]


def _reach(errors: np.ndarray) -> float:
    """Magnitude that all but a hundredth of the finite values stay below; 0 when there is none."""
    finite = np.abs(errors[np.isfinite(errors)])
    return float(np.percentile(finite, 99)) if finite.size else 0.0


def _lyapunov_axis(axes: Axes, lyapunov_time: float) -> None:
    if lyapunov_time:
        def scaled(factor: float) -> Any:
            return lambda value: value * factor

        top = axes.secondary_xaxis("top", functions=(scaled(1 / lyapunov_time), scaled(lyapunov_time)))
        top.set_xlabel("Lyapunov times")


def _save(figure: Figure, path: Path) -> Path:
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
    return path
