# SPDX-License-Identifier: MIT
"""What the training of an experiment will take, from one window timed, and its reference, from one step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch

from trimtab.corrections.slots import AnyCorrection
from trimtab.coupling.harness import Bench
from trimtab.gradient import get_gradient
from trimtab.gradient.rollout import rollout

MEMBERS = 2         # windows run at once when they are timed
A_SWEEP = 5.0       # seconds that timing them may take
A_CALL = 3.0        # that three timed calls may take
FIT = 64            # states of a timed optimiser step of the offline phase
LOUDEST = 0.1       # share of a training that compiling must be able to save to be named


def training_cost(bench: Bench, correction: AnyCorrection, step: float, filled: float) -> str:
    """What this TOML's training takes on as many cores as torch has threads here, as a sentence's end.

    Args:
        bench: the code.
        correction: its network, which is timed in the precision that it has.
        step, filled: seconds of an inner step with an empty slot, and with the network.
    """
    training, reference = bench.experiment.training, bench.experiment.reference
    if training.epochs == 0:
        return ""
    if bench.cause:
        return f"; what a training takes: not checked, see {bench.cause}"
    inner, filled = training.window * training.stride, max(1e-9, filled)
    window = max(1, min(training.window, bench.most // training.stride, int(A_SWEEP / (4 * MEMBERS * filled * training.stride))))
    sweep = max(_sweep(bench, correction, window) / window * training.window, inner * filled)
    spin_up = round(reference.spin_up / bench.spec.dt)
    between = reference.interval / bench.spec.dt if reference.interval else training.stride
    if reference.file and not training.steps_per_epoch:
        return f"; 1000 windows of this TOML take {duration(1000 * sweep)} {on_threads()}"
    held = reference.validation_windows
    span = max(1, math.ceil(inner / between))
    a_run = max(0, reference.snapshots - span - held)
    windows = training.steps_per_epoch * training.batch or a_run * reference.training_runs
    validated = (reference.snapshots - span) * reference.validation_runs or held * reference.training_runs
    validated = min(validated, training.validate_windows or validated)
    seconds = training.epochs * (windows * sweep + validated * inner * filled)
    offline = bench.experiment.offline
    if offline.steps:
        labels = training.stride * reference.snapshots * (reference.training_runs + reference.validation_runs) * filled
        seconds += labels + offline.steps * offline.batch / FIT * fit_seconds(bench, correction)
    found = f"; the training of this TOML about {duration(seconds)} {on_threads()}"
    saved = training.epochs * (windows + validated) * inner * max(0.0, filled - step)
    if not correction.compiled and saved > LOUDEST * seconds:
        found += f" (compiled = true saves {'most' if saved > seconds else f'up to {duration(saved)}'} of it)"
    if not reference.file and "name" not in reference.solver:
        runs = reference.training_runs + reference.validation_runs + reference.test_runs
        found += f", and its reference {duration(runs * (spin_up + (reference.snapshots - 1) * between) * step)}"
    return found


def _sweep(bench: Bench, correction: AnyCorrection, window: int) -> float:
    """Seconds of a window forth and back: the quickest of several."""
    training = bench.experiment.training
    gradient = get_gradient(training.gradient, **training.gradient_options)
    start = torch.from_numpy(np.repeat(bench.state, MEMBERS, axis=0))

    def forth_and_back() -> None:
        bench.tell(f"windows of {window} steps, forth and back, for the cost of a training")
        states = rollout(bench.solver, correction, start, window, gradient=gradient, stride=training.stride,
                                 on_blow_up="mark")
        states[-1].square().mean().backward()
        bench.made += MEMBERS * window * training.stride

    return seconds_of(forth_and_back, 20, A_SWEEP / 4) / MEMBERS


def fit_seconds(bench: Bench, correction: AnyCorrection) -> float:
    """Seconds of an optimiser step of the offline phase on `FIT` states: the quickest of three."""
    seen = bench.solver.slot_view(bench.state, np.zeros((1, bench.spec.size)), bench.stride)[0]
    states = torch.from_numpy(np.repeat(seen, FIT, 0))
    seconds = seconds_of(lambda: correction(states).square().mean().backward())
    correction.zero_grad(set_to_none=True)
    return seconds


def seconds_of(call: Callable[[], object], most: int = 3, budget: float = A_CALL) -> float:
    """The quickest of several calls: seconds of the processor, where the clock's are more because others use it, too.

    Args:
        call: what is timed.
        most: calls.
        budget: seconds of the clock after which there is no further call, but for a second one: a first may have much to load.
    """
    taken: list[float] = []
    spent = 0.0
    while len(taken) < 2 or (len(taken) < most and spent < budget):
        began, busy = time.perf_counter(), time.process_time()
        call()
        clock = time.perf_counter() - began
        spent += clock
        taken.append(max(1e-9, min(clock, time.process_time() - busy)))
    return min(taken)


def on_threads() -> str:
    """On how many cores torch runs in this process, in words."""
    threads = torch.get_num_threads()
    return "on one core" if threads == 1 else f"on {threads} threads"


def duration(seconds: float) -> str:
    """A time in words."""
    units = (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
    unit, size = next((one for one in units if seconds >= 2 * one[1]), units[-1])
    return f"{seconds / size:.{0 if seconds >= 10 * size else 2}{'f' if seconds >= 10 * size else 'g'}} {unit}"
