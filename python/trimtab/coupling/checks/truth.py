# SPDX-License-Identifier: MIT
"""The truth against the solver, before anything long runs: how far apart, in which fields, and can the slot reach it?"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.bridge.opener import open_solver
from trimtab.config.sections import ReferenceConfig
from trimtab.core.errors import ConfigError, TrimtabError
from trimtab.core.spec import SolverSpec
from trimtab.corrections.slot_weights import SlotWeight
from trimtab.coupling.finding import MEND, Finding, unchecked
from trimtab.coupling.harness import FEW, HERE, Bench
from trimtab.coupling.settings import is_free
from trimtab.data.reference import recipe_of
from trimtab.data.reference_reader import complete, known_fields
from trimtab.data.reference_run import make_run, part_path
from trimtab.data.windows import Targets

ROW, REACH = "truth", "truth, reach"
OPENING = "truth's solver"  # the check that opens it, long before any runs; its row is ROW
LEADS = (1, 10, 100)     # outer steps after which they are compared
RUNS = 2                 # of the truth that are looked at
A_LOOK = 10.0            # seconds that each look at the truth may take
LOOK_BYTES = 2**27       # of the truth's states of a look
HORIZON, RECORDS = 2000, 20  # steps in which a truth may develop, and records of them
GROWN = 0.5              # of the largest a field becomes: where it stands then, a run has begun
NAMED = 3                # fields that are named for a lead
STATES = 6               # of the truth, from which one step is corrected
FAINT = 10.0             # times rounding, below which a difference is not looked at
ENOUGH = 0.5             # share of the difference that the outputs should reach
SAME = ("change in [reference] solver what the truth has, or in [solver] what the solver lacks (a value that the code's own "
        "namelist sets holds for both)")
UNSAID = ("give in [reference] solver an option of the adapter, or a value of a namelist, that the truth has and the solver "
          "lacks; or file = \"truth.nc\"")


@dataclass(frozen=True)
class Look:
    """A short look at the truth.

    Args:
        runs: (R, T, N) float64 states, `gap` outer steps apart.
        gap: see above.
        source: where they come from, in words.
        spin_up: time before the first of them.
        settles: time after which the truth's fields have their size; None where nobody looked.
    """

    runs: np.ndarray
    gap: int
    source: str
    spin_up: float
    settles: float | None

    def deviations(self, spec: SolverSpec) -> dict[str, float]:
        """Field -> standard deviation of the anomalies from each component's time mean; 1 for one that does not vary."""
        both = self.runs.reshape(-1, spec.size)
        return {name: _deviation(values, one.rounding) for one, (name, values) in
                zip(spec.fields, spec.split(both).items(), strict=True)}

    def scale(self, spec: SolverSpec) -> np.ndarray:
        """(N,) the deviation of each component's field."""
        deviations = self.deviations(spec)
        return np.concatenate([np.full(one.size, deviations[one.name]) for one in spec.fields])


def _deviation(values: np.ndarray, rounding: float) -> float:
    size = float(np.abs(values).max())
    anomalies = values - values.mean(0)
    deviation = float(np.sqrt(np.mean((anomalies / (size or 1.0)) ** 2))) * size  # squares of 1e-200 are zero
    return deviation if deviation > rounding * size else float(values.std()) or 1.0


def is_said(reference: ReferenceConfig) -> bool:
    """Whether [reference] says of a truth other than the solver itself."""
    return bool(reference.file or reference.solver)


def check_opening(bench: Bench) -> list[Finding]:
    """Whether the truth's solver, and that of its coarse spin-up, can be opened; nothing where they can."""
    reference = bench.experiment.reference
    if reference.file or not (reference.solver or reference.coarse):
        return []
    try:
        recipe = recipe_of(bench.experiment, bench.spec)
    except ConfigError:  # a time that is no whole number of steps: the row of the times says so
        return []
    for section, options in (("[reference] solver", recipe.truth), ("[reference.coarse]", recipe.coarse)):
        if options:
            try:
                bench.opened(options)
            except TrimtabError as error:
                bench.untrue = ROW
                return [Finding(ROW, "bad", f"the truth's solver cannot be opened: {error}", f"see {section}")]
    return []


def check_truth(bench: Bench, weight: dict[str, Any], toml: Path) -> list[Finding]:
    """The rows "truth" and "truth, reach"; the look itself stays on the bench, for the plan of a training.

    Args:
        bench: the code.
        weight: how the slots' outputs enter the state, as measured.
        toml: says whether the spin-up is the doctor's to choose.
    """
    if not is_said(bench.experiment.reference):
        return [Finding(ROW, "note", "[reference] says nothing of a truth (solver = {}), so that it is the solver itself and "
                                     "there is nothing to learn", UNSAID)]
    if bench.cause:
        return [unchecked(name, bench.cause) for name in (ROW, REACH) if name != bench.cause]
    try:
        look = look_at(bench, toml)
    except TrimtabError as error:
        return [Finding(ROW, "bad", f"the truth cannot be looked at: {error}", MEND)]
    finding = compare(bench, look)
    if finding.state == "bad" or not bench.spec.slots:
        return [finding]
    bench.truth = look
    return [finding, reach(bench, look, weight)]


def look_at(bench: Bench, toml: Path) -> Look:
    """The first snapshots of a file, or a short run of the truth's solver, in a process of its own where it can be.

    Raises:
        TrimtabError: what training would refuse.
    """
    reference, h = bench.experiment.reference, bench.stride * bench.spec.dt
    most = max(2, min(LEADS[-1] + 1, LOOK_BYTES // (8 * RUNS * bench.spec.size)))
    if reference.file:
        return _read(bench, h, most)
    recipe = dataclasses.replace(recipe_of(bench.experiment, bench.spec), interval=h)
    most = min(most, 1 + bench.most // bench.stride)
    affordable = int(max(1, min(HORIZON, bench.most, A_LOOK / max(1e-9, bench.seconds))))
    settles, spin_up = None, min(recipe.spin_up, affordable * bench.spec.dt)
    if recipe.spin_up <= 0 or is_free(toml.read_text(encoding="utf-8"), "reference", "spin_up"):
        records = min(RECORDS, affordable)
        stride = affordable // records
        course = _run(bench, dataclasses.replace(recipe, spin_up=0.0, interval=stride * bench.spec.dt, snapshots=records + 1), 1)
        settles = stride * bench.spec.dt * _grown(bench.spec, course)
        spin_up = settles if is_free(toml.read_text(encoding="utf-8"), "reference", "spin_up") else spin_up
    elif spin_up < recipe.spin_up:
        spin_up = affordable * bench.spec.dt
    recipe = dataclasses.replace(recipe, spin_up=spin_up, snapshots=most)
    runs = min(RUNS, recipe.runs)
    states = np.stack([_run(bench, recipe, run) for run in range(recipe.runs - runs, recipe.runs)])
    return Look(states, 1, "the truth's solver", spin_up, settles)


def _read(bench: Bench, h: float, most: int) -> Look:
    experiment = bench.experiment
    targets = Targets(experiment.reference.file, bench.spec, experiment.reference, h, in_memory=0)
    try:
        runs = range(min(RUNS, targets.shape[0]))
        states = np.stack([targets.states(run, slice(0, most * targets.skip, targets.skip)) for run in runs])
    finally:
        targets.close()
    if states.shape[1] < 2:
        raise ConfigError(f"{experiment.reference.file} holds {targets.shape[1]} snapshots, fewer than one outer step of {h:g}.")
    return Look(states, targets.gap, f"the first snapshots of {experiment.reference.file}", 0.0, None)


def _run(bench: Bench, recipe: Any, run: int) -> np.ndarray:
    """(T, N) states of one run of the truth."""
    steps = round((recipe.spin_up + recipe.interval * recipe.snapshots) / bench.spec.dt)
    bench.tell(f"a run of the truth's solver, about {steps} steps")
    with tempfile.TemporaryDirectory(prefix="trimtab-truth-") as folder:
        for _ in make_run(recipe, run, Path(folder), _open_here):
            pass
        records = np.load(part_path(Path(folder), run))
    known = known_fields(bench.spec, bench.experiment.reference.hidden).fields
    return _complete(bench, np.concatenate([records[one.name].reshape(len(records), -1) for one in known], axis=1))


def _open_here(name: str, **options: Any) -> Any:
    """The truth's solver; a code with an adapter in this process, as the bench has its own."""
    if "library" in options:
        options = {key: value for key, value in options.items() if key not in HERE} | {"isolation": "none"}
    return open_solver(name, **options)


def _complete(bench: Bench, states: np.ndarray) -> np.ndarray:
    return np.asarray(complete(bench.spec, bench.experiment.reference.hidden, states))


def _grown(spec: SolverSpec, course: np.ndarray) -> int:
    """The record at which every visible field has had `GROWN` of the size it comes to have at most."""
    first = 0
    for one, values in zip(spec.fields, spec.split(course).values(), strict=True):
        if one.hidden or not one.dtype.startswith(("real", "float")):
            continue
        sizes = np.abs(values - values.mean(0)).reshape(len(course), -1).max(1) if one.size == 1 else \
            (values.reshape(len(course), -1) - values.reshape(len(course), -1).mean(1, keepdims=True)).std(1)
        if sizes.max() > one.rounding * np.abs(values).max():
            first = max(first, int(np.argmax(sizes >= GROWN * sizes.max())))
    return first


def compare(bench: Bench, look: Look) -> Finding:
    """The row "truth": distances after some steps, in the field's unit and in standard deviations; bad where there is none."""
    spec, truth, deviations = bench.spec, look.runs[-1], look.deviations(bench.spec)
    last = (len(truth) - 1) * look.gap
    said: list[str] = []
    hidden, visible, position, state = "", False, 0, truth[:1]
    for lead in sorted({min(last, -(-lead // look.gap) * look.gap) for lead in LEADS}):
        window = bench.advance(state, 1, stride=(lead - position) * bench.stride, on_blow_up="mark")
        after = f"after {lead} step{'s' * (lead > 1)}"
        if not window.alive.all():
            return Finding(ROW, "note", f"{look.source}, against the solver: {'; '.join([*said, after])} the solver leaves the "
                           "finite numbers, from the truth's states", "see whether the code can start from those; a shorter dt")
        state, position, there = window.states[1], lead, truth[lead // look.gap]
        hidden = hidden or ", ".join(bench.differing(state[0], there)[:NAMED])
        apart = _distances(spec, state[0], there, deviations)
        visible = visible or bool(apart)
        said.append(f"{after} {', '.join(apart[:NAMED]) or 'no visible field'}"
                    + f" and {len(apart) - NAMED} other fields less" * (len(apart) > NAMED))
    if not hidden:
        return Finding(ROW, "bad", f"the solver makes the truth's steps bit for bit over {last} steps in all fields, hidden ones "
                       f"too ({look.source}): there is nothing to learn", SAME)
    if not visible:
        return Finding(ROW, "note", f"{look.source}, against the solver: in {last} steps only hidden fields differ ({hidden})",
                       "a longer training.window, or a truth that differs sooner: a loss sees visible fields alone")
    return Finding(ROW, "ok", f"{look.source}, against the solver: {'; '.join(said)}")


def _distances(spec: SolverSpec, one: np.ndarray, other: np.ndarray, deviations: dict[str, float]) -> list[str]:
    """The visible fields that differ, the most differing first, in words."""
    views = zip(spec.fields, spec.split(one).values(), spec.split(other).values(), strict=True)
    off = [(_root_mean_square(a - b), field) for field, a, b in views if not field.hidden]
    off = sorted((pair for pair in off if pair[0] > 0), key=lambda pair: -pair[0] / deviations[pair[1].name])
    return [f"{field.name} by {size:.2g}{f' {field.units}' if field.units != '1' else ''} ({size / deviations[field.name]:.1g} σ)"
            for size, field in off]


def _root_mean_square(values: np.ndarray) -> float:
    size = float(np.abs(values).max())
    return size * float(np.sqrt(np.mean(np.square(values / size)))) if size else 0.0


def labels_of(bench: Bench, look: Look, weight: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """States of the truth, one outer step of each, what the slots see there, and what they should return.

    Returns:
        (S, N) starts, (S, N) the truth one outer step later, (S, M) inputs and (S, M') outputs.

    Raises:
        ConfigError: weights measured at another stride.
    """
    bench.solver.weight = SlotWeight(bench.spec, weight)
    starts, ends = look.runs[:, :-1].reshape(-1, bench.spec.size), look.runs[:, 1:].reshape(-1, bench.spec.size)
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(len(starts), STATES if not bench.slow else 2)).round().astype(int))
    starts, ends = np.ascontiguousarray(starts[chosen]), ends[chosen]
    after = bench.advance(starts, 1, stride=bench.stride, on_blow_up="mark").states[1]
    missing = (ends - after) / (bench.stride * bench.spec.dt)
    kept = np.isfinite(missing).all(1)
    seen, outputs = bench.solver.slot_view(starts[kept], missing[kept], bench.stride)
    return starts[kept], ends[kept], seen, outputs


def reach(bench: Bench, look: Look, weight: dict[str, Any]) -> Finding:
    """The row "truth, reach": which share of one step's difference is gone when the slots return the offline label, in the code
    itself; by field, in standard deviations."""
    if look.gap > 1:
        return Finding(REACH, "note", f"not looked at: the truth has a snapshot every {look.gap} outer steps only",
                       "a training with sparse targets learns online: leave offline.steps at 0")
    spec = bench.spec
    starts, ends, _, outputs = labels_of(bench, look, weight)
    scale, shown = look.scale(spec), [one for one in spec.fields if not one.hidden]
    before, after = np.empty_like(starts), np.empty_like(starts)
    for number, (start, outs) in enumerate(zip(starts, outputs, strict=True)):
        before[number] = bench.run(start, 1, stride=bench.stride, noop=True)[1]
        after[number] = bench.run(start, 1, stride=bench.stride, outputs=outs)[1] if outs.any() else before[number]
    gone: dict[str, tuple[float, float]] = {}
    least = faintest(spec, starts)
    for one, off, left, size in zip(spec.fields, *(spec.split(part).values() for part in (
            (ends - before) / scale, (ends - after) / scale, scale[None])), strict=True):
        if not one.hidden and _root_mean_square(off) * size.flat[0] > least[one.name]:
            gone[one.name] = float(np.sum(off**2)), float(np.sum(left**2))
    if not gone:
        return Finding(REACH, "note", f"one step differs by no more than {FAINT:g} times the rounding of the fields, so that the "
                       "offline label is noise", f"learn online over a window of {FEW} steps or more, with offline.steps = 0")
    whole = sum(off for off, _ in gone.values())
    share = 1 - sum(left for _, left in gone.values()) / whole
    bench.reached = max(0.0, share)
    beyond = [f"{name} ({off / whole:.0%} of it)" for name, (off, left) in gone.items() if left > (1 - ENOUGH) * off
              and off > 0.05 * whole]
    found = (f"outputs that return the offline label take away {max(0.0, share):.0%} of the difference of one step, over "
             f"{len(gone)} of {len(shown)} fields")
    if beyond:
        found += f"; they do not reach {', '.join(beyond)}"
    if share >= ENOUGH:
        return Finding(REACH, "ok", found)
    return Finding(REACH, "note", found, "give the slot an output for those fields, or a truth that differs in what it reaches; "
                                         "or the difference arrives later than one step, and is learned online alone")


def faintest(spec: SolverSpec, states: np.ndarray) -> dict[str, float]:
    """Field -> root mean square difference below which it is the rounding of the field at these states."""
    return {one.name: FAINT * (6e-8 if one.dtype.endswith("32") else 1.1e-16) * _root_mean_square(values)
            for one, values in zip(spec.fields, spec.split(states).values(), strict=True)}
