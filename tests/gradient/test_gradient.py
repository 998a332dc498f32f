# SPDX-License-Identifier: MIT
"""The gradients: against their formula, against the exact one, and in the orders they claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import trimtab
from helpers.gradients import correction_for, exact_of, flat, gradient_of, mean_square
from trimtab.core.errors import ConfigError
from trimtab.gradient import GRADIENTS


def test_static_is_its_formula(open_solver, random_states):
    """h sum_j (dM/dtheta(u_{j-1}))^T sum of dJ/du_i over i >= j, written out with one autograd call a term."""
    solver = open_solver("lorenz63")
    correction, u0, steps = correction_for(solver), random_states(solver, 2), 6
    states = torch.from_numpy(solver.advance(u0, steps, correction=correction).states).requires_grad_()
    (forces,) = torch.autograd.grad(mean_square(states), states)
    expected = torch.zeros(sum(p.numel() for p in correction.parameters()), dtype=torch.float64)
    for j in range(1, steps + 1):
        for i in range(j, steps + 1):
            tendency = correction(states[j - 1].detach())
            parts = torch.autograd.grad(tendency, list(correction.parameters()), forces[i])
            expected += solver.spec.dt * flat(parts)
    theta, initial = gradient_of(solver, correction, u0, steps, "static", mean_square)
    torch.testing.assert_close(theta, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(initial, forces.sum(0), rtol=1e-12, atol=1e-14)


def test_none_keeps_each_step_to_itself(open_solver, random_states):
    solver = open_solver("lorenz63")
    correction, u0, steps = correction_for(solver), random_states(solver, 2), 4
    states = torch.from_numpy(solver.advance(u0, steps, correction=correction).states).requires_grad_()
    (forces,) = torch.autograd.grad(mean_square(states), states)
    tendency = correction(states[:-1].detach().flatten(0, 1))
    parts = torch.autograd.grad(tendency, list(correction.parameters()), solver.spec.dt * forces[1:].flatten(0, 1))
    theta, initial = gradient_of(solver, correction, u0, steps, "none", mean_square)
    torch.testing.assert_close(theta, flat(parts), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(initial, forces[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", sorted(GRADIENTS))
def test_chunks_do_not_change_the_gradient(name, open_solver, random_states):
    solver = open_solver("lorenz63")
    correction, u0 = correction_for(solver), random_states(solver, 3)
    whole, initial = gradient_of(solver, correction, u0, 10, name, mean_square, chunk=1000)
    for chunk in (3, 7, 12):
        parts, start = gradient_of(solver, correction, u0, 10, name, mean_square, chunk=chunk)
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)
        assert torch.equal(start, initial)


def test_chunks_bound_what_the_network_sees(open_solver, random_states):
    """n = 1000 steps run in vector-Jacobian products no larger than those of n = 10."""
    solver = open_solver("lorenz63")
    correction = correction_for(solver)
    rows = []
    correction.network.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0]))
    states = trimtab.rollout(solver, correction, random_states(solver, 4), 1000, chunk=40)
    rows.clear()
    mean_square(states).backward()
    assert max(rows) == 40
    assert sum(rows) == 4000


def test_static_is_second_order_at_fixed_n(open_solver):
    """Ouala et al., Theorem 2.1: the error of d loss / d theta is O(h^2) for a fixed number of steps."""
    truth = trimtab.open_solver("lorenz63", dt=0.01)
    u0 = truth.advance(np.array([[8.0, 0.0, 30.0]]), 1500).states[500::50, 0]
    truth.close()
    steps, errors, sizes = 20, [], (1e-4, 2e-4, 4e-4, 8e-4)
    for h in sizes:
        solver = open_solver("lorenz63", dt=h)
        correction = correction_for(solver)
        found, _ = gradient_of(solver, correction, u0, steps, "static", mean_square)
        exact, _ = exact_of(solver, correction, u0, steps, mean_square)
        errors.append((found - exact).abs().mean().item())
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert 1.9 < slope < 2.1


def test_static_does_not_converge_at_fixed_horizon(open_solver):
    """What science says of Static-EGA, held so that nobody promises more: the relative error stays as h -> 0."""
    errors = []
    for h in (0.02, 0.005):
        solver = open_solver("lorenz63", dt=h)
        correction = correction_for(solver)
        u0 = np.array([[5.0, 6.0, 20.0], [-7.0, -3.0, 28.0]])
        steps = round(0.2 / h)
        found, _ = gradient_of(solver, correction, u0, steps, "static", mean_square)
        exact, _ = exact_of(solver, correction, u0, steps, mean_square)
        errors.append(((found - exact).norm() / exact.norm()).item())
    assert errors[1] > 0.5 * errors[0] > 0.01


def test_members_that_blow_up_give_no_gradient(open_solver):
    solver = open_solver("lorenz63")
    correction = correction_for(solver)
    good, bad = [[1.0, 2.0, 20.0]], [[1e90, 1e90, 1e90]]

    def masked(states):
        return states[:, :1].square().sum()

    alone, _ = gradient_of(solver, correction, np.array(good), 5, "static", masked)
    both, initial = gradient_of(solver, correction, np.array(good + bad), 5, "static", masked, on_blow_up="mark")
    torch.testing.assert_close(both, alone, rtol=1e-12, atol=0)
    assert torch.equal(initial[1], torch.zeros(3, dtype=torch.float64))


def test_stride_uses_the_outer_step(open_solver, random_states):
    """h = stride * dt weighs the network's product."""
    solver = open_solver("lorenz63", dt=1e-3)
    correction, u0 = correction_for(solver), random_states(solver, 2)

    def last(states):
        return states[-1].sum()

    theta, _ = gradient_of(solver, correction, u0, 1, "static", last, stride=7)
    tendency = correction(torch.from_numpy(u0))
    parts = torch.autograd.grad(tendency, list(correction.parameters()), torch.full_like(tendency, 7e-3))
    torch.testing.assert_close(theta, flat(parts), rtol=1e-12, atol=1e-14)


def test_frozen_parameters_get_no_gradient(open_solver, random_states):
    solver = open_solver("lorenz63")
    correction = correction_for(solver)
    first = next(correction.parameters()).requires_grad_(False)
    mean_square(trimtab.rollout(solver, correction, random_states(solver), 3)).backward()
    assert first.grad is None
    assert all(p.grad is not None for p in correction.parameters() if p is not first)


def test_changing_the_states_in_place_is_refused(open_solver, random_states):
    solver = open_solver("lorenz63")
    states = trimtab.rollout(solver, correction_for(solver), random_states(solver), 3)
    loss = states.square().mean()
    with torch.no_grad():
        states.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(("options", "sentence"), [
    ({"gradient": "statik"}, "Unknown gradient 'statik'"),
    ({"steps": 0}, "at least one step"),
    ({"stride": 0}, "at least one step"),
])
def test_refusals(options, sentence, open_solver, random_states):
    solver = open_solver("lorenz63")
    arguments = {"steps": 2, **options}
    with pytest.raises(ConfigError, match=sentence):
        trimtab.rollout(solver, None, random_states(solver), **arguments)


@pytest.mark.parametrize("layer", [torch.nn.Dropout(0.1), torch.nn.BatchNorm1d(3)], ids=["dropout", "batch statistics"])
def test_a_network_that_changes_from_call_to_call_has_no_gradient(layer, open_solver, random_states):
    solver = open_solver("lorenz63")
    correction = trimtab.Correction(torch.nn.Sequential(torch.nn.Linear(3, 3), layer), solver.spec)
    u0 = random_states(solver)
    with pytest.raises(ConfigError, match=r"network.1 \(\w+\) is in training mode.*eval\(\)"):
        trimtab.rollout(solver, correction.train(), u0, 2)
    trimtab.rollout(solver, correction.eval(), u0, 2).sum().backward()
    assert next(correction.parameters()).grad is not None


class Late(torch.nn.Module):
    """Makes what it needs at its first call, which is the solver's."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = torch.nn.LazyLinear(3), None

    def forward(self, u):
        if self.scale is None:
            self.scale = torch.linspace(0.5, 1.0, 3)
        return self.layer(u) * self.scale


def test_plain_and_late_networks_train(open_solver, random_states):
    """A float32 module without a Correction around it, and one whose first call is inside the solver."""
    solver = open_solver("lorenz63")
    late = Late()
    trimtab.rollout(solver, late, random_states(solver), 1)
    for network in (torch.nn.Linear(3, 3), late):
        trimtab.rollout(solver, network, random_states(solver), 3).sum().backward()
        assert all(one.grad.abs().sum() > 0 for one in network.parameters())


@pytest.mark.parametrize("dealiasing", ["3/2", "2/3"])
def test_waves_that_the_solver_drops_give_no_gradient(dealiasing, open_solver, random_states):
    """Static-EGA stays O(h^2) absolutely, O(h) relatively, when the targets hold what the solver cannot."""
    errors = []
    for dt in (1e-2, 1e-3):
        solver = open_solver("qg", dt=dt, dealiasing=dealiasing)
        torch.manual_seed(0)
        network = trimtab.networks.PeriodicCNN((1, 4, 1), 3).double()
        correction = trimtab.Correction(network, solver.spec)
        target = torch.randn(4, 2, 256, dtype=torch.float64)

        def loss(states, target=target):
            return (states - target).square().mean()

        u0 = random_states(solver, 2)
        static, _ = gradient_of(solver, correction, u0, 3, "static", loss)
        exact, _ = gradient_of(solver, correction, u0, 3, "discrete", loss)
        errors.append(((static - exact).norm() / exact.norm()).item())
    assert errors[1] < 0.2 * errors[0]
