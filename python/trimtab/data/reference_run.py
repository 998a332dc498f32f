# SPDX-License-Identifier: MIT
"""One run of the truth's solver, filtered to the solver's grid; several processes may share the runs.

Every run is computed alone, so that its bits depend neither on how many runs there are nor on who shares them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.bridge.opener import open_solver
from trimtab.core.atomic_files import replacing
from trimtab.core.errors import ConfigError, TrimtabError
from trimtab.core.random_fields import random_line, random_vorticity, smooth_waves
from trimtab.core.solver import Solver
from trimtab.core.spec import SolverSpec
from trimtab.data.filters import coarsen, refine

CHUNK_BYTES = 2**25  # of the truth's states held at once
SPIN_UP_STEPS = 256  # between two signs of life; part of a run's bits, because a recorded state is entered again
SINGLE = 1.2e-7  # the distance of two neighbouring real32 numbers, of their size
Opener = Callable[..., Solver]


@dataclass(frozen=True)
class Recipe:
    """Everything a reference run depends on.

    Args:
        truth: keywords of `open_solver` for the truth, with its name.
        coarse: the same for a cheaper spin-up before; empty for none.
        coarse_spin_up, spin_up: time with each before the first snapshot.
        interval: time between snapshots.
        snapshots, runs: their numbers.
        initial, perturbation, seed, filter, filter_width: see `ReferenceConfig`.
        fields: (name, shape) of each field of the solver that the truth knows, in the solver's order: pairs, because the order of
            a mapping is lost in JSON.
    """

    truth: Mapping[str, Any]
    coarse: Mapping[str, Any]
    coarse_spin_up: float
    spin_up: float
    interval: float
    snapshots: int
    runs: int
    initial: tuple[float, ...]
    perturbation: float
    seed: int
    filter: str
    filter_width: float
    fields: Sequence[tuple[str, Sequence[int]]]

    def to_json(self) -> str:
        """As text, the same for the same parameters; what is read back from it makes the same runs."""
        return json.dumps(dataclasses.asdict(self), default=dict)

    @property
    def record(self) -> np.dtype[Any]:
        """One snapshot in a part file, float64: its fields are found by their names."""
        return np.dtype([(name, "<f8", tuple(shape)) for name, shape in self.fields])


def whole_steps(time: float, dt: float, what: str, kind: str = "real64") -> int:
    """Number of steps dt in a time.

    Args:
        time, dt: in one unit.
        what: is asked for, for the refusal.
        kind: how the solver keeps dt; a real32 is off what the user wrote by up to 6e-8 of it.

    Raises:
        ConfigError: not a whole number, within rounding.
    """
    steps = round(time / dt)
    if not math.isclose(steps * dt, time, rel_tol=SINGLE if kind == "real32" else 1e-9, abs_tol=1e-12):
        raise ConfigError(f"{what} = {time:g} is not a whole number of steps dt = {dt:g}.")
    return steps


def part_path(folder: Path, run: int) -> Path:
    """File of one finished run: (snapshots,) records, see `Recipe.record`, in numpy's format."""
    return folder / f"run-{run:05d}.npy"


def make_run(recipe: Recipe, run: int, folder: Path, open_solver: Opener, *, writes: bool = True) -> Iterator[float]:
    """Compute one run and leave it in its part file.

    Args:
        recipe: the parameters.
        run: its number, which with the seed decides its initial state.
        folder: of the part files.
        open_solver: opens a solver by name and keywords.
        writes: whether to write the file, which of the ranks that share a solver one does.

    Yields:
        The done part, 0 to 1.

    Raises:
        ConfigError: the truth's solver does not fit the solver.
        BlowUpError: the truth left the finite numbers.
    """
    generator = np.random.default_rng((recipe.seed, run))
    truth = open_solver(**recipe.truth)
    coarse = open_solver(**recipe.coarse) if recipe.coarse else truth
    try:
        _filtered(recipe, truth.spec, np.zeros((1, truth.spec.size)))  # what does not fit is refused before the spin-up
        stride = whole_steps(recipe.interval, truth.spec.dt, "reference.interval", truth.spec.dt_kind)
        spin_up = [(truth, whole_steps(recipe.spin_up, truth.spec.dt, "reference.spin_up", truth.spec.dt_kind))]
        if recipe.coarse:
            spin_up.insert(0, (coarse, whole_steps(recipe.coarse_spin_up, coarse.spec.dt, "reference.coarse.spin_up",
                                                   coarse.spec.dt_kind)))
        work = sum(solver.spec.size * steps for solver, steps in spin_up)
        work += truth.spec.size * stride * (recipe.snapshots - 1)
        done = 0
        state = _initial(recipe, coarse, run, generator)
        for solver, steps in spin_up:
            if solver is truth and coarse is not truth:
                state = _handed_over(state, coarse.spec, truth.spec)
            for first in range(0, steps, SPIN_UP_STEPS):
                inner = min(SPIN_UP_STEPS, steps - first)
                state = solver.advance(state, 1, stride=inner).states[1]
                done += inner * solver.spec.size
                yield done / work
        chunk = max(1, CHUNK_BYTES // (8 * truth.spec.size))
        with _part(part_path(folder, run), recipe, writes) as out:
            _store(out, 0, _filtered(recipe, truth.spec, state))
            at = 1
            while at < recipe.snapshots:
                count = min(chunk, recipe.snapshots - at)
                states = truth.advance(state, count, stride=stride, time=(at - 1) * recipe.interval).states
                if writes:
                    _store(out, at, _filtered(recipe, truth.spec, states[1:, 0]))
                state, at, done = states[-1].copy(), at + count, done + count * stride * truth.spec.size
                yield done / work
    finally:
        truth.close()
        coarse.close()


def work() -> None:
    """A process of `reference.make_reference`: reads its task as JSON, writes its progress as JSON lines.

    It ends when its reader does: writing to a closed pipe is an error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, for all its processes: the one that started this ends it
    messages = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not mix with the messages
    task = json.load(sys.stdin)
    recipe = Recipe(**task["recipe"])
    try:
        for run in task["runs"]:
            for fraction in make_run(recipe, run, Path(task["folder"]), open_solver):
                messages.write(json.dumps({"run": run, "fraction": fraction}) + "\n")
    except BrokenPipeError:
        os._exit(1)  # nobody listens any more; leave without a word
    except TrimtabError as error:
        messages.write(json.dumps({"error": type(error).__name__, "text": str(error)}) + "\n")
        sys.exit(1)


@contextlib.contextmanager
def _part(path: Path, recipe: Recipe, writes: bool) -> Iterator[np.ndarray]:
    """The mapped part file, whole afterwards or absent; for a rank that does not write room for the first snapshot."""
    if not writes:
        yield np.empty(1, recipe.record)
        return
    with replacing(path) as partial:
        out = np.lib.format.open_memmap(partial, "w+", recipe.record, (recipe.snapshots,))
        _reserve(partial)
        yield out
        out.flush()
        del out


def _reserve(path: Path) -> None:
    """Take the room on the disk now: a mapped file that finds none later ends the process without a word."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _store(out: np.ndarray, at: int, fields: Mapping[str, np.ndarray]) -> None:
    """Put (T, *shape) arrays of the fields into the records from number `at` on."""
    for name, values in fields.items():
        out[name][at : at + len(values)] = values


def _initial(recipe: Recipe, solver: Solver, run: int, generator: np.random.Generator) -> np.ndarray:
    spec = solver.spec
    if not recipe.initial and hasattr(solver, "initial_state"):
        return _own_initial(recipe, solver.initial_state(), spec, run, generator)
    if not recipe.initial:
        if spec.fields[0].dims == ("x",) and len(spec.fields) == 1:
            return random_line(spec.size, generator)[None]
        if len(spec.grid) != 2:
            raise ConfigError(f"reference.initial is empty: give the {spec.size} numbers of an initial state of "
                              f"{spec.solver} (only a field on a grid can start from a random one).")
        return random_vorticity((spec.grid[0], spec.grid[1]), generator).reshape(1, -1)
    if len(recipe.initial) not in (1, spec.size):
        raise ConfigError(f"reference.initial holds {len(recipe.initial)} numbers; the truth's solver {spec.solver} "
                          f"needs {spec.size}, or one for all.")
    state = np.full((1, spec.size), recipe.initial[0]) if len(recipe.initial) == 1 else np.array([recipe.initial])
    if run > 0 or len(recipe.initial) == 1:
        state = state + recipe.perturbation * generator.standard_normal(state.shape)
    return state


def _own_initial(recipe: Recipe, state: np.ndarray, spec: SolverSpec, run: int, generator: np.random.Generator) -> np.ndarray:
    """A code's own start, perturbed in every run but the first."""
    if run == 0:
        return state.copy()
    if not recipe.perturbation:
        raise ConfigError("reference.perturbation = 0 would start every run from the same state: give it a size, 0.01 for "
                          "instance.")
    perturbed = perturb(state, spec, recipe.perturbation, generator)
    if np.array_equal(perturbed, state):
        raise ConfigError(f"The state that {spec.solver} starts from is zero, and so is a perturbation of it: give "
                          "reference.initial, or a "
                          "reference.file.")
    return perturbed


def perturb(state: np.ndarray, spec: SolverSpec, amplitude: float, generator: np.random.Generator) -> np.ndarray:
    """A state times 1 + amplitude x random smooth waves, the same for all fields of a shape: what is zero, a wall or a mask,
    stays zero, and fields in balance stay near it. Flags and counters are left alone.

    Args:
        state: (1, N).
        spec: of its solver.
        amplitude: of the waves.
        generator: draws them.

    Returns:
        (1, N).
    """
    waves: dict[tuple[int, ...], np.ndarray] = {}
    parts = []
    for field, values in zip(spec.fields, spec.split(state).values(), strict=True):
        if field.dtype.startswith(("real", "float")):
            if field.shape not in waves:
                waves[field.shape] = smooth_waves(field.shape, generator)
            values = values * (1 + amplitude * waves[field.shape])
        parts.append(values.reshape(1, -1))
    return np.concatenate(parts, axis=1)


def _handed_over(state: np.ndarray, spec: SolverSpec, other: SolverSpec) -> np.ndarray:
    """(1, N) of the cheaper solver as (1, N') of the truth's: fields by their names, a single one on a plane refined."""
    if spec.size != other.size:
        return _refined(state, spec, other)
    shapes, others = ({one.name: one.shape for one in each.fields} for each in (spec, other))
    if len(others) == 1 and list(shapes.values()) == list(others.values()):
        return state
    if shapes != others:
        raise ConfigError(f"The fields of the spin-up in reference.coarse, {', '.join(shapes)}, are not those of the truth, "
                          f"{', '.join(others)}: take a solver with the same fields, or leave reference.coarse out.")
    views = spec.split(state)
    return np.concatenate([views[name].reshape(1, -1) for name in others], axis=1)


def _refined(state: np.ndarray, spec: SolverSpec, finer: SolverSpec) -> np.ndarray:
    if len(spec.grid) != 2:
        raise ConfigError(f"The spin-up of {spec.solver} in reference.coarse has another size than the truth; "
                          "only a field on a plane can change its grid.")
    return refine(state.reshape(1, *spec.grid), (finer.grid[0], finer.grid[1])).reshape(1, -1)


def _filtered(recipe: Recipe, spec: SolverSpec, states: np.ndarray) -> dict[str, np.ndarray]:
    """(T, N of the truth) to (T, *shape) of each field of the solver."""
    views, filtered = spec.split(states), {}
    for name, shape in recipe.fields:
        if name not in views:
            raise ConfigError(f"The truth's solver {spec.solver} has no field {name!r}; it has {', '.join(views)}.")
        view = views[name]
        if len(shape) == 2:
            view = coarsen(view, (shape[0], shape[1]), recipe.filter, recipe.filter_width)
        elif view.shape[1:] != tuple(shape):
            raise ConfigError(f"The field {name!r} has shape {view.shape[1:]} in the truth and {tuple(shape)} in the "
                              "solver; only fields on a plane can be filtered.")
        filtered[name] = view
    return filtered
