# SPDX-License-Identifier: MIT
"""A first training that learns: its window, rate, clipping and lengths, chosen from what was measured of code, truth, network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Choice = dict[str, dict[str, Any]]

A_TRAINING = 60.0      # seconds that the whole training should take on one core: reference, labels and both phases
A_REFERENCE = 0.25     # share of it for the reference run
# Steps of few sizes, so that a check on a busier day chooses the same.
STEPS = (400, 300, 200)             # optimiser steps online: fewer learn little, more only refine a first training
BATCHES = (32, 16, 8, 4)            # windows a step, the largest that time allows
WINDOW = 16            # outer steps that a first training's window has at most: longer ones cost more and teach the same
SNAPSHOTS = (400, 200, 100)         # of a run
FILE_BYTES = 2**29     # of the reference file
OFFLINE = (1500, 500, 100)          # optimiser steps of the fit to labels, where these can be trusted
VALIDATED = (256, 128, 64, 32, 16)  # windows that validate
TRUSTED = 0.3          # share of the difference that the offline label takes away, from which it is a start
SMALL, RATE, RATE_LARGE = 20_000, 3e-3, 1e-3  # weights below which a network stands the larger rate
CLIP = 10.0            # times the gradient's norm at the start: spikes are cut, and nothing else
EPOCHS, PATIENCE = 20, 8


@dataclass(frozen=True)
class Measured:
    """What a plan goes by.

    Args:
        dt: outer step, in the code's unit of time.
        step: seconds of an outer step with the network, one state.
        sweep: seconds of an outer step of a window, forth and back, one state.
        fit: seconds of an optimiser step of the offline phase.
        bears: outer steps up to which the gradient's variant points the right way, at least 1.
        loud: outer steps after which the truth's difference from the solver is well above rounding; 0 where never.
        reached: share of one step's difference that the offline label takes away; None where it is noise, or not known.
        norm: 2-norm of the loss's gradient over a window of `choose_window` with the untrained network; 0 where not known.
        weights: parameters of the network.
        size: numbers of a state.
        runs: of the reference.
        spin_up: time after which the truth's fields have their size; None where it is not the code's own run.
        sparse: outer steps a snapshot.
        snapshots: of a run, where a file gives them; 0 where they are to be chosen.
    """

    dt: float
    step: float
    sweep: float
    fit: float
    bears: int
    loud: int
    reached: float | None
    norm: float
    weights: int
    size: int
    runs: int
    spin_up: float | None
    sparse: int = 1
    snapshots: int = 0


@dataclass(frozen=True)
class Plan:
    """Settings of a first training, and what they take.

    Args:
        settings: section -> key -> value.
        reference, training: estimated seconds, on one core.
    """

    settings: Choice
    reference: float
    training: float


def choose(measured: Measured, budget: float = A_TRAINING) -> Plan:
    """The settings of a first training.

    Args:
        measured: see there.
        budget: seconds that all of it should take; a code for which that is too little takes longer, which the estimate says.

    Returns:
        The plan.
    """
    one = measured
    window = choose_window(one)
    snapshots, reference = _reference(one, window, A_REFERENCE * budget)
    offline = _offline(one, 0.25 * budget)
    labels = one.step * (one.snapshots or snapshots) * one.runs if offline else 0.0
    left = max(0.1 * budget, budget - reference - labels - offline * one.fit)
    batch, steps, validated = _online(one, window, left)
    training = labels + offline * one.fit + batch * steps * window * one.sweep + EPOCHS * validated * window * one.step
    leads = sorted({one.sparse * lead for lead in (1, window // one.sparse, 3 * window // one.sparse)
                    if one.sparse * lead < (one.snapshots or snapshots) * one.sparse})
    settings: Choice = {
        "offline": {"steps": offline},
        "training": {"window": window, "batch": batch, "epochs": EPOCHS, "steps_per_epoch": steps // EPOCHS,
                     "rate": RATE if one.weights < SMALL else RATE_LARGE, "clip": _rounded(CLIP * one.norm),
                     "early_stop": PATIENCE, "validate_windows": validated},
        "score": {"leads": leads, "long_steps": min(200, snapshots if not one.snapshots else one.snapshots * one.sparse - 1)},
    }
    if not one.snapshots:
        settings["reference"] = {"snapshots": snapshots}
        if one.spin_up is not None:
            settings["reference"]["spin_up"] = one.spin_up
    return Plan(settings, reference, training)


def choose_window(measured: Measured) -> int:
    """Outer steps of a window: as many as the gradient bears and as make the difference loud, no more than teach something, and
    where targets are sparse a whole number of theirs."""
    longest = max(1, measured.bears)
    window = min(longest, WINDOW)
    if measured.loud > window:
        window = min(longest, measured.loud)
    return max(1, window // measured.sparse) * measured.sparse


def _reference(one: Measured, window: int, seconds: float) -> tuple[int, float]:
    """Snapshots a run, and the seconds that all runs take."""
    spin_up = one.runs * (one.spin_up or 0.0) / one.dt * one.step
    wanted = next((count for count in SNAPSHOTS if spin_up + one.runs * count * one.step < seconds), SNAPSHOTS[-1])
    fitting = max(SNAPSHOTS[-1] // 4, FILE_BYTES // (8 * one.size * one.runs))
    snapshots = max(2 * window + 2, min(max(wanted, 4 * window), fitting))
    return snapshots, 0.0 if one.snapshots else spin_up + one.runs * snapshots * one.step


def _offline(one: Measured, seconds: float) -> int:
    """Steps of the offline phase: none where its label is noise, or nothing that the slot reaches."""
    if one.reached is None or one.reached < TRUSTED or one.sparse > 1:
        return 0
    return next((steps for steps in OFFLINE if steps * one.fit < seconds), OFFLINE[-1])


def _online(one: Measured, window: int, seconds: float) -> tuple[int, int, int]:
    """Windows a step, steps in all, and windows that validate."""
    forth_and_back = window * one.sweep
    sizes = [(batch, steps) for batch in BATCHES for steps in STEPS[:1]] + [(BATCHES[-1], steps) for steps in STEPS]
    batch, steps = next((pair for pair in sizes if math.prod(pair) * forth_and_back < 0.8 * seconds), sizes[-1])
    validated = next((count for count in VALIDATED if EPOCHS * count * window * one.step < 0.2 * seconds), VALIDATED[-1])
    return batch, steps, validated


def _rounded(value: float) -> float:
    """Two digits; a clip of 0 is none."""
    return float(f"{value:.1e}") if math.isfinite(value) else 0.0
