# SPDX-License-Identifier: MIT
"""Ensemble-EGA: exact with enough members, never worse than static with few, and nothing but forward runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import trimtab
from trimtab.core.errors import ConfigError, SolverError
from trimtab.core.spec import Field, SolverSpec
from trimtab.core.window import Window
from trimtab.gradient import EnsembleEGA, Tape
from trimtab.gradient.ensemble import ega as ensemble
from trimtab.gradient.ensemble.perturbations import perturbations
from trimtab.gradient.twin.torch_twin import twin


def tape_of(solver, u0, steps=3, correction=None):
    window = solver.advance(u0, steps, correction=correction)
    return Tape(torch.from_numpy(window.states), window.h, 1, solver, correction)


def correction_for(solver):
    torch.manual_seed(0)
    if len(solver.spec.grid) == 2:
        network = trimtab.networks.PeriodicCNN(channels=(1, 3, 1), kernel=3, activation="tanh").double()
    else:
        network = trimtab.networks.MLP((solver.spec.size, 5, solver.spec.size)).double()
    return trimtab.Correction(network, solver.spec, input_scale=10.0, output_scale=3.0)


def exact(tape, k, lam):
    u = tape.states[k].clone().requires_grad_()
    (answer,) = torch.autograd.grad(twin(tape.solver).flow(u, tape.correction), u, lam)
    return answer


def vector_for(tape, seed=5):
    return torch.randn(tape.states.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def distance(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


class Turning:
    """A black box with one frequency in many dimensions: u' = A u with A^T = -A and A^2 = -1, and nothing but `advance`."""

    def __init__(self, size=50, dt=0.2):
        field = Field("u", "state", "1", ("component",), (size,), {"component": np.arange(float(size))})
        self.spec = SolverSpec("turning", dt, 4, (field,), "1", {})
        generator = np.random.default_rng(3)
        turn = np.linalg.qr(generator.standard_normal((size, size)))[0]
        a = turn @ np.kron(np.eye(size // 2), [[0.0, 1.0], [-1.0, 0.0]]) @ turn.T
        self.matrix = np.cos(dt) * np.eye(size) + np.sin(dt) * a
        self.broken = lambda starts: np.zeros(len(starts), dtype=bool)
        self.runs = 0

    def advance(self, u0, steps, *, correction=None, stride=1, time=0.0, on_blow_up="raise"):
        states = [self.spec.check_states(u0)]
        for _ in range(steps):
            states.append(states[-1] @ self.matrix.T)
        self.runs += len(states[0]) * steps
        states = np.stack(states)
        failed = self.broken(states[0]).astype(np.int64)
        states[1:, failed > 0] = np.nan
        return Window(states, self.spec.dt * np.arange(steps + 1), self.spec.dt, failed)

    def close(self):
        pass


@pytest.mark.parametrize("base", ["identity", "none"])
@pytest.mark.parametrize("name", ["lorenz63", "lorenz96", "lorenz96_two_scale", "oscillator", "qg"])
def test_enough_members_give_the_whole_jacobian(name, base, open_solver, random_states):
    """The error is that of a one-sided difference: it falls with the perturbation."""
    solver = open_solver(name)
    tape = tape_of(solver, random_states(solver, 2), correction=correction_for(solver))
    lam, errors = vector_for(tape), []
    wanted = exact(tape, 1, lam)
    for size in (1e-3, 1e-5):
        gradient = EnsembleEGA(solver.spec.size, base=base, perturbation=size)
        errors.append(distance(gradient.pullback(tape, 1, lam), wanted))
    assert errors[1] < 1e-6
    assert errors[1] < 0.05 * errors[0] or errors[0] < 1e-9


@pytest.mark.parametrize("options", [{}, {"renew": "window"}, {"aim": 6, "members": 12}])
def test_random_members_as_many_as_dimensions_give_it_too(options, open_solver, random_states):
    solver = open_solver("lorenz96")
    tape = tape_of(solver, random_states(solver, 2), correction=correction_for(solver))
    lam = vector_for(tape)
    gradient = EnsembleEGA(**{"members": 12, "spectrum": "white", "perturbation": 1e-6, "aim": 0, **options})
    for k in (2, 1, 0):
        assert distance(gradient.pullback(tape, k, lam), exact(tape, k, lam)) < 1e-4


@pytest.mark.parametrize("options", [{"members": 0}, {"members": 6, "aim": 0, "rank": 0}])
def test_an_empty_ensemble_is_static(options, open_solver, random_states):
    solver = open_solver("lorenz96")
    tape = tape_of(solver, random_states(solver, 2))
    lam = vector_for(tape)
    assert torch.equal(EnsembleEGA(**options).pullback(tape, 1, lam), lam)
    assert not EnsembleEGA(**options, base="none").pullback(tape, 1, lam).any()


@pytest.mark.parametrize("options", [
    {"aim": 0}, {"aim": 0, "spectrum": "white"}, {"aim": 0, "spectrum": 2.0}, {"aim": 5}, {}, {"rank": 2}, {"renew": "window"},
])
def test_a_small_ensemble_is_never_worse_than_static(options, open_solver, random_states):
    """What it finds is right in its span and the identity outside of it."""
    solver = open_solver("lorenz96", n=30)
    tape = tape_of(solver, random_states(solver, 2), correction=correction_for(solver))
    gradient = EnsembleEGA(5, **options)
    for seed in range(3):
        lam = vector_for(tape, seed)
        wanted = exact(tape, 1, lam)
        assert (gradient.pullback(tape, 1, lam) - wanted).norm() < (lam - wanted).norm()


def test_aimed_members_follow_a_flow_that_turns():
    """J^T lambda lies in the span of lambda and J lambda, in however many dimensions: two runs find it."""
    solver = Turning()
    tape = tape_of(solver, np.random.default_rng(0).standard_normal((2, 50)))
    lam = vector_for(tape)
    wanted = lam @ torch.from_numpy(solver.matrix)
    assert distance(EnsembleEGA(2, aim=2).pullback(tape, 0, lam), wanted) < 1e-9
    assert distance(EnsembleEGA(2, aim=0, spectrum="white").pullback(tape, 0, lam), wanted) > 0.15


def test_smooth_and_aimed_members_carry_adjoints_through_turbulence(open_solver, random_states):
    """The default where static has lost the way: QG, 256 dimensions, 20 runs a step."""
    solver = open_solver("qg", dt=0.02)
    correction, u0, steps = correction_for(solver), random_states(solver, 1), 20
    truth = torch.from_numpy(solver.advance(u0, steps).states)
    found = {}
    for gradient in ("static", "ensemble", "exact"):
        start = torch.tensor(u0, requires_grad=True)
        (trimtab.rollout(solver, correction, start, steps, gradient=gradient)[-1] - truth[-1]).square().sum().backward()
        found[gradient] = start.grad
    cosines = {name: torch.cosine_similarity(found[name], found["exact"]).item() for name in ("static", "ensemble")}
    assert cosines["ensemble"] > 0.95 > 0.85 > cosines["static"], cosines


def test_localisation_finds_a_local_jacobian(open_solver, random_states):
    """Lorenz 96 with 40 points, 20 members: each point depends on five, so that 20 random perturbations tell them apart."""
    solver = open_solver("lorenz96", n=40)
    tape = tape_of(solver, random_states(solver, 2))
    lam = vector_for(tape)
    wanted = exact(tape, 1, lam)
    static = (lam - wanted).norm()
    for base in ("identity", "none"):
        local = EnsembleEGA(20, aim=0, spectrum="white", localisation=3, base=base).pullback(tape, 1, lam)
        assert (local - wanted).norm() < 0.02 * static
    everywhere = EnsembleEGA(20, aim=0, spectrum="white").pullback(tape, 1, lam)
    assert (everywhere - wanted).norm() > 0.3 * static


def test_climatology_spans_the_ensemble(open_solver, random_states):
    solver = open_solver("lorenz96")
    tape = tape_of(solver, random_states(solver, 2))
    climatology = solver.advance(random_states(solver, 1), 400).states[:, 0]
    rows = perturbations(solver.spec, 4, "smooth", climatology, (0, 1)).numpy()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0)
    plane = (climatology[:, :1] * np.ones((1, 12)))
    lam = vector_for(tape)
    mended = EnsembleEGA(1, aim=0, climatology=plane).pullback(tape, 1, lam) - lam
    assert (mended - mended[:, :1]).abs().max() < 1e-12 < mended.abs().max()  # on the one direction that it varies along


def test_bits_follow_from_seed_and_step(open_solver, random_states):
    solver = open_solver("lorenz96")
    tape = tape_of(solver, random_states(solver, 3))
    lam = vector_for(tape)
    options = {"members": 6, "aim": 2, "spectrum": "white"}
    first = EnsembleEGA(**options).pullback(tape, 1, lam)
    gradient = EnsembleEGA(**options)
    gradient.pullback(tape, 2, lam)
    assert torch.equal(gradient.pullback(tape, 1, lam), first)
    assert not torch.equal(EnsembleEGA(**options, seed=1).pullback(tape, 1, lam), first)
    alone = Tape(tape.states[:, 1:2], tape.h, 1, solver, None)
    torch.testing.assert_close(gradient.pullback(alone, 1, lam[1:2]), first[1:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("renew", ["step", "window"])
def test_chunks_do_not_change_a_bit(renew, open_solver, random_states, monkeypatch):
    solver = open_solver("lorenz96")
    tape = tape_of(solver, random_states(solver, 3))
    lam = vector_for(tape)
    whole = EnsembleEGA(9, spectrum="white", renew=renew).pullback(tape, 2, lam)
    monkeypatch.setattr(ensemble, "RUN_VALUES", 80)
    assert torch.equal(EnsembleEGA(9, spectrum="white", renew=renew).pullback(tape, 2, lam), whole)


@pytest.mark.parametrize("options", [{}, {"aim": 0, "renew": "window"}, {"aim": 0, "spectrum": "white", "localisation": 1}])
def test_cost_is_linear_in_members(options):
    solver = Turning()
    u0 = np.random.default_rng(0).standard_normal((3, 50))
    for members in (5, 10, 20):
        solver.runs = 0
        trimtab.rollout(solver, None, torch.tensor(u0, requires_grad=True), 4,
                        gradient=EnsembleEGA(members, **options)).sum().backward()
        assert solver.runs == 3 * 4 * (1 + members)


def test_the_whole_gradient_is_that_of_tangent(open_solver, random_states):
    solver = open_solver("lorenz63")
    correction, u0 = correction_for(solver), random_states(solver, 3)
    parameters = list(correction.parameters())
    for rule in ("left", "gregory"):
        found = {}
        for name, gradient in (("tangent", trimtab.TangentEGA(rule)),
                               ("ensemble", trimtab.EnsembleEGA(perturbation=1e-7, quadrature=rule))):
            loss = trimtab.rollout(solver, correction, u0, 30, gradient=gradient)[-1].square().mean()
            found[name] = torch.cat([one.flatten() for one in torch.autograd.grad(loss, parameters)])
        assert distance(found["ensemble"], found["tangent"]) < 1e-5


def test_members_that_blow_up_are_left_out():
    solver = Turning()
    u0 = np.random.default_rng(0).standard_normal((2, 50))
    tape = tape_of(solver, u0)
    lam = vector_for(tape)
    whole = EnsembleEGA(8).pullback(tape, 0, lam)
    solver.broken = lambda starts: (np.arange(len(starts)) % 3 == 1) & (len(starts) > 2)
    mended = EnsembleEGA(8).pullback(tape, 0, lam)
    assert mended.isfinite().all() and not torch.equal(mended, whole)
    solver.broken = lambda starts: np.ones(len(starts), dtype=bool)
    for renew in ("step", "window"):
        with pytest.raises(SolverError, match="Every perturbed run of member 0 at step 0 blew up"):
            EnsembleEGA(8, renew=renew).pullback(tape, 0, lam)


def test_a_blown_up_window_member_gets_no_gradient(open_solver):
    solver = open_solver("lorenz63")
    start = torch.tensor([[1.0, 2.0, 20.0], [1e90, 1e90, 1e90]], dtype=torch.float64, requires_grad=True)
    trimtab.rollout(solver, None, start, 5, gradient="ensemble", on_blow_up="mark")[:, :1].sum().backward()
    assert start.grad[0].isfinite().all() and start.grad[0].any() and not start.grad[1].any()


@pytest.mark.parametrize(("options", "sentence"), [
    ({"members": 3, "aim": 4}, "cannot aim 4"),
    ({"members": -1}, "cannot aim"),
    ({"base": "zero"}, "base \"identity\" or \"none\""),
    ({"renew": "never"}, "renew \"step\" or \"window\""),
    ({"spectrum": "red"}, "give \"smooth\", \"white\" or a slope"),
    ({"perturbation": 0.0}, "at least 1e-12, or it is lost in rounding"),
    ({"perturbation": 1e-300}, "at least 1e-12, or it is lost in rounding"),
    ({"perturbation": float("nan")}, "perturbation must be a finite number, not nan"),
    ({"perturbation": float("inf")}, "perturbation must be a finite number, not inf"),
    ({"spectrum": float("inf")}, "spectrum must be a finite number, not inf"),
    ({"spectrum": None}, "spectrum must be a finite number, not None"),
    ({"members": 2.5}, "members must be a whole number, not 2.5"),
    ({"members": "20"}, "members must be a whole number, not '20'"),
    ({"rank": 1.5}, "rank must be a whole number, not 1.5"),
    ({"group": 1.5}, "group must be a whole number, not 1.5"),
    ({"seed": -1}, "seed must be a whole number, at least 0, not -1"),
    ({"climatology": "calm"}, "must be a .T, N. array"),
    ({"localisation": 2}, "needs random perturbations"),
    ({"localisation": 2, "spectrum": "white", "renew": "window"}, "needs random perturbations"),
    ({"climatology": [1.0, 2.0]}, "must be a .T, N. array"),
    ({"quadrature": "simpson"}, "Unknown quadrature"),
])
def test_refusals(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        EnsembleEGA(**options)


@pytest.mark.parametrize("members", [4, 12])  # 12: along the axes, so that the climatology would never be looked at
def test_a_climatology_that_does_not_fit_is_refused(members, open_solver, random_states):
    solver = open_solver("lorenz96")
    u0 = random_states(solver, 2)
    with pytest.raises(ConfigError, match="states of 11 numbers; the solver lorenz96 has 12"):
        trimtab.rollout(solver, None, u0, 1, gradient=EnsembleEGA(members, climatology=np.ones((4, 11))))
    with pytest.raises(ConfigError, match="does not vary"):
        tape = tape_of(solver, u0)
        EnsembleEGA(4, climatology=np.ones((4, 12))).pullback(tape, 0, vector_for(tape))
