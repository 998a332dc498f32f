# SPDX-License-Identifier: MIT
"""Better weights for the sum over a window, at no cost: the same states, adjoints and network products.

EGA is the left Riemann sum of int lambda(t)^T dM/dtheta(u(t)) dt, the gradient of the continuous problem. With the flow's
Jacobian at hand the integrand is known at every recorded state, so that any rule on equidistant points may weigh it:

    rule         order in h, fixed horizon    weights
    left         1                            1, ..., 1, 0: the paper's
    trapezoid    2                            1/2, 1, ..., 1, 1/2
    gregory      4                            3/8, 7/6, 23/24, 1, ..., 1, 23/24, 7/6, 3/8

A loss within the window makes lambda jump where it looks: lambda_k before the jump, J_k^T lambda_{k+1} after it. The rules
therefore run from jump to jump; a stretch too short for Gregory's ends takes the closed Newton-Cotes rule of its own
length (1 step: trapezoid, 2: Simpson, 3: 3/8, 4: Boole). At a jump both sides are combined before the network's product, so
that a state costs one row however many stretches it ends.

The error against the derivative of what the solver computes is of the lower of two orders, the rule's and the step's: states
and lambda follow the continuous problem to the step's order p only, and so does that derivative. Measured with "gregory" on
Lorenz 63, T = 0.2: 1.0, 2.0, 3.0, 4.0 for p = 1 ... 4. A Gregory rule of order 6 leaves RK4 at order 4 (with an eighth of the
error); what lifts the bound is not a better rule but the stages, see `discrete`. A correction held over the stages
(correction_at = "step") is a step of order 1. A loss at every state leaves trapezoids, order 2.

Source: Davis, Rabinowitz, Methods of Numerical Integration (1984), section 2.9 (Gregory) and 2.4 (Newton-Cotes).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from trimtab.core.errors import ConfigError
from trimtab.gradient.base import Gradient

RULES = ("left", "trapezoid", "gregory")

_NEWTON_COTES = {
    1: [1 / 2, 1 / 2],
    2: [1 / 3, 4 / 3, 1 / 3],
    3: [3 / 8, 9 / 8, 9 / 8, 3 / 8],
    4: [14 / 45, 64 / 45, 24 / 45, 64 / 45, 14 / 45],
}
_GREGORY = [3 / 8, 7 / 6, 23 / 24]


class QuadratureEGA(Gradient):
    """A variant with a Jacobian, whose sum over the window may be weighed better.

    Args:
        quadrature: "left" (the paper), "trapezoid" or "gregory".

    Raises:
        ConfigError: another rule.
    """

    def __init__(self, quadrature: str = "left"):
        if quadrature not in RULES:
            raise ConfigError(f"Unknown quadrature {quadrature!r}; known are {', '.join(RULES)}.")
        self.quadrature = quadrature

    def weights(self, grad_states: Tensor) -> tuple[list[float], list[float]] | None:
        """See `Gradient.weights`."""
        return None if self.quadrature == "left" else node_weights([bool(one.any()) for one in grad_states], self.quadrature)


def stretch_weights(steps: int, rule: str) -> list[float]:
    """Weights of a rule on equidistant points without a jump between them.

    Args:
        steps: 1 or more.
        rule: "trapezoid" or "gregory".

    Returns:
        (steps + 1,) weights, to be multiplied by h; they sum to steps.
    """
    if rule == "trapezoid":
        return [0.5, *[1.0] * (steps - 1), 0.5]
    if steps in _NEWTON_COTES:
        return _NEWTON_COTES[steps]
    return [*_GREGORY, *[1.0] * (steps - 5), *reversed(_GREGORY)]


def node_weights(jumps: Sequence[bool], rule: str) -> tuple[list[float], list[float]]:
    """Weights of lambda before and after the jump at every state of a window.

    Args:
        jumps: (K+1,) whether lambda jumps at u_k; the ends of the window count as jumps anyway.
        rule: "trapezoid" or "gregory".

    Returns:
        (before, after), see `Gradient.weights`.
    """
    last = len(jumps) - 1
    ends = [k for k in range(last + 1) if jumps[k] or k in (0, last)]
    before, after = [0.0] * (last + 1), [0.0] * (last + 1)
    for left, right in pairwise(ends):
        first, *others = stretch_weights(right - left, rule)
        after[left] = first
        before[left + 1 : right + 1] = others
    return before, after
