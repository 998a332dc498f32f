# SPDX-License-Identifier: MIT
"""Burgers: what finite volumes keep, exact solutions with and without shocks, and the adjoint between and at kinks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import trimtab
from helpers.gradients import gradient_of
from trimtab.core.errors import ConfigError
from trimtab.gradient.twin.torch_twin import twin

BARE = {"viscosity": 0.0, "drag": 0.0, "forcing_amplitude": 0.0, "length": 2 * np.pi, "limiter": "minmod", "flux": "godunov"}
KINDS = list(itertools.product(("minmod", "vanleer", "none"), ("godunov", "rusanov")))
WAVE = 0.3  # mean of the start u = WAVE + sin x


def bare(open_solver, n=64, **options):
    return open_solver("burgers", **{**BARE, "n": n, "dt": 0.4 * 2 * np.pi / n / 1.5, "integrator": "rk2", **options})


def averages(function, n, length=2 * np.pi):
    """Cell averages of a function by Gauss's rule of five points."""
    nodes, weights = np.polynomial.legendre.leggauss(5)
    x = (np.arange(n) + 0.5)[:, None] * length / n + nodes * length / n / 2
    return (function(x) * weights).sum(1)[None] / 2


def noise(n, members=3, seed=0):
    return np.random.default_rng(seed).standard_normal((members, n))


@pytest.mark.parametrize(("limiter", "flux"), KINDS)
def test_the_total_is_kept(limiter, flux, open_solver):
    solver = bare(open_solver, limiter=limiter, flux=flux, viscosity=0.02)
    u = noise(64)
    assert np.abs(solver.tendency(u).sum(1)).max() < 1e-12 * np.abs(solver.tendency(u)).max()
    end = solver.advance(u, 20).states[-1]
    np.testing.assert_allclose(end.sum(1), u.sum(1), atol=1e-12)


@pytest.mark.parametrize("flux", ["godunov", "rusanov"])
@pytest.mark.parametrize("limiter", ["minmod", "vanleer"])
def test_the_total_variation_does_not_grow(limiter, flux, open_solver):
    """Even from white noise, at every step; unlimited slopes let it grow at a shock, which is what a limiter is for."""
    u = noise(64)

    def variation(limiter):
        solver = bare(open_solver, limiter=limiter, flux=flux, dt=0.5 * 2 * np.pi / 64 / np.abs(u).max())
        states = solver.advance(u, 60).states
        return np.abs(np.roll(states, -1, -1) - states).sum(-1)

    limited = variation(limiter)
    assert (np.diff(limited, axis=0) <= 1e-13 * limited[0]).all()
    assert limited[-1].max() < 0.7 * limited[0].max()
    square = np.where(np.arange(64) < 32, 1.0, 0.0)[None]
    overshoot = bare(open_solver, limiter="none", flux=flux).advance(square, 20).states[-1]
    assert overshoot.max() > 1.01
    assert bare(open_solver, limiter=limiter, flux=flux).advance(square, 20).states[-1].max() <= 1 + 1e-14


@pytest.mark.parametrize(("limiter", "flux"), [one for one in KINDS if one[0] != "none"])
def test_a_shock_moves_at_its_speed(limiter, flux, open_solver):
    """From 1.5 to 0.5: speed 1 (Rankine, Hugoniot); the rarefaction behind it is u = x / t."""
    n, time = 200, 0.8
    solver = bare(open_solver, n, limiter=limiter, flux=flux, length=4.0, dt=0.005)
    start = averages(lambda x: np.where((x > 0.5) & (x < 2.0), 1.5, 0.5), n, 4.0)
    end = solver.advance(start, 160).states[-1, 0]
    x = (np.arange(n) + 0.5) * 4.0 / n
    exact = np.where(x < 0.5 + 0.5 * time, 0.5, np.where(x < 0.5 + 1.5 * time, (x - 0.5) / time, np.where(x < 2.8, 1.5, 0.5)))
    assert np.abs(end - exact).mean() < 8e-3
    shock = np.flatnonzero((end[:-1] > 1) & (end[1:] <= 1))
    assert abs(x[shock].max() + 0.01 - 2.8) < 0.025
    assert (np.abs(end - exact) > 0.05).sum() <= 4  # cells that smear it


def test_a_rarefaction_through_zero_has_no_standing_jump(open_solver):
    """The entropy solution: an expansion fan, also where the wave speed changes its sign."""
    for flux in ("godunov", "rusanov"):
        solver = bare(open_solver, 100, flux=flux, length=4.0, dt=0.01)
        end = solver.advance(averages(lambda x: np.where(x < 2.0, -1.0, 1.0), 100, 4.0), 50).states[-1, 0]
        x = (np.arange(100) + 0.5) * 0.04
        fan = np.abs(x - 2) < 0.4
        assert np.abs(end - (x - 2) / 0.5)[fan].max() < 0.06


def hopf_cole(x, t, viscosity, terms=60):
    """Exact solution from u = WAVE + sin x: Cole, Q. Appl. Math. 9, 225 (1951), doi:10.1090/qam/42889; Hopf (1950).

    u = WAVE + v(x - WAVE t, t), v = -2 nu phi_x / phi, phi_t = nu phi_xx, phi(x, 0) = exp(cos(x) / 2 nu) = sum of Bessel I_k.
    """
    nodes = 2 * np.pi * np.arange(512) / 512
    start = np.exp((np.cos(nodes) - 1) / (2 * viscosity))
    coefficients = [(start * np.cos(k * nodes)).mean() * (2 if k else 1) for k in range(terms)]
    x = x - WAVE * t
    parts = [(c * np.exp(-viscosity * k * k * t), k) for k, c in enumerate(coefficients)]
    phi = sum(c * np.cos(k * x) for c, k in parts)
    slope = sum(-k * c * np.sin(k * x) for c, k in parts)
    return WAVE - 2 * viscosity * slope / phi


@pytest.mark.parametrize(("limiter", "flux", "least"), [
    ("none", "godunov", 1.9), ("none", "rusanov", 1.9), ("vanleer", "godunov", 1.8), ("minmod", "rusanov", 1.6),
])
def test_viscous_flow_converges_to_the_exact_solution(limiter, flux, least, open_solver):
    """Second order in the mean, a limiter's clipped extrema included; the steep front is 4 nu wide."""
    viscosity, time, errors, sizes = 0.2, 1.0, [], (64, 128, 256)
    for n in sizes:
        steps = int(np.ceil(time / min(0.2 * (2 * np.pi / n) ** 2 / viscosity, 0.02)))
        solver = bare(open_solver, n, limiter=limiter, flux=flux, viscosity=viscosity, dt=time / steps)
        end = solver.advance(averages(lambda x: WAVE + np.sin(x), n), 1, stride=steps).states[-1]
        errors.append(np.abs(end - averages(lambda x: hopf_cole(x, time, viscosity), n)).mean())
    assert -np.polyfit(np.log(sizes), np.log(errors), 1)[0] > least
    assert errors[-1] < 1e-3


def test_inviscid_flow_before_the_shock_converges_to_the_characteristics(open_solver):
    time, errors, sizes = 0.5, [], (64, 128, 256)
    for n in sizes:
        steps = 2 * n // 8
        solver = bare(open_solver, n, limiter="vanleer", dt=time / steps)
        end = solver.advance(averages(lambda x: WAVE + np.sin(x), n), 1, stride=steps).states[-1]

        def exact(x):
            u = WAVE + np.sin(x)
            for _ in range(60):
                u = u - (u - WAVE - np.sin(x - u * time)) / (1 + time * np.cos(x - u * time))
            return u

        errors.append(np.abs(end - averages(exact, n)).mean())
    assert -np.polyfit(np.log(sizes), np.log(errors), 1)[0] > 1.8


def test_forcing_and_drag(open_solver):
    solver = bare(open_solver, drag=0.5, forcing_amplitude=2.0, forcing_wavenumber=3)
    expected = averages(lambda x: 2.0 * np.sin(3 * x), 64)
    np.testing.assert_allclose(solver.tendency(np.zeros((1, 64))), expected, atol=1e-12)
    np.testing.assert_allclose(solver.tendency(np.full((1, 64), 1.5)) - expected, -0.75, atol=1e-12)


@pytest.mark.parametrize(("limiter", "flux"), KINDS)
@pytest.mark.parametrize("n", [4, 5, 33])
def test_the_adjoint_is_the_transpose(limiter, flux, n, open_solver):
    """<lam, J v> = <J^T lam, v> to 1e-13, with J v by forward differentiation of the twin, an independent code."""
    solver = open_solver("burgers", n=n, limiter=limiter, flux=flux)
    u, v, lam = (torch.from_numpy(noise(n, seed=seed)) for seed in range(3))
    _, forward = torch.func.jvp(twin(solver).tendency, (u,), (v,))
    backward = torch.from_numpy(solver.tendency_adjoint(u, lam))
    scale = forward.norm(dim=1) * lam.norm(dim=1)
    assert (((forward * lam).sum(1) - (v * backward).sum(1)).abs() < 1e-13 * scale).all()


@pytest.mark.parametrize(("limiter", "flux"), KINDS)
def test_the_adjoint_against_small_differences(limiter, flux, open_solver):
    """Away from kinks: noise has none within 1e-7 of it."""
    solver = open_solver("burgers", n=24, limiter=limiter, flux=flux)
    u, lam = noise(24, members=1), noise(24, members=1, seed=1)
    moves = 1e-7 * np.eye(24)
    slopes = (solver.tendency(u + moves) - solver.tendency(u - moves)) @ lam[0] / 2e-7
    np.testing.assert_allclose(solver.tendency_adjoint(u, lam)[0], slopes, rtol=0, atol=1e-6 * np.abs(slopes).max())


def test_at_a_kink_the_adjoint_is_one_side(open_solver):
    """Equal differences: that of a. A flat neighbour: the slope counts as flat. A standing shock: the left state."""
    u, units = np.array([[1.0, 2.0, 3.0, 9.0, 0.0, 0.0, 5.0, 5.0]]), np.eye(8)
    solver = bare(open_solver, 8, length=8.0)
    rows = solver.tendency_adjoint(np.repeat(u, 8, axis=0), units)
    for step in (-1e-6, 1e-6):  # of the cell right of equal differences: one side has the derivative
        moved = (solver.tendency(u + step * units[2]) - solver.tendency(u))[0] / step
        matches = np.abs(moved - rows[:, 2]).max() < 1e-4
        assert matches == (step > 0)
    standing = solver.tendency_adjoint(np.array([[1.0] * 4 + [-1.0] * 4]), units[3:4])
    assert standing[0, 3] == -1.0  # -dF/dl at the shock
    assert standing[0, 4] == 0.0


def test_members_do_not_see_each_other(open_solver):
    solver = open_solver("burgers", n=32)
    u, lam = noise(32), noise(32, seed=1)
    for member in range(3):
        one = slice(member, member + 1)
        assert np.array_equal(solver.tendency(u[one]), solver.tendency(u)[one])
        assert np.array_equal(solver.tendency_adjoint(u[one], lam[one]), solver.tendency_adjoint(u, lam)[one])


@pytest.mark.parametrize(("options", "sentence"), [
    ({"n": 3}, "n = 3 is too small, its stencil needs 4 cells"),
    ({"viscosity": -1.0}, "viscosity 0 or more"),
    ({"length": 0.0}, "length must be above 0"),
    ({"limiter": "superbee"}, "limiter is 'minmod', 'vanleer' or 'none', not 'superbee'"),
    ({"flux": "roe"}, "flux is 'godunov' or 'rusanov', not 'roe'"),
    ({"forcing_wavenumber": 0}, "forcing_wavenumber must be 1 or more"),
    ({"viscous": 0.1}, "burgers takes n, length, viscosity, drag"),
])
def test_refusals(options, sentence, open_solver):
    with pytest.raises(ConfigError, match=sentence):
        open_solver("burgers", **options)


def line_correction(solver):
    torch.manual_seed(0)
    network = trimtab.networks.PeriodicCNN((1, 4, 1), kernel=3, activation="tanh", dimensions=1).double()
    return trimtab.Correction(network, solver.spec, features=("u",))


def test_a_network_on_a_line_is_equivariant(open_solver):
    """One field of one dimension as a grid of channels: a shifted state gives the shifted tendency."""
    solver = open_solver("burgers", n=32)
    correction, u = line_correction(solver), torch.from_numpy(noise(32))
    assert correction.inputs(u).shape == (3, 1, 32)
    torch.testing.assert_close(correction(torch.roll(u, 5, -1)), torch.roll(correction(u), 5, -1), rtol=0, atol=1e-14)
    correction.fit_normalisation(u, 2 * u)
    assert correction.input_scale.shape == correction.output_scale.shape == (1,)
    torch.testing.assert_close(correction.input_scale[0], u.std())
    with pytest.raises(ConfigError, match="Unknown feature 'v2'"):
        trimtab.Correction(torch.nn.Identity(), solver.spec, features=("v2",))
    with pytest.raises(ConfigError, match="has no grid"):
        trimtab.Correction(torch.nn.Identity(), solver.spec, features=("q",))
    with pytest.raises(ConfigError, match="dimensions = 3 must be 1, a line, or 2, a plane"):
        trimtab.networks.PeriodicCNN(dimensions=3)


def test_a_kernel_for_each_layer(open_solver):
    """[5, 1, 1] sees two neighbours on either side and no more; the same law at every point."""
    torch.manual_seed(0)
    solver = open_solver("lorenz96")
    network = trimtab.networks.PeriodicCNN((1, 4, 3, 1), kernel=(5, 1, 1), activation="tanh", dimensions=1).double()
    correction, u = trimtab.Correction(network, solver.spec, features=("x",)), torch.randn(2, 12, dtype=torch.float64)
    torch.testing.assert_close(correction(u.roll(5, 1)), correction(u).roll(5, 1))
    reach = torch.autograd.functional.jacobian(lambda one: correction(one[None])[0, 6], u[0]).nonzero().flatten().tolist()
    assert reach == [4, 5, 6, 7, 8]
    for kernel, sentence in (((5, 4, 1), "must be odd"), ((5, 1), r"kernel = \[5, 1\] must be one number, or one for each of")):
        with pytest.raises(ConfigError, match=sentence):
            trimtab.networks.PeriodicCNN((1, 4, 3, 1), kernel=kernel, dimensions=1)


@pytest.mark.parametrize("limiter", ["minmod", "vanleer", "none"])
def test_discrete_is_the_derivative_through_a_shock(limiter, open_solver):
    """The window begins smooth and ends with a shock; forward runs of the Fortran, along the gradient."""
    solver = bare(open_solver, 32, limiter=limiter, integrator="rk3")
    correction, u0 = line_correction(solver), averages(lambda x: WAVE + np.sin(x), 32)

    def loss(states):
        return states[-1].square().mean()

    found, _ = gradient_of(solver, correction, u0, 40, "discrete", loss)
    exact, _ = gradient_of(solver, correction, u0, 40, "exact", loss)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-11)
    parameters = list(correction.parameters())
    theta, along, losses = torch.nn.utils.parameters_to_vector(parameters).detach(), found / found.norm(), []
    for sign in (1, -1):
        torch.nn.utils.vector_to_parameters(theta + sign * 1e-6 * along, parameters)
        losses.append(np.square(solver.advance(u0, 40, correction=correction).states[-1]).mean())
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(found.norm().item(), rel=1e-3)
