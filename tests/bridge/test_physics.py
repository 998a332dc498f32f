# SPDX-License-Identifier: MIT
"""Physics and numerics that have a known answer: orders, closed forms, invariants, and an independent second code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import trimtab
from conftest import SYSTEMS
from trimtab.gradient.twin.torch_twin import twin

ORDERS = {"euler": 1, "rk2": 2, "rk3": 3, "rk4": 4}


class Pull(nn.Module):
    """A smooth, state-dependent correction in float64."""

    dtype = torch.float64

    def forward(self, u):
        return 3.0 * torch.tanh(u / 5.0) - 0.2 * torch.roll(u, 1, -1)


def network_for(solver, seed=0):
    torch.manual_seed(seed)
    if len(solver.spec.grid) == 2:
        network = trimtab.networks.PeriodicCNN((2, 4, 1), kernel=3).double()
        return trimtab.Correction(network, solver.spec, features=("q", "psi"), input_scale=5.0, output_scale=2.0)
    size = solver.spec.size
    return trimtab.Correction(trimtab.networks.MLP((size, 6, size)).double(), solver.spec, input_scale=5.0)


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_tendency_is_the_twins(name, open_solver, random_states):
    solver = open_solver(name)
    u = random_states(solver, 4)
    expected = twin(solver).tendency(torch.from_numpy(u)).numpy()
    assert np.abs(solver.tendency(u) - expected).max() < 1e-12 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("options", [
    {"dealiasing": "3/2", "n": 20},
    {"dealiasing": "2/3", "n": 20},
    {"dealiasing": "2/3", "n": 16},
    {"hyperviscosity": 1e-6, "hyperviscosity_order": 4},
    {"hyperviscosity": 1e-8, "hyperviscosity_order": 6, "n": 24},
    {"beta": 0.0, "drag": 0.0, "viscosity": 0.0, "forcing_amplitude": 0.0},
], ids=str)
def test_qg_options_are_the_twins(options, open_solver, random_states):
    solver = open_solver("qg", **options)
    u = random_states(solver, 3) + 0.3  # a mean vorticity too
    expected = twin(solver).tendency(torch.from_numpy(u)).numpy()
    assert np.abs(solver.tendency(u) - expected).max() < 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("integrator", sorted(ORDERS))
@pytest.mark.parametrize("where", ["stage", "step"])
@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_trajectory_is_the_twins(name, where, integrator, open_solver, random_states):
    solver = open_solver(name, integrator=integrator, correction_at=where)
    correction = network_for(solver)
    u0 = random_states(solver, 2)
    found = solver.advance(u0, 4, stride=2, correction=correction).states
    with torch.no_grad():
        expected = twin(solver).rollout(torch.from_numpy(u0), 4, correction, stride=2).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize("integrator", sorted(ORDERS))
@pytest.mark.parametrize("with_correction", [False, True])
def test_measured_order_is_the_claimed_one(integrator, with_correction, open_solver):
    u0, horizon = np.array([[1.0, -3.0, 22.0]]), 0.4
    correction = Pull() if with_correction else None

    def end(dt, scheme):
        solver = open_solver("lorenz63", dt=dt, integrator=scheme)
        return solver.advance(u0, 1, stride=round(horizon / dt), correction=correction).states[-1]

    truth = end(horizon / 8192, "rk4")
    counts = np.array([256, 512, 1024, 2048]) if integrator == "euler" else np.array([64, 128, 256, 512])
    errors = [np.abs(end(horizon / count, integrator) - truth).max() for count in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - ORDERS[integrator]) < 0.2
    assert open_solver("lorenz63", integrator=integrator).spec.order == ORDERS[integrator]


def test_a_held_correction_is_first_order(open_solver):
    """`correction_at = "step"` freezes the correction over the stages: the scheme's order falls to one, as documented."""
    u0, horizon, errors, counts = np.array([[1.0, -3.0, 22.0]]), 0.4, [], np.array([64, 128, 256, 512])
    exact = open_solver("lorenz63", dt=horizon / 4096)
    truth = exact.advance(u0, 1, stride=4096, correction=Pull()).states[-1]
    for count in counts:
        solver = open_solver("lorenz63", dt=horizon / count, correction_at="step")
        errors.append(np.abs(solver.advance(u0, 1, stride=int(count), correction=Pull()).states[-1] - truth).max())
    assert abs(-np.polyfit(np.log(counts), np.log(errors), 1)[0] - 1) < 0.2


@pytest.mark.parametrize(("where", "calls"), [("stage", 4), ("step", 1)])
def test_the_network_is_called_once_for_all_members(where, calls, open_solver, random_states):
    seen = []

    class Count(nn.Module):
        dtype = torch.float64

        def forward(self, u):
            seen.append(tuple(u.shape))
            return torch.zeros_like(u)

    solver = open_solver("lorenz96", correction_at=where)
    solver.advance(random_states(solver, 7), 3, stride=2, correction=Count())
    assert seen == [(7, 12)] * (6 * calls)


def test_oscillator_follows_its_closed_form(open_solver):
    solver = open_solver("oscillator", dt=1e-3, omega=2.0)
    times = 1e-3 * np.arange(0, 5001, 100)
    states = solver.advance(np.array([[1.5, -0.5]]), 50, stride=100).states[:, 0]
    expected = 1.5 * np.cos(2 * times) - 0.25 * np.sin(2 * times)
    np.testing.assert_allclose(states[:, 0], expected, atol=1e-10)


def test_oscillator_core_lacks_its_second_equation(open_solver):
    solver = open_solver("oscillator", restoring=0.0)
    assert solver.tendency(np.array([[5.0, 2.0]])).tolist() == [[2.0, 0.0]]


def test_lorenz_fixed_points(open_solver):
    solver = open_solver("lorenz63", sigma=10.0, rho=28.0, beta=8 / 3)
    c = np.sqrt(8 / 3 * 27)
    points = np.array([[0.0, 0.0, 0.0], [c, c, 27.0], [-c, -c, 27.0]])
    assert np.abs(solver.tendency(points)).max() < 1e-13
    ring = open_solver("lorenz96", forcing=8.0)
    assert np.abs(ring.tendency(np.full((1, 12), 8.0))).max() == 0.0


def test_lorenz96_advection_conserves_energy(open_solver, random_states):
    solver = open_solver("lorenz96", forcing=0.0)
    u = random_states(solver, 3)
    np.testing.assert_allclose((u * solver.tendency(u)).sum(1), -(u**2).sum(1), rtol=1e-12)


def test_lorenz96_without_coupling_splits(open_solver, random_states):
    both, slow = open_solver("lorenz96_two_scale", coupling=0.0), open_solver("lorenz96", n=4, forcing=18.0)
    u = random_states(both, 2)
    np.testing.assert_allclose(both.tendency(u)[:, :4], slow.tendency(np.ascontiguousarray(u[:, :4])), rtol=1e-13)


def plane(n):
    x = 2 * np.pi * np.arange(n) / n
    return np.meshgrid(x, x, indexing="xy")


def bare(**options):
    return {"n": 32, "dt": 0.01, "viscosity": 0.0, "drag": 0.0, "beta": 0.0, "forcing_amplitude": 0.0, **options}


@pytest.mark.parametrize("dealiasing", ["3/2", "2/3"])
def test_jacobian_vanishes_on_a_plane_wave(dealiasing, open_solver):
    solver = open_solver("qg", **bare(dealiasing=dealiasing))
    x, y = plane(32)
    wave = 3.0 * np.cos(3 * x - 5 * y + 0.4).reshape(1, -1)
    assert np.abs(solver.tendency(wave)).max() < 1e-12


def test_taylor_green_decays_at_its_rate(open_solver):
    """q = cos(kx) cos(ky) is steady but for viscosity: exp(-2 k^2 nu t)."""
    solver = open_solver("qg", **bare(viscosity=0.02))
    x, y = plane(32)
    start = (np.cos(2 * x) * np.cos(2 * y)).reshape(1, -1)
    end = solver.advance(start, 1, stride=100).states[-1]
    np.testing.assert_allclose(end, start * np.exp(-8 * 0.02), rtol=0, atol=1e-11)


def test_drag_viscosity_and_hyperviscosity_add_up(open_solver):
    solver = open_solver("qg", **bare(viscosity=0.01, drag=0.3, hyperviscosity=1e-4, hyperviscosity_order=4))
    x, y = plane(32)
    start = np.cos(3 * x + 2 * y).reshape(1, -1)
    rate = 0.3 + 0.01 * 13 + 1e-4 * 13**2
    np.testing.assert_allclose(solver.tendency(start), -rate * start, atol=1e-13)


def test_rossby_wave_moves_at_its_phase_speed(open_solver):
    """omega = -beta k / (k^2 + l^2): the wave is an exact solution."""
    solver = open_solver("qg", **bare(beta=2.0, dt=1e-3))
    x, y = plane(32)
    k, wave_y, t = 3, 4, 2.0
    omega = -2.0 * k / (k**2 + wave_y**2)
    end = solver.advance(np.cos(k * x + wave_y * y).reshape(1, -1), 1, stride=2000).states[-1]
    expected = np.cos(k * x + wave_y * y - omega * t).reshape(1, -1)
    np.testing.assert_allclose(end, expected, atol=1e-10)


def test_forcing_is_as_science_says(open_solver):
    solver = open_solver("qg", **bare(forcing_amplitude=4.0, forcing_wavenumber=4))
    x, y = plane(32)
    expected = 4.0 * (np.cos(4 * x) + np.cos(4 * y)).reshape(1, -1)
    np.testing.assert_allclose(solver.tendency(np.zeros((1, 1024))), expected, atol=1e-13)


def invariants(q, n=32):
    """Energy -1/2 <psi q> and enstrophy 1/2 <q^2> of (B, n n) vorticity."""
    spectrum = np.fft.rfft2(q.reshape(-1, n, n))
    square = np.fft.fftfreq(n, 1 / n)[:, None] ** 2 + np.fft.rfftfreq(n, 1 / n) ** 2
    psi = np.fft.irfft2(np.where(square > 0, -spectrum / np.maximum(square, 1), 0), s=(n, n)).reshape(q.shape)
    return -0.5 * (psi * q).mean(1), 0.5 * (q**2).mean(1), psi


@pytest.mark.parametrize("dealiasing", ["3/2", "2/3"])
def test_tendency_conserves_energy_and_enstrophy(dealiasing, open_solver, random_states):
    solver = open_solver("qg", **bare(dealiasing=dealiasing, beta=1.0))
    q = solver.advance(random_states(solver, 2), 1).states[-1]  # on the retained waves
    dq = solver.tendency(q)
    _, _, psi = invariants(q)
    scale = np.abs(q).max() * np.abs(dq).max()
    assert np.abs((psi * dq).mean(1)).max() < 1e-13 * scale
    assert np.abs((q * dq).mean(1)).max() < 1e-13 * scale


@pytest.mark.parametrize(("integrator", "order"), [("rk2", 3), ("rk3", 3), ("rk4", 5)])
def test_drift_of_the_invariants_falls_with_dt(integrator, order, open_solver, random_states):
    """What the physics conserves drifts only by the integrator's error: dt^p or better."""
    drifts, counts = [], np.array([10, 20, 40])
    for count in counts:
        solver = open_solver("qg", **bare(integrator=integrator, dt=0.2 / count))
        q0 = random_states(solver, 1)
        before, after = (invariants(q)[0] for q in (q0, solver.advance(q0, 1, stride=int(count)).states[-1]))
        drifts.append(np.abs(after - before).max())
    slope = -np.polyfit(np.log(counts), np.log(drifts), 1)[0]
    assert slope > order - 0.4


def test_truncated_waves_stay_out(open_solver, random_states):
    """2/3 rule: after a step nothing is left beyond n/3, and the Nyquist wave is dropped under 3/2."""
    for dealiasing, largest in (("2/3", 32 / 3), ("3/2", 16)):
        solver = open_solver("qg", **bare(dealiasing=dealiasing))
        rng = np.random.default_rng(0)
        states = solver.advance(rng.standard_normal((1, 1024)), 1).states[-1].reshape(32, 32)
        spectrum = np.abs(np.fft.rfft2(states))
        k = np.maximum(np.abs(np.fft.fftfreq(32, 1 / 32))[:, None], np.fft.rfftfreq(32, 1 / 32))
        assert spectrum[k >= largest].max() < 1e-11 < spectrum[k < largest].max()
