# SPDX-License-Identifier: MIT
"""The exact gradient by autograd through the solver's torch twin: the yardstick."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.core.solver import Solver
from trimtab.gradient.base import StepGradient, Tape
from trimtab.gradient.twin.torch_twin import TorchSolver, twin


class ExactGradient(StepGradient):
    """Autograd through the torch twin of the solver, step by step from the recorded states.

    What every other variant is measured with, for solvers that have a twin (`twin/torch_twin.py`). The rollout itself still runs
    in Fortran; backward() runs each outer step again in the twin, with its graph, from the last to the first, so that the
    memory is one step's. It equals autograd through `twin(solver).rollout` to round-off. The twin of QG writes the advection
    otherwise than the Fortran, which is the same but for aliases: with dealiasing = 'none' trust `discrete`.
    """

    name = "exact"

    def __init__(self) -> None:
        self._twin: TorchSolver | None = None

    def check(self, solver: Solver) -> None:
        """A solver with a twin; see `Gradient.check`."""
        self._of(solver)

    def transpose(
        self, tape: Tape, k: int, lam: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """See `StepGradient.transpose`."""
        u = tape.states[k].clone().requires_grad_()
        with torch.enable_grad():
            end = self._of(tape.solver).flow(u, tape.correction, tape.stride)
        grad, *others = torch.autograd.grad(end, [u, *parameters], lam, allow_unused=True)
        parts: list[Tensor | None] = [*others]
        return grad, parts

    def _of(self, solver: Solver) -> TorchSolver:
        if self._twin is None or self._twin.spec is not solver.spec:
            self._twin = twin(solver)
        return self._twin
