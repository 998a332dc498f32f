# SPDX-License-Identifier: MIT
"""Static-EGA: the flow's Jacobian is the identity."""

from __future__ import annotations

from torch import Tensor

from trimtab.gradient.base import Gradient, Tape


class StaticEGA(Gradient):
    """J_k = I: forward runs are all it needs, at the cost of one vector-Jacobian product of the network.

    The error against the exact gradient is O(h^2) at a fixed number n of steps. At a fixed horizon T = n h it does not
    vanish with h: what is missing is the flow's own growth and rotation over the window. Use it for windows short
    against the fastest time over which the flow turns a perturbation (an eddy time, a tenth of a Lyapunov time).

    Source:
        Ouala et al., arXiv 2311.10665, Corollary 2.1.2.
    """

    name = "static"
    steady = True

    def pullback(self, tape: Tape, k: int, lam: Tensor) -> Tensor:
        """The identity; see `Gradient.pullback`."""
        return lam
