# SPDX-License-Identifier: MIT
"""The discrete gradient: exact to round-off, from stage values and an adjoint of the tendency."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from trimtab.core.solver import Solver
from trimtab.gradient.adjoint import require_step
from trimtab.gradient.base import StepGradient, Tape
from trimtab.gradient.implicit import hybrid_step


class DiscreteGradient(StepGradient):
    """The derivative of the numbers that the hybrid computes: no quadrature, no error in h, no torch twin of the solver.

    The sum over the window need not be a quadrature of the continuous problem at all. The sweep of `tangent` passes every
    stage of every step anyway; where it pulls kappa_i back through the network by the state, it also takes
    (dM/dtheta(y_i))^T kappa_i. The rule so obtained has the Runge-Kutta scheme's own weights and nodes, and lambda at the
    stages instead of at the steps, which is why it is exact where no quadrature on the recorded states can be.

    The cost is that of `tangent` with the derivative by theta at every stage in place of once a step. It comes out of the
    same backward pass as the one by the state, so that the network runs no more often, and backward() takes a tenth longer
    (QG 64^2 and Lorenz 63, networks of 600 to 28,000 parameters). Memory: the stages of one inner step.

    Source:
        Hager, Numer. Math. 87, 247 (2000), doi:10.1007/s002110000178, with the parameters as controls; see
        `adjoint.HybridStep`.
    """

    name = "discrete"

    def check(self, solver: Solver) -> None:
        """A solver with an adjoint of its tendency and a Runge-Kutta step; see `Gradient.check`."""
        require_step(solver, self.name)

    def transpose(
        self, tape: Tape, k: int, lam: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """See `StepGradient.transpose`."""
        step = hybrid_step(tape, parameters)
        return step.transpose(k, lam), step.parts
