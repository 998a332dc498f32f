# SPDX-License-Identifier: MIT
"""Losses of a rollout against its targets; members that blew up are left out, and give no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import InputError
from trimtab.state import SolverSpec


def alive(states: Tensor) -> Tensor:
    """Members of a rollout that stayed finite.

    Args:
        states: (K+1, B, N).

    Returns:
        (B,) bool.
    """
    # A member that blows up is NaN from then on, so its last state tells.
    return torch.isfinite(states[-1]).all(dim=1)


def mean_square(states: Tensor, truth: Tensor, leads: Sequence[int] = (), components: np.ndarray | None = None,
                scale: Tensor | None = None) -> Tensor:
    """Mean square difference over lead times, members that stayed finite, and chosen components.

    Args:
        states: (K+1, B, N) float64, a rollout.
        truth: (L, B, N) float64, the targets at the lead times, in the same unit.
        leads: (L,) lead times in outer steps; empty for 1 to K.
        components: (M,) int64, those of the N that count (`SolverSpec.visible`); None for all.
        scale: (N,) float64 by which differences are divided (`field_scale`); None for 1.

    Returns:
        () float64, in the square of the state's unit over the scale; NaN when no member stayed finite.

    Raises:
        InputError: targets of another shape.
    """
    chosen = states[list(leads)] if leads else states[1:]
    if chosen.shape != truth.shape:
        raise InputError(f"The targets have shape {tuple(truth.shape)}; states at {len(chosen)} lead times have "
                         f"{tuple(chosen.shape)}.")
    kept = alive(states)
    if not kept.all():
        chosen, truth = chosen[:, kept], truth[:, kept]
    if components is not None:
        counted = torch.from_numpy(components)
        chosen, truth = chosen[..., counted], truth[..., counted]
    difference = chosen - truth
    if scale is not None:
        difference = difference / (scale if components is None else scale[counted])
    return difference.square().mean()


def field_scale(spec: SolverSpec, states: np.ndarray) -> Tensor | None:
    """What makes fields of several units comparable in a loss: the standard deviation of each over states of the truth.

    Args:
        spec: the solver's.
        states: (R, N) float64.

    Returns:
        (N,) float64, one number a field, 1 for one that is constant up to rounding; None where all fields that count have one
        unit.
    """
    if len({one.units for one in spec.fields if not one.hidden}) < 2:
        return None
    scales = []
    for one, values in zip(spec.fields, spec.split(states).values(), strict=True):
        deviation = float(values.std())
        scales.append(np.full(one.size, deviation if deviation > one.rounding * np.abs(values).max() else 1.0))
    return torch.from_numpy(np.concatenate(scales))
