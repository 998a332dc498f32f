# SPDX-License-Identifier: MIT
"""A rollout as one differentiable torch operation: Fortran runs it forward, the reverse sweep runs it backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trimtab.core.solver import OnBlowUp, Solver, whole_steps
from trimtab.corrections.networks import network_dtype
from trimtab.corrections.repeatable import check_function
from trimtab.gradient import Gradient, Tape, get_gradient
from trimtab.gradient.sweep import sweep


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
        ConfigError: steps or stride below 1, an unknown gradient, or one that this solver cannot give; when a gradient is wanted,
            a network that is no function of the state in the mode that it is in, see `repeatable.check_function`.

    Source:
        Ouala et al., arXiv 2311.10665.
    """
    variant = get_gradient(gradient)
    variant.check(solver)
    steps, stride = whole_steps(steps, stride)
    if correction is not None:
        network_dtype(correction)  # refuses what is no module
    parameters = [one for one in correction.parameters() if one.requires_grad] if correction is not None else []
    checked = torch.from_numpy(solver.spec.check_states(u0))
    start = u0 if isinstance(u0, Tensor) else checked
    learns = correction is not None and torch.is_grad_enabled() and bool(parameters or start.requires_grad)
    if learns and not solver.spec.slots:  # what the networks of named slots see is known after the run
        check_function(correction, checked)  # type: ignore[arg-type]
    call = _Call(solver, correction, steps, stride, on_blow_up, variant, chunk, learns)
    states: Tensor = _Rollout.apply(call, start.cpu(), *parameters)
    return states.to(start.device)


class _Call:
    """What the operation needs besides tensors."""

    def __init__(self, solver: Solver, correction: nn.Module | None, steps: int, stride: int, on_blow_up: OnBlowUp,
                 variant: Gradient, chunk: int, learns: bool):
        self.solver, self.correction, self.steps, self.stride = solver, correction, steps, stride
        self.on_blow_up, self.variant, self.chunk, self.learns = on_blow_up, variant, chunk, learns


class _Rollout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, u0: Tensor, *parameters: Tensor) -> Tensor:
        window = call.solver.advance(
            u0, call.steps, correction=call.correction, stride=call.stride, on_blow_up=call.on_blow_up
        )
        states = torch.from_numpy(window.states)
        ctx.call, ctx.h, ctx.alive = call, window.h, torch.from_numpy(window.alive)
        ctx.inputs = None if window.inputs is None else torch.from_numpy(window.inputs)
        if call.learns and call.solver.spec.slots:
            seen = states[:-1] if ctx.inputs is None else ctx.inputs
            seen = seen.flatten(0, 1)
            seen = seen[seen.isfinite().all(1)]
            if len(seen):
                check_function(call.correction, seen)  # type: ignore[arg-type]
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
