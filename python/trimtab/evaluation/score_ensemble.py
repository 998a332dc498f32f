# SPDX-License-Identifier: MIT
"""Score an ensemble's netCDF file against the reference run of a run folder, by lead time."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import netCDF4
import numpy as np

from trimtab.bridge.opener import open_solver
from trimtab.config.input_files import JUDGED
from trimtab.core.atomic_files import replacing
from trimtab.core.errors import ConfigError, DataError
from trimtab.core.loss import field_scale
from trimtab.core.progress import silent
from trimtab.core.spec import Field, SolverSpec
from trimtab.data.climatology import climate_states
from trimtab.data.field_names import dimension_names, find_name
from trimtab.data.reference import Progress, make_reference
from trimtab.data.windows import Targets
from trimtab.evaluation.climatology import Curves
from trimtab.evaluation.ensemble_metrics import LeadScores
from trimtab.evaluation.evaluate import DEVIATIONS, score_unit
from trimtab.training.run_folder import check_place, load_run, warn_of_files

FOLDER = "ensembles"   # of a run folder, where the scores lie
BLOCK_VALUES = 2**22   # numbers of the ensemble held at once
TERCILE = 2 / 3
CLIMATE_MEMBERS = 100  # of the climatology that are scored as an ensemble


class EnsembleScores(NamedTuple):
    """Scores of one ensemble.

    Attributes:
        name: of its file.
        rows: one a lead time, column -> value; see `trimtab.evaluation.ensemble_metrics.MEANINGS`.
        curves: what figures need.
    """

    name: str
    rows: list[dict[str, float]]
    curves: Curves


def score_ensemble(folder: str | Path, path: str | Path, progress: Progress = silent) -> EnsembleScores:
    """Score an ensemble; leaves ensembles/NAME.csv and .npz in the run folder.

    Args:
        folder: the run folder whose reference run judges.
        path: what `trimtab ensemble` wrote from held-out starts.
        progress: told how far it is.

    Returns:
        The scores at each recorded lead time at which there is a snapshot of the truth.

    Raises:
        DataError: a file that is damaged, of another solver, not from held-out starts, or never meets a snapshot.
        ConfigError: fewer than two members.
        CheckpointError: not a run folder.
    """
    run, path = load_run(folder), Path(path)
    check_place(run)
    warn_of_files(run, JUDGED)
    solver = open_solver(run.experiment.solver.name, **run.experiment.solver.options)
    spec = solver.spec
    solver.close()
    reference = make_reference(run.experiment, spec, progress=progress)
    targets = Targets(reference, spec, run.experiment.reference, run.experiment.training.stride * spec.dt, in_memory=0)
    with contextlib.closing(targets), _opened(path, spec) as file:
        scores = _score(file, path, spec, targets, progress)
    out = run.folder / FOLDER
    out.mkdir(exist_ok=True)
    with replacing(out / f"{path.stem}.csv") as partial, open(partial, "w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, list(scores.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if np.isnan(value) else f"{value:.8g}" for key, value in row.items()} for row in scores.rows)
    arrays: dict[str, Any] = scores.curves
    with replacing(out / f"{path.stem}.npz") as partial, open(partial, "wb") as binary:
        np.savez_compressed(binary, **arrays)
    return scores


def read_ensembles(folder: Path) -> dict[str, Curves]:
    """The curves of every ensemble that was scored in a run folder, by name.

    Args:
        folder: the run folder.

    Returns:
        Name -> arrays; empty when none was scored.

    Raises:
        DataError: a damaged file.
    """
    found = {}
    for path in sorted((folder / FOLDER).glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as file:
                found[path.stem] = {name: file[name] for name in file.files}
        except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged file
            raise DataError(f"{path} is damaged: score the ensemble again, or remove it ({type(error).__name__}).") from error
    return found


def _score(file: netCDF4.Dataset, path: Path, spec: SolverSpec, targets: Targets, progress: Progress) -> EnsembleScores:
    test, climate = targets.runs("test"), climate_states(targets.runs("training"))
    places = np.stack([np.asarray(file[name][:]) for name in ("start_run", "start_snapshot")], axis=1)
    times, members = np.asarray(file["time"][:], dtype=float), file.dimensions["member"].size
    if members < 2:
        raise ConfigError(f"{path} holds {members} member; a spread needs two.")
    if places.min() < 0 or places[:, 0].max() >= len(test):
        raise DataError(f"{path} starts from held-out runs that {targets.path} does not have: give the run folder that made it.")
    snapshots = np.rint(times / targets.interval).astype(int)
    meets = np.abs(snapshots * targets.interval - times) < 1e-4 * targets.interval
    meets &= snapshots + places[:, 1].max() < test.shape[1]
    records = np.flatnonzero(meets)
    if records.size < 1 + (times.size > 1):
        raise DataError(f"No record of {path} after the start meets a snapshot of the truth, which are {targets.interval:g} "
                        "apart: choose --every and --steps so that one does, and fewer --starts where the runs end.")
    sums = {int(record): LeadScores(members) for record in records}
    shown = _Shown(spec, climate)
    climate = shown(climate)
    threshold = _threshold(spec, climate)
    sample = climate[:: max(1, -(-len(climate) // CLIMATE_MEMBERS))]
    generator = np.random.default_rng(0)
    columns = max(1, BLOCK_VALUES // max(members, len(sample)))
    with np.errstate(over="ignore", invalid="ignore"):
        for start, (run, snapshot) in enumerate(places):
            for record, states in _records(file, path, spec, start, records):
                states, truth = shown(states), shown(test[int(run), int(snapshot + snapshots[record])])
                for first in range(0, len(truth), columns):
                    here = slice(first, first + columns)
                    sums[record].add(states[:, here], truth[here], sample[:, here], threshold[here], generator)
            progress((start + 1) / len(places), f"scoring: start {start + 1} of {len(places)}")
        failed = np.asarray(file["failed_step"][:])
        steps = np.rint(times / spec.dt)
        rows = [{"lead_time": float(times[one]), **sums[int(one)].scores(),
                 "blown_up": float(((failed > 0) & (failed <= steps[one])).sum())} for one in records]
        lasting = list(sums.values())
        curves: Curves = {key: np.array([row[key] for row in rows]) for key in rows[0]}
        curves["rank_counts"] = np.stack([one.rank_counts for one in lasting])
        curves["diagram"] = np.stack([one.diagram() for one in lasting])
        curves["cases"] = np.stack([one.cases for one in lasting])
        curves["spread_bins"] = np.stack([one.spread_skill_bins() for one in lasting])
        curves |= {"members": np.array(members), "starts": np.array(len(places)), "units": np.array(score_unit(spec.shown)),
                   "time_units": np.array(spec.time_units), "perturbation": np.array(str(file.perturbation))}
    return EnsembleScores(path.stem, rows, curves)


class _Shown:
    """States (..., N) as they are scored: without hidden fields, and where fields have several units each over its standard
    deviation in the climatology (`loss.field_scale`), without a field that has none."""

    def __init__(self, spec: SolverSpec, climate: np.ndarray):
        self.places, self.scale = spec.visible, np.ones(())
        if score_unit(spec.shown) == DEVIATIONS:
            scale = field_scale(spec, climate).numpy()
            visible = np.arange(spec.size) if self.places is None else self.places
            self.places = visible[np.isfinite(scale[visible])]
            self.scale = scale[self.places]

    def __call__(self, states: np.ndarray) -> np.ndarray:
        return np.asarray(states if self.places is None else states[..., self.places] / self.scale)


def _threshold(spec: SolverSpec, climate: np.ndarray) -> np.ndarray:
    """(N,) upper tercile of the climatology: a component's own, or a field's on a grid, whose points are alike."""
    threshold = np.quantile(climate, TERCILE, axis=0)
    return np.full(climate.shape[1], np.quantile(climate, TERCILE)) if len(spec.grid) == 2 else threshold


def _records(file: netCDF4.Dataset, path: Path, spec: SolverSpec, start: int,
             records: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(M, N) states of one start at each record, some records in memory at a time."""
    members = file.dimensions["member"].size
    piece = max(1, BLOCK_VALUES // (members * spec.size))
    for first in range(0, len(records), piece):
        wanted = records[first : first + piece]
        span = slice(int(wanted[0]), int(wanted[-1]) + 1) if wanted[-1] - wanted[0] < 2 * len(wanted) else wanted
        try:
            parts = [np.asarray(_variable(file, one)[start, :, span]) for one in spec.fields]
        except (OSError, RuntimeError, IndexError) as error:
            raise DataError(f"{path} cannot be read to its end, it may be cut short ({error}).") from error
        states = np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=2)
        for record in wanted:
            yield int(record), states[:, record - wanted[0] if isinstance(span, slice) else int(np.searchsorted(wanted, record))]


def _variable(file: netCDF4.Dataset, field: Field) -> netCDF4.Variable:
    name = find_name(file.variables, field)
    assert name is not None  # as `_opened` has seen
    return file[name]


@contextlib.contextmanager
def _opened(path: Path, spec: SolverSpec) -> Iterator[netCDF4.Dataset]:
    if not path.is_file():
        raise DataError(f"There is no file {path} to score.")
    try:
        file = netCDF4.Dataset(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read as a netCDF file, it may be cut short ({error}).") from error
    with contextlib.closing(file):
        missing = [name for name in ("time", "failed_step") if name not in file.variables]
        missing += [one.name for one in spec.fields if find_name(file.variables, one) is None]
        if missing:
            raise DataError(f"{path} has no variable {missing[0]!r}: it is not an ensemble of the solver {spec.solver}.")
        if "start_run" not in file.variables:
            raise DataError(f"{path} does not start from held-out snapshots: there is no truth to score it against.")
        file.set_auto_mask(False)
        for one in spec.fields:
            variable = _variable(file, one)
            if variable.dimensions != ("start", "member", "time", *dimension_names(one)) or variable.shape[3:] != one.shape:
                raise DataError(f"The variable {one.name!r} of {path} is ({', '.join(variable.dimensions)}) of shape "
                                f"{variable.shape}; an ensemble of this solver has (start, member, time) and {one.shape}.")
        yield file
