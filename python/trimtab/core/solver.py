# SPDX-License-Identifier: MIT
"""What trimtab asks of a solver: describe itself, run forward, close. Nothing of it has to be differentiable.

What a solver may offer besides (an adjoint of its tendency, a projection) is said in `gradient/adjoint.py`.

A solver that is MPI-parallel itself is opened with the keyword `comm`, the mpi4py communicator of the ranks that share it (a
Fortran code takes `comm.py2f()`), or without it for the whole domain on one rank. Its `spec` is of the block that this rank
holds; it says besides `whole`, the `SolverSpec` of the undivided state, and `block`, (N,) int, which components of that this rank
holds. A member that blows up anywhere is marked on every rank. All ranks call `advance` together.
(`parallel/gathered_solver.py` makes one of undivided states of it. For a normalisation that is fitted it also needs
`undivided`, see `CoupledSolver`.)
"""

from __future__ import annotations

import operator
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from trimtab.core.errors import BlowUpError, ConfigError
from trimtab.core.spec import SolverSpec
from trimtab.core.window import Window

MOST_STEPS = 2**53  # beyond, a step's number is not exact as a float64
OnBlowUp = Literal["raise", "mark"]


@runtime_checkable
class Solver(Protocol):
    """A numerical code that advances states; any class with these three members is one."""

    spec: SolverSpec

    def advance(
        self,
        u0: Any,
        steps: int,
        *,
        correction: Any = None,
        stride: int = 1,
        time: float = 0.0,
        on_blow_up: OnBlowUp = "raise",
    ) -> Window:
        """Run the hybrid (or, without a correction, the solver) forward from given states.

        Args:
            u0: (B, N) float64, numpy or torch.
            steps: number of outer steps K.
            correction: torch module (B, N) -> (B, N), a tendency in the state's unit per unit of time; None for none.
            stride: inner steps of length `spec.dt` an outer step, so h = stride * dt.
            time: time of u0.
            on_blow_up: "raise", or "mark": a member that leaves the finite numbers is NaN from then on, the others go on.

        Returns:
            The window, states (K+1, B, N).

        Raises:
            InputError: u0 has the wrong shape or dtype or is not finite.
            BlowUpError: a member became NaN or Inf and on_blow_up is "raise".
            CorrectionError: the correction did not run; an exception of its own is raised again with its own type.
        """
        ...

    def close(self) -> None:
        """Give back what the solver holds; a second call does nothing."""
        ...


def whole_steps(steps: int, stride: int) -> tuple[int, int]:
    """Numbers of outer and inner steps, checked.

    Args:
        steps: outer steps, a whole number above 0.
        stride: inner steps an outer step, likewise.

    Returns:
        Both as int.

    Raises:
        ConfigError: not a whole number (h / dt is a float even when it is whole: round it), below 1, or too many.
    """
    try:
        counts = operator.index(steps), operator.index(stride)
    except TypeError as error:
        raise ConfigError(f"steps = {steps!r} and stride = {stride!r} must be whole numbers; round what is one.") from error
    if min(counts) < 1:
        raise ConfigError(f"A rollout takes at least one step of at least one inner step, not {steps} of {stride}.")
    if counts[0] * counts[1] > MOST_STEPS:
        raise ConfigError(f"{steps} steps of {stride} inner steps are more than {MOST_STEPS}: cut the run.")
    return counts


def whole_number(name: str, number: int) -> int:
    """A number of things, checked.

    Args:
        name: of what, for a refusal.
        number: a whole number above 0.

    Returns:
        It as int.

    Raises:
        ConfigError: anything else.
    """
    try:
        count = operator.index(number)
    except TypeError:
        count = 0
    if count < 1:
        raise ConfigError(f"{name} = {number!r} must be a whole number above 0.")
    return count


def refuse_blow_up(spec: SolverSpec, failed_step: np.ndarray, steps: int) -> None:
    """Raise when a member became NaN or Inf.

    Args:
        spec: the solver's.
        failed_step: (B,) int64, see `Window`.
        steps: inner steps of the rollout.

    Raises:
        BlowUpError: which member, and when.
    """
    if failed_step.any():
        members = np.flatnonzero(failed_step)
        raise BlowUpError(
            f"The solver {spec.solver} left the finite numbers at inner step {int(failed_step[members].min())} "
            f"of {steps} ({members.size} of {failed_step.size} members, the first is {int(members[0])}): "
            "shorten dt, or check the correction's scale.", failed_step)
