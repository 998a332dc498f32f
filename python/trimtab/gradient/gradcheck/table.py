# SPDX-License-Identifier: MIT
"""What a check of gradients found, and its one sentence; `check.py` says how."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

UNSURE = 0.1  # uncertainty of the finite differences, from which on they judge nobody
YARDSTICK = "exact"  # shown, never recommended unless it stands alone: only a twin has it


@dataclass(frozen=True)
class CheckRow:
    """One variant at one window length.

    Attributes:
        steps: outer steps n.
        time: n h, in the solver's unit.
        scaled_time: in Lyapunov or eddy times; NaN when these are not known.
        gradient: the variant.
        cosine: of the angle to the true gradient: the share of the steepest descent that a small step along it has; by
            finite differences.
        cosine_exact: the same from the torch twin; NaN without one.
        error: |a - g| / |g|, by finite differences.
        error_along: relative error of the variant's own derivative along itself, | |a| - g.a/|a| | over |g.a/|a||.
        efficiency: decrease of the loss for a small step along -a, over the decrease that a promises; below 0 it rises.
        uncertainty: of the derivative along a, relative: distance between two finite differences.
        solver_steps: inner steps of one state, rollout included; steps backwards by an adjoint are not counted, their network is.
        network_states: states that went through the network.
        seconds: rollout and backward sweep.
    """

    steps: int
    time: float
    scaled_time: float
    gradient: str
    cosine: float
    cosine_exact: float
    error: float
    error_along: float
    efficiency: float
    uncertainty: float
    solver_steps: int
    network_states: int
    seconds: float


@dataclass(frozen=True)
class CheckTable:
    """All of a check.

    Args:
        rows: by window, then by variant.
        time_name: what `scaled_time` counts, as "Lyapunov times"; empty when not known.
        tolerance: loss of steepest descent that is still called good.
        derivatives: steps -> (directions, 1 + variants): along the random directions, g . w by finite differences, then the
            variants' a . w, in the order of the rows.
    """

    rows: tuple[CheckRow, ...]
    time_name: str
    tolerance: float
    derivatives: dict[int, np.ndarray]

    def of(self, gradient: str) -> list[CheckRow]:
        """Rows of one variant, by window."""
        return [row for row in self.rows if row.gradient == gradient]

    def recommendation(self) -> str:
        """One sentence: the cheapest variant that is good, up to which window, and what to take beyond."""
        share, longest = f"{1 - self.tolerance:.0%}", max(row.steps for row in self.rows)
        names = list(dict.fromkeys(row.gradient for row in self.rows if row.gradient != YARDSTICK)) or [YARDSTICK]
        reach = {name: self._reach(name) for name in names}
        costs = {name: self._cost(name) for name in names}
        # Of those at one price the one that reaches further, then the one asked for first.
        good = sorted((name for name in names if reach[name] >= 0), key=lambda name: (costs[name], -reach[name]))
        if not good:
            shortest = min(row.steps for row in self.rows)
            if not self._sure(0):
                return self._hidden(shortest)
            best = max(names, key=lambda name: -math.inf if math.isnan(cosine := self.of(name)[0].cosine) else cosine)
            return (f"No variant keeps {share} of the steepest descent even at n = {shortest}; the best, {best}, keeps "
                    f"{self.of(best)[0].cosine:.0%}: shorten the window, or {self._remedy(names)}.")
        first = good[0]
        text = (f"{first} keeps {share} of the steepest descent up to n = {self._window(first, reach[first])}"
                f"{self._length(first, reach[first])}")
        if self.of(first)[reach[first]].steps == longest:
            return f"{text}, the longest window checked: use it."
        further = [name for name in good if reach[name] > reach[first]]
        if not further and not self._sure(reach[first] + 1):
            return f"{text}; beyond, the finite differences are uncertain themselves, and nothing is said."
        if not further:
            return f"{text}; beyond, no variant checked does: stay below, or {self._remedy(names)}."
        # Of those that reach furthest the cheapest.
        best = min(further, key=lambda name: (-reach[name], costs[name]))
        times = f"{costs[best] / costs[first]:.0f}"
        price = "about the same cost" if times == "1" else f"{times} times the cost"
        window = self._window(best, reach[best]) + self._length(best, reach[best])
        return f"{text}; beyond, use {best}, which does up to n = {window}, at {price}."

    def to_csv(self) -> str:
        """One line a row; empty where a number is not known."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([field.name for field in fields(CheckRow)])
        for row in self.rows:
            writer.writerow("" if value != value else f"{value:.8g}" if isinstance(value, float) else value
                            for value in asdict(row).values())
        return text.getvalue()

    def _reach(self, gradient: str) -> int:
        """Number of the last window up to which a variant is good without a gap; -1 for none."""
        good = [row.cosine >= 1 - self.tolerance and row.uncertainty < UNSURE for row in self.of(gradient)]
        return [*good, False].index(False) - 1

    def _sure(self, number: int) -> bool:
        """Whether the finite differences of a window judge any variant."""
        return any(self.of(row.gradient)[number].uncertainty < UNSURE for row in self.rows)

    def _hidden(self, steps: int) -> str:
        unsure = [row.uncertainty for row in self.rows if row.steps == steps and row.uncertainty == row.uncertainty]
        how = (f"the finite differences that it is held against are uncertain by {min(unsure):.0%} themselves" if unsure else
               "the loss does not move with the parameters")
        return (f"Rounding hides the gradient here: at n = {steps} {how}, so that nothing is said against any variant; build the "
                "solver with real64 for this check, or let the correction move the fields more.")

    @staticmethod
    def _remedy(names: Sequence[str]) -> str:
        return "give ensemble more members" if any(one.startswith("ensemble") for one in names) else "check ensemble, too"

    def _window(self, gradient: str, number: int) -> str:
        row = self.of(gradient)[number]
        return f"{row.steps}" + (f" ({row.scaled_time:.2g} {self.time_name})" if self.time_name else "")

    def _length(self, gradient: str, number: int) -> str:
        """That the direction is right and the length far from it, as where a flow damps or grows; nothing where it is not."""
        efficiency = self.of(gradient)[number].efficiency
        if not 0 < efficiency < math.inf or 0.5 <= efficiency <= 2:
            return ""
        how = f"{1 / efficiency:.2g} times too long" if efficiency < 1 else f"{efficiency:.2g} times too short"
        return f" (there {how}, which Adam and clipping forgive, a plain descent does not)"

    def _cost(self, gradient: str) -> float:
        return sum(row.solver_steps + row.network_states for row in self.of(gradient))
