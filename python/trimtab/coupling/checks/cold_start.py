# SPDX-License-Identifier: MIT
"""How well does the code start from the visible fields alone, with what `reference.hidden` says of the hidden ones?"""

from __future__ import annotations

import numpy as np

from trimtab.coupling.finding import Finding, unchecked
from trimtab.coupling.harness import Bench
from trimtab.data.reference_reader import complete, known_fields

CLOSE = 0.05  # of what the code moves in the same time


def check_cold(bench: Bench) -> list[Finding]:
    """A developed state run on as it is, and without its hidden fields; nothing where `reference.hidden` is empty."""
    spec, hidden = bench.spec, bench.experiment.reference.hidden
    if not hidden:
        return []
    if bench.forgets:
        return [unchecked("cold start", bench.forgets)]
    known = known_fields(spec, hidden)
    views = spec.split(bench.state)
    seen = np.concatenate([views[one.name].reshape(1, -1) for one in known.fields], axis=1)
    window = max(1, min(bench.experiment.training.window, bench.most // bench.stride))
    warm = bench.run(bench.state, window, stride=bench.stride)
    cold = bench.run(complete(spec, hidden, seen), window, stride=bench.stride)
    off = {lead: _distance(bench, warm, cold, lead) for lead in (1, window)}
    found = "started from visible fields alone it is off by " + ", ".join(
        f"{distance:.2g} of what it moves in {lead} step{'s' * (lead > 1)}" for lead, distance in off.items())
    if max(off.values()) < CLOSE:
        return [Finding("cold start", "ok", found)]
    return [Finding("cold start", "note", found, "the loss takes that for a missing tendency: see whether reference.hidden is "
                    "what the code itself begins with (a counter at 0, a first step without an old level), leave early leads out "
                    "with training.loss_at, or give the hidden fields in the file")]


def _distance(bench: Bench, warm: np.ndarray, cold: np.ndarray, lead: int) -> float:
    """The largest over the visible fields of the distance after some outer steps, over what the field has moved."""
    worst = 0.0
    for one in bench.spec.fields:
        if not one.hidden:
            first, last, other = (bench.spec.split(state)[one.name] for state in (warm[0], warm[lead], cold[lead]))
            worst = max(worst, float(np.linalg.norm(other - last) / (np.linalg.norm(last - first) or 1.0)))
    return worst
