# SPDX-License-Identifier: MIT
"""ars222 and ars443: order, stability on stiff physics, refusals, and the transposed implicit step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import trimtab
from helpers.cubic import START, Cubic, truth
from helpers.gradients import Bare, correction_for, exact_of, gradient_of, mean_square
from trimtab.core.errors import BlowUpError, SolverError, StepError
from trimtab.gradient import TangentEGA
from trimtab.gradient.twin.torch_twin import twin

SCHEMES = {"ars222": 2, "ars443": 3}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_order_with_a_correction(scheme, open_solver):
    counts, errors = (40, 80, 160), []
    for count in counts:
        solver = open_solver("lorenz63", dt=0.4 / count, integrator=scheme)
        errors.append(np.abs(solver.advance(START, count, correction=Cubic()).states[-1] - truth(0.4)).max())
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(SCHEMES[scheme], abs=0.15)
    assert solver.spec.order == SCHEMES[scheme]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_held_correction_is_first_order(scheme, open_solver):
    counts, errors, cubic = (40, 80, 160), [], Cubic()
    for count in counts:
        solver = open_solver("lorenz63", dt=0.4 / count, integrator=scheme, correction_at="step")
        errors.append(np.abs(solver.advance(START, count, correction=cubic).states[-1] - truth(0.4)).max())
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(1, abs=0.15)
    assert len(cubic.seen) == sum(counts)


def test_calls_of_the_network(open_solver, random_states):
    for scheme, calls in (("ars222", 2), ("ars443", 4)):
        solver, cubic = open_solver("lorenz96", integrator=scheme), Cubic()
        solver.advance(random_states(solver, 3), 2, stride=3, correction=cubic)
        assert [len(one) for one in cubic.seen] == [3] * (6 * calls)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_stiff_step_damps_in_one_step(scheme, open_solver):
    """L-stability: off the slow curve y = x - x^3 / 3 by 0.3, one step 5,000 times the fast scale, and it is on it."""
    solver = open_solver("vanderpol", dt=0.05, stiffness=1e5, integrator=scheme)
    x, y = solver.advance(np.array([[2.0, -2 / 3 + 0.3]]), 1).states[-1, 0]
    assert abs(y - (x - x**3 / 3)) < 1e-3
    with pytest.raises(BlowUpError):
        open_solver("vanderpol", dt=0.05, stiffness=1e5).advance(np.array([[2.0, -2 / 3 + 0.3]]), 5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_relaxation_oscillator_has_its_period(scheme, open_solver):
    """3 - 2 ln 2 + 7.014 stiffness^(-2/3) + ...: Grasman, Asymptotic Methods for Relaxation Oscillations (1987), 2.2."""
    solver = open_solver("vanderpol", dt=1e-3, stiffness=1e6, integrator=scheme)
    x = solver.advance(np.array([[2.0, -2 / 3]]), 5000).states[:, 0, 0]
    ups = np.flatnonzero((x[:-1] < 0) & (x[1:] >= 0)) * 1e-3
    assert np.diff(ups) == pytest.approx(3 - 2 * math.log(2) + 7.014e-4, rel=0.01)


def test_a_slow_term_learned_explicitly_beside_stiff_physics(open_solver):
    """The core without dy/dt = x, and that term in the slot: the whole oscillator, to the scheme's order."""
    class Slow(nn.Module):
        dtype = torch.float64

        def forward(self, u):
            return torch.stack([torch.zeros_like(u[:, 0]), u[:, 0]], dim=1)

    start = np.array([[1.8, 1.8 - 1.8**3 / 3]])
    whole = open_solver("vanderpol", dt=0.2 / 512, stiffness=1e4, integrator="ars443").advance(start, 1, stride=512).states[-1]
    errors = []
    for count in (16, 32, 64):
        core = open_solver("vanderpol", dt=0.2 / count, stiffness=1e4, restoring=0.0, integrator="ars443")
        errors.append(np.abs(core.advance(start, count, correction=Slow()).states[-1] - whole).max())
    assert errors[-1] < 1e-4
    assert errors[-1] < 0.4 * errors[0]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["lorenz96", "burgers", "vanderpol"])
def test_members_do_not_see_each_other(name, scheme, open_solver, random_states):
    solver = open_solver(name, dt=0.02, integrator=scheme)
    u = random_states(solver, 4) * np.array([0.1, 0.5, 0.2, 0.3])[:, None]
    together = solver.advance(u, 3, correction=Cubic()).states
    for member in range(len(u)):
        assert np.array_equal(solver.advance(u[member : member + 1], 3, correction=Cubic()).states[:, 0], together[:, member])
    halves = solver.advance(solver.advance(u, 1, correction=Cubic()).states[-1], 2, correction=Cubic()).states
    assert np.array_equal(halves, together[1:])


def test_a_step_that_cannot_be_made(open_solver):
    class Infinite(nn.Module):
        dtype = torch.float64

        def forward(self, u):
            assert u.isfinite().all()
            return torch.where(u.abs().amax(1, keepdim=True) > 3, torch.inf, 0.1 * u)

    solver = open_solver("vanderpol", dt=0.1, stiffness=100.0, integrator="ars222")
    u = np.array([[1.0, 0.2], [4.0, 0.0], [-1.5, 0.3]])
    with pytest.raises(StepError, match=r"step 1 of 3 failed, for 1 of 3 members: Newton's iteration in a stage of ars222 did "
                                        r"not converge, in a millionth of dt neither: shorten dt, or check the corr") as caught:
        solver.advance(u, 3, correction=Infinite())
    assert caught.value.steps.tolist() == [0, 1, 0]
    states = solver.advance(u, 3, correction=Infinite(), on_blow_up="mark").states
    assert np.isnan(states[1:, 1]).all()
    assert np.array_equal(states[:, ::2], solver.advance(u[::2], 3, correction=Infinite()).states)


@pytest.mark.parametrize("place", ["stage", "step"])
def test_jumps_halve_the_step(place, open_solver):
    """Where Newton does not converge the step is halved, ends on dt, and the gradient follows what was done."""
    solver = open_solver("vanderpol", dt=0.05, stiffness=1e4, integrator="ars222", correction_at=place)
    correction = correction_for(solver)
    correction.output_scale.fill_(0.1)
    u0 = np.array([[2.0, -2 / 3], [1.02, 0.664], [-1.01, -0.66]])
    sizes = solver.substeps(u0, correction=correction)
    np.testing.assert_allclose(sizes.sum(0), 0.05, rtol=1e-14)
    assert (sizes[0, 0], (sizes > 0).sum(0)[0]) == (0.05, 1)
    assert len(sizes) > 4
    exact = gradient_of(solver, correction, u0, 2, "exact", mean_square)
    found = gradient_of(solver, correction, u0, 2, "discrete", mean_square)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8 * other.abs().max().item())


@pytest.mark.parametrize(("name", "options", "sentence"), [
    ("qg", {}, "ars222 solves with dense Jacobians, for at most 64 variables, and this solver has 256: take an explicit"),
    ("lorenz96", {"n": 65}, "for at most 64 variables, and this solver has 65"),
])
def test_refusals(name, options, sentence, open_solver):
    with pytest.raises(SolverError, match=sentence):
        open_solver(name, integrator="ars222", **options)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("place", ["stage", "step"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("name", "options"), [
    ("lorenz63", {}), ("lorenz96", {"dt": 0.05}), ("vanderpol", {"dt": 0.05, "stiffness": 500.0}),
    ("burgers", {"dt": 0.05, "n": 8}),
])
def test_the_twin_and_the_gradients(name, options, scheme, place, stride, open_solver, random_states):
    """An independent code makes the same steps; the transposed implicit step is autograd through it, to round-off."""
    solver = open_solver(name, integrator=scheme, correction_at=place, **options)
    correction, u0, steps = correction_for(solver), 0.3 * random_states(solver, 2), 3
    found = solver.advance(u0, steps, stride=stride, correction=correction).states
    with torch.no_grad():
        expected = twin(solver).rollout(torch.from_numpy(u0), steps, correction, stride).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    exact = gradient_of(solver, correction, u0, steps, "exact", mean_square, stride=stride)
    for variant in ("discrete", "tangent"):
        theta, initial = gradient_of(solver, correction, u0, steps, variant, mean_square, stride=stride)
        torch.testing.assert_close(initial, exact[1], rtol=1e-8, atol=1e-9 * exact[1].abs().max().item())
        if variant == "discrete":
            torch.testing.assert_close(theta, exact[0], rtol=1e-8, atol=1e-9 * exact[0].abs().max().item())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_discrete_is_the_derivative_of_what_fortran_computes(scheme, open_solver):
    solver = open_solver("vanderpol", dt=0.1, stiffness=1e4, restoring=0.0, integrator=scheme)
    correction, u0 = correction_for(solver), np.array([[1.8, -0.1], [-1.5, -0.4]])
    found, _ = gradient_of(solver, correction, u0, 4, "discrete", mean_square)
    parameters = list(correction.parameters())
    theta, along, losses = nn.utils.parameters_to_vector(parameters).detach(), found / found.norm(), []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(theta + sign * 1e-5 * along, parameters)
        losses.append(np.square(solver.advance(u0, 4, correction=correction).states).mean())
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(found.norm().item(), rel=1e-5)


def test_orders_of_the_gradients(open_solver):
    """Fixed n: O(h^2) for every variant. Fixed T: the quadrature's order or the scheme's, whichever is lower."""
    u0 = np.array([[5.0, 6.0, 20.0]])

    def last(states):
        return states[-1].square().mean()

    def slopes(scheme, variants, loss, steps_of, sizes):
        errors = []
        for h in sizes:
            solver = open_solver("lorenz63", dt=h, integrator=scheme)
            correction = correction_for(solver)
            exact, _ = gradient_of(solver, correction, u0, steps_of(h), "discrete", loss)
            found = [gradient_of(solver, correction, u0, steps_of(h), variant, loss)[0] for variant in variants]
            errors.append([((one - exact).norm() / (exact.norm() if loss is last else 1)).item() for one in found])
        return [np.polyfit(np.log(sizes), np.log(one), 1)[0] for one in np.transpose(errors)]

    for scheme, order in SCHEMES.items():
        assert slopes(scheme, ["static", "tangent"], mean_square, lambda h: 10, (8e-4, 2e-4)) == pytest.approx([2, 2], abs=0.1)
        found = slopes(scheme, ["static", *map(TangentEGA, ("left", "trapezoid", "gregory"))], last,
                       lambda h: round(0.2 / h), (0.01, 0.005))
        assert found[1:] == pytest.approx([1, 2, order], abs=0.25)
        assert abs(found[0]) < 0.3


def test_variants_on_a_stiff_solver(open_solver):
    """Vanderpol on its slow curve, 50 times the fast scale a step: explicit Euler's Jacobian is useless, the step's is not.

    Static keeps the derivative by the fast variable that every step kills; the ensemble sees that from forward runs.
    """
    solver = open_solver("vanderpol", dt=0.05, stiffness=1e3, restoring=0.0, integrator="ars222")
    correction, u0 = correction_for(solver), np.array([[1.8, 1.8 - 1.8**3 / 3]])
    exact = exact_of(solver, correction, u0, 5, mean_square)
    errors = {}
    for variant in ("static", "euler", "tangent", "ensemble", "discrete"):
        found = gradient_of(solver, correction, u0, 5, variant, mean_square)
        errors[variant] = [((one - other).norm() / other.norm()).item() for one, other in zip(found, exact, strict=True)]
    assert max(errors["discrete"]) < 1e-9
    assert errors["tangent"][1] < 1e-9
    assert errors["ensemble"][1] < 1e-3
    assert errors["euler"][1] > 1e3
    assert errors["static"][1] > 0.3
    with pytest.warns(UserWarning, match="finite differences"):
        by_differences = gradient_of(Bare(solver), correction, u0, 5, "tangent", mean_square)
    assert ((by_differences[1] - exact[1]).norm() / exact[1].norm()) < 1e-5


def test_it_trains_on_stiff_physics(open_solver):
    """The slow equation, left out of the core, found again by a small network through implicit steps."""
    whole = open_solver("vanderpol", dt=0.02, stiffness=1e3, integrator="ars222")
    states = torch.from_numpy(whole.advance(np.array([[2.0, -2 / 3]]), 99).states)
    core = open_solver("vanderpol", dt=0.02, stiffness=1e3, restoring=0.0, integrator="ars222")
    torch.manual_seed(0)
    correction = trimtab.Correction(trimtab.networks.MLP((2, 8, 2)).double(), core.spec)
    optimiser = torch.optim.Adam(correction.parameters(), 3e-2)
    losses = []
    windows = states[:, 0].unfold(0, 5, 5).permute(2, 0, 1)  # (5, windows, 2)
    for _ in range(25):
        found = trimtab.rollout(core, correction, windows[0], 4, gradient="tangent", on_blow_up="mark")
        loss = (found[1:] - windows[1:])[:, found[-1].isfinite().all(-1), 1].square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
