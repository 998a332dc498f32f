# SPDX-License-Identifier: MIT
"""Solvers of others, in Python: fields of very different units, fields next to nothing, states with an end, coefficients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import trimtab
from trimtab.core.errors import ConfigError, CorrectionError, SolverError
from trimtab.core.solver import refuse_blow_up
from trimtab.core.spec import Field, SolverSpec
from trimtab.core.window import Window
from trimtab.gradient import EnsembleEGA
from trimtab.gradient.gradcheck.check import gradcheck


def field(name, size=1, units="1", dtype="float64"):
    return Field(name, name, units, (name,), (size,), dtype=dtype)


class Plain:
    """Heun's method on any tendency, numpy: the protocol, and nothing else."""

    def __init__(self, tendency, fields, dt=0.05, coefficient=None):
        self.tendency_of, self.coefficient = tendency, coefficient
        self.spec = SolverSpec("plain", dt, 2, tuple(fields), coefficient=coefficient)

    def advance(self, u0, steps, *, correction=None, stride=1, time=0.0, on_blow_up="raise"):
        states = [self.spec.check_states(u0)]
        dt, failed = self.spec.dt, np.zeros(len(u0), dtype=np.int64)

        def slope(u):
            added = np.zeros((len(u), self.spec.outputs))
            if correction is not None:
                with torch.no_grad():
                    added = correction(torch.from_numpy(u)).double().numpy()
            return self.tendency_of(u, added) if self.coefficient else self.tendency_of(u) + added

        with np.errstate(all="ignore"):
            for step in range(steps * stride):
                u = states[-1]
                ahead = slope(u)
                u = u + dt / 2 * (ahead + slope(u + dt * ahead))
                failed[~np.isfinite(u).all(1) & (failed == 0)] = step + 1
                u[failed > 0] = np.nan
                states.append(u)
        if on_blow_up == "raise":
            refuse_blow_up(self.spec, failed, steps * stride)
        states = np.stack(states)[::stride]
        return Window(states, time + dt * stride * np.arange(steps + 1), dt * stride, failed)

    def close(self):
        pass


def network_of(inputs, outputs, scale=1.0, size=1.0):
    torch.manual_seed(0)
    network = trimtab.networks.MLP((inputs, 4, outputs)).double()
    size, scale = (torch.as_tensor(one, dtype=torch.float64) for one in (size, scale))

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, u):
            return self.inner(u / size) * scale

    return Scaled()


def gradient_of(solver, correction, u0, steps, gradient, loss, **options):
    states = trimtab.rollout(solver, correction, u0, steps, gradient=gradient, **options)
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss(states), list(correction.parameters()))])


def differences(solver, correction, u0, steps, loss):
    """The whole gradient by forward runs, one parameter after the other: no code of the check's."""
    found = []
    with torch.no_grad():
        for one in correction.parameters():
            flat = one.view(-1)
            for i, value in enumerate(flat.tolist()):
                ends = []
                for sign in (1, -1):
                    flat[i] = value + sign * 1e-5
                    ends.append(loss(torch.from_numpy(solver.advance(u0, steps, correction=correction).states)))
                flat[i] = value
                found.append((ends[0] - ends[1]) / 2e-5)
    return torch.stack(found)


def distance(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


UNITS = np.array([1e5, 1e-9])  # a pressure in pascal, a mixing ratio in kg/kg


def moist(u):
    p, q = (u / UNITS).T
    return np.stack([-2 * p * q + q * q - p, p * p - 0.5 * q - p * q * q], 1) * UNITS


@pytest.mark.filterwarnings("ignore:The solver plain offers no adjoint")
@pytest.mark.parametrize("first", [0.3, 1e-7, 0.0])
@pytest.mark.parametrize("gradient", ["tangent", EnsembleEGA(2)])
def test_fields_of_very_different_units(gradient, first):
    """The step of a difference is as large as its field is; a field that begins at zero is as large as in the window."""
    solver = Plain(moist, [field("p", units="Pa"), field("q", units="kg/kg")])
    correction, u0 = network_of(2, 2, 0.3 * UNITS, UNITS), np.array([[1.0, first], [1.2, first]]) * UNITS

    def loss(states):
        return (states[1:] / torch.from_numpy(UNITS)).square().mean()

    wanted = differences(solver, correction, u0, 20, loss)
    assert distance(gradient_of(solver, correction, u0, 20, gradient, loss), wanted) < 0.1  # the quadrature's
    table = gradcheck(solver, correction, u0, np.zeros((20, 2, 2)), [20], gradients=["static", gradient],
                      scale=torch.from_numpy(UNITS))
    assert table.rows[1].cosine > 0.995 and table.rows[1].error < 0.1 < 0.3 < table.of("static")[0].error


@pytest.mark.filterwarnings("ignore:The solver plain offers no adjoint")
@pytest.mark.parametrize("gradient", ["tangent", EnsembleEGA(2)])
def test_a_field_that_holds_rounding_alone(gradient):
    """Two velocities, one of them 1e-18 throughout: it is perturbed as the other is, or all is rounding."""
    turn = np.array([[-0.1, 1.0], [0.0, -0.2]])
    solver = Plain(lambda u: u @ turn.T, [field("u", units="m/s"), field("v", units="m/s")])
    u0 = torch.tensor([[1.0, 1e-18]], dtype=torch.float64, requires_grad=True)
    trimtab.rollout(solver, None, u0, 3, gradient=gradient)[-1, 0, 0].backward()
    h = solver.spec.dt
    step = np.eye(2) + h * turn + h * h / 2 * turn @ turn
    np.testing.assert_allclose(u0.grad[0], np.linalg.matrix_power(step, 3)[0], rtol=1e-6)


def test_localisation_sees_all_fields_of_a_grid():
    """Waves: a velocity hangs on the height beside it, and that on the velocity; a regression of each alone found neither."""
    size = 24

    def waves(u):
        v, h = u[:, :size], u[:, size:]
        slopes = [(np.roll(one, -1, -1) - np.roll(one, 1, -1)) / 2 for one in (v, h)]
        return np.concatenate([-slopes[1] - 0.1 * v, -slopes[0]], 1)

    solver = Plain(waves, [field("v", size, "m/s"), field("h", size, "m")], dt=0.3)
    u0, along = np.random.default_rng(0).standard_normal((2, 1, 2 * size))
    ends = {}
    for gradient in (EnsembleEGA(2 * size), EnsembleEGA(30, aim=0, spectrum="white", localisation=2), "static"):
        start = torch.from_numpy(u0).requires_grad_()
        (trimtab.rollout(solver, None, start, 2, gradient=gradient)[-1] * torch.from_numpy(along)).sum().backward()
        ends[getattr(gradient, "localisation", "static")] = start.grad
    assert distance(ends[2], ends[0]) < 1e-6 < 0.1 < distance(ends["static"], ends[0])


def ending(u):
    """A flow with a state beyond which it has no numbers, and zero is one of those."""
    return -np.log(u) - 0.5 / u


@pytest.mark.filterwarnings("ignore:The solver plain offers no adjoint")
@pytest.mark.parametrize("gradient", ["static", "none", "tangent", "ensemble"])
def test_a_member_that_blew_up_is_left_out(gradient):
    solver, correction = Plain(ending, [field("x", 2)]), network_of(2, 2, 0.3)
    u0 = np.array([[1.4, 1.2], [0.3, 1.7], [2.0, 2.5]])

    def loss(states):
        return states[:, states[-1].isfinite().all(1)].square().mean()

    found = gradient_of(solver, correction, u0, 20, gradient, loss, on_blow_up="mark")
    assert distance(found, gradient_of(solver, correction, u0[[0, 2]], 20, gradient, loss)) < 1e-14
    start = torch.from_numpy(u0).requires_grad_()
    states = trimtab.rollout(solver, correction, start, 20, gradient=gradient, on_blow_up="mark")
    loss(states).backward()
    assert start.grad[[0, 2]].all() and not start.grad[1].any()
    states = trimtab.rollout(solver, correction, start[1:2], 20, gradient=gradient, on_blow_up="mark")
    assert not any(one.any() for one in torch.autograd.grad(states[0].sum(), list(correction.parameters())))


@pytest.mark.filterwarnings("ignore:The solver plain offers no adjoint")
def test_a_perturbed_run_that_blows_up_is_told():
    solver, u0 = Plain(lambda u: -np.log(u - 1), [field("x", 2)]), np.array([[1.5, 1.7], [1.5, 1.0 + 1e-9]])
    with pytest.raises(SolverError, match="perturbed for the finite differences of 'tangent' at step 0 of member 1 blew up"):
        trimtab.rollout(solver, network_of(2, 2), u0, 1, gradient="tangent").sum().backward()


@pytest.mark.filterwarnings("ignore:The solver plain offers no adjoint")
@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-10])
def test_a_coefficient_of_any_size(size):
    """Forward runs stand in for dN/dP, in steps of the coefficient's own size."""

    def tendency(u, p):
        share = p[:, 0] / size
        return np.stack([u[:, 1] * (1 + share**2), -u[:, 0] - np.sqrt(np.abs(share)) * u[:, 1]], 1)

    class Positive(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network_of(2, 1)

        def forward(self, u):
            return torch.nn.functional.softplus(self.inner(u)) * size

    solver = Plain(tendency, [field("x", 2)], dt=0.02, coefficient=field("k", units="m2/s"))
    correction, u0 = Positive(), np.array([[1.0, 0.0], [0.5, 1.0]])

    def loss(states):
        return states[1:].square().mean()

    wanted = differences(solver, correction, u0, 20, loss)
    assert distance(gradient_of(solver, correction, u0, 20, "tangent", loss), wanted) < 0.03
    # The runs of a whole step hold the integral over it already: a rule on top of it would take it for a point.
    with pytest.raises(ConfigError, match="needs dN/dP at each state, and this solver has no slot_adjoint"):
        gradient_of(solver, correction, u0, 20, trimtab.TangentEGA("gregory"), loss)


def test_a_network_without_a_derivative_is_told():
    class Rooted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network_of(2, 2)

        def forward(self, u):
            return (0 * self.inner(u)).sqrt()

    solver = Plain(lambda u: -u, [field("x", 2)])
    with pytest.raises(CorrectionError, match="No gradient is finite at n = 2: the correction has a derivative that is not"):
        gradcheck(solver, Rooted(), np.ones((1, 2)), np.zeros((2, 1, 2)), [2])
