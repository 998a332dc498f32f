# SPDX-License-Identifier: MIT
"""The a posteriori phase: run the hybrid over windows of the truth and learn from where it ends up."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from trimtab.config.sections import Options, TrainingConfig
from trimtab.core.log import log
from trimtab.core.loss import alive, field_scale, mean_square
from trimtab.core.solver import Solver
from trimtab.corrections.repeatable import STATES, check_function, in_mode, unused
from trimtab.corrections.slots import AnyCorrection, SlotCorrection
from trimtab.data.windows import Targets, Windows
from trimtab.gradient import get_gradient
from trimtab.gradient.rollout import rollout
from trimtab.parallel.world import World
from trimtab.training.phase import Phase, cosine, cut

SCALED = 256  # states that say how large the fields are
VALIDATION_VALUES = 2**21  # numbers of one validation rollout held at once
MICROBATCH_VALUES = 2**11  # numbers of the states from which a microbatch starts, by default


def loss_scale(windows: Windows, weights: Options | None = None) -> Tensor:
    """What the loss divides differences by: each field's standard deviation over the training runs, see `loss.field_scale`.

    Args:
        windows: of the training runs.
        weights: `training.weights`.

    Returns:
        (N,) float64, of the block that is here.

    Raises:
        ConfigError, DataError: see `loss.field_scale`.
    """
    targets = windows.targets
    # Of the whole domain, also where a block is here.
    scale = field_scale(targets.spec, windows.whole(windows.spread(SCALED)), weights)
    return scale if targets.block is None else scale[torch.from_numpy(targets.block)]


class Online(Phase):
    """Rollouts with a gradient variant, mean square over lead times of differences over the field's standard deviation.

    Args:
        config: [training].
        solver, correction, targets: what is trained, and on what.
        world: ranks that may share an ensemble's members.

    Raises:
        ConfigError: an unknown gradient, one without members to share, or no target within a window.
        DataError: runs too short for a window.
    """

    name = "online"

    shares_members = True

    def __init__(self, config: TrainingConfig, solver: Solver, correction: AnyCorrection, targets: Targets,
                 world: World | None = None):
        self.config, self.solver, self.correction = config, solver, correction
        self.epochs, self.batch, self.seed = config.epochs, config.batch, config.seed
        self.microbatch = cut(config.microbatch, config.batch, targets.spec.size, MICROBATCH_VALUES)
        self.gradient = get_gradient(config.gradient, **config.gradient_options)
        if world is not None:
            self.gradient.join(world.cohort, world.holders)
        lengths = {config.window, *(window for _, window in config.curriculum)}
        self.windows = {one: targets.windows("training", one, config.window) for one in lengths}
        self.size_of_state = targets.spec.size  # of the undivided state: a validation is cut alike for any number of blocks
        self.leads = {one: targets.leads(one, config.loss_at) for one in lengths}
        self.held_out = targets.windows("validation", config.window)
        self.scale = loss_scale(self.windows[config.window], config.weights)
        self.observed = targets.counted
        self._before = [0, *itertools.accumulate(self.steps(epoch) for epoch in range(self.epochs))]

    def prepare(self, world: World) -> None:
        """See `Phase.prepare`: whether the network can be trained, and what the loss divides by.

        Raises:
            ConfigError: see `repeatable`.
        """
        windows = self.windows[self.config.window]
        states = self.correction.examples(STATES) if isinstance(self.correction, SlotCorrection) else \
            torch.from_numpy(windows.start(np.arange(min(STATES, len(windows)))))
        with in_mode(self.correction, False):
            check_function(self.correction, states)
            said = unused(self.correction, states)
        if said:
            log.warning("online: %s", said)
        parts = self.scale.split([one.size for one in self.solver.spec.fields])
        told = [f"{one.name} {part.min():.4g}" + (f" to {part.max():.4g}" if part.max() > part.min() else "")
                + (f" {one.units}" if one.units not in ("1", "") else "")
                for one, part in zip(self.solver.spec.fields, parts, strict=True) if not one.hidden]
        log.info("the loss divides differences by %s", ", ".join(told))

    def size(self, epoch: int) -> int:
        """See `Phase.size`."""
        return len(self.windows[self.window(epoch)])

    def steps(self, epoch: int) -> int:
        """See `Phase.steps`."""
        return self.config.steps_per_epoch or -(-self.size(epoch) // self.batch)

    def rate(self, epoch: int, step: int) -> float:
        """See `Phase.rate`."""
        config = self.config
        if config.rate_drop_every:
            return config.rate * 0.1 ** (epoch // config.rate_drop_every)
        return cosine(config.rate, config.rate_end, (self._before[epoch] + step) / max(1, self._before[-1]))

    def window(self, epoch: int) -> int:
        """See `Phase.window`."""
        return self.config.window_at(epoch)

    def loss(self, indices: np.ndarray, epoch: int) -> tuple[Tensor, int]:
        """See `Phase.loss`; 1 is about the error of the truth's time mean."""
        config, steps = self.config, self.window(epoch)
        start, truth = self._batch(self.windows[steps], indices, self.leads[steps])
        states = rollout(self.solver, self.correction, start, steps, gradient=self.gradient, stride=config.stride,
                         on_blow_up="mark" if config.on_blow_up == "drop" else "raise")
        loss = mean_square(states, truth, self._chosen(steps), self.observed, self.scale)
        return loss, len(indices) - int(alive(states).sum())

    def held(self) -> list[np.ndarray]:
        """See `Phase.held`."""
        indices = self.held_out.spread(self.config.validate_windows)
        members = max(1, VALIDATION_VALUES // (self.size_of_state * (self.config.window + 1)))
        return [indices[first : first + members] for first in range(0, len(indices), members)]

    @torch.no_grad()
    def judge(self, indices: np.ndarray) -> tuple[float, int]:
        """See `Phase.judge`."""
        steps, leads = self.config.window, self.leads[self.config.window]
        start, truth = self._batch(self.held_out, indices, leads)
        window = self.solver.advance(start, steps, correction=self.correction, stride=self.config.stride, on_blow_up="mark")
        loss = mean_square(torch.from_numpy(window.states), truth, self._chosen(steps), self.observed, self.scale)
        return float(loss), len(indices) - int(window.alive.sum())

    def _chosen(self, steps: int) -> list[int]:
        """Leads for the loss; none when it is all of them, which is a view of the states and not a copy."""
        return self.leads[steps] if len(self.leads[steps]) < steps else []

    @staticmethod
    def _batch(windows: Windows, indices: np.ndarray, leads: list[int]) -> tuple[Tensor, Tensor]:
        """Initial states (B, N) and what is observed of the truth (L, B, N)."""
        return torch.from_numpy(windows.start(indices)), torch.from_numpy(windows.observe(indices, leads))
