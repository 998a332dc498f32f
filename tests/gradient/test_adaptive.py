# SPDX-License-Identifier: MIT
"""dopri5: what it promises about errors, members, cuts and failures, and the gradients through its accepted steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import trimtab
from helpers.cubic import START, Cubic, truth
from helpers.gradients import correction_for, exact_of, gradient_of, mean_square
from trimtab.core.errors import BlowUpError, ConfigError, StepError
from trimtab.gradient import TangentEGA
from trimtab.gradient.twin.torch_twin import twin


def error_of(solver, horizon=0.8):
    return np.abs(solver.advance(START, round(horizon / solver.spec.dt), correction=Cubic()).states[-1] - truth(horizon)).max()


def test_the_error_follows_the_tolerance_and_the_steps_the_order(open_solver):
    tolerances, errors, counts = 10.0 ** -np.arange(7, 12), [], []
    for tolerance in tolerances:
        solver = open_solver("lorenz63", dt=0.8, integrator="dopri5", rtol=tolerance, atol=tolerance)
        errors.append(error_of(solver))
        counts.append(len(solver.substeps(START, correction=Cubic())))
    assert np.polyfit(np.log(tolerances), np.log(errors), 1)[0] == pytest.approx(1, abs=0.1)
    assert np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(-5, abs=0.35)
    assert max(error / tolerance for error, tolerance in zip(errors, tolerances, strict=True)) < 100


def test_any_dt_gives_the_tolerance(open_solver):
    errors = [error_of(open_solver("lorenz63", dt=dt, integrator="dopri5", rtol=1e-9, atol=1e-9)) for dt in (0.8, 0.1, 0.01)]
    assert max(errors) < 1e-7


def test_it_says_what_it_is(open_solver):
    solver = open_solver("lorenz63", integrator="dopri5", rtol=1e-5)
    assert (solver.spec.order, solver.spec.parameters["integrator"]) == (5, "dopri5")
    assert (solver.spec.parameters["rtol"], solver.spec.parameters["atol"]) == (1e-5, 1e-9)
    assert "rtol" not in open_solver("lorenz63").spec.parameters


def test_steps_land_on_dt(open_solver, random_states):
    solver = open_solver("lorenz96", dt=0.3, integrator="dopri5")
    sizes = solver.substeps(random_states(solver, 5))
    assert (sizes >= 0).all()
    np.testing.assert_allclose(sizes.sum(0), 0.3, rtol=1e-14)
    counts = (sizes > 0).sum(0)
    assert len(set(counts.tolist())) > 1  # members have their own
    assert len(sizes) == counts.max() > 2
    many = open_solver("vanderpol", dt=0.5, stiffness=300.0, integrator="dopri5").substeps(np.array([[2.0, 0.1]]))
    assert len(many) > 32  # more than the first guess of their number
    assert (open_solver("lorenz63").substeps(START) == 0.01).all()


@pytest.mark.parametrize("place", ["stage", "step"])
@pytest.mark.parametrize(("name", "options"), [
    ("lorenz63", {"dt": 0.2}), ("lorenz96", {"dt": 0.3}), ("burgers", {"dt": 0.3}), ("qg", {"dt": 0.1}),
])
def test_members_do_not_see_each_other(name, options, place, open_solver, random_states):
    solver = open_solver(name, integrator="dopri5", correction_at=place, **options)
    u = random_states(solver, 4) * np.array([0.1, 0.5, 1.0, 0.3])[:, None]
    together = solver.advance(u, 3, correction=Cubic()).states
    for member in range(len(u)):
        alone = solver.advance(u[member : member + 1], 3, correction=Cubic()).states
        assert np.array_equal(alone[:, 0], together[:, member])


@pytest.mark.parametrize("name", ["lorenz63", "qg"])
def test_bits_do_not_depend_on_where_a_run_is_cut(name, open_solver, random_states):
    solver = open_solver(name, dt=0.05, integrator="dopri5")
    u = random_states(solver, 2)
    whole = solver.advance(u, 6, correction=Cubic()).states
    first = solver.advance(u, 2, correction=Cubic()).states
    solver.advance(3.0 * u, 1)  # nothing of another run is remembered
    assert np.array_equal(solver.advance(first[-1], 4, correction=Cubic()).states, whole[2:])


def test_a_correction_of_zeros_changes_no_bit(open_solver, random_states):
    class Zero(nn.Module):
        dtype = torch.float64

        def forward(self, u):
            return torch.zeros_like(u)

    for place in ("stage", "step"):
        solver = open_solver("lorenz96", dt=0.2, integrator="dopri5", correction_at=place)
        u = random_states(solver)
        assert np.array_equal(solver.advance(u, 3, correction=Zero()).states, solver.advance(u, 3).states)


def test_calls_of_the_network(open_solver):
    """Two for the start of an outer step, six a trial; once an outer step when held. Who has arrived is not asked again."""
    solver = open_solver("lorenz63", dt=0.1, integrator="dopri5", rtol=1e-4, atol=1e-4)
    u, cubic = np.concatenate([START, 1e-3 * START]), Cubic()
    solver.advance(u, 1, correction=cubic)
    members = [len(one) for one in cubic.seen]
    assert (len(members) - 2) % 6 == 0
    assert members[0] == 2
    assert members[-1] == 1
    held = open_solver("lorenz63", dt=0.1, integrator="dopri5", correction_at="step")
    cubic = Cubic()
    held.advance(u, 3, stride=2, correction=cubic)
    assert [len(one) for one in cubic.seen] == [2] * 6


def test_a_held_correction_is_first_order_in_dt(open_solver):
    errors = []
    for count in (32, 64, 128):
        solver = open_solver("lorenz63", dt=0.4 / count, integrator="dopri5", correction_at="step")
        errors.append(np.abs(solver.advance(START, count, correction=Cubic()).states[-1] - truth(0.4)).max())
    assert -np.polyfit(np.log([32, 64, 128]), np.log(errors), 1)[0] == pytest.approx(1, abs=0.1)


class Square(nn.Module):
    """du/dt = u^2 + ...: positive states leave the finite numbers in finite time."""

    dtype = torch.float64

    def __init__(self, worst=1.0):
        super().__init__()
        self.worst, self.finite = worst, True

    def forward(self, u):
        self.finite &= bool(u.isfinite().all())
        return self.worst * u * u


def test_a_step_that_shrinks_to_nothing(open_solver):
    solver, square = open_solver("oscillator", dt=0.5, integrator="dopri5", restoring=0.0), Square()
    u = np.array([[0.1, 0.0], [3.0, 1.0], [0.2, 0.1]])
    sentence = (r"oscillator could not go on: step 1 of 4 failed, for 1 of 3 members: the step of dopri5 shrank to nothing at "
                r"0\.\d+ of one dt.*rtol and atol.*check the correction\.")
    with pytest.raises(StepError, match=sentence) as caught:
        solver.advance(u, 4, correction=square)
    assert isinstance(caught.value, BlowUpError)
    assert caught.value.steps.tolist() == [0, 1, 0]
    window = solver.advance(u, 4, correction=square, on_blow_up="mark")
    assert np.isnan(window.states[1:, 1]).all()
    assert np.array_equal(window.states[:, ::2], solver.advance(u[::2], 4, correction=square).states)
    assert square.finite  # the network never saw what is not finite
    with pytest.raises(StepError, match="shrank to nothing"):
        open_solver("lorenz63", integrator="dopri5", rtol=0.0, atol=1e-40).advance(START, 1)


def test_too_many_steps(open_solver):
    solver = open_solver("vanderpol", dt=1.0, stiffness=1e7, integrator="dopri5")
    with pytest.raises(StepError, match=r"made 10000 steps .* implicit integrator if the solver is stiff"):
        solver.advance(np.array([[2.0, 0.0]]), 1)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"integrator": "rk4", "rtol": 1e-3}, "rtol and atol are tolerances of integrator = 'dopri5'"),
    ({"atol": 1e-3}, "rtol and atol are tolerances of integrator = 'dopri5'"),
    ({"integrator": "dopri5", "rtol": -1.0}, "rtol of 0 or more and below 1, and an atol above 0, not -1"),
    ({"integrator": "dopri5", "atol": 0.0}, "an atol above 0"),
    ({"integrator": "dopri5", "order": 4}, "'dopri5' is not of the order given"),
    ({"integrator": "dopri5", "correction_at": "noon"}, "correction_at is 'stage' or 'step', not 'noon'"),
    ({"integrator": "dopri8"}, "there are euler, rk2, rk3, rk4, dopri5, ars222 and ars443"),
])
def test_refusals(options, sentence, open_solver):
    with pytest.raises(ConfigError, match=sentence):
        open_solver("lorenz63", **options)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("place", ["stage", "step"])
@pytest.mark.parametrize("name", ["lorenz63", "lorenz96", "vanderpol", "burgers"])
def test_the_twin_and_the_gradients(name, place, stride, open_solver, random_states):
    """The same steps as an independent code; `discrete` and `exact` then agree to round-off, and `tangent` by u_0."""
    solver = open_solver(name, dt=0.1, integrator="dopri5", correction_at=place, rtol=1e-5)
    correction, u0, steps = correction_for(solver), 0.3 * random_states(solver), 3
    found = solver.advance(u0, steps, stride=stride, correction=correction).states
    with torch.no_grad():
        expected = twin(solver).rollout(torch.from_numpy(u0), steps, correction, stride).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * np.abs(expected).max())
    exact = gradient_of(solver, correction, u0, steps, "exact", mean_square, stride=stride)
    for variant in ("discrete", "tangent"):
        theta, initial = gradient_of(solver, correction, u0, steps, variant, mean_square, stride=stride)
        torch.testing.assert_close(initial, exact[1], rtol=1e-9, atol=1e-10 * exact[1].abs().max().item())
        if variant == "discrete":
            torch.testing.assert_close(theta, exact[0], rtol=1e-9, atol=1e-10 * exact[0].abs().max().item())


def test_the_twin_of_a_plane_has_no_adaptive_step_and_discrete_has(open_solver, random_states):
    solver = open_solver("qg", dt=0.05, integrator="dopri5")
    with pytest.raises(ConfigError, match=r"twin of qg steps with .*rk4, not dopri5.*discrete"):
        twin(solver)
    u0 = torch.from_numpy(solver.project(random_states(solver, 2))).requires_grad_()
    states = trimtab.rollout(solver, None, u0, 2, gradient="discrete")
    lam = torch.randn_like(states[-1])
    (found,) = torch.autograd.grad((states[-1] * lam).sum(), u0)
    along = torch.from_numpy(solver.project(torch.randn_like(u0).numpy()))
    start = u0.detach()
    ends = [solver.advance((start + sign * 1e-5 * along).numpy(), 2).states[-1] for sign in (1, -1)]
    slope = ((ends[0] - ends[1]) * lam.numpy()).sum() / 2e-5
    assert (found * along).sum().item() == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize(("tolerance", "largest"), [(1e-3, 1e-1), (1e-6, 1e-4), (1e-9, 1e-6)])
def test_frozen_steps_are_within_the_tolerance_of_what_is_computed(tolerance, largest, open_solver):
    """Finite differences of the whole program, choice of steps included."""
    solver = open_solver("lorenz63", dt=0.1, integrator="dopri5", rtol=tolerance, atol=tolerance)
    correction, u0 = correction_for(solver), np.concatenate([START, -START])
    found, _ = gradient_of(solver, correction, u0, 4, "discrete", mean_square)
    parameters = list(correction.parameters())
    theta = nn.utils.parameters_to_vector(parameters).detach()
    along = found / found.norm()
    losses = []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(theta + sign * 1e-4 * along, parameters)
        losses.append(np.square(solver.advance(u0, 4, correction=correction).states).mean())
    assert (losses[0] - losses[1]) / 2e-4 == pytest.approx(found.norm().item(), rel=largest)


def test_fixed_n_is_second_order_and_fixed_horizon_follows_the_quadrature(open_solver):
    """The outer step h is dt, whatever happens within it: n = 10, then T = 0.2."""
    u0, sizes = np.array([[5.0, 6.0, 20.0]]), (0.02, 0.01)

    def last(states):
        return states[-1].square().mean()

    def slopes(variants, loss, steps_of, sizes):
        errors = []
        for h in sizes:
            solver = open_solver("lorenz63", dt=h, integrator="dopri5", rtol=1e-11, atol=1e-11)
            correction = correction_for(solver)
            exact, _ = gradient_of(solver, correction, u0, steps_of(h), "discrete", loss)
            found = [gradient_of(solver, correction, u0, steps_of(h), variant, loss)[0] for variant in variants]
            errors.append([((one - exact).norm() / (exact.norm() if loss is last else 1)).item() for one in found])
        return [np.polyfit(np.log(sizes), np.log(one), 1)[0] for one in np.transpose(errors)]

    assert slopes(["static", "tangent"], mean_square, lambda h: 10, (8e-4, 2e-4)) == pytest.approx([2, 2], abs=0.1)
    found = slopes(["static", *map(TangentEGA, ("left", "trapezoid", "gregory"))], last, lambda h: round(0.2 / h), sizes)
    assert found[1:] == pytest.approx([1, 2, 4], abs=0.2)
    assert abs(found[0]) < 0.3  # static does not converge, as with any solver


def test_a_black_box_with_dopri5_inside(open_solver):
    """What static, ensemble and tangent by finite differences need is there for any solver: forward runs."""
    from helpers.gradients import Bare

    inner = open_solver("lorenz63", dt=0.02, integrator="dopri5", rtol=1e-10, atol=1e-10)
    solver = Bare(inner)
    correction = correction_for(inner)
    exact = exact_of(inner, correction, START, 5, mean_square)
    with pytest.warns(UserWarning, match="finite differences"):
        by_differences = gradient_of(solver, correction, START, 5, "tangent", mean_square)
    ensemble = gradient_of(solver, correction, START, 5, "ensemble", mean_square)
    transposed = gradient_of(inner, correction, START, 5, "tangent", mean_square)
    assert ((by_differences[1] - exact[1]).norm() / exact[1].norm()) < 1e-6
    for found in (by_differences, ensemble):
        assert ((found[0] - transposed[0]).norm() / transposed[0].norm()) < 1e-3
