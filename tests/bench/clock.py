# SPDX-License-Identifier: MIT
"""How the benchmarks measure: two or more things in turn, in one process, medians and the median of the paired ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def in_turn(things: Mapping[str, Callable[[], object]], rounds: int = 7, least: float = 0.05) -> dict[str, list[float]]:
    """Seconds a call, one entry a round, of several things run one after the other in each round.

    Args:
        things: what to time, by name.
        rounds: how often each is timed.
        least: seconds that one timing lasts at least; the number of calls is found for that.

    Returns:
        `rounds` timings each, so that timings of equal index were taken side by side.
    """
    counts = {}
    for name, thing in things.items():
        thing()
        start = time.perf_counter()
        thing()
        counts[name] = max(1, round(least / max(time.perf_counter() - start, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for _ in range(rounds):
        for name, thing in things.items():
            start = time.perf_counter()
            for _ in range(counts[name]):
                thing()
            seconds[name].append((time.perf_counter() - start) / counts[name])
    return seconds


def median(values: list[float]) -> float:
    """Median of the rounds."""
    return statistics.median(values)


def ratio(over: list[float], under: list[float]) -> float:
    """Median of the ratios of timings taken side by side."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))
