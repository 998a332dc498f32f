# SPDX-License-Identifier: MIT
"""Losses of a rollout against its targets; members that blew up are left out, and give no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import InputError


def alive(states: Tensor) -> Tensor:
    """Members of a rollout that stayed finite.

    Args:
        states: (K+1, B, N).

    Returns:
        (B,) bool.
    """
    # A member that blows up is NaN from then on, so its last state tells.
    return torch.isfinite(states[-1]).all(dim=1)


def mean_square(states: Tensor, truth: Tensor, leads: Sequence[int] = (), components: np.ndarray | None = None) -> Tensor:
    """Mean square difference over lead times, members that stayed finite, and observed components.

    Args:
        states: (K+1, B, N) float64, a rollout.
        truth: (L, B, N) float64, the targets at the lead times, in the same unit.
        leads: (L,) lead times in outer steps; empty for 1 to K.
        components: (M,) int64, those of the N that are observed (`Observation.components`); None for all. No other enters the
            loss, whatever stands in the targets there.

    Returns:
        () float64, in the square of the state's unit; NaN when no member stayed finite.

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
        observed = torch.from_numpy(components)
        chosen, truth = chosen[..., observed], truth[..., observed]
    return (chosen - truth).square().mean()
