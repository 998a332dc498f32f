# SPDX-License-Identifier: MIT
"""Ensemble Kalman inversion: the rival that needs no gradient at all, for networks of few parameters.

J members theta_j are moved by forward runs G(theta_j) alone:

    theta_j <- theta_j + C^{theta G} (C^{GG} + Gamma)^-1 (y + eta_j - G(theta_j)),   eta_j ~ N(0, Gamma)

with the sample covariances of the ensemble, a new mini-batch of windows a step. Members never leave the span of the first
ensemble, so that J has to exceed the number of parameters.

Source: Iglesias, Law, Stuart, Inverse Problems 29, 045001 (2013), doi:10.1088/0266-5611/29/4/045001, equations 13 to 15; with
mini-batches Kovachki and Stuart, Inverse Problems 35, 095005 (2019), doi:10.1088/1361-6420/ab1c3a, section 4.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from trimtab.core.errors import ConfigError, InputError, SolverError
from trimtab.core.loss import mean_square
from trimtab.core.solver import Solver
from trimtab.corrections.real_numbers import set_from_vector, to_vector

LEAST = 3  # members without which there is no covariance


class KalmanInversion:
    """An ensemble of parameters, moved towards what is observed.

    Args:
        ensemble: (J, P) float64, the first members: draws from the prior.
        seed: of the perturbed observations, and of members that take the place of failed ones.

    Attributes:
        ensemble: the members now.

    Raises:
        ConfigError: fewer than three members.
    """

    def __init__(self, ensemble: np.ndarray, seed: int = 0):
        if ensemble.ndim != 2 or len(ensemble) < LEAST:
            raise ConfigError(f"An ensemble Kalman inversion takes at least {LEAST} members, (J, P), not {ensemble.shape}.")
        self.ensemble = np.array(ensemble, dtype=np.float64)
        self._random = np.random.default_rng(seed)

    @property
    def mean(self) -> np.ndarray:
        """The estimate, (P,)."""
        return self.ensemble.mean(0)

    def step(self, predicted: np.ndarray, observed: np.ndarray, deviation: float) -> int:
        """Move the members once.

        Args:
            predicted: (J, M) float64, G(theta_j); a member with a number that is not finite has failed.
            observed: (M,) float64, y.
            deviation: of the observations' error, Gamma = deviation^2 I, in the unit of y.

        Returns:
            How many members had failed: each is drawn anew from the mean and covariance of the others.

        Raises:
            InputError: shapes that do not fit, or an error of observations that is not positive.
            SolverError: fewer than three members are left.
        """
        if predicted.shape != (len(self.ensemble), *observed.shape) or not deviation > 0:
            raise InputError(f"{len(self.ensemble)} members predict an array of shape {predicted.shape} for observations of "
                             f"shape {observed.shape} with deviation {deviation}; it must be (members, observations), and above "
                             "0.")
        alive = np.isfinite(predicted).all(1)
        kept = int(alive.sum())
        if kept < LEAST:
            raise SolverError(f"Only {kept} of {len(alive)} members of the ensemble stayed finite: draw the first ensemble "
                              "closer, or shorten the window.")
        members, values = self.ensemble[alive], predicted[alive]
        moves = (members - members.mean(0)) / np.sqrt(kept - 1)                    # (J, P)
        spread = (values - values.mean(0)) / (np.sqrt(kept - 1) * deviation)       # (J, M)
        misfit = (observed - values) / deviation + self._random.standard_normal(values.shape)
        # In the space of the ensemble: C^{theta G} (C^{GG} + Gamma)^-1 = moves^T (I + spread spread^T)^-1 spread / deviation.
        weights = np.linalg.solve(np.eye(kept) + spread @ spread.T, spread @ misfit.T)    # (J, J)
        members = members + weights.T @ moves
        self.ensemble[alive] = members
        if kept < len(alive):
            anomalies = (members - members.mean(0)) / np.sqrt(kept - 1)
            draws = self._random.standard_normal((len(alive) - kept, kept))
            self.ensemble[~alive] = members.mean(0) + draws @ anomalies
        return len(alive) - kept


def prior(correction: nn.Module, members: int, deviation: float, seed: int = 0) -> np.ndarray:
    """A first ensemble: the parameters of a module with independent normal numbers added.

    Args:
        correction: the module, of P trainable parameters; a complex one counts twice.
        members: J.
        deviation: of what is added.
        seed: of it.

    Returns:
        (J, P) float64.
    """
    centre = to_vector(trainable(correction)).numpy()
    return centre + deviation * np.random.default_rng(seed).standard_normal((members, len(centre)))


def trainable(correction: nn.Module) -> list[nn.Parameter]:
    """The parameters that an inversion moves, in the order of its vectors."""
    return [one for one in correction.parameters() if one.requires_grad]


def set_parameters(correction: nn.Module, vector: np.ndarray) -> None:
    """Put a (P,) vector into a module's trainable parameters."""
    set_from_vector(torch.from_numpy(vector), trainable(correction))


@torch.no_grad()
def invert(
    solver: Solver,
    correction: nn.Module,
    batch: Callable[[int], tuple[np.ndarray, np.ndarray]],
    inversion: KalmanInversion,
    *,
    iterations: int,
    window: int,
    deviation: float,
    stride: int = 1,
    components: np.ndarray | None = None,
    each: Callable[[int, float], None] = lambda iteration, loss: None,
) -> None:
    """Fit a correction by ensemble Kalman inversion; at the end it has the ensemble's mean.

    Args:
        solver: any solver; it is only run forward, J rollouts an iteration.
        correction: in its slot; its trainable parameters are set.
        batch: gives for an iteration initial states (B, N) and observations (n, B, N) at every outer step, float64.
        inversion: the ensemble, moved.
        iterations: number of them.
        window: outer steps n.
        deviation: of the observations' error, in the unit of the state.
        stride: inner steps an outer step.
        components: observed components of the state; None for all.
        each: told, after each iteration, its number and the mean square error of the ensemble's mean after it, on the same batch.

    Raises:
        InputError, SolverError: see `KalmanInversion.step`.
    """
    chosen = slice(None) if components is None else components
    for iteration in range(iterations):
        start, observed = batch(iteration)
        predicted = np.stack([_run(solver, correction, one, start, window, stride)[1:][..., chosen].ravel()
                              for one in inversion.ensemble])
        inversion.step(predicted, observed[..., chosen].ravel(), deviation)
        set_parameters(correction, inversion.mean)
        after = solver.advance(start, window, correction=correction, stride=stride, on_blow_up="mark").states
        each(iteration, float(mean_square(torch.from_numpy(after), torch.from_numpy(observed), (), components)))


def _run(solver: Solver, correction: nn.Module, parameters: np.ndarray, start: np.ndarray, window: int,
         stride: int) -> np.ndarray:
    set_parameters(correction, parameters)
    return solver.advance(start, window, correction=correction, stride=stride, on_blow_up="mark").states
