# SPDX-License-Identifier: MIT
"""Ensemble Kalman inversion: the formula, a linear problem, failed members, and a coefficient found by forward runs alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trimtab.core.errors import ConfigError, InputError, SolverError
from trimtab.corrections.correction import Correction
from trimtab.corrections.networks import Unknowns
from trimtab.training.kalman_inversion import KalmanInversion, invert, prior


def test_a_step_is_the_formula():
    """In the space of the ensemble as with the covariances themselves, observations perturbed alike."""
    generator = np.random.default_rng(3)
    theta, predicted, y = generator.standard_normal((7, 4)), generator.standard_normal((7, 5)), generator.standard_normal(5)
    inversion = KalmanInversion(theta, seed=1)
    assert inversion.step(predicted, y, 0.3) == 0
    a, d = theta - theta.mean(0), predicted - predicted.mean(0)
    gain = (a.T @ d / 6) @ np.linalg.inv(d.T @ d / 6 + 0.09 * np.eye(5))
    eta = 0.3 * np.random.default_rng(1).standard_normal((7, 5))
    np.testing.assert_allclose(inversion.ensemble, theta + (y + eta - predicted) @ gain.T, rtol=1e-10, atol=1e-12)


def test_a_linear_problem_is_solved():
    generator = np.random.default_rng(0)
    forward, truth = generator.standard_normal((20, 5)), generator.standard_normal(5)
    inversion = KalmanInversion(generator.standard_normal((60, 5)))
    for _ in range(30):
        inversion.step(inversion.ensemble @ forward.T, forward @ truth, 0.01)
    np.testing.assert_allclose(inversion.mean, truth, atol=0.01)


def test_failed_members_are_drawn_anew_and_too_few_are_refused():
    generator = np.random.default_rng(0)
    theta = generator.standard_normal((8, 2))
    predicted = theta.copy()
    predicted[2, 0], predicted[5, 1] = np.nan, np.inf
    inversion, others = KalmanInversion(theta), KalmanInversion(np.delete(theta, (2, 5), 0))
    assert inversion.step(predicted, np.zeros(2), 1.0) == 2
    others.step(np.delete(predicted, (2, 5), 0), np.zeros(2), 1.0)
    assert np.array_equal(np.delete(inversion.ensemble, (2, 5), 0), others.ensemble)
    assert np.isfinite(inversion.ensemble).all() and not np.array_equal(inversion.ensemble[2], theta[2])
    predicted[:6] = np.nan
    with pytest.raises(SolverError, match="Only 2 of 8 members"):
        inversion.step(predicted, np.zeros(2), 1.0)
    with pytest.raises(InputError, match="must be"):
        inversion.step(predicted, np.zeros(3), 1.0)
    with pytest.raises(ConfigError, match="at least 3 members"):
        KalmanInversion(np.zeros((2, 4)))


def test_beta_is_found_without_a_gradient(open_solver):
    solver, truth = open_solver("lorenz63", slot="beta"), open_solver("lorenz63", beta=8 / 3)
    path = truth.advance(np.array([[8.0, 0.0, 30.0]]), 400).states[:, 0]

    def batch(iteration):
        begins = np.random.default_rng(iteration).integers(0, 380, 8)
        return path[begins], np.stack([path[begins + k] for k in range(1, 11)])

    correction = Correction(Unknowns((1,)).double(), solver.spec)
    inversion, losses = KalmanInversion(prior(correction, 6, 1.0)), []
    invert(solver, correction, batch, inversion, iterations=8, window=10, deviation=0.01,
           each=lambda iteration, loss: losses.append(loss))
    assert correction(torch.zeros(1, 3).double()).item() == pytest.approx(8 / 3, abs=2e-3)
    assert len(losses) == 8 and losses[-1] < 1e-4
