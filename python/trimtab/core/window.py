# SPDX-License-Identifier: MIT
"""The window: what a rollout leaves behind, and all that a gradient needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """K+1 consecutive states of B members, as the solver recorded them; views, never copies.

    Args:
        states: (K+1, B, N) float64; the first is the initial state. A member that blew up is NaN from then on.
        times: (K+1,) float64, in the solver's unit of time.
        h: outer step between two states.
        failed_step: (B,) int64, inner step at which a member blew up; 0 when it did not.
        inputs: (K, B, M) float64, what the network saw at each outer step, where that is not the state itself; else None.
    """

    states: np.ndarray
    times: np.ndarray
    h: float
    failed_step: np.ndarray
    inputs: np.ndarray | None = None

    @property
    def steps(self) -> int:
        """Number K of outer steps."""
        answer: int = self.states.shape[0] - 1
        return answer

    @property
    def alive(self) -> np.ndarray:
        """(B,) bool, True for members that stayed finite."""
        answer: np.ndarray = self.failed_step == 0
        return answer
