# SPDX-License-Identifier: MIT
"""What a gradient variant is, and the tape it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from trimtab.solver import Solver


@dataclass(frozen=True)
class Tape:
    """All that a variant may look at: the recorded states, and the solver and correction that made them.

    Args:
        states: (K+1, B, N) float64 tensor, the window's; members that blew up hold zeros.
        h: outer step.
        stride: inner steps an outer step.
        solver: the solver, to be run forward only.
        correction: the module that filled the slot.
    """

    states: Tensor
    h: float
    stride: int
    solver: Solver
    correction: nn.Module


class Gradient(ABC):
    """A variant of the Euler Gradient Approximation: lambda_k = J_k^T lambda_{k+1} + dJ/du_k, with its own J_k."""

    name: str

    @abstractmethod
    def pullback(self, tape: Tape, k: int, lam: Tensor) -> Tensor:
        """The transpose of the Jacobian of the outer step from u_k to u_{k+1}, applied to a vector.

        Args:
            tape: the rollout.
            k: step, 0 to K-1.
            lam: (B, N) float64.

        Returns:
            (B, N) float64; may be `lam` itself.
        """
