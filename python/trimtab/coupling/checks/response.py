# SPDX-License-Identifier: MIT
"""How an output that is no field's tendency enters the state: pushed number by number, one forward step each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trimtab.core.spec import Field
from trimtab.corrections.slot_response import LARGEST, SlotResponse
from trimtab.corrections.slot_weights import named_outputs
from trimtab.coupling.finding import Finding
from trimtab.coupling.harness import Bench

PATIENCE = 900.0        # seconds that the pushes may take
LATE = 8                # inner steps, in the second half of which a lasting output's drift is measured; even, for leapfrog
SNAP = 0.15             # a drift so near to 1 is 1
PUSH = {"real32": 1e-2, "real64": 1e-4}  # of the fields' size: large against rounding, small against the flow
REMEDY = ("nothing is measured number by number for an output that is the tendency of a field in its shape: let the network end "
          "in the transform (torch.fft, or a matrix) and return the tendency of the field that the state has; or describe that "
          "field on this grid, with your code's own transform in trimtab_get_state before trimtab_from_fields, and back at the "
          "end of trimtab_set_state; or give fewer outputs")
ALIKE, FIXED = 0.02, 0.1  # errors of superposition, and of the same response from another state, that pass without a word


def measure_responses(bench: Bench, places: Mapping[str, tuple[slice, Field]], together: int,
                      ) -> tuple[list[Finding], dict[str, float], SlotResponse | None]:
    """Matrices of outputs by one step an output number, checked by what a pattern of all of them does.

    Args:
        bench: the code.
        places: output -> its part of all outputs, its field.
        together: how many numbers all slots' outputs are.

    Returns:
        Findings, the steady factor of each, and the responses (None when they cannot be measured).
    """
    findings, steady, matrices = [], {}, {}
    for name, (part, output) in places.items():
        seconds = 2 * output.size * bench.stride * bench.seconds
        if bench.spec.size * output.size > LARGEST or seconds > PATIENCE:
            findings.append(Finding(f"weight of {name}", "bad",
                                    f"no field has its name and shape {output.shape}, and to measure how it enters the state "
                                    f"takes {output.size} steps of {bench.spec.size} numbers (about {seconds:.0f} s)",
                                    REMEDY))
            continue
        finding, factor, matrix = _measure(bench, name, output, part, together)
        findings.append(finding)
        if matrix is not None:
            steady[name], matrices[name] = factor, matrix
    return findings, steady, SlotResponse(bench.spec, matrices, named_outputs(bench.spec)) if matrices else None


def _measure(bench: Bench, name: str, output: Field, part: slice, together: int) -> tuple[Finding, float, np.ndarray | None]:
    h, check = bench.stride * bench.spec.dt, f"weight of {name}"
    generator = np.random.default_rng(0)
    pattern = generator.standard_normal(output.size)

    def moved(state: np.ndarray, values: np.ndarray, steps: int = 1, stride: int = bench.stride) -> np.ndarray:
        outputs = np.zeros(together)
        outputs[part] = values
        pushed = bench.run(state, steps, stride=stride, outputs=outputs)
        return np.asarray(pushed - bench.run(state, steps, stride=stride, noop=True))

    scales = _scales(bench)
    single = any(one.dtype == "real32" and not one.hidden for one in bench.spec.fields)
    size, wanted = 1e-6 * float(scales.max()) / h, PUSH["real32" if single else "real64"]
    for _ in range(8):  # the largest push that moves the state by no more than is wanted
        reached = float((np.abs(moved(bench.state, size * pattern)[1]) / scales).max())
        if reached > 0.3 * wanted:
            break
        size *= min(100.0, 0.7 * wanted / reached) if reached > 0 else 100.0
    if reached == 0:
        return Finding(check, "bad", "the output does not arrive in the state", "call the correction after the tendency is "
                       "complete and before it is used, and add to the array that the step uses"), 0.0, None
    whole = moved(bench.state, size * pattern)[1]
    late = LATE if bench.most >= LATE else LATE // 2
    lasting = moved(bench.state, size * pattern, late, 1)
    push = size * np.abs(pattern).max()
    free = bench.run(bench.state, 1, stride=bench.stride, noop=True)[1]
    matrix = np.empty((bench.spec.size, output.size))
    outputs = np.zeros(together)
    for place in range(output.size):
        outputs[part] = 0.0
        outputs[part.start + place] = push
        matrix[:, place] = (bench.run(bench.state, 1, stride=bench.stride, outputs=outputs)[1] - free) / (push * h)
    believed = h * size * (matrix @ pattern)
    shown = slice(None) if bench.spec.visible is None else bench.spec.visible
    seen, norm = believed[shown], float(np.linalg.norm(believed[shown]))
    if norm == 0:
        return Finding(check, "bad", "one step moves hidden fields only",
                       "choose a training.stride after which the output is seen in a field"), 0.0, None
    alone = float(np.linalg.norm(whole[shown] - seen)) / norm
    other = bench.run(bench.state, 1, stride=5)[1]
    elsewhere = float(np.linalg.norm(moved(other, size * pattern)[1][shown] - seen)) / norm
    drift = bench.stride * float(seen @ (lasting[late] - lasting[late // 2])[shown]) / norm**2 / (late - late // 2)
    if bench.spec.visible is None or abs(drift - 1) < SNAP:  # one time level: the first step tells, before the flow answers
        drift = 1.0
    drift = float(f"{drift:.2g}")
    names = [one for one, view in bench.spec.split(believed[None]).items() if np.abs(view).max() > 0]
    found = (f"moves {', '.join(names)}; measured, as it is the tendency of no field: {output.size} steps, superposition holds "
             f"to {alone:.1g}, from another state the response differs by {elsewhere:.1g}; a lasting output drifts {drift:g} "
             "times as much a step")
    if alone > ALIKE or elsewhere > FIXED:
        return Finding(check, "note", found, "the way into the state is not linear, or depends on the state: the gradient takes "
                       "it as it is at one state; see the line on the gradient"), drift, matrix
    return Finding(check, "ok", found), drift, matrix


def _scales(bench: Bench) -> np.ndarray:
    """(N,) the largest value of each component's field; of fields of zeros, of all."""
    views = bench.spec.split(bench.state)
    sizes = {name: float(np.abs(view).max()) for name, view in views.items()}
    every = max((size for size in sizes.values() if np.isfinite(size)), default=1.0) or 1.0
    return np.concatenate([np.full(view.size, sizes[name] or every) for name, view in views.items()])
