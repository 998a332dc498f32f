# SPDX-License-Identifier: MIT
"""The optimiser, and whether it gets anywhere: weights that move, and a validation that falls by more than rounding."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from trimtab.core.log import log
from trimtab.corrections.real_numbers import to_vector
from trimtab.training.state import Position

EPSILON = 1e-16  # of Adam: far below any gradient of a loss that has no unit, however small the solver's error is
STILL = 1e-7  # movement of the weights in an epoch, over their norm, up to which it is rounding of float32


def make_optimiser(name: str, correction: nn.Module, rate: float) -> torch.optim.Optimizer:
    """An optimiser by its name in [training].

    Args:
        name: one of `sections.OPTIMISERS`.
        correction: whose parameters it moves.
        rate: its learning rate.
    """
    if name == "sgd":
        return torch.optim.SGD(correction.parameters(), lr=rate)
    kinds: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    optimiser: torch.optim.Optimizer = kinds[name](correction.parameters(), lr=rate, eps=EPSILON)
    return optimiser


def copied(weights: dict[str, Any]) -> dict[str, Any]:
    """Weights that a step does not change, of a `state_dict`."""
    return {name: value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value) for name, value in weights.items()}


class Movement:
    """How far the weights move in an epoch.

    Args:
        correction: what is trained.
    """

    def __init__(self, correction: nn.Module):
        self.correction, self._before, self._told = correction, _weights(correction), False

    def close_epoch(self, phase: str, position: Position) -> None:
        """Warn of an epoch with steps in which the weights did not move measurably; once, until they move again.

        Args:
            phase: its name.
            position: at the end of the epoch, before its sums are cleared.
        """
        now, taken = _weights(self.correction), position.step - position.skipped
        size, moved = float(now.norm()), float((now - self._before).norm())
        still = taken > 0 and moved <= STILL * size
        if still and not self._told:
            log.warning("The weights did not move measurably in %s epoch %d: by %.1e of their norm in %d steps, with a gradient "
                        "of norm %.1e; raise the rate, or check that the network reaches the loss.", phase, position.epoch,
                        moved / size if size else 0.0, taken, position.norms / taken)
        self._before, self._told = now, still


@torch.no_grad()
def _weights(correction: nn.Module) -> torch.Tensor:
    """(P,) float64, a copy."""
    return to_vector(one for one in correction.parameters() if one.requires_grad)
