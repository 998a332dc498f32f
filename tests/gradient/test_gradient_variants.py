# SPDX-License-Identifier: MIT
"""The gradient variants with a Jacobian: exactness, orders, coincidences, and the figures of the paper."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import trimtab
from helpers.gradients import Bare, exact_of, flat, gradient_of, mean_square
from trimtab.core.errors import ConfigError
from trimtab.gradient import GRADIENTS, EulerEGA, TangentEGA, get_gradient
from trimtab.gradient.quadrature import RULES, node_weights, stretch_weights
from trimtab.gradient.twin.torch_twin import twin

ADJOINT = ("euler", "tangent", "discrete", "exact")  # the variants with a Jacobian that knows the solver


def correction_for(solver, dtype=torch.float64):
    torch.manual_seed(0)
    grid, size = len(solver.spec.grid) == 2, solver.spec.size
    networks = trimtab.corrections.networks
    network = networks.PeriodicCNN(channels=(2, 4, 1), kernel=3, activation="tanh") if grid else networks.MLP((size, 5, size))
    options = {"features": ("q", "psi"), "input_scale": (5.0, 1.0)} if grid else {"input_scale": 10.0}
    return trimtab.Correction(network.to(dtype), solver.spec, output_scale=3.0, **options)


def error(found, exact):
    return ((found - exact).norm() / exact.norm()).item()


def noise(solver, shape, seed=0):
    """White noise: on a grid it also holds waves that the solver drops, in the start and in the targets."""
    return 3.0 * np.random.default_rng(seed).standard_normal((*shape, solver.spec.size))


def against_noise(solver, steps, members=2):
    target = torch.from_numpy(noise(solver, (steps + 1, members), seed=1))
    return lambda states: (states - target).square().mean()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("place", ["stage", "step"])
@pytest.mark.parametrize("integrator", ["euler", "rk2", "rk3", "rk4"])
@pytest.mark.parametrize("name", ["lorenz63", "lorenz96", "qg"])
def test_discrete_and_exact_are_autograd_through_the_twin(name, integrator, place, stride, open_solver):
    solver = open_solver(name, integrator=integrator, correction_at=place)
    correction, u0, steps = correction_for(solver), noise(solver, (2,)), 4
    loss = against_noise(solver, steps)
    correction.zero_grad()
    start = torch.tensor(u0, requires_grad=True)
    loss(twin(solver).rollout(start, steps, correction, stride)).backward()
    theta, initial = flat(p.grad for p in correction.parameters()), start.grad
    for variant in ("discrete", "exact", "tangent"):
        found, at_start = gradient_of(solver, correction, u0, steps, variant, loss, stride=stride)
        assert error(at_start, initial) < 1e-10, variant
        if variant != "tangent":
            assert error(found, theta) < 1e-10, variant


@pytest.mark.parametrize(("name", "options"), [
    ("oscillator", {}), ("lorenz96_two_scale", {}), ("qg", {"n": 12, "dealiasing": "2/3", "forcing_wavenumber": 3}),
])
def test_discrete_is_exact_on_the_other_solvers(name, options, open_solver):
    solver = open_solver(name, **options)
    correction, u0 = correction_for(solver), noise(solver, (2,))
    loss = against_noise(solver, 3)
    exact = exact_of(solver, correction, u0, 3, loss)
    found = gradient_of(solver, correction, u0, 3, "discrete", loss)
    assert max(error(one, other) for one, other in zip(found, exact, strict=True)) < 1e-10


@pytest.mark.parametrize(("name", "options"), [("lorenz63", {}), ("qg", {}), ("qg", {"dealiasing": "none"})])
def test_discrete_is_the_derivative_of_what_fortran_computes(name, options, open_solver, random_states):
    """Forward runs only: central differences along the gradient and along noise."""
    solver = open_solver(name, **options)
    correction, u0, steps = correction_for(solver), random_states(solver, 2), 5
    loss = against_noise(solver, steps)
    found, _ = gradient_of(solver, correction, u0, steps, "discrete", loss)
    parameters = list(correction.parameters())
    theta = torch.nn.utils.parameters_to_vector(parameters).detach()
    values = {}
    for along in (found / found.norm(), torch.nn.functional.normalize(torch.randn_like(found), dim=0)):
        for sign in (1, -1):
            torch.nn.utils.vector_to_parameters(theta + sign * 1e-5 * along, parameters)
            values[sign] = loss(trimtab.rollout(solver, correction, u0, steps)).item()
        slope = (values[1] - values[-1]) / 2e-5
        assert slope == pytest.approx(found.dot(along).item(), rel=1e-5, abs=1e-6 * found.norm().item())


def test_single_precision_networks(open_solver, random_states):
    solver = open_solver("qg")
    correction, u0 = correction_for(solver, torch.float32), random_states(solver, 2)
    exact = exact_of(solver, correction, u0, 3, mean_square)
    for variant, largest in (("discrete", 1e-5), ("exact", 1e-5), ("tangent", 0.1), ("euler", 0.1)):
        found = gradient_of(solver, correction, u0, 3, variant, mean_square)
        assert max(error(one, other) for one, other in zip(found, exact, strict=True)) < largest, variant


@pytest.mark.parametrize(("place", "variants"), [("stage", ADJOINT), ("step", ("tangent", "discrete", "exact"))])
def test_a_plain_module_in_single_precision(place, variants, open_solver, random_states):
    """Without a Correction around it: it is given float32 in a transpose and in the twin, too, as the slot does."""
    solver = open_solver("lorenz63", correction_at=place)
    torch.manual_seed(0)
    network, u0 = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)), random_states(solver, 2)
    exact = gradient_of(solver, copy.deepcopy(network).double(), u0, 3, "exact", mean_square)
    for variant in variants:
        found = gradient_of(solver, network, u0, 3, variant, mean_square)
        largest = 1e-5 if variant in ("discrete", "exact") else 0.1
        assert max(error(one, other) for one, other in zip(found, exact, strict=True)) < largest, variant
    truth = solver.advance(u0, 3).states[1:] + 1.0
    assert trimtab.gradcheck(solver, network, u0, truth, [3], directions=2).of("exact")[0].cosine > 0.9999


@pytest.mark.parametrize("variant", ADJOINT)
def test_without_a_correction_u0_has_its_gradient(variant, open_solver, random_states):
    solver = open_solver("lorenz63")
    start = torch.tensor(random_states(solver), requires_grad=True)
    trimtab.rollout(solver, None, start, 3, gradient=variant).square().sum().backward()
    other = start.detach().clone().requires_grad_()
    twin(solver).rollout(other, 3).square().sum().backward()
    assert error(start.grad, other.grad) < (0.1 if variant == "euler" else 1e-12)


@pytest.mark.parametrize("variant", sorted(GRADIENTS))
@pytest.mark.parametrize("name", ["lorenz63", "qg"])
def test_one_step_window(variant, name, open_solver, random_states):
    """n = 1 holds no Jacobian: every variant has d loss / d theta to O(h^2) of a gradient that is O(h)."""
    errors, sizes = [], (4e-4, 2e-4, 1e-4)
    for h in sizes:
        solver = open_solver(name, dt=h)
        correction, u0 = correction_for(solver), random_states(solver, 2)
        found, _ = gradient_of(solver, correction, u0, 1, variant, mean_square)
        exact, _ = exact_of(solver, correction, u0, 1, mean_square)
        errors.append((found - exact).norm().item())
    if variant in ("discrete", "exact"):
        assert max(errors) < 1e-12
    else:
        assert 1.9 < np.polyfit(np.log(sizes), np.log(errors), 1)[0] < 2.1


def test_tangent_is_discrete_for_explicit_euler(open_solver, random_states):
    """Where the step is u + dt (F + M), the paper's sum is the derivative, and Euler-EGA the adjoint of the step."""
    solver = open_solver("lorenz96", integrator="euler")
    correction, u0 = correction_for(solver), random_states(solver)
    exact = gradient_of(solver, correction, u0, 6, "discrete", mean_square)
    for variant in ("tangent", "euler"):
        found = gradient_of(solver, correction, u0, 6, variant, mean_square)
        assert max(error(one, other) for one, other in zip(found, exact, strict=True)) < 1e-13


def last(states):
    return states[-1].square().mean()


def middle_and_last(states):
    return last(states) + states[states.shape[0] // 2].square().mean()


@pytest.mark.parametrize(("variant", "loss", "order"), [
    (EulerEGA(), last, 1), (TangentEGA(), last, 1), (TangentEGA("trapezoid"), last, 2), (TangentEGA("gregory"), last, 4),
    (TangentEGA("gregory"), middle_and_last, 4), (TangentEGA("trapezoid"), mean_square, 2),
    (TangentEGA("gregory"), mean_square, 2),
], ids=lambda one: getattr(one, "name", None) or getattr(one, "__name__", one))
def test_order_at_fixed_horizon(variant, loss, order, open_solver):
    """Lorenz 63, T = 0.2; a loss at every state cuts the window into single steps, where trapezoids are all there is."""
    errors, sizes = [], (0.02, 0.01, 0.005, 0.0025)
    for h in sizes:
        solver = open_solver("lorenz63", dt=h)
        correction, steps = correction_for(solver), round(0.2 / h)
        u0 = np.array([[5.0, 6.0, 20.0], [-7.0, -3.0, 28.0]])
        found, _ = gradient_of(solver, correction, u0, steps, variant, loss)
        exact, _ = gradient_of(solver, correction, u0, steps, "discrete", loss)
        errors.append(error(found, exact))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert order - 0.2 < slope < order + 0.3, errors
    assert errors[0] < {1: 0.15, 2: 5e-3, 4: 2e-4}[order]


@pytest.mark.parametrize(("integrator", "order"), [("euler", 1), ("rk2", 2), ("rk3", 3)])
def test_the_step_bounds_the_order(integrator, order, open_solver):
    errors, sizes = [], (0.01, 0.005, 0.0025)
    for h in sizes:
        solver = open_solver("lorenz63", dt=h, integrator=integrator)
        correction, steps, u0 = correction_for(solver), round(0.2 / h), np.array([[5.0, 6.0, 20.0], [-7.0, -3.0, 28.0]])
        found, _ = gradient_of(solver, correction, u0, steps, TangentEGA("gregory"), last)
        exact, _ = gradient_of(solver, correction, u0, steps, "discrete", last)
        errors.append(error(found, exact))
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] == pytest.approx(order, abs=0.1)


def test_quadrature_costs_the_same(open_solver, random_states):
    """One row of the network's batched product a state, and not one run or adjoint of the solver more."""
    solver = open_solver("lorenz63")
    correction, rows, adjoints = correction_for(solver), [], []
    correction.network.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0]))
    original = solver.tendency_adjoint
    solver.tendency_adjoint = lambda u, lam: adjoints.append(len(u)) or original(u, lam)
    counts = {}
    for rule in RULES:
        states = trimtab.rollout(solver, correction, random_states(solver, 1), 20, gradient=TangentEGA(rule))
        rows.clear()
        adjoints.clear()
        mean_square(states).backward()
        counts[rule] = (sum(rows), sum(adjoints))
    assert counts["left"] == (20 + 80, 80)
    assert counts["trapezoid"] == counts["gregory"] == (21 + 80, 80)


@pytest.mark.parametrize("variant", ["tangent", "discrete"])
def test_groups_of_members_bound_the_graph(variant, open_solver, random_states, monkeypatch):
    solver = open_solver("lorenz63", integrator="rk3")
    correction, u0, rows = correction_for(solver), random_states(solver, 7), []
    whole = gradient_of(solver, correction, u0, 3, variant, mean_square, stride=2)
    monkeypatch.setattr("trimtab.gradient.adjoint.CHUNK_STATES", 6)
    states = trimtab.rollout(solver, correction, torch.tensor(u0, requires_grad=True), 3, gradient=variant, stride=2, chunk=7)
    correction.network.register_forward_pre_hook(
        lambda _, inputs: rows.append(inputs[0].shape[0]) if torch.is_grad_enabled() else None)
    mean_square(states).backward()
    assert rows.count(2) + rows.count(1) == 3 * 2 * 3 * 4  # steps, stride, stages, groups
    assert max(rows) == (7 if variant == "tangent" else 2)  # tangent: the sweep's own product by theta
    parts = gradient_of(solver, correction, u0, 3, variant, mean_square, stride=2)
    assert max(error(one, other) for one, other in zip(parts, whole, strict=True)) < 1e-13


def test_weights_of_a_stretch():
    for steps in range(1, 12):
        for rule, degree in (("trapezoid", 1), ("gregory", 1 if steps == 1 else 3)):
            weights = np.array(stretch_weights(steps, rule))
            for power in range(degree + 1):
                integral = steps ** (power + 1) / (power + 1)
                if rule == "gregory" and steps > 4 and power == 3:
                    continue  # Gregory with two differences is exact for quadratic integrands
                assert weights @ np.arange(steps + 1.0) ** power == pytest.approx(integral, rel=1e-13)


def test_weights_run_from_jump_to_jump():
    before, after = node_weights([True, False, False, True, False, True], "gregory")
    assert before == [0, 9 / 8, 9 / 8, 3 / 8, 4 / 3, 1 / 3]
    assert after == [3 / 8, 0, 0, 1 / 3, 0, 0]
    before, after = node_weights([False] * 4, "trapezoid")
    assert (before, after) == ([0, 1, 1, 0.5], [0.5, 0, 0, 0])


def test_the_paper_s_convergence_figure(open_solver):
    """Ouala et al., the authors' experiment for Lorenz 63: n = 20, 600 initial states, MLP 3-3-3-3, seed 0.

    The states come from a chaotic run, and 600 others move the figures by 10 %: with the authors' integrator for the truth
    (LSODA, started anew after the spin-up) all six were met within 5 %.
    """
    truth = open_solver("lorenz63", dt=1e-3, beta=8 / 3)
    u0 = truth.advance(np.array([[8.0, 0.0, 30.0]]), 650, stride=100).states[50:, 0][:600]
    torch.manual_seed(0)
    network = trimtab.networks.MLP((3, 3, 3, 3)).double()
    for h, expected in ((1e-3, {"static": 9.1e-4, "euler": 7.6e-5, "tangent": 7.2e-5}),
                        (1e-2, {"static": 0.109, "euler": 0.0106, "tangent": 0.0094})):
        solver = open_solver("lorenz63", dt=h)
        correction = trimtab.Correction(network, solver.spec)
        exact, _ = gradient_of(solver, correction, u0, 20, "exact", mean_square)
        for name, value in expected.items():
            found, _ = gradient_of(solver, correction, u0, 20, name, mean_square)
            assert (found - exact).abs().mean().item() == pytest.approx(value, rel=0.1), (h, name)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float64, 1e-8), (torch.float32, 1e-2)])
def test_small_solvers_without_an_adjoint_take_differences(dtype, largest, open_solver, random_states):
    inner = open_solver("lorenz63")
    solver = Bare(inner, spec=twin(inner).spec)
    correction, u0 = correction_for(inner, dtype), random_states(inner)
    expected = gradient_of(inner, correction, u0, 5, "tangent", last, stride=2)
    trimtab.gradient.tangent._TOLD.clear()
    with pytest.warns(UserWarning, match="lorenz63 offers no adjoint that .* finite differences, 6 forward runs"):
        found = gradient_of(solver, correction, u0, 5, "tangent", last, stride=2)
    assert max(error(one, other) for one, other in zip(found, expected, strict=True)) < largest


def test_the_warning_comes_once(open_solver, random_states, recwarn):
    solver = Bare(open_solver("lorenz96"))
    trimtab.gradient.tangent._TOLD.clear()
    for _ in range(3):
        trimtab.rollout(solver, None, random_states(solver), 1, gradient="tangent")
    assert len([one for one in recwarn if "offers no adjoint" in str(one.message)]) == 1


def test_a_solver_s_own_flow_adjoint_is_used(open_solver, random_states):
    inner = open_solver("lorenz63")
    yardstick = twin(inner)
    seen = []

    def flow_adjoint(u, lam, *, correction, stride):
        seen.append(stride)
        u = u.clone().requires_grad_()
        with torch.enable_grad():
            end = yardstick.flow(u, correction, stride)
        return torch.autograd.grad(end, u, lam)[0]

    correction, u0 = correction_for(inner), random_states(inner)
    found = gradient_of(Bare(inner, flow_adjoint=flow_adjoint), correction, u0, 4, "tangent", last, stride=3)
    expected = gradient_of(inner, correction, u0, 4, "tangent", last, stride=3)
    assert max(error(one, other) for one, other in zip(found, expected, strict=True)) < 1e-12
    assert seen == [3] * 4


@pytest.mark.parametrize(("variant", "sentence"), [
    ("euler", "'euler' needs the adjoint of the tendency"),
    ("discrete", "'discrete' needs the adjoint of the tendency"),
    ("tangent", "256 components are too many for finite differences"),
])
def test_solvers_that_lack_what_a_variant_needs(variant, sentence, open_solver, random_states):
    solver = Bare(open_solver("qg"))
    with pytest.raises(ConfigError, match=sentence):
        trimtab.rollout(solver, None, random_states(solver), 1, gradient=variant)


def test_options_by_name():
    assert get_gradient("tangent", quadrature="gregory").quadrature == "gregory"
    for name in ("tangent", "euler"):
        with pytest.raises(ConfigError, match="Unknown quadrature 'simpson'; known are left, trapezoid, gregory"):
            get_gradient(name, quadrature="simpson")
    with pytest.raises(ConfigError, match="does not take these options"):
        get_gradient("discrete", quadrature="left")


def test_members_that_blow_up_give_no_gradient(open_solver):
    solver = open_solver("lorenz63")
    correction, good, bad = correction_for(solver), [[1.0, 2.0, 20.0]], [[1e90, 1e90, 1e90]]

    def first(states):
        return states[:, :1].square().sum()

    for variant in ADJOINT:
        alone, _ = gradient_of(solver, correction, np.array(good), 5, variant, first)
        both, initial = gradient_of(solver, correction, np.array(good + bad), 5, variant, first, on_blow_up="mark")
        torch.testing.assert_close(both, alone, rtol=1e-12, atol=1e-14)
        assert torch.equal(initial[1], torch.zeros(3, dtype=torch.float64))
