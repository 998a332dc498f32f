# SPDX-License-Identifier: MIT
"""What the doctor's checks work with: the code opened in this process, a developed state, runs with given outputs."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import trimtab
from trimtab.config import Experiment
from trimtab.errors import ConfigError
from trimtab.slot_correction import slot_sizes
from trimtab.state import SolverSpec

SLOW = 0.05   # seconds a step
DEVELOP = 21  # steps after which a state counts as developed: odd, so that alternating flags stand the other way
HERE = ("isolation", "snapshot", "instances", "timeout", "weight")  # keys of [solver] that a look from inside leaves out


class Given(nn.Module):
    """A correction that returns given numbers, whatever it sees.

    Args:
        spec: the solver's.
        values: (M',) float64 outputs of all slots; None for zeros.
    """

    dtype = torch.float64

    def __init__(self, spec: SolverSpec, values: np.ndarray | None = None):
        super().__init__()
        self.spec = spec
        self.values = np.zeros(slot_sizes(spec)[1]) if values is None else values

    def slot(self, name: str) -> nn.Module:
        """The part of one slot."""
        start = 0
        for slot in self.spec.slots:
            stop = start + sum(one.size for one in slot.outputs)
            if slot.name == name:
                return Given(self.spec, self.values[start:stop])
            start = stop
        raise KeyError(name)

    def forward(self, seen: Tensor) -> Tensor:
        """(B, m) -> (B, m')."""
        return torch.from_numpy(self.values).expand(seen.shape[0], -1).contiguous()


class Bench:
    """A code on the doctor's bench.

    Args:
        experiment: whose [solver] is opened, in this process and as it is.

    Raises:
        ConfigError: what the code or its adapter refuse; or a solver without an adapter.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        options = {key: value for key, value in experiment.solver.options.items() if key not in HERE}
        if "library" not in options:
            raise ConfigError(f"`trimtab couple check` is for a code with an adapter; [solver] of {experiment.name} names no "
                              "library.")
        self.solver: Any = trimtab.open_solver(experiment.solver.name, isolation="none", **options)
        self.spec: SolverSpec = self.solver.spec
        self.stride = experiment.training.stride

    @cached_property
    def state(self) -> np.ndarray:
        """(1, N) a developed state."""
        began = time.perf_counter()
        state = np.ascontiguousarray(self.solver.advance(self.solver.initial_state(), 1, stride=DEVELOP).states[1])
        self._step_seconds = (time.perf_counter() - began) / DEVELOP
        return state

    @property
    def slow(self) -> bool:
        """Whether a step takes so long that the checks make do with fewer."""
        return self.state is not None and self._step_seconds > SLOW

    def run(self, state: np.ndarray, steps: int, *, stride: int = 1, outputs: np.ndarray | None = None,
            noop: bool = False) -> np.ndarray:
        """States (steps + 1, N) of a run; the slot is empty, or returns `outputs`, or zeros."""
        correction = Given(self.spec, outputs) if outputs is not None or noop else None
        return np.asarray(self.solver.advance(state.reshape(1, -1), steps, stride=stride, correction=correction).states[:, 0])

    def differing(self, one: np.ndarray, other: np.ndarray) -> list[str]:
        """Names of the fields in which two states differ in any bit."""
        views = zip(self.spec.split(one).items(), self.spec.split(other).values(), strict=True)
        return [name for (name, a), b in views if a.tobytes() != b.tobytes()]

    def close(self) -> None:
        """Close the code."""
        self.solver.close()
