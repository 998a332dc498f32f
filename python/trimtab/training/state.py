# SPDX-License-Identifier: MIT
"""Where a training is, and how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ROUNDING = 1e-6  # of a validation loss: one that is smaller by no more is not better
EXIT_CODES = {"finished": 0, "stopped early": 0, "interrupted": 130, "terminated": 143}  # 128 + the signal's number


@dataclass
class Position:
    """Where a run is; with weights, optimiser and random states, everything that the next step depends on."""

    phase: str = "offline"
    entered: bool = False        # the phase has begun: its epoch 0 is recorded
    epoch: int = 0               # epochs of the phase done
    step: int = 0                # steps of this epoch done
    losses: float = 0.0          # sum over this epoch's taken steps
    norms: float = 0.0
    dropped: int = 0             # in this epoch
    skipped: int = 0
    dropped_in_all: int = 0
    skipped_in_all: int = 0
    seconds: float = 0.0
    times: dict[str, float] = field(default_factory=dict)  # of this epoch, before the last resume; see `Crew.take_times`
    best_epoch: int = -1
    best_validation: float = math.inf
    best_dropped: int = 0
    first_validation: float = math.nan  # of epoch 0, before any step
    first_dropped: int = 0
    before: str = ""             # the verdict on the phase before

    def validated(self, validation: float, dropped: int) -> bool:
        """Take note of an epoch's validation; the epoch is counted already.

        Args:
            validation: its loss, NaN when every window blew up.
            dropped: windows that blew up, which count first.

        Returns:
            Whether it is the best so far.
        """
        first = self.best_epoch < 0
        if first:
            self.first_validation, self.first_dropped = validation, dropped
        better = first or (dropped, validation) < (self.best_dropped, self.best_validation)
        if better:
            self.best_epoch, self.best_validation, self.best_dropped = self.epoch, validation, dropped
        return better

    def verdict(self, phase: str) -> str:
        """A sentence when nothing was learned: no epoch validated better than epoch 0 by more than rounding; else empty.

        Args:
            phase: its name; without an epoch of its own, the verdict on the phase before holds.
        """
        if self.epoch < 1:
            return self.before
        learned = self.best_dropped < self.first_dropped or self.best_validation < (1 - ROUNDING) * self.first_validation
        if learned:
            return ""
        said = f"Nothing was learned in the {phase} phase: the best of {self.epoch} epochs is epoch {self.best_epoch}"
        if self.best_epoch == 0:
            return f"{said}, before any step (validation {self.best_validation:.6g})."
        return (f"{said}, and its validation differs from that of epoch 0 by rounding alone ({self.best_validation:.9g} and "
                f"{self.first_validation:.9g}).")


@dataclass(frozen=True)
class Result:
    """How a training ended.

    Attributes:
        status: "finished", "stopped early", or after a signal "terminated" (SIGTERM, SIGUSR1) or "interrupted" (SIGINT).
        folder: the run folder.
        best_epoch, best_validation: the epoch that validated best, and its loss, which has no unit.
        dropped: training windows that blew up.
        skipped: steps not taken because loss or gradient was not finite.
        verdict: a sentence when nothing was learned, else empty; see `Position.verdict`.
    """

    status: Literal["finished", "stopped early", "terminated", "interrupted"]
    folder: Path
    best_epoch: int
    best_validation: float
    dropped: int
    skipped: int
    verdict: str = ""

    @property
    def exit_code(self) -> int:
        """What a program should exit with: 0, 143 after SIGTERM or SIGUSR1, 130 after SIGINT."""
        return EXIT_CODES[self.status]
