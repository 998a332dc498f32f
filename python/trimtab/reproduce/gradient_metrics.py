# SPDX-License-Identifier: MIT
"""Gradients of a window's loss by any variant, as one vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import trimtab
from trimtab.core.solver import Solver
from trimtab.gradient import Gradient, TangentEGA

# Every variant by the name that tables and figures give it.
VARIANTS: Mapping[str, str | Gradient] = {
    "none": "none", "static": "static", "euler": "euler", "tangent": "tangent",
    "tangent, trapezoid": TangentEGA("trapezoid"), "tangent, gregory": TangentEGA("gregory"), "ensemble": "ensemble",
    "discrete": "discrete", "exact": "exact",
}


def gradient_of(solver: Solver, correction: Any, u0: Any, steps: int, variant: str,
                loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """d loss / d theta of a rollout.

    Args:
        solver, correction: the hybrid.
        u0: (B, N) float64.
        steps: outer steps.
        variant: a key of `VARIANTS`.
        loss: of the states (K+1, B, N); members that blew up are NaN there.

    Returns:
        (P,) float64, the parameters' gradients one after the other, and the loss.
    """
    states = trimtab.rollout(solver, correction, u0, steps, gradient=VARIANTS[variant], on_blow_up="mark")
    value = loss(states)
    found = torch.autograd.grad(value, list(correction.parameters()), allow_unused=True)
    parts = [torch.zeros_like(theta) if one is None else one for one, theta in zip(found, correction.parameters(), strict=True)]
    return torch.cat([one.detach().double().flatten() for one in parts]), value.detach()


def cosine(one: Tensor, other: Tensor) -> float:
    """Of the angle between two gradients."""
    return float(one @ other / (one.norm() * other.norm()))


def relative_error(found: Tensor, exact: Tensor) -> float:
    """|found - exact| / |exact|."""
    return float((found - exact).norm() / exact.norm())
