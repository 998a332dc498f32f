# SPDX-License-Identifier: MIT
"""A constant tendency must move its field by c h: with which weight does it?"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.coupling.bench import Bench
from trimtab.coupling.finding import Finding
from trimtab.coupling.response import measure_responses
from trimtab.files import replacing
from trimtab.filters import smooth_waves
from trimtab.slot_weight import named_outputs
from trimtab.state import Field

SMALLEST = 0.01         # a response below it, in c h, is the flow's own
DRIFT = (4, 8, 16)      # inner steps between which a lasting tendency's drift is measured, twice; even, for leapfrog
SNAP, SNAP_STEADY = 0.05, 0.15
AGREE = 0.15            # two measurements of one drift
PROPORTIONATE = 0.1     # spread of a response in another field, above which it is the flow's own
RELATIVE = {"real32": 1e-3, "real64": 1e-6}  # size of the push, of the field's


def check_weight(bench: Bench, folder: Path = Path()) -> tuple[list[Finding], dict[str, Any]]:
    """Push each output, look at every field; the findings, and [solver] weight ({} when it is what is believed anyway).

    A response that takes a matrix is written into `folder`.
    """
    findings, steady, step, elsewhere = [], {}, {}, {}
    before = bench.own.library.calls()
    bench.run(bench.state, 1, noop=True)
    calls = bench.own.library.calls() - before
    if calls == 0:
        return [Finding("weight", "bad", "one step calls the slot not once", "call the correction where every step passes")], {}
    position = 0
    last = DRIFT[-1] if DRIFT[-1] <= bench.most else DRIFT[1]
    free = (bench.run(bench.state, 1, stride=bench.stride, noop=True)[-1:], bench.run(bench.state, last, noop=True))
    for name, output in named_outputs(bench.spec).items():
        part = slice(position, position + output.size)
        position += output.size
        own = next((one for one in bench.spec.fields if one.name == output.name and one.shape == output.shape), None)
        if own is None:
            elsewhere[name] = part, output
            continue
        finding, drift, response = _measure(bench, name, output, own, part, calls, free)
        findings.append(finding)
        steady[name], step[name] = drift, response
    found, factors, responses = measure_responses(bench, elsewhere, position) if elsewhere else ([], {}, None)
    own_names = {name: one.name for name, one in named_outputs(bench.spec).items()}
    plain = all(steady[one] == 1 and step[one] == {own_names[one]: 1.0} for one in steady) and responses is None
    weight: dict[str, Any] = {"stride": bench.stride, "steady": {**steady, **factors}, "step": step}
    if responses is not None:
        weight["response"] = str(folder / f"{bench.spec.solver}-response.npz")
        responses.write(Path(weight["response"]))
    return [*findings, *found], {} if plain else weight


def _measure(bench: Bench, name: str, output: Field, own: Field, part: slice, calls: int,
             free: tuple[np.ndarray, np.ndarray]) -> tuple[Finding, float, dict[str, float]]:
    pattern = 1 + 0.5 * smooth_waves(output.shape, np.random.default_rng(0)).clip(-1.5, 1.5)
    values = bench.spec.split(bench.state)[own.name]
    size = float(np.abs(values).max()) or 1.0

    def moved(undisturbed: np.ndarray, steps: int, stride: int) -> dict[str, np.ndarray]:
        """Field -> (steps + 1 or 1, *shape), how far it is moved, in c h of one step."""
        h = stride * bench.spec.dt
        push = RELATIVE.get(own.dtype, 1e-6) * size / h
        outputs = np.zeros(sum(one.size for one in named_outputs(bench.spec).values()))
        outputs[part] = push * pattern.ravel()
        pushed = bench.run(bench.state, steps, stride=stride, outputs=outputs)[-len(undisturbed):]
        return {one: views / (push * h * pattern) for one, views in bench.spec.split(pushed - undisturbed).items()
                if views.shape[1:] == output.shape}

    one_step = {one: view[-1] for one, view in moved(free[0], 1, bench.stride).items()}
    response = {one: _snapped(float(np.median(view)), SNAP) for one, view in one_step.items()}
    response = {one: weight for one, weight in response.items() if one == own.name or (
        abs(weight) > SMALLEST and _spread(one_step[one]) < PROPORTIONATE)}
    lasting = moved(free[1], len(free[1]) - 1, 1)[own.name]
    marks = [step for step in DRIFT if step < len(lasting)]
    drifts = [float(np.median(lasting[late] - lasting[early])) / (late - early) for early, late in pairwise(marks)]
    told = drifts[0] > SMALLEST and max(drifts) - min(drifts) < AGREE * max(drifts)
    drift = _snapped(drifts[0], SNAP_STEADY)
    if set(response) == {own.name} and not any(one.hidden and one.shape == own.shape for one in bench.spec.fields):
        told, drift = True, _snapped(response[own.name], SNAP_STEADY)  # one time level: the first step tells
    spread = _spread(one_step[own.name])
    others = "".join(f", {one} by {weight:.3g}" for one, weight in response.items() if one != own.name)
    found = (f"one step moves {own.name} by {response[own.name]:.3g} c h{others}; a lasting tendency by {drift:.3g} c a unit "
             "of time; "
             f"{calls} call{'s' * (calls > 1)} a step")
    check = f"weight of {name}"
    if abs(drift) <= SMALLEST and abs(response[own.name]) <= SMALLEST:
        return Finding(check, "bad", found, "the output does not arrive: call the correction after the tendency is complete and "
                       "before the step uses it, and add to the array that it uses; after the step nobody reads that any more"), \
            drift, response
    if not told:
        measured = " and ".join(f"{one:.3g}" for one in drifts)
        return Finding(check, "note", f"one step moves {own.name} by {response[own.name]:.3g} c h{others}; how a lasting "
                       f"tendency moves it cannot be told from the flow's answer ({measured} c a unit of time), and 1 is taken",
                       "if the code counts it otherwise, write steady in [solver] weight by hand; a calmer state (the code's own "
                       "start, an adapter's option) is measured better"), 1.0, response
    if spread > 0.3:
        return Finding(check, "note", found + f"; not in proportion everywhere (spread {spread:.0%})",
                       "a limiter, a mask or a filter stands behind it: fine where that is meant"), drift, response
    if drift != 1:
        return Finding(check, "note", found, f"it acts {drift:.3g} times as strong as its unit says (counted in every sweep of "
                                             "a split step, "
                       "or multiplied by another dt): right all the same, as the weight is known to the gradient; a factor in "
                       "trimtab_add "
                       "mends it"), drift, response
    return Finding(check, "ok", found), drift, response


def _spread(view: np.ndarray) -> float:
    """How far from one number a response is."""
    middle = float(np.median(view))
    return float(np.median(np.abs(view - middle))) / max(1e-300, abs(middle))


def _snapped(weight: float, within: float) -> float:
    """The next half, when it is near; else three digits."""
    half = round(2 * weight) / 2
    return half if half and abs(weight - half) <= within * abs(half) else float(f"{weight:.3g}")


def write_weight(path: Path, weight: dict[str, Any]) -> bool:
    """Put `weight = ...` under [solver] in a TOML, in place of one that is there, and nothing else; whether the file changed."""
    text = path.read_text(encoding="utf-8")
    section = re.search(r"^\[solver\][^\n]*\n(?:(?!^\[).*\n?)*", text, re.MULTILINE)
    if section is None:
        return False
    body = re.sub(r"^weight\s*=.*\n?", "", section[0], flags=re.MULTILINE)
    if weight:
        line = f"weight = {_inline(weight)}  # measured by trimtab couple check\n"
        body = re.sub(r"^(library\s*=.*\n)", lambda found: found[1] + line, body, count=1, flags=re.MULTILINE)
    changed = text[: section.start()] + body + text[section.end() :]
    if changed == text:
        return False
    with replacing(path) as partial:
        partial.write_text(changed, encoding="utf-8")
    return True


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key if re.fullmatch(r'[A-Za-z0-9_-]+', key) else repr(key)} = {_inline(one)}"
                               for key, one in value.items()) + "}"
    return repr(value)
