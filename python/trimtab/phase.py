# SPDX-License-Identifier: MIT
"""What a phase of training is: how long, how fast, in which order, and what one step and one validation cost."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from torch import Tensor


class Phase(ABC):
    """Offline or online training, as the trainer's loop sees it. It holds nothing that changes from step to step.

    Attributes:
        name: "offline" or "online".
        epochs: number of epochs.
        batch: windows a step.
        seed: decides the order of the windows.
    """

    name: str
    epochs: int
    batch: int
    seed: int

    @abstractmethod
    def size(self, epoch: int) -> int:
        """Number of windows to draw from."""

    @abstractmethod
    def steps(self, epoch: int) -> int:
        """Optimiser steps of an epoch."""

    @abstractmethod
    def rate(self, epoch: int, step: int) -> float:
        """Learning rate at a step of an epoch."""

    @abstractmethod
    def window(self, epoch: int) -> int:
        """Outer steps of a window."""

    @abstractmethod
    def loss(self, indices: np.ndarray, epoch: int) -> tuple[Tensor, int]:
        """Loss of a batch.

        Args:
            indices: (B,) int, which windows.
            epoch: the epoch.

        Returns:
            () tensor, NaN when every window blew up, and how many did.
        """

    @abstractmethod
    def validate(self, boundary: Callable[[], None]) -> tuple[float, int]:
        """The loss on held-out windows.

        Args:
            boundary: called between batches; may raise to leave.

        Returns:
            The loss, NaN when every window blew up, and how many did.
        """

    def order(self, epoch: int) -> np.ndarray:
        """Windows of an epoch, in order: permutations that follow from seed, phase and epoch alone.

        Args:
            epoch: the epoch.

        Returns:
            (about steps * batch,) int; step k takes the k-th `batch` of them.
        """
        size = self.size(epoch)
        generator = np.random.default_rng((self.seed, len(self.name), epoch))
        passes = -(-self.steps(epoch) * self.batch // size)
        order = np.concatenate([generator.permutation(size) for _ in range(passes)])
        return order[: self.steps(epoch) * self.batch]

    def steps_before(self, epoch: int) -> int:
        """Optimiser steps of all epochs before this one."""
        return sum(self.steps(one) for one in range(epoch))


def cosine(rate: float, end: float, share: float) -> float:
    """Learning rate after a share (0 to 1) of the steps, on a half cosine from `rate` to `end`.

    Source: Loshchilov and Hutter, arXiv 1608.03983, equation 5, without restarts.
    """
    return end + 0.5 * (rate - end) * (1 + math.cos(math.pi * share))
