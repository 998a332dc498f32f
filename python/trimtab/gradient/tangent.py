# SPDX-License-Identifier: MIT
"""Tangent-EGA: the adjoint of the whole outer step of the hybrid."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import ConfigError, SolverError
from trimtab.core.solver import Solver
from trimtab.corrections.networks import network_dtype
from trimtab.gradient.adjoint import has_adjoint, has_influence, has_step
from trimtab.gradient.base import Tape
from trimtab.gradient.coefficient import difference_step
from trimtab.gradient.ensemble.perturbations import field_scales
from trimtab.gradient.implicit import hybrid_step
from trimtab.gradient.quadrature import QuadratureEGA

LARGEST = 64  # components of a state for which 2 N forward runs a step are still a Jacobian one can afford
_TOLD: set[str] = set()


class TangentEGA(QuadratureEGA):
    """J_k is the Jacobian of the outer step, of physics and correction together, to round-off.

    From what the solver offers, the first that is there:
    its own `flow_adjoint`; the transpose of its Runge-Kutta scheme (`adjoint.HybridStep`; explicit, adaptive or
    implicit) from its `tendency_adjoint`, any stride, the correction at each stage or once a step; or, up to 64 components,
    central differences of forward runs, about which a warning is given once a solver.

    The gradient by u_0 then is exact; that by theta has the error of the sum over the window alone: O(h^2) at a fixed number
    of steps; at a fixed horizon O(h) with `quadrature="left"` (the paper), O(h^2) with "trapezoid", and with "gregory" and
    RK4 O(h^4). Use it for windows that are not short against an eddy time or a tenth of a Lyapunov time. `discrete` has no
    error at all and costs a tenth more.

    Args:
        quadrature: see `quadrature.py`.

    Raises:
        ConfigError: an unknown quadrature.

    Source:
        Ouala et al., arXiv 2311.10665, Theorem 2.1 with the tangent linear model.
    """

    name = "tangent"

    def check(self, solver: Solver) -> None:
        """A solver whose step can be transposed, or is small; see `Gradient.check`."""
        if _has_own(solver) or _can_transpose(solver):
            return
        if solver.spec.size > LARGEST:
            raise ConfigError(
                f"The gradient 'tangent' needs an adjoint, and the solver {solver.spec.solver} offers none that it can use; "
                f"{solver.spec.size} components are too many for finite differences (at most {LARGEST}): use \"static\", or "
                "give the solver tendency_adjoint or flow_adjoint (gradient/adjoint.py).")
        if solver.spec.solver not in _TOLD:
            _TOLD.add(solver.spec.solver)
            warnings.warn(f"The solver {solver.spec.solver} offers no adjoint that 'tangent' can use: it takes finite "
                          f"differences, {2 * solver.spec.size} forward runs a step.", stacklevel=3)

    def pullback(self, tape: Tape, k: int, lam: Tensor) -> Tensor:
        """The whole step, transposed; see `Gradient.pullback`."""
        if _has_own(tape.solver):
            solver: Any = tape.solver
            answer = solver.flow_adjoint(tape.states[k], lam, correction=tape.correction, stride=tape.stride)
            return torch.as_tensor(answer)
        if _can_transpose(tape.solver):
            return hybrid_step(tape).transpose(k, lam)
        return _finite_differences(tape, k, lam)


def _has_own(solver: Solver) -> bool:
    return callable(getattr(solver, "flow_adjoint", None))


def _can_transpose(solver: Solver) -> bool:
    return has_adjoint(solver) and has_influence(solver) and has_step(solver.spec)


def _finite_differences(tape: Tape, k: int, lam: Tensor) -> Tensor:
    """J_k^T lam from 2 N forward runs a member; the step, in units of each field's size, balances error and rounding.

    Raises:
        SolverError: a perturbed run blew up.
    """
    u = tape.states[k]
    members, size = u.shape
    single = tape.correction is not None and network_dtype(tape.correction) == torch.float32
    step = difference_step(tape.solver.spec, single) * (field_scales(tape, k) + u.abs())
    moves = torch.diag_embed(step)                                             # (B, N, N)
    starts = torch.cat([u[:, None] + moves, u[:, None] - moves]).reshape(-1, size)
    window = tape.solver.advance(starts, 1, correction=tape.correction, stride=tape.stride, on_blow_up="mark")
    if not window.alive.all():
        member = int(np.flatnonzero(~window.alive)[0]) // size % members
        raise SolverError(f"A run perturbed for the finite differences of 'tangent' at step {k} of member {member} blew up, "
                          "though the rollout did not: use \"ensemble\", which leaves such runs out, or shorten dt.")
    up, down = torch.from_numpy(window.states[1]).reshape(2, members, size, size)
    return torch.einsum("bij,bj->bi", up - down, lam) / (2 * step)
