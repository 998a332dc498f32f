# SPDX-License-Identifier: MIT
"""No-gradient unrolling: the flow's Jacobian is zero."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.gradient.base import Gradient, Tape


class NoGradient(Gradient):
    """J_k = 0: the network learns from each step's own error, on states that the hybrid itself reached.

    The ablation between offline training (states of the truth) and Static-EGA (errors of the whole window).

    Source:
        List, Chen, Bali, Thuerey, arXiv 2402.12971, "no-gradient unrolling".
    """

    name = "none"

    def pullback(self, tape: Tape, k: int, lam: Tensor) -> Tensor:
        """Zero; see `Gradient.pullback`."""
        return torch.zeros_like(lam)
