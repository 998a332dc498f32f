# SPDX-License-Identifier: MIT
"""A rollout as one differentiable torch operation: Fortran runs it forward, the reverse sweep runs it backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trimtab.errors import ConfigError
from trimtab.gradient import Gradient, Tape, get_gradient
from trimtab.gradient.sweep import sweep
from trimtab.networks import network_dtype
from trimtab.solver import OnBlowUp, Solver, whole_steps

# In training mode these are another function at every call: the reverse sweep would differentiate one that never ran.
_CHANGING = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)


def rollout(
    solver: Solver,
    correction: nn.Module | None,
    u0: Any,
    steps: int,
    *,
    gradient: str | Gradient = "static",
    stride: int = 1,
    on_blow_up: OnBlowUp = "raise",
    chunk: int = 0,
) -> Tensor:
    """Run the hybrid from u0; backward() fills the gradients of the correction's parameters and of u0.

    Args:
        solver: any `Solver`.
        correction: module (B, N) -> (B, N), a tendency; None for the solver alone.
        u0: (B, N) float64, numpy or torch; a torch tensor may require grad.
        steps: number of outer steps K.
        gradient: a variant's name or object.
        stride: inner steps an outer step, h = stride * solver.spec.dt.
        on_blow_up: "raise", or "mark": a member that leaves the finite numbers is NaN from then on and gives no gradient.
        chunk: largest number of states in one vector-Jacobian product of the network; 0 chooses.

    Returns:
        (K+1, B, N) float64 states, the first is u0; they require grad when a parameter or u0 does.

    Raises:
        InputError, BlowUpError, CorrectionError: see `Solver.advance`.
        ConfigError: steps or stride below 1, an unknown gradient, or one that this solver cannot give; dropout or batch
            statistics in training mode, when a gradient is wanted.

    Source:
        Ouala et al., arXiv 2311.10665.
    """
    variant = get_gradient(gradient)
    variant.check(solver)
    steps, stride = whole_steps(steps, stride)
    if correction is not None:
        network_dtype(correction)  # refuses what is no module
    parameters = [one for one in correction.parameters() if one.requires_grad] if correction is not None else []
    if parameters and torch.is_grad_enabled() and correction is not None:
        changing = [name for name, one in correction.named_modules() if one.training and isinstance(one, _CHANGING)]
        if changing:
            raise ConfigError(f"The layer {changing[0]} is in training mode and gives another answer at every call, so that "
                              "the rollout has no gradient: call .eval() on it, or use a layer without random numbers and "
                              "batch statistics.")
    start = u0 if isinstance(u0, Tensor) else torch.from_numpy(solver.spec.check_states(u0))
    call = _Call(solver, correction, steps, stride, on_blow_up, variant, chunk)
    states: Tensor = _Rollout.apply(call, start.cpu(), *parameters)
    return states.to(start.device)


class _Call:
    """What the operation needs besides tensors."""

    def __init__(self, solver: Solver, correction: nn.Module | None, steps: int, stride: int, on_blow_up: OnBlowUp,
                 variant: Gradient, chunk: int):
        self.solver, self.correction, self.steps, self.stride = solver, correction, steps, stride
        self.on_blow_up, self.variant, self.chunk = on_blow_up, variant, chunk


class _Rollout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, u0: Tensor, *parameters: Tensor) -> Tensor:
        window = call.solver.advance(
            u0, call.steps, correction=call.correction, stride=call.stride, on_blow_up=call.on_blow_up
        )
        states = torch.from_numpy(window.states)
        ctx.call, ctx.h, ctx.alive = call, window.h, torch.from_numpy(window.alive)
        ctx.inputs = None if window.inputs is None else torch.from_numpy(window.inputs)
        ctx.save_for_backward(states, *parameters)  # so that changing either in place before backward() is refused
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        states, *parameters = ctx.saved_tensors
        alive: Tensor = ctx.alive
        if not alive.any():
            return None, torch.zeros_like(states[0]) if ctx.needs_input_grad[1] else None, *map(torch.zeros_like, parameters)
        inputs = ctx.inputs
        whole = bool(alive.all())
        if not whole:  # no state that a member could be given instead is sure to be one that the solver can run from
            states, grad_states = states[:, alive], grad_states[:, alive]
            inputs = None if inputs is None else inputs[:, alive]
        tape = Tape(states, ctx.h, call.stride, call.solver, call.correction, inputs)
        gradients, grad_u0 = sweep(tape, call.variant, grad_states, parameters, call.chunk)
        if not whole:
            grad_u0 = torch.zeros(len(alive), states.shape[2], dtype=grad_u0.dtype).index_copy(0, alive.nonzero()[:, 0], grad_u0)
        return None, grad_u0 if ctx.needs_input_grad[1] else None, *gradients
