# SPDX-License-Identifier: MIT
"""Where a training is, and how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

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


@dataclass(frozen=True)
class Result:
    """How a training ended.

    Attributes:
        status: "finished", "stopped early", or after a signal "terminated" (SIGTERM, SIGUSR1) or "interrupted" (SIGINT).
        folder: the run folder.
        best_epoch, best_validation: the epoch that validated best, and its loss.
        dropped: training windows that blew up.
        skipped: steps not taken because loss or gradient was not finite.
    """

    status: Literal["finished", "stopped early", "terminated", "interrupted"]
    folder: Path
    best_epoch: int
    best_validation: float
    dropped: int
    skipped: int

    @property
    def exit_code(self) -> int:
        """What a program should exit with: 0, 143 after SIGTERM or SIGUSR1, 130 after SIGINT."""
        return EXIT_CODES[self.status]
