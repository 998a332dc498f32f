# SPDX-License-Identifier: MIT
"""What the members of an ensemble start from: an analysis each, and a perturbation that follows from the member's number.

Sources: random-field (climatological) perturbations: Magnusson, Nycander, Kallen, Tellus A 61, 194 (2009),
doi:10.1111/j.1600-0870.2008.00385.x. Bred vectors: Toth and Kalnay, Bull. Amer. Meteor. Soc. 74, 2317 (1993),
doi:10.1175/1520-0477(1993)074<2317:EFANTG>2.0.CO;2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.config.experiment import Experiment
from trimtab.core.errors import ConfigError, DataError, InputError
from trimtab.core.progress import silent
from trimtab.core.random_fields import climate_scales, coloured, coloured_variance, field_parts
from trimtab.core.spec import SolverSpec
from trimtab.data.climatology import climate_states
from trimtab.data.completeness import open_data
from trimtab.data.field_names import find_name, missing_sentence
from trimtab.data.reference import Progress, make_reference, reference_path
from trimtab.data.windows import Targets
from trimtab.forecast.forecast import _start_values
from trimtab.parallel.world import World

KINDS = ("spectral", "bred", "climatology", "none")
NO_SPACE = "component"   # name of a dimension along which there is nothing to be smooth in

Advance = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Perturbation:
    """How members differ at the start.

    Args:
        kind: "spectral" for random fields of mean 0 and amplitude (1 + k)^-slope (white where a field has no space);
            "bred" for vectors bred on the states before the start, from such fields, each times a standard normal
            number; "climatology" for differences of two states of the climatology over sqrt(2); "none".
        amplitude: expected root mean square, over the standard deviation of each field in the climatology (without a
            climatology: over the root mean square of the field at the start).
        slope: of the spectrum.
        cycles: breeding cycles, each one interval between the states before the start.
        displaced: move the start itself by one more perturbation, as an analysis is off the truth: then a perfect solver
            makes a reliable ensemble, whereas around the truth itself any is too wide at first.

    Raises:
        ConfigError: another kind, or a value out of range.
    """

    kind: str = "spectral"
    amplitude: float = 0.05
    slope: float = 2.0
    cycles: int = 10
    displaced: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"The perturbation {self.kind!r} is not one of {', '.join(KINDS)}.")
        if not (np.isfinite(self.amplitude) and self.amplitude > 0):
            raise ConfigError(f"The perturbations' amplitude {self.amplitude} must be a finite number above 0; for members "
                              "that start alike give the kind \"none\".")
        if not np.isfinite(self.slope) or self.cycles < 1:
            raise ConfigError(f"The perturbations' slope {self.slope} must be finite and their cycles {self.cycles} 1 or "
                              "more.")


@dataclass(frozen=True)
class Starts:
    """Analyses that an ensemble starts from.

    Args:
        states: (S, N) float64.
        times: (S,) in the solver's unit of time.
        climate: (T, N) states of the climatology, or None.
        before: (S, L + 1, N) states that end in the start, `interval_steps` apart, for bred vectors; or None.
        interval_steps: inner steps between two of them.
        places: (S, 2) number of the held-out run and of its snapshot, (-1, -1) for a start from elsewhere.
    """

    states: np.ndarray
    times: np.ndarray
    climate: np.ndarray | None = None
    before: np.ndarray | None = None
    interval_steps: int = 0
    places: np.ndarray = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))


def held_out(experiment: Experiment, spec: SolverSpec, starts: int, duration: float, perturbation: Perturbation) -> Starts:
    """Starts at held-out snapshots, one held-out run after the other, evenly spaced in each, with truth ahead of them.

    Args:
        experiment: whose reference run is used; it has to be there.
        spec: the solver's.
        starts: how many, S.
        duration: of the forecasts; where a run is shorter, a forecast may end after the truth.
        perturbation: bred ones need snapshots before the start.

    Returns:
        The starts, with the climatology of the training runs.

    Raises:
        ConfigError: more starts than snapshots, or runs too short for the breeding cycles.
    """
    targets = Targets(reference_path(experiment, spec), spec, experiment.reference, experiment.training.stride * spec.dt,
                      in_memory=0)
    try:
        test = targets.runs("test")
        runs, length = test.shape[:2]
        before = perturbation.cycles if perturbation.kind == "bred" else 0
        ahead = min(int(np.ceil(duration / targets.interval - 1e-6)), max(0, length - 1 - before))
        choices = length - before - ahead
        if runs < 1 or choices < 1 or not 1 <= starts <= runs * choices:
            raise ConfigError(f"{starts} starts with {before} snapshots before and {ahead} after them: the {runs} held-out runs "
                              f"of {length} snapshots hold {runs * max(0, choices)} such places; ask for fewer starts or "
                              "cycles, or raise reference.test_runs or reference.snapshots.")
        rounds = -(-starts // runs)
        snapshots = before + np.linspace(0, choices - 1, rounds + 1).astype(int)[:rounds] if rounds < choices \
            else before + np.arange(rounds)
        places = np.array([(one % runs, snapshots[one // runs]) for one in range(starts)])
        steps = _whole_interval(targets, spec) if before else 0
        history = np.stack([test[run, at - before : at + 1] for run, at in places])
        return Starts(history[:, -1].copy(), places[:, 1] * targets.interval, climate_states(targets.runs("training")),
                      history if before else None, steps, places)
    finally:
        targets.close()


def of_file(path: str | Path, experiment: Experiment, spec: SolverSpec) -> Starts:
    """Starts from the last record of a netCDF file; nothing is known of the truth ahead of them, nor of what was before.

    Args:
        path: see `trimtab.forecast.initial_conditions.file_starts`.
        experiment: whose training runs are the climatology; its reference run has to be there.
        spec: the solver's.

    Returns:
        The starts.

    Raises:
        DataError, InputError: see `file_starts`.
    """
    states, time = file_starts(path, spec)
    targets = Targets(reference_path(experiment, spec), spec, experiment.reference, experiment.training.stride * spec.dt,
                      in_memory=0)
    try:
        return Starts(states, np.full(len(states), time), climate_states(targets.runs("training")))
    finally:
        targets.close()


def perturbation_scales(spec: SolverSpec, start: np.ndarray, climate: np.ndarray | None) -> np.ndarray:
    """What an amplitude of 1 is, at every place of the state.

    Args:
        spec: the solver's.
        start: (N,) analysis.
        climate: (T, N) or None.

    Returns:
        (N,) in the state's unit.
    """
    anomalies = start[None] if climate is None else climate - climate.mean(0)
    return climate_scales(anomalies, _shapes(spec))


def draw(perturbation: Perturbation, spec: SolverSpec, starts: Starts, start: int, member: int, seed: int) -> np.ndarray:
    """The random part of one member's perturbation; it follows from seed, start and member alone.

    Args:
        perturbation: its kind.
        spec: the solver's.
        starts: the analyses.
        start, member: their numbers.
        seed: of the ensemble.

    Returns:
        (N,) in the state's unit; of a bred one, what its breeding begins with.

    Raises:
        ConfigError: a climatology is needed and there is none, or it does not vary.
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, start, member]))
    if perturbation.kind == "none":
        return np.zeros(spec.size)
    if perturbation.kind == "climatology":
        climate = starts.climate
        if climate is None or len(climate) < 2 or not np.ptp(climate, axis=0).any():
            raise ConfigError("Perturbations from climatology need one: two or more states that differ.")
        first, second = generator.choice(len(climate), 2, replace=False)
        return perturbation.amplitude * (climate[first] - climate[second]) / np.sqrt(2)
    row = generator.standard_normal((1, spec.size))
    for one, (part, shape) in zip(spec.fields, field_parts(_shapes(spec)), strict=True):
        if NO_SPACE not in one.dims and one.size > 1:
            waves = coloured(row[:, part], shape, perturbation.slope)
            variance = coloured_variance(shape, perturbation.slope) - 1 / one.size  # without the mean's
            row[:, part] = (waves - waves.mean()) / np.sqrt(variance)
    return perturbation.amplitude * row[0] * perturbation_scales(spec, starts.states[start], starts.climate)


def breed(first: np.ndarray, before: np.ndarray, scales: np.ndarray, amplitude: float, advance: Advance) -> np.ndarray:
    """Bred vectors: perturbations carried along analyses by the hybrid, and cut back to their amplitude after each cycle.

    Args:
        first: (B, N) perturbations to begin with.
        before: (L + 1, N) analyses, the last of them the start.
        scales: (N,), see `perturbation_scales`.
        amplitude: root mean square over the scales after each cycle.
        advance: (B, N) states and number of the cycle -> (B, N) states one interval later.

    Returns:
        (B, N).

    Raises:
        InputError: a perturbation that died out.
    """
    rows = first
    for cycle, analysis in enumerate(before[:-1]):
        rows = advance(analysis + rows, cycle) - advance(analysis[None], cycle)
        size = np.sqrt(np.mean(np.square(rows / scales), axis=1, keepdims=True))
        if not (size > 0).all():
            raise InputError("A perturbation died out while it was bred; perturb by climatology instead.")
        rows = rows * (amplitude / size)
    return rows


def bred_factor(start: int, member: int, seed: int) -> float:
    """The standard normal number that a bred vector is multiplied with: else all would lie equally far from the start."""
    return float(np.random.default_rng(np.random.SeedSequence([seed, start, member], spawn_key=(2,))).standard_normal())


def vary(parameters: dict[str, float], spec: SolverSpec, member: int, seed: int) -> dict[str, Any]:
    """A member's own parameters of the solver: value times exp(spread z), z standard normal, the same for every start.

    Args:
        parameters: name -> spread.
        spec: the solver's, whose parameters are varied.
        member: its number.
        seed: of the ensemble.

    Returns:
        name -> value.

    Raises:
        ConfigError: an unknown parameter, one that is no real number or is 0, or a spread that is not above 0.
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, member], spawn_key=(1,)))
    values = {}
    for name, spread in sorted(parameters.items()):
        value = spec.parameters.get(name)
        if not isinstance(value, float) or value == 0:
            real = ", ".join(key for key, one in spec.parameters.items() if isinstance(one, float) and one != 0)
            raise ConfigError(f"The parameter {name!r} of {spec.solver} cannot be varied by a factor; those that can are "
                              f"{real or 'none'}.")
        if not (np.isfinite(spread) and spread > 0):
            raise ConfigError(f"The spread {spread} of {name!r} must be a finite number above 0.")
        values[name] = value * float(np.exp(spread * generator.standard_normal()))
    return values


def _shapes(spec: SolverSpec) -> tuple[tuple[int, ...], ...]:
    return tuple(one.shape for one in spec.fields)


def _whole_interval(targets: Targets, spec: SolverSpec) -> int:
    steps = round(targets.interval / spec.dt)
    if steps < 1 or abs(steps * spec.dt - targets.interval) > 1e-4 * targets.interval:
        raise ConfigError(f"The snapshots of {targets.path} are {targets.interval:g} apart, no multiple of the solver's step "
                          f"{spec.dt:g}: bred vectors need one; perturb by climatology instead.")
    return steps


def held_out_starts(
    experiment: Experiment, spec: SolverSpec, members: int, progress: Progress = silent, world: World | None = None
) -> np.ndarray:
    """Initial states from the held-out runs: the first snapshot of each, then later ones at even spacing.

    Args:
        experiment: whose reference run is used, and made when it is not there.
        spec: the solver's.
        members: how many.
        progress: told how far the making of a reference run is.
        world: ranks that share the solver, all of which call this.

    Returns:
        (members, N) float64.

    Raises:
        ConfigError: more members than held-out snapshots, or no held-out run.
    """
    path = make_reference(experiment, spec, progress=progress, world=world)
    targets = Targets(path, spec, experiment.reference, experiment.training.stride * spec.dt)
    try:
        test = targets.runs("test")
        runs, length = test.shape[:2]
        if members < 1 or members > runs * length:
            raise ConfigError(f"--members {members}: the held-out runs hold {runs * length} snapshots to start from.")
        rounds = -(-members // runs)
        times = np.linspace(0, length - 1, rounds + 1).astype(int)[:rounds]
        return np.stack([test[member % runs, int(times[member // runs])] for member in range(members)])
    finally:
        targets.close()


def initial_start(solver: Any, members: int = 0) -> np.ndarray:
    """The state with which a coupled code starts by itself, hidden fields included, as its own program does in production.

    Args:
        solver: any.
        members: how many are asked for; there is one such state.

    Returns:
        (1, N) float64.

    Raises:
        ConfigError: a solver without a start of its own, or more members than one.
    """
    if not hasattr(solver, "initial_state"):
        raise ConfigError(f"--start own: {solver.spec.solver} has no start of its own, as a coupled code has; give --start a "
                          "netCDF file (of this name: ./own), or leave it out to start from the held-out runs.")
    if members > 1:
        raise ConfigError(f"--start own is one state, fewer than --members {members}.")
    return np.asarray(solver.initial_state(), dtype=np.float64).reshape(1, -1)


def file_starts(path: str | Path, spec: SolverSpec, members: int = 0) -> tuple[np.ndarray, float]:
    """Initial states from a netCDF file: its last record, so that the output of one run starts the next.

    Args:
        path: a file with the solver's fields, dimensions ([time], [member or run], ...).
        spec: the solver's.
        members: how many, the first of the file; 0 for all.

    Returns:
        (B, N) float64 and the time of the record (0 when the file has none).

    Raises:
        DataError: no such file, one cut short or not written to its end, a missing variable, another grid, or too few members.
        InputError: a value that is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no file {path} to start from.")
    with contextlib.closing(open_data(path)) as file:
        try:
            names = {field.name: find_name(file.variables, field) for field in spec.fields}
            for field in spec.fields:
                if names[field.name] is None:
                    raise DataError(f"{path} has {missing_sentence(file.variables, field)}.")
            last = (file.isel(time=-1) if "time" in file.dims else file).load()
        except (OSError, RuntimeError, IndexError) as error:
            raise DataError(f"{path} cannot be read as a netCDF file with at least one record, it may be cut short "
                            f"({type(error).__name__}).") from error
    parts = [_start_values(last[names[field.name]], field, path) for field in spec.fields]
    states = np.concatenate(parts, axis=1)
    time = float(last["time"]) if "time" in last.coords and last["time"].ndim == 0 else 0.0
    if not np.isfinite(time):
        raise DataError(f"The last time of {path} was never written: write the file again, or cut its last record off.")
    if members > len(states):
        raise DataError(f"{path} holds {len(states)} states to start from, fewer than --members {members}.")
    return spec.check_states(states[: members or None], f"the last record of {path}"), time
