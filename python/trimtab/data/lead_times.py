# SPDX-License-Identifier: MIT
"""At which steps a forecast and the snapshots of a truth meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.core.errors import ConfigError


@dataclass(frozen=True)
class Meeting:
    """Where steps of a forecast and snapshots of the truth meet.

    Args:
        every: inner steps between two meetings.
        skip: snapshots between two meetings.
        time: time between two meetings.
        leads: the lead times of the scores, counted in meetings.
    """

    every: int
    skip: int
    time: float
    leads: tuple[int, ...]


def match_times(dt: float, stride: int, interval: float, leads: Sequence[int]) -> Meeting:
    """Find the steps at which forecast and snapshots meet.

    Args:
        dt: inner step.
        stride: inner steps an outer step.
        interval: time between two snapshots, a multiple of dt.
        leads: lead times in outer steps.

    Returns:
        Where they meet.

    Raises:
        ConfigError: an interval that is no multiple of dt, or a lead time between two snapshots.
    """
    inner = round(interval / dt)
    if inner < 1 or abs(inner * dt - interval) > 1e-4 * interval:
        raise ConfigError(f"The snapshots are {interval:g} apart, which is no multiple of the solver's step {dt:g}: "
                          "change reference.interval or solver.dt.")
    every = int(np.lcm(inner, stride))
    if not leads or any(lead < 1 or (lead * stride) % every for lead in leads):
        raise ConfigError(f"score.leads = {list(leads)} must be positive multiples of {every // stride} outer steps, "
                          "the times at which there are snapshots to compare with.")
    return Meeting(every, every // inner, every * dt, tuple(lead * stride // every for lead in leads))
