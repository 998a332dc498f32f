# SPDX-License-Identifier: MIT
"""What a phase of training is: how long, how fast, in which order, and what one step and one validation cost."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from torch import Tensor

from trimtab.parallel.world import World


class Phase(ABC):
    """Offline or online training, as the trainer's loop sees it. It holds nothing that changes from step to step.

    Attributes:
        name: "offline" or "online".
        epochs: number of epochs.
        batch: windows a step.
        microbatch: windows computed at once; what the bits of a step depend on, with the batch.
        seed: decides the order of the windows.
        shares_members: whether `parallel.members` ranks compute a microbatch together.
    """

    name: str
    epochs: int
    batch: int
    microbatch: int
    seed: int
    shares_members = False

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
        """Loss of a microbatch.

        Args:
            indices: (B,) int, which windows.
            epoch: the epoch.

        Returns:
            () tensor, the mean over the windows that stayed finite, NaN when every one blew up, and how many did.
        """

    @abstractmethod
    def held(self) -> list[np.ndarray]:
        """The windows that validate, (B,) int each, as they are judged together."""

    @abstractmethod
    def judge(self, indices: np.ndarray) -> tuple[float, int]:
        """The loss on some held-out windows.

        Args:
            indices: (B,) int, one of `held`.

        Returns:
            The loss, NaN when every window blew up, and how many did.
        """

    def prepare(self, world: World) -> None:  # noqa: B027 - most phases need nothing
        """Do what is done once and takes long.

        Args:
            world: ranks that share it; all of them call this.
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


def cut(wanted: int, batch: int, size: int, values: int) -> int:
    """Length of a microbatch.

    Args:
        wanted: by the experiment; 0 for the least that holds so many values, so that a call is worth its overhead.
        batch: most it can be.
        size: length N of a state.
        values: numbers of all states of a microbatch.
    """
    return min(batch, wanted or -(-values // size))


def cosine(rate: float, end: float, share: float) -> float:
    """Learning rate after a share (0 to 1) of the steps, on a half cosine from `rate` to `end`.

    Source: Loshchilov and Hutter, arXiv 1608.03983, equation 5, without restarts.
    """
    return end + 0.5 * (rate - end) * (1 + math.cos(math.pi * share))
