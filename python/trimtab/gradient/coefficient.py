# SPDX-License-Identifier: MIT
"""Sub-models that are no tendency: the network answers a coefficient P of the solver's own tendency.

    du/dt = N(u, P_theta(u)),   M_theta(u) = N(u, P_theta(u)) - N(u, P_0),   dM/dtheta = (dN/dP) dP/dtheta

so every variant of the gradient holds as it stands, with the cotangent (dN/dP(u_k))^T lambda of the coefficient in place of
lambda: one product with the operator that the coefficient multiplies (of an eddy viscosity, -grad q . grad lambda). Nothing
else of the sweep changes. A solver says so by `spec.coefficient`, and offers `slot_adjoint` (`gradient/adjoint.py`); where it
does not, and P is short, forward runs give it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.core.errors import ConfigError
from trimtab.core.solver import Solver
from trimtab.core.spec import SolverSpec
from trimtab.corrections.repeatable import as_slot

LARGEST = 16  # numbers of a coefficient for which 2 M forward runs a step are still affordable


def difference_step(spec: SolverSpec, single: bool = False) -> float:
    """Step of a central difference of forward runs, in units of what is moved, that balances truncation and rounding.

    Args:
        spec: the solver's; its fields say whether it keeps them in float32.
        single: whether anything else in a run rounds to float32.

    Returns:
        The cube root of the rounding.
    """
    single = single or any(one.dtype.endswith("32") for one in spec.fields)
    return float(torch.finfo(torch.float32 if single else torch.float64).eps ** (1 / 3))


class Held(nn.Module):
    """A correction that answers given values, whatever the state.

    Args:
        values: (B, M) float64.
    """

    dtype = torch.float64

    def __init__(self, values: Tensor):
        super().__init__()
        self.values = values

    def forward(self, u: Tensor) -> Tensor:
        """The values, (B, M)."""
        return self.values


def by_differences(solver: Solver, correction: nn.Module, states: Tensor, lam: Tensor, stride: int) -> Tensor:
    """(dPsi/dP)^T lam / h from central differences of forward runs, P held over one outer step: 2 M of them.

    Args:
        solver: any solver whose slot takes a coefficient.
        correction: the module in its slot, (B, N) -> (B, M).
        states: (B, N) float64.
        lam: (B, N) float64.
        stride: inner steps an outer step.

    Returns:
        (B, M) float64, per unit of time: the mean over the step, so that only the left rule may sum it; to O(h) of dN/dP as the
        formula has it, and exact for a coefficient that does not depend on the state.

    Raises:
        ConfigError: a coefficient of more than `LARGEST` numbers.
    """
    spec = solver.spec
    if spec.outputs > LARGEST:
        raise ConfigError(f"The slot of {spec.solver} takes a coefficient of {spec.outputs} numbers and the solver offers no "
                          f"slot_adjoint: give it one (gradient/adjoint.py); forward runs do for up to {LARGEST}.")
    with torch.no_grad():
        centre = as_slot(correction, states).detach().to("cpu", torch.float64)
    h, answer = stride * spec.dt, torch.empty_like(centre)
    # Of each number's own size, here and over all states: a viscosity in m^2/s may be tiny, and any may pass through zero.
    size = centre.square().mean(0).sqrt()
    sizes = centre.abs() + torch.where(size > 0, size, 1.0)
    for i in range(spec.outputs):
        step = torch.zeros_like(centre)
        step[:, i] = difference_step(spec) * sizes[:, i]
        up, down = (torch.from_numpy(solver.advance(states, 1, correction=Held(centre + sign * step), stride=stride).states[1])
                    for sign in (1, -1))
        answer[:, i] = ((up - down) * lam).sum(1) / (2 * h * step[:, i])
    return answer
