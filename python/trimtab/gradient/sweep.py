# SPDX-License-Identifier: MIT
"""The reverse sweep: from d loss / d states to d loss / d theta and d loss / d u_0, nothing of the solver differentiated.

    lambda_n = dJ/du_n;   for k = n-1 ... 0:   grad += h (dM/dtheta(u_k))^T lambda_{k+1}
                                               lambda_k = J_k^T lambda_{k+1} + dJ/du_k

Ouala et al., arXiv 2311.10665, Theorem 2.1, read backwards. The sum over k needs no sequence, so the network's
vector-Jacobian product runs over many (k, member) at once, in chunks of bounded memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.gradient.base import Gradient, Tape

CHUNK_VALUES, CHUNK_STATES = 2**17, 1024


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
        chunk: largest number of states in one vector-Jacobian product; 0 chooses, up to 1024 states and 2^17 values.

    Returns:
        d loss / d parameter for each parameter (None where the network does not use it), and d loss / d u_0, (B, N).
    """
    steps, members, size = tape.states.shape[0] - 1, *tape.states.shape[1:]
    rows = max(1, (chunk or min(CHUNK_STATES, CHUNK_VALUES // size)) // members)
    totals: list[Tensor | None] = [None] * len(parameters)
    lam = grad_states[steps]
    for stop in range(steps, 0, -rows):
        start = max(0, stop - rows)
        adjoints = torch.empty(stop - start, members, size, dtype=lam.dtype)
        for k in range(stop - 1, start - 1, -1):
            adjoints[k - start] = lam
            lam = gradient.pullback(tape, k, lam) + grad_states[k]
        if parameters:
            _accumulate(totals, tape, tape.states[start:stop], adjoints, parameters)
    return totals, lam


def _accumulate(
    totals: list[Tensor | None], tape: Tape, states: Tensor, adjoints: Tensor, parameters: Sequence[Tensor]
) -> None:
    """totals += h * sum over the rows of (dM/dtheta(u))^T lambda."""
    device = parameters[0].device
    states, adjoints = states.flatten(0, 1).to(device), adjoints.flatten(0, 1).to(device)
    with torch.enable_grad():
        tendency = tape.correction(states)
    if not tendency.requires_grad:
        return
    parts = torch.autograd.grad(tendency, parameters, adjoints.mul_(tape.h), allow_unused=True)
    for i, part in enumerate(parts):
        if part is not None:
            total = totals[i]
            totals[i] = part if total is None else total.add_(part)
