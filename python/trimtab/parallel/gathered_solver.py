# SPDX-License-Identifier: MIT
"""A solver on several ranks as one of undivided states, for all that is no training: reference runs, scores, forecasts."""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.core.errors import ConfigError
from trimtab.core.solver import OnBlowUp
from trimtab.core.spec import SolverSpec
from trimtab.core.window import Window


class Joined:
    """Every rank of the group asks for the same, of undivided states, and gets the same; the solver runs on their blocks.

    Args:
        solver: this rank's, opened with the communicator; it says `whole` and `block`, see `trimtab.core.solver`.
        comm: the communicator (mpi4py) of the ranks that share it.

    Attributes:
        spec: of the undivided state.
        local: of this rank's block; a correction is built for it.

    Raises:
        ConfigError: a solver that does not say which block it holds.
    """

    def __init__(self, solver: Any, comm: Any):
        if getattr(solver, "block", None) is None:
            raise ConfigError(f"The solver {solver.spec.solver} does not say which block of the domain it holds, with "
                              "trimtab_block in an adapter or as `trimtab.core.solver` tells: set parallel.domain = 1.")
        self.inner, self.comm = solver, comm
        self.spec, self.local = solver.whole, solver.spec
        self._places = [np.asarray(one) for one in comm.allgather(solver.block)]

    def advance(self, u0: Any, steps: int, *, correction: Any = None, stride: int = 1, time: float = 0.0,
                on_blow_up: OnBlowUp = "raise") -> Window:
        """See `Solver.advance`; u0 and the window are of the undivided state, the correction is of this rank's block."""
        own = np.ascontiguousarray(self.spec.check_states(u0)[:, self._places[self.comm.rank]])
        window = self.inner.advance(own, steps, correction=correction, stride=stride, time=time, on_blow_up=on_blow_up)
        return Window(self.undivided(window.states), window.times, window.h, window.failed_step)

    def undivided(self, own: np.ndarray) -> np.ndarray:
        """The ranks' blocks (..., n) put together, (..., N) float64 on every rank."""
        rows = int(np.prod(own.shape[:-1]))
        counts = [rows * len(one) for one in self._places]
        got = np.empty(sum(counts))
        self.comm.Allgatherv(np.ascontiguousarray(own), [got, counts])
        whole = np.empty((rows, self.spec.size))
        for places, part in reversed(list(zip(self._places, np.split(got, np.cumsum(counts)[:-1]), strict=True))):
            whole[:, places] = part.reshape(rows, -1)  # what every rank holds is taken from the first
        return whole.reshape(*own.shape[:-1], -1)

    def close(self) -> None:
        """Close this rank's solver."""
        self.inner.close()

    def __getattr__(self, name: str) -> Any:
        """`initial_state`, (1, N) float64, the code's own start, of a solver that has one."""
        if name != "initial_state":
            raise AttributeError(f"A solver on several ranks has no {name}.")
        own = self.inner.initial_state
        return lambda: self.undivided(own())

    def __enter__(self) -> Joined:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def open_joined(opener: Any, comm: Any, name: str, **options: Any) -> Any:
    """Open a solver for undivided states.

    Args:
        opener: `trimtab.open_solver` or its like.
        comm: of the ranks that share it, all of which call this; None for a solver of this rank alone.
        name, options: see `trimtab.open_solver`.

    Returns:
        The solver, a `Joined` one where there is a communicator.

    Raises:
        ConfigError: see `trimtab.open_solver` and `Joined`.
    """
    return opener(name, **options) if comm is None else Joined(opener(name, **options, comm=comm), comm)


def local_spec(solver: Any) -> SolverSpec:
    """What a correction is built for: the block of this rank, of a `Joined` solver; else the solver's own."""
    spec: SolverSpec = solver.local if isinstance(solver, Joined) else solver.spec
    return spec
