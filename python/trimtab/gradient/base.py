# SPDX-License-Identifier: MIT
"""What a gradient variant is, and the tape it reads."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimtab.core.errors import ConfigError
from trimtab.core.solver import Solver
from trimtab.gradient.coefficient import by_differences
from trimtab.parallel.subgroup import Cohort

CHUNK_VALUES, CHUNK_STATES = 2**17, 512  # what the network sees at once, so that its graph stays bounded


@dataclass(frozen=True)
class Tape:
    """All that a variant may look at: the recorded states, and the solver and correction that made them.

    Args:
        states: (K+1, B, N) float64 tensor, the window's; members that blew up are left out.
        h: outer step.
        stride: inner steps an outer step.
        solver: the solver.
        correction: the module that filled the slot; None when it was empty.
        inputs: (K, B, M) float64 tensor, what the network saw where that is not the state itself; else None.
    """

    states: Tensor
    h: float
    stride: int
    solver: Solver
    correction: nn.Module | None
    inputs: Tensor | None = None

    def seen(self, first: int, stop: int) -> Tensor:
        """What the network saw at the outer steps first ... stop-1, (stop - first, B, M) float64."""
        return (self.states if self.inputs is None else self.inputs)[first:stop]

    def squares(self, k: int) -> Tensor:
        """Sum of the squares of each field at a step, (B, F)."""
        sizes = [one.size for one in self.solver.spec.fields]
        return torch.stack([part.square().sum(-1) for part in self.states[k].split(sizes, -1)], -1)

    @functools.cached_property
    def window_squares(self) -> Tensor:
        """The same summed over the window, (B, F)."""
        return sum((self.squares(k) for k in range(1, len(self.states))), self.squares(0))

    def slot_adjoint(self, states: Tensor, lam: Tensor, steady: bool) -> Tensor:
        """Transpose of how the slot's output enters the state, per unit of time: the identity unless the solver says otherwise.

        Of a coefficient for which the solver offers nothing it is taken from forward runs, see `coefficient.by_differences`.

        Args:
            states: (B, N) float64 at which the slot was called.
            lam: (B, N) float64.
            steady: see `Gradient.steady`.

        Returns:
            (B, M) float64, cotangent of the network's tendency or coefficient; may be `lam` itself.

        Raises:
            ConfigError: see `coefficient.by_differences`.
        """
        own = getattr(self.solver, "slot_adjoint", None)
        if own is not None:
            return torch.as_tensor(own(states, lam, stride=self.stride, steady=steady))
        if self.solver.spec.coefficient is not None and self.correction is not None:
            return by_differences(self.solver, self.correction, states, lam, self.stride)
        return lam


class Gradient(ABC):
    """A variant of the Euler Gradient Approximation: lambda_k = J_k^T lambda_{k+1} + dJ/du_k, with its own J_k."""

    name: str
    # How a step's correction enters the state: with its share of a steady drift (True: no memory in J_k carries the rest
    # on), or as this one step alone (False). They differ in schemes of several time levels only, h against 2 dt in leapfrog.
    steady: bool = False

    @abstractmethod
    def pullback(self, tape: Tape, k: int, lam: Tensor) -> Tensor:
        """The transpose of the Jacobian of the outer step from u_k to u_{k+1}, applied to a vector.

        Args:
            tape: the rollout.
            k: step, 0 to K-1.
            lam: (B, N) float64.

        Returns:
            (B, N) float64; may be `lam` itself.
        """

    def check(self, solver: Solver) -> None:  # noqa: B027 - most variants ask nothing of a solver
        """Refuse, before anything is run, a solver that lacks what this variant needs.

        Raises:
            ConfigError: what is missing, and which variant does without.
        """

    def join(self, cohort: Cohort, blocks: Cohort | None = None) -> None:
        """Share the members of an ensemble with other ranks, all of which make the same calls.

        Args:
            cohort: the ranks.
            blocks: those that hold the other blocks of the state, of a solver that is MPI-parallel itself; else None.

        Raises:
            ConfigError: a variant without members.
        """
        if cohort.size > 1:
            raise ConfigError(f"parallel.members = {cohort.size} shares the members of an ensemble, and the gradient "
                              f"{self.name!r} has none: leave it out, or use \"ensemble\".")

    def held(self, tape: Tape, vector: Tensor) -> Tensor:
        """What the flow sees of a state, or of a derivative by one: what the solver's `project` keeps, else all of it.

        A target may hold waves that the solver drops; their share of the loss is nothing that a correction can change.

        Args:
            tape: the rollout.
            vector: (B, N) float64.

        Returns:
            (B, N) float64; may be `vector` itself.
        """
        project = getattr(tape.solver, "project", None)
        return vector if project is None else torch.as_tensor(project(vector))

    def weights(self, grad_states: Tensor) -> tuple[list[float], list[float]] | None:
        """Weights of the sum over the window in place of the paper's.

        Args:
            grad_states: (K+1, B, N) float64, dJ/du_k: where it is not zero, lambda jumps.

        Returns:
            None for the paper's h (dM/dtheta(u_k))^T lambda_{k+1}; or (before, after), each (K+1,), for
            h (dM/dtheta(u_k))^T (before_k lambda_k + after_k J_k^T lambda_{k+1}), k = 0 ... K.
        """
        return None


class StepGradient(Gradient):
    """A variant that differentiates each step by the parameters, too, instead of by h dM/dtheta(u_k)."""

    @abstractmethod
    def transpose(
        self, tape: Tape, k: int, lam: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The transposes of d u_{k+1} / d u_k and d u_{k+1} / d theta, applied to a vector.

        Args:
            tape: the rollout.
            k: step, 0 to K-1.
            lam: (B, N) float64.
            parameters: the tensors of the correction that want a gradient.

        Returns:
            (B, N) float64, and one tensor a parameter, None where the step does not depend on it.
        """

    def pullback(self, tape: Tape, k: int, lam: Tensor) -> Tensor:
        """By the state alone; see `Gradient.pullback`."""
        return self.transpose(tape, k, lam, ())[0]
