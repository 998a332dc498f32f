# SPDX-License-Identifier: MIT
"""Euler-EGA: the flow's Jacobian to first order in h."""

from __future__ import annotations

from torch import Tensor

from trimtab.core.solver import Solver
from trimtab.gradient.adjoint import Applied, project, require_adjoint, tendency_adjoint
from trimtab.gradient.base import Tape
from trimtab.gradient.quadrature import QuadratureEGA


class EulerEGA(QuadratureEGA):
    """J_k^T lambda = lambda + h (dF/du(u_k) + dM/du(u_k))^T lambda: one adjoint of the tendency a step, whatever the solver.

    The paper's "first-order Jacobian". The error is O(h^2) at a fixed number of steps and O(h) at a fixed horizon. The
    quadrature reaches no further than that: the Jacobian itself is first order. It is unstable where explicit Euler with
    the outer step is, and so useless on a stiff solver; `tangent` has the solver's own stability at about four times the cost.

    Args:
        quadrature: see `quadrature.py`.

    Raises:
        ConfigError: an unknown quadrature.

    Source:
        Ouala et al., arXiv 2311.10665, Corollary 2.1.1.
    """

    name = "euler"

    def check(self, solver: Solver) -> None:
        """A solver with an adjoint of its tendency; see `Gradient.check`."""
        require_adjoint(solver, self.name)

    def pullback(self, tape: Tape, k: int, lam: Tensor) -> Tensor:
        """One step of explicit Euler, transposed; see `Gradient.pullback`."""
        u = tape.states[k] if k else self.held(tape, tape.states[k])
        change = tendency_adjoint(tape.solver, u, lam)
        if tape.correction is not None:
            change = change + project(tape.solver, Applied(tape.solver, tape.correction, u).transpose(lam)[0])
        return lam + tape.h * change
