# SPDX-License-Identifier: MIT
"""The reverse sweep: from d loss / d states to d loss / d theta and d loss / d u_0.

    lambda_n = dJ/du_n;   for k = n-1 ... 0:   grad += h (dM/dtheta(u_k))^T lambda_{k+1}
                                               lambda_k = J_k^T lambda_{k+1} + dJ/du_k

Ouala et al., arXiv 2311.10665, Theorem 2.1, read backwards. The sum over k needs no sequence, so the network's
vector-Jacobian product runs over many (k, member) at once, in chunks of bounded memory. A variant may weigh the sum
otherwise (`quadrature.py`), or differentiate each step by the parameters itself (`StepGradient`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.core.errors import ConfigError
from trimtab.corrections.repeatable import NO_GRAPH, as_slot
from trimtab.gradient.base import CHUNK_STATES, CHUNK_VALUES, Gradient, StepGradient, Tape


def sweep(
    tape: Tape,
    gradient: Gradient,
    grad_states: Tensor,
    parameters: Sequence[Tensor],
    chunk: int = 0,
) -> tuple[list[Tensor | None], Tensor]:
    """One reverse sweep over a window.

    Args:
        tape: the rollout.
        gradient: the variant.
        grad_states: (K+1, B, N) float64, dJ/du_k.
        parameters: the tensors of the correction that want a gradient.
        chunk: largest number of states in one vector-Jacobian product; 0 chooses, up to 512 states and 2^17 values.
            Products within a step have bounds of their own (`adjoint.HybridStep`).

    Returns:
        d loss / d parameter for each parameter (None where the network does not use it), and d loss / d u_0, (B, N).

    Raises:
        ConfigError: a quadrature that asks for inputs of the network that the solver did not record, or for a dN/dP that it
            does not offer; or a network whose answer has no gradient.
    """
    if isinstance(gradient, StepGradient):
        return _sweep_steps(tape, gradient, grad_states, parameters)
    steps, members, size = tape.states.shape[0] - 1, *tape.states.shape[1:]
    rows = max(1, (chunk or min(CHUNK_STATES, CHUNK_VALUES // size)) // members)
    totals: list[Tensor | None] = [None] * len(parameters)
    weights = gradient.weights(grad_states)
    if weights is not None and tape.inputs is not None:
        raise ConfigError("A quadrature other than \"left\" needs the network's input at the end of the window, and this solver "
                          "records what the network saw at the steps alone: use quadrature = \"left\".")
    if weights is not None and tape.solver.spec.coefficient is not None and not hasattr(tape.solver, "slot_adjoint"):
        raise ConfigError("A quadrature other than \"left\" needs dN/dP at each state, and this solver has no slot_adjoint: the "
                          "forward runs that stand in for it sum over the step already, so use quadrature = \"left\".")
    lam = gradient.held(tape, grad_states[steps])
    for stop in range(steps if weights is None else steps + 1, 0, -rows):
        start = max(0, stop - rows)
        adjoints = torch.empty(stop - start, members, size, dtype=lam.dtype)
        jumps = gradient.held(tape, grad_states[start:stop].flatten(0, 1)).view(adjoints.shape)  # one call for all: it is short
        for k in range(stop - 1, start - 1, -1):
            if weights is None:
                adjoints[k - start] = lam
            behind = gradient.pullback(tape, k, lam) if k < steps else torch.zeros_like(lam)
            if k < steps:
                # What the flow does not see of dJ/du_0 still is a derivative by u_0.
                lam = behind + (jumps[k - start] if k else grad_states[k])
            if weights is not None:
                adjoints[k - start] = weights[0][k] * lam + weights[1][k] * behind
        if parameters:
            states = tape.states[start:stop]
            if start == 0:
                states = torch.cat([gradient.held(tape, states[0])[None], states[1:]])
            seen = states if tape.inputs is None else tape.seen(start, stop)
            cotangents = tape.slot_adjoint(states.flatten(0, 1), adjoints.flatten(0, 1), gradient.steady)
            _add(totals, _products(tape, seen.flatten(0, 1), cotangents, parameters))
    return totals, lam


def _sweep_steps(
    tape: Tape, gradient: StepGradient, grad_states: Tensor, parameters: Sequence[Tensor]
) -> tuple[list[Tensor | None], Tensor]:
    totals: list[Tensor | None] = [None] * len(parameters)
    steps = tape.states.shape[0] - 1
    lam = gradient.held(tape, grad_states[steps])
    for k in range(steps - 1, -1, -1):
        lam, parts = gradient.transpose(tape, k, lam, parameters)
        lam = lam + (gradient.held(tape, grad_states[k]) if k else grad_states[k])
        _add(totals, parts)
    return totals, lam


def _products(
    tape: Tape, seen: Tensor, cotangents: Tensor, parameters: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """h * sum over the rows of (dM/dtheta)^T cotangent; seen (rows, M_in), cotangents (rows, M_out)."""
    assert tape.correction is not None  # it has the parameters
    with torch.enable_grad():
        tendency = as_slot(tape.correction, seen)
    if not tendency.requires_grad:
        raise ConfigError(NO_GRAPH)
    return torch.autograd.grad(tendency, parameters, (cotangents * tape.h).to(tendency), allow_unused=True)


def _add(totals: list[Tensor | None], parts: Sequence[Tensor | None]) -> None:
    for i, part in enumerate(parts):
        if part is not None:
            total = totals[i]
            totals[i] = part if total is None else total.add_(part)
