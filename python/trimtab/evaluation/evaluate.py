# SPDX-License-Identifier: MIT
"""How the held-out runs judge closures: forecasts from many starts, and one long run from each held-out run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from trimtab.config.experiment import ScoreConfig
from trimtab.core.errors import ConfigError, DataError
from trimtab.core.failures import HYBRID, UNSTABLE, Failures
from trimtab.core.loss import field_scale
from trimtab.core.progress import silent
from trimtab.core.solver import Solver
from trimtab.core.spec import SolverSpec, is_vorticity, resolved_wavenumber
from trimtab.data.lead_times import Meeting, match_times
from trimtab.data.reference import Progress
from trimtab.evaluation import metrics as scores
from trimtab.evaluation.climatology import SNAPSHOTS, VALUES, Climate, Curves, lively_components
from trimtab.evaluation.table import Column, ScoreTable

FORECAST_TIMES = 15.0  # longest forecast of a system without a grid, in Lyapunov times
DEVIATIONS = "σ"       # unit of an error over fields of several units
FORECAST_SHARE = 0.3   # of the time a closure takes, for the progress bar


@dataclass(frozen=True)
class Evaluation:
    """A score table and the curves its figures are drawn from.

    Args:
        table: the scores.
        curves: arrays by name; "closure/quantity" for those of a closure, "truth/quantity" for the reference run's.
    """

    table: ScoreTable
    curves: Curves


def evaluate(
    solver: Solver,
    closures: Mapping[str, Any],
    test: Any,
    config: ScoreConfig,
    *,
    interval: float,
    stride: int,
    name: str = "",
    notes: Sequence[str] = (),
    progress: Progress = silent,
) -> Evaluation:
    """Score closures on held-out runs.

    Forecasts start at `config.starts` evenly spaced snapshots of each held-out run, all in one batch; a long run of
    `config.long_steps` outer steps starts at the first snapshot of each.

    Args:
        solver: the solver without its correction.
        closures: name -> module (B, N) -> (B, N), or None for no closure.
        test: (R, T, N) float64 held-out truth, anything that slices to numpy arrays.
        config: see `ScoreConfig`.
        interval: time between two snapshots.
        stride: inner steps an outer step.
        name: of the experiment.
        notes: sentences for under the table.
        progress: called with the share done and what is being done.

    Returns:
        The table and the curves.

    Raises:
        ConfigError: lead times that fall between snapshots, or no closure.
        DataError: held-out runs too short for the lead times.
        SolverStopped: each of the first forecasts ended the solver's process.
    """
    if not closures:
        raise ConfigError("score.closures is empty: name at least one of none, smagorinsky, offline, online.")
    spec = solver.spec
    meeting = match_times(spec.dt, stride, interval, config.leads)
    starts, truth, times = _forecast_truth(spec, test, config, meeting)
    first = np.stack([np.asarray(test[run, 0], dtype=float) for run in range(len(test))])
    show = _Shown(spec, test, truth)
    spec, test, truth, raw = spec.shown, show, show(truth), show.visible(truth)
    climate = Climate(spec, config, test, lively_components(spec, truth, show.finite))
    curves = climate.curves
    curves |= {
        "lead_times": times, "time_units": np.array(spec.time_units), "units": np.array(score_unit(spec)),
        "labels": np.array(climate.components.labels),
        "names": np.array([one.name for one in spec.fields]), "closures": np.array(list(closures)),
        "lyapunov_time": np.array(config.lyapunov_time), "threshold": np.array(config.valid_threshold),
    }
    rows: dict[str, dict[str, np.ndarray]] = {"truth": climate.truth_row} if climate.truth_row else {}
    failures = Failures("forecasts", UNSTABLE, first=HYBRID, later=0)
    for number, (closure, module) in enumerate(closures.items()):
        part = partial(_tell_part, progress, number, len(closures), closure)
        part("forecasts", 0.0)
        with failures.watching():
            window = solver.advance(starts, len(truth) - 1, correction=module, stride=meeting.every, on_blow_up="mark")
        rows[closure] = _forecast_scores(show(window.states), truth, config, meeting, climate, closure)
        rows[closure] |= _field_scores(spec, show.visible(window.states), raw, meeting, config.leads)
        states, long_times = long_run(solver, module, first, config.long_steps, stride, partial(part, "long run"))
        rows[closure] |= climate.judge(show(states), long_times, closure)
    for closure in rows.keys() - {"none", "truth"} if "none" in rows else ():
        for lead in config.leads:
            errors = (rows[one][f"rmse_{lead}"] for one in (closure, "none"))
            rows[closure][f"similarity_{lead}"] = scores.similarity(*errors)
    progress(1.0, "done")
    settings = {"starts": len(starts), "long_steps": config.long_steps, "outer_step": stride * spec.dt,
                "leads": list(config.leads), "held_out_runs": len(test)}
    spread_over = f"{len(starts)} starts (forecasts) and {len(test)} held-out runs (long runs)"
    constant = 0 if climate.counted is None else int((~climate.counted).sum())
    columns = score_columns(spec, config, meeting, times[-1], curves["long_times"][-1], constant)
    return Evaluation(ScoreTable(name, columns, rows, spread_over, tuple(notes), settings), curves)


class _Shown:
    """Held-out runs and states without what the solver hides, fields of several units divided by their deviations over the
    truth of the forecasts, as in a loss without weights (`loss.field_scale`); (R, T, N) as any array, and a call for states."""

    def __init__(self, spec: SolverSpec, test: Any, truth: np.ndarray):
        self.places, self.test = spec.visible, test
        self.shape = (*test.shape[:2], spec.shown.size)
        self.scale: np.ndarray | None = None
        if score_unit(spec.shown) == DEVIATIONS:
            self.scale = field_scale(spec.shown, self(truth).reshape(-1, spec.shown.size)).numpy()

    @property
    def finite(self) -> np.ndarray | None:
        """The scale, 1 for a field that is left out."""
        return None if self.scale is None else np.where(np.isfinite(self.scale), self.scale, 1.0)

    def visible(self, states: np.ndarray) -> np.ndarray:
        """States (..., N) without what is hidden, in their own units."""
        return states if self.places is None else states[..., self.places]

    def __call__(self, states: np.ndarray) -> np.ndarray:
        return self.visible(states) if self.scale is None else self.visible(states) / self.scale

    def __len__(self) -> int:
        return len(self.test)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self(np.asarray(self.test[index]))


def long_run(
    solver: Solver, module: Any, first: np.ndarray, steps: int, stride: int, tell: Callable[[float], None]
) -> tuple[np.ndarray, np.ndarray]:
    """A long run in pieces, so that it can be watched and interrupted.

    Args:
        solver: the solver.
        module: the closure or None.
        first: (B, N) initial states.
        steps: outer steps.
        stride: inner steps an outer step.
        tell: called with the share done.

    Returns:
        (K+1, B, N) states at even spacing, few enough to bound the memory, NaN after a blow-up, and their (K+1,) times
        since the start.
    """
    most = max(25, VALUES // first.size)
    if len(solver.spec.grid) == 2:
        most = min(most, SNAPSHOTS)
    every = max(1, -(-steps // most))
    records = max(1, steps // every)
    kept = np.full((records + 1, *first.shape), np.nan)
    kept[0] = first
    alive = np.arange(len(first))
    piece = max(1, records // 20)
    for begin in range(0, records, piece):
        count = min(piece, records - begin)
        window = solver.advance(kept[begin, alive], count, correction=module, stride=every * stride, on_blow_up="mark",
                                time=begin * every * stride * solver.spec.dt)
        kept[begin + 1 : begin + count + 1, alive] = window.states[1:]
        alive = alive[window.alive]
        tell((begin + count) / records)
        if alive.size == 0:
            break
    return kept, np.arange(records + 1) * (every * stride * solver.spec.dt)


def score_columns(
    spec: SolverSpec, config: ScoreConfig, meeting: Meeting, forecast_time: float, long_time: float, constant: int = 0
) -> tuple[Column, ...]:
    """The scores a solver of this kind gets, in the order of the table.

    Args:
        spec: the solver's.
        config: which leads and thresholds.
        meeting: see `match_times`.
        forecast_time, long_time: length of a forecast and of a long run.
        constant: components that do not vary in the truth.

    Returns:
        The columns.
    """
    unit, time = score_unit(spec), spec.time_units
    each = ", each field in its standard deviations over the truth" if unit == DEVIATIONS else ""
    step = meeting.time * meeting.leads[0] / config.leads[0]
    columns = [
        Column(f"rmse_{lead}", f"RMSE, lead {lead}", unit, "low",
               f"Root mean square error of forecasts by lead time, in outer steps of {step:.4g}{each}.")
        for lead in config.leads
    ]
    if len(spec.fields) > 1:
        columns += [Column(f"field_{one.name}_{lead}", f"{one.name}, RMSE, lead {lead}", one.units, "low",
                           f"Root mean square error of {one.name} alone, in its own unit.")
                    for one in spec.fields for lead in config.leads]
    if is_vorticity(spec):
        kmax = config.max_wavenumber or resolved_wavenumber(spec)
        columns += [Column(f"correlation_{lead}", f"correlation, lead {lead}", "1", "high",
                           "Correlation of forecast and truth over the grid, by lead time.")
                    for lead in config.leads]
        columns += [
            Column("energy_error", "energy spectrum error", "1", "low",
                   f"Mean |ln(E / E_truth)| over the annuli 1 to {kmax}, long run."),
            Column("enstrophy_error", "enstrophy spectrum error", "1", "low",
                   f"Mean |ln(Z / Z_truth)| over the annuli 1 to {kmax}, long run."),
            Column("pdf_distance", "PDF distance", "1", "low",
                   "Wasserstein-1 distance of the PDFs of vorticity, in standard deviations of the truth, long run."),
            Column("pdf_tail_error", "PDF tail error", "1", "low",
                   "Mean |ln(p / p_truth)| over the bins of the PDF beyond two standard deviations, long run."),
        ]
    else:
        columns += [
            Column("valid_time", "valid time", "Lyapunov times" if config.lyapunov_time else time, "high",
                   f"Time until a forecast's RMSE exceeds {config.valid_threshold:g} deviations of the truth.",
                   forecast_time / (config.lyapunov_time or 1.0)),
            Column("attractor_distance", "attractor distance", "1", "low",
                   "Wasserstein-1 distance of each component's distribution, mean over the components, in standard "
                   "deviations of the truth, long run."
                   + (f" {constant} of {spec.size} components do not vary in the truth and are left out." if constant else "")),
        ]
    columns.append(Column("stable_until", "stable until", time, "high",
                          f"Time until a long run (of {config.long_steps} outer steps) blows up or its mean square "
                          "leaves [min / 2, 2 max] of the truth's; the run's length when it never does.", long_time))
    if "none" in config.closures:
        columns += [Column(f"similarity_{lead}", f"similarity, lead {lead}", "1", "high",
                           "1 - RMSE / RMSE of no closure (Frezat et al., arXiv 2310.19385).") for lead in config.leads]
    return tuple(columns)


def _forecast_truth(
    spec: SolverSpec, test: Any, config: ScoreConfig, meeting: Meeting
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Initial states (B, N), truth (K+1, B, N) and lead times (K+1,)."""
    runs, length = test.shape[:2]
    needed = max(meeting.leads)
    available = (length - 1) // meeting.skip
    if runs < 1 or available < needed:
        raise DataError(f"There are {runs} held-out runs of {length} snapshots, but the longest of score.leads = "
                        f"{list(config.leads)} needs one of {needed * meeting.skip + 1}: shorten the leads, or raise "
                        "reference.test_runs or reference.snapshots.")
    steps = needed
    if not is_vorticity(spec):  # long enough for the valid time
        wanted = int(FORECAST_TIMES * config.lyapunov_time / meeting.time) or available
        steps = max(needed, min(available // 2, wanted))
    last = length - 1 - steps * meeting.skip
    begins = np.unique(np.linspace(0, last, config.starts).astype(int))
    truth = np.stack([np.asarray(test[run, begin : begin + steps * meeting.skip + 1 : meeting.skip], dtype=float)
                      for run in range(runs) for begin in begins], axis=1)
    return truth[0], truth, np.arange(steps + 1) * meeting.time


def _forecast_scores(
    states: np.ndarray, truth: np.ndarray, config: ScoreConfig, meeting: Meeting, climate: Climate, closure: str
) -> dict[str, np.ndarray]:
    curves, leads = climate.curves, dict(zip(config.leads, meeting.leads, strict=True))
    times = curves["lead_times"]
    with np.errstate(over="ignore", invalid="ignore"):
        error = scores.rmse(states, truth)
    curves[f"{closure}/rmse"] = error
    row = {f"rmse_{lead}": error[index] for lead, index in leads.items()}
    if climate.gridded:
        correlation = scores.pattern_correlation(states, truth)
        curves[f"{closure}/correlation"] = correlation
        shown = sorted({meeting.leads[len(meeting.leads) // 2], max(meeting.leads)})
        curves["snapshot_times"] = times[shown]
        for name, field in (("truth", truth), (closure, states)):
            curves[f"{name}/snapshots"] = field[shown, 0].reshape(-1, *climate.spec.grid)
        return row | {f"correlation_{lead}": correlation[index] for lead, index in leads.items()}
    for name, one in ((closure, states), ("truth", truth)):
        curves[f"{name}/trajectory"] = climate.components.of(one[:, 0])
    limit = config.valid_threshold * climate.deviation  # 0 where the truth stands still: then an error of 0 alone is valid
    valid = scores.valid_time(error, times, limit)
    return row | {"valid_time": valid / (config.lyapunov_time or 1.0)}


def _field_scores(spec: SolverSpec, states: np.ndarray, truth: np.ndarray, meeting: Meeting,
                  leads: Sequence[int]) -> dict[str, np.ndarray]:
    """Errors of each field in its own unit, where there are several."""
    row: dict[str, np.ndarray] = {}
    for lead, index in zip(leads, meeting.leads, strict=True) if len(spec.fields) > 1 else ():
        with np.errstate(over="ignore", invalid="ignore"):
            difference = states[index] - truth[index]
            row |= {f"field_{name}_{lead}": np.sqrt(np.square(part.reshape(len(part), -1)).mean(axis=1))
                    for name, part in spec.split(difference).items()}
    return row


def score_unit(spec: SolverSpec) -> str:
    """The unit of an error over all fields: theirs where they have one, else `DEVIATIONS`."""
    units = {one.units for one in spec.fields}
    return units.pop() if len(units) == 1 else DEVIATIONS


def _tell_part(progress: Progress, number: int, closures: int, closure: str, part: str, share: float) -> None:
    done = share * FORECAST_SHARE if part == "forecasts" else FORECAST_SHARE + (1 - FORECAST_SHARE) * share
    progress((number + done) / closures, f"{closure}: {part}")
