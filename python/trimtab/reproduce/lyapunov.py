# SPDX-License-Identifier: MIT
"""Lyapunov exponents of a hybrid from forward runs alone, so that a black box has them, too."""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.core.errors import ConfigError
from trimtab.core.solver import Solver

SIZE = 1e-6  # of a perturbation, over the root mean square of the states


def lyapunov_exponents(solver: Solver, correction: Any, starts: np.ndarray, *, steps: int, renew: int,
                       discard: int) -> np.ndarray:
    """All exponents, mean over trajectories: perturbed runs, orthonormalised again and again (QR).

    Args:
        solver: the solver.
        correction: module (B, N) -> (B, N), or None.
        starts: (B, N) float64, states on the attractor.
        steps: renewals that count.
        renew: inner steps between two of them.
        discard: renewals before, in which the directions turn to where they belong.

    Returns:
        (N,) exponents, falling, per unit of time; NaN when a trajectory blows up.

    Raises:
        ConfigError: no step to count.

    Source:
        Benettin, Galgani, Giorgilli, Strelcyn, Meccanica 15 (1980) 9, 10.1007/BF02128236, with differences for the tangent.
    """
    if steps < 1 or renew < 1:
        raise ConfigError(f"Lyapunov exponents need at least one renewal of one step, not {steps} of {renew}.")
    members, size = starts.shape
    scale = SIZE * float(np.sqrt(np.mean(starts**2)))
    directions = np.broadcast_to(np.eye(size), (members, size, size))  # a row each
    control, growth = starts, np.zeros(size)
    for step in range(discard + steps):
        batch = np.concatenate([control[:, None], control[:, None] + scale * directions], axis=1).reshape(-1, size)
        window = solver.advance(batch, 1, correction=correction, stride=renew, on_blow_up="mark")
        if not window.alive.all():
            return np.full(size, np.nan)
        ends = window.states[1].reshape(members, 1 + size, size)
        control = ends[:, 0].copy()
        orthogonal, triangle = np.linalg.qr(np.swapaxes((ends[:, 1:] - ends[:, :1]) / scale, 1, 2))
        directions = np.swapaxes(orthogonal, 1, 2)
        if step >= discard:
            growth += np.log(np.abs(np.diagonal(triangle, axis1=1, axis2=2))).mean(0)
    return np.sort(growth / (steps * renew * solver.spec.dt))[::-1]
