# SPDX-License-Identifier: MIT
"""A constant tendency must move its field by c h: with which weight does it?"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.errors import CorrectionError
from trimtab.core.random_fields import smooth_waves
from trimtab.core.spec import Field
from trimtab.corrections.slot_weights import named_outputs, write_components
from trimtab.coupling.checks.response import measure_responses
from trimtab.coupling.finding import MEND, Finding
from trimtab.coupling.harness import OTHER, Bench

SMALLEST = 0.01         # a response below it, in c h, is the flow's own
DRIFT = (4, 8, 16)      # inner steps between which a lasting tendency's drift is measured, twice; even, for leapfrog
SNAP, SNAP_STEADY = 0.05, 0.15
LATER = 200             # steps after which a weight by component is measured once more
AGREE = 0.15            # two measurements of one drift, or of one component's response
UNLIKE, FEW = 0.1, 0.02  # a component's distance from the middle, of it; and the share of such ones that passes as none
PROPORTIONATE = 0.1     # spread of a response in another field, above which it is the flow's own
RELATIVE = {"real32": 1e-3, "real64": 1e-6}  # size of the push, of the field's
STRENGTH = "it acts"    # a remedy that begins so is of a weight other than 1
UNTOLD = "cannot be told"  # in what is found of an output whose weight could not be measured
CALL = ("the output does not arrive: call the correction after the tendency is complete and before the step uses it, and add to "
        "the array that it uses; after the step nobody reads that any more")
REPEAT = "see restart and random numbers"
SILENT = ("fine where they are land, padding or cut waves: the network's answer there does nothing; else add before the code "
          "masks or sets them")


@dataclass
class Push:
    """What pushing one output showed.

    Args:
        finding: its row.
        drift: how a lasting tendency moves its field, in c a unit of time; None where it could not be measured.
        response: field -> how one outer step moves it, in c h.
        arrays: the same by component, "steady" and "step/FIELD" -> (m,) float64; empty where one number holds for all.
    """

    finding: Finding
    drift: float | None = None
    response: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def check_weight(bench: Bench, folder: Path = Path()) -> tuple[list[Finding], dict[str, Any]]:
    """Push each output, look at every field; the findings, and [solver] weight ({} when it is what is believed anyway).

    A response that takes a matrix, and weights by component, are written into `folder`.
    """
    findings: list[Finding] = []
    elsewhere, pushes = {}, {}
    before = bench.own.library.calls()
    try:
        bench.run(bench.state, 1, noop=True)
    except CorrectionError as error:  # not one call in a step
        return [Finding("weight", "bad", str(error), MEND)], {}
    calls = bench.own.library.calls() - before
    outputs, position = named_outputs(bench.spec), 0
    last = DRIFT[-1] if DRIFT[-1] <= bench.most else DRIFT[1]
    free = (bench.run(bench.state, 1, stride=bench.stride, noop=True)[-1:], bench.run(bench.state, last, noop=True))
    bench.run(bench.state, 1, stride=OTHER)
    noise = np.abs(bench.run(bench.state, 1, stride=bench.stride, noop=True)[-1:] - free[0])
    for name, output in outputs.items():
        part = slice(position, position + output.size)
        position += output.size
        own = next((one for one in bench.spec.fields if one.name == output.name and one.shape == output.shape), None)
        if own is None:
            elsewhere[name] = part, output
            continue
        pushes[name] = _measure(bench, name, output, own, part, calls, free, noise)
        findings.append(pushes[name].finding)
    found: list[Finding] = []
    factors: dict[str, float] = {}
    responses = None
    if elsewhere and noise.any():
        found = [Finding(f"weight of {name}", "note", f"{UNTOLD}: two runs of one step from the same state with zeros in the "
                         f"slot differ by up to {noise.max():.2g}", REPEAT) for name in elsewhere]
    elif elsewhere:
        found, factors, responses = measure_responses(bench, elsewhere, position)
    if not elsewhere:
        findings = _one_factor(findings, list(pushes.values()))
    plain = all(one.drift in (None, 1) and one.response in ({}, {outputs[name].name: 1.0}) and not one.arrays
                for name, one in pushes.items()) and responses is None
    # What could not be measured is taken for 1; what does not arrive has no weight.
    steady = {name: 1.0 if one.drift is None else one.drift for name, one in pushes.items() if one.response}
    weight: dict[str, Any] = {"stride": bench.stride, "steady": {**steady, **factors},
                              "step": {name: one.response for name, one in pushes.items() if one.response}}
    arrays = {f"{name}/{key}": array for name, one in pushes.items() for key, array in one.arrays.items()}
    if arrays:
        weight["components"] = str(folder / f"{bench.spec.solver}-weight.npz")
        write_components(Path(weight["components"]), arrays)
    if responses is not None:
        weight["response"] = str(folder / f"{bench.spec.solver}-response.npz")
        responses.write(Path(weight["response"]))
    return [*findings, *found], {} if plain else weight


def _one_factor(findings: list[Finding], pushes: list[Push]) -> list[Finding]:
    """Where one factor stands before every output, the clock is the first to be asked.

    Args:
        findings: rows of all outputs.
        pushes: what pushing each showed, in the same order.
    """
    drifts = [one.drift for one in pushes if one.drift is not None and not one.arrays]
    factor = drifts[0] if drifts else 1.0
    if factor == 1 or len(drifts) < len(pushes) or any(abs(drift - factor) > SNAP * abs(factor) for drift in drifts):
        return findings
    clock = (f"first see the clock: what trimtab_clock was given is not the length of a step, where a step is {factor:.3g} times "
             "as long as that; else ")
    return [Finding(one.check, one.state, one.found, clock + one.remedy) if one.remedy.startswith(STRENGTH) else one
            for one in findings]


def _measure(bench: Bench, name: str, output: Field, own: Field, part: slice, calls: int,
             free: tuple[np.ndarray, np.ndarray], noise: np.ndarray) -> Push:
    values, check = bench.spec.split(bench.state)[own.name], f"weight of {name}"
    size = float(np.abs(values).max()) or float(np.abs(bench.state).max()) or 1.0

    def moved(undisturbed: np.ndarray, steps: int, stride: int, state: np.ndarray,
              rough: bool = False) -> dict[str, np.ndarray]:
        """Field -> (steps + 1 or 1, *shape), how far it is moved, in c h of one step."""
        h = stride * bench.spec.dt
        push = RELATIVE.get(own.dtype, 1e-6) * size / h
        draw = np.random.default_rng(0)
        pattern = draw.choice([-1.0, 1.0], output.shape) * draw.uniform(0.5, 1.5, output.shape) if rough else \
            1 + 0.5 * smooth_waves(output.shape, draw).clip(-1.5, 1.5)
        outputs = np.zeros(sum(one.size for one in named_outputs(bench.spec).values()))
        outputs[part] = push * pattern.ravel()
        pushed = bench.run(state, steps, stride=stride, outputs=outputs)[-len(undisturbed):]
        return {one: views / (push * h * pattern) for one, views in bench.spec.split(pushed - undisturbed).items()
                if views.shape[1:] == output.shape}

    alone = float(bench.spec.split(noise)[own.name].max()) / (RELATIVE.get(own.dtype, 1e-6) * size)
    if alone > SMALLEST:
        return Push(Finding(check, "note", f"{UNTOLD}: two runs of one step from the same state with zeros in the slot differ by "
                            f"{alone:.2g} times what a push would do", REPEAT))
    one_step = {one: view[-1] for one, view in moved(free[0], 1, bench.stride, bench.state).items()}
    lasting = moved(free[1], len(free[1]) - 1, 1, bench.state)[own.name]
    marks = [step for step in DRIFT if step < len(lasting)]
    answers = (np.abs(one_step[own.name]) > SMALLEST) | (np.abs(lasting[marks]) > SMALLEST).any(axis=0)
    called = f"{calls} call{'s' * (calls > 1)} a step"
    if not answers.any():
        return Push(Finding(check, "bad", f"one step moves {own.name} by 0 c h, {marks[-1]} steps no further; {called}", CALL))
    response = {one: _snapped(_middle(view, answers), SNAP) for one, view in one_step.items()}
    response = {one: weight for one, weight in response.items() if one == own.name or (
        abs(weight) > SMALLEST and _spread(one_step[one][answers]) < PROPORTIONATE)}
    drifts = [_middle(lasting[late] - lasting[early], answers) / (late - early) for early, late in pairwise(marks)]
    told = drifts[0] > SMALLEST and max(drifts) - min(drifts) < AGREE * max(drifts)
    drift = _snapped(drifts[0], SNAP_STEADY)
    if set(response) == {own.name} and not any(one.hidden and one.shape == own.shape for one in bench.spec.fields):
        told, drift = True, _snapped(response[own.name], SNAP_STEADY)  # one time level: the first step tells
    others = "".join(f", {one} by {weight:.3g}" for one, weight in response.items() if one != own.name)
    found = f"one step moves {own.name} by {response[own.name]:.3g} c h{others}"
    silent = int(answers.size - np.count_nonzero(answers))
    left_out = f"; {silent} of {answers.size} components do not answer, and are left out" if silent else ""
    if not told:
        return Push(_untold(check, found + left_out, drifts, marks[-1]), None, response)
    found += f"; a lasting tendency by {drift:.3g} c a unit of time; {called}{left_out}"
    uneven, beyond = (float(np.mean(np.abs(one_step[own.name][answers] - response[own.name]) > bound * abs(response[own.name])))
                      for bound in (UNLIKE, 3 * UNLIKE))
    if uneven > FEW or silent:
        there = bench.run(bench.state, 1, stride=min(LATER, bench.most))[-1:]
        again = moved(bench.run(there, 1, stride=bench.stride, noop=True)[-1:], 1, bench.stride, there, rough=True)[own.name][-1]
        alike = np.abs(again - one_step[own.name]) <= AGREE * np.abs(one_step[own.name]).max()
        beyond += float(np.mean(~answers & ~alike))  # silent in one state, and not in the other
        if uneven > FEW and alike.all():  # whatever the neighbours are pushed by: not the flow's
            arrays = {f"step/{one}": _by_component(one_step[one], answers) for one in response}
            span = arrays[f"step/{own.name}"][answers.ravel()]
            arrays["steady"] = drift / response[own.name] * arrays[f"step/{own.name}"]  # the drift of each is the flow's, too
            return Push(Finding(check, "note", f"{found}; the weight differs by component, from {span.min():.3g} to "
                                f"{span.max():.3g} c h, alike from two states: written for each",
                                "right all the same, as it is known to the gradient; fine where that is meant (a metric, a "
                                "fraction of a cell)"), drift, response, arrays)
        if beyond > FEW:
            return Push(Finding(check, "note", f"{found}; not in proportion at {beyond:.0%} of the components",
                                "a limiter or a filter stands behind it, or the flow answers within the step: fine where that is "
                                "meant"), drift, response)
    if drift != 1:
        return Push(Finding(check, "note", found, f"{STRENGTH} {drift:.3g} times as strong as its unit says (counted in every "
                            "sweep of a split step, or multiplied by another dt): right all the same, as the weight is known to "
                            "the gradient; a factor in trimtab_add makes it 1"), drift, response)
    return Push(Finding(check, "note" if silent else "ok", found, SILENT if silent else ""), drift, response)


def _untold(check: str, found: str, drifts: list[float], steps: int) -> Finding:
    """Of an output whose lasting effect the first steps do not tell."""
    if max(map(abs, drifts)) <= SMALLEST:
        return Finding(check, "note", f"{found}; a tendency that lasts moves it no further in {steps} steps (the code damps, "
                       f"clamps or sets the field), so that its lasting weight {UNTOLD}, and 1 is taken",
                       "see whether the correction is meant to act where the code takes it back; a weight of your own: change "
                       "steady in the line weight of [solver], and take the comment behind it away")
    measured = " and ".join(f"{one:.3g}" for one in drifts)
    return Finding(check, "note", f"{found}; how a lasting tendency moves it {UNTOLD} from the flow's answer ({measured} c a "
                   "unit of time over two spans), and 1 is taken",
                   "a calmer state (the code's own start, an adapter's option) is measured better; a weight of your own: change "
                   "steady in the line weight of [solver], and take the comment behind it away")


def _middle(view: np.ndarray, answers: np.ndarray) -> float:
    """The median of the components that answer."""
    return float(np.median(view[answers]))


def _spread(view: np.ndarray) -> float:
    """How far from one number a response is."""
    middle = float(np.median(view))
    return float(np.median(np.abs(view - middle))) / max(1e-300, abs(middle))


def _by_component(view: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """(m,) the weight of each component, 0 where none answers."""
    return np.array([_snapped(float(one), SNAP) if there else 0.0
                     for one, there in zip(view.ravel(), answers.ravel(), strict=True)])


def _snapped(weight: float, within: float) -> float:
    """The next half, when it is near; else three digits."""
    half = round(2 * weight) / 2
    return half if half and abs(weight - half) <= within * abs(half) else float(f"{weight:.3g}")
