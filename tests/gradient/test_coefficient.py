# SPDX-License-Identifier: MIT
"""Networks that answer a coefficient of the solver's tendency: bits, dot products, every gradient, a coefficient found again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import trimtab
from trimtab.config.experiment import parse_experiment
from trimtab.core.errors import CheckpointError, ConfigError, CorrectionError, InputError, SolverError
from trimtab.corrections.correction import Correction
from trimtab.corrections.factory import build_correction
from trimtab.corrections.networks import MLP, PeriodicCNN, Unknowns
from trimtab.corrections.smagorinsky import Smagorinsky
from trimtab.gradient.coefficient import Held
from trimtab.gradient.twin.torch_twin import twin
from trimtab.training.checkpoint import load_correction
from trimtab.training.offline import Offline
from trimtab.training.trainer import Trainer

CASES = [("lorenz63", {"slot": "beta"}), ("lorenz63", {"slot": "beta", "beta": 8 / 3}),
         *[("qg", {"n": 12, "slot": "viscosity", "forcing_wavenumber": 3, "dealiasing": rule})
           for rule in ("3/2", "2/3", "none")],
         ("qg", {"n": 16, "slot": "viscosity", "viscosity_pattern": 1e-2, "pattern_wavenumber": 2})]


def white(solver, number, members=3, seed=1):
    return np.random.default_rng(seed).standard_normal((number, members, solver.spec.size))


def coefficients(solver, members=3, seed=2):
    return np.random.default_rng(seed).standard_normal((members, solver.spec.outputs))


def network_of(solver, dtype=torch.float64):
    """Depends on the state, so that dP/du counts."""
    torch.manual_seed(0)
    if solver.spec.solver == "qg":
        network = PeriodicCNN((2, 4, 1), 3, "tanh", "softplus")
        return Correction(network.to(dtype), solver.spec, features=("q", "psi"), input_scale=(5.0, 1.0), output_scale=1e-2)
    return Correction(MLP((3, 5, 1), output="softplus").to(dtype), solver.spec, input_scale=10.0)


def check_dot(forward, lam, v, backward):
    scale = np.linalg.norm(forward, axis=1) * np.linalg.norm(lam, axis=1)
    assert (np.abs((forward * lam).sum(1) - (v * backward).sum(1)) < 1e-13 * scale).all()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_adjoints_are_transposes(name, options, open_solver):
    """N(u, P) - N(u, 0) is linear in P and in u, so that it is its own derivative by both."""
    solver = open_solver(name, **options)
    (u, lam, v), p = white(solver, 3), coefficients(solver)
    check_dot(solver.influence(u, p), lam, p, solver.slot_adjoint(u, lam))
    check_dot(solver.influence(v, p), lam, v, solver.influence_adjoint(u, p, lam))
    assert not solver.influence(u, 0 * p).any()


@pytest.mark.parametrize("options", [options for name, options in CASES if name == "qg"])
def test_a_pattern_in_the_namelist_is_part_of_the_tendency_and_its_adjoint(options, open_solver):
    plain = open_solver("qg", **{**options, "viscosity_pattern": 0.0})
    solver = open_solver("qg", **{**options, "viscosity_pattern": 0.3, "pattern_wavenumber": 2})
    u, lam = white(solver, 2)
    n = solver.spec.grid[0]
    wave = np.cos(2 * 2 * np.pi * np.arange(n) / n)
    nu = np.repeat(0.3 * (1 + np.outer(wave, wave)).reshape(1, -1), 3, axis=0)
    added = solver.tendency(u) - plain.tendency(u)
    np.testing.assert_allclose(added, plain.influence(u, nu), rtol=0, atol=1e-12 * np.abs(added).max())
    check_dot(0.5 * (solver.tendency(lam + u) - solver.tendency(lam - u)), lam, u, solver.tendency_adjoint(lam, lam))
    # A uniform nu is the solver's own viscosity.
    uniform = plain.influence(u, np.ones_like(nu))
    stiff = open_solver("qg", **{**options, "viscosity_pattern": 0.0, "viscosity": 1e-3 + 1.0})
    expected = stiff.tendency(u) - plain.tendency(u)
    np.testing.assert_allclose(uniform, expected, rtol=0, atol=1e-11 * np.abs(expected).max())
    assert ((plain.project(u) * plain.influence(u, np.abs(nu))).sum(1) < 0).all()  # takes enstrophy out


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[1].get("dealiasing") != "none"])  # aliases differ
@pytest.mark.parametrize("place", ["stage", "step"])
def test_twin_agrees(name, options, place, open_solver, random_states):
    solver = open_solver(name, **options, correction_at=place)
    correction, u0 = network_of(solver), random_states(solver)
    with torch.no_grad():
        own = solver.advance(u0, 5, correction=correction, stride=2).states
        other = twin(solver).advance(u0, 5, correction=correction, stride=2).states
        alone = solver.advance(u0, 5, stride=2).states
    np.testing.assert_allclose(own, other, rtol=0, atol=1e-10 * np.abs(own).max())
    assert np.abs(own - alone)[-1].max() > 1e-4 * np.abs(own).max()


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nothing_in_the_slot_and_a_coefficient_of_zero_change_no_bit(name, options, dtype, open_solver, random_states):
    solver = open_solver(name, **options)
    plain = open_solver(name, **{**options, "slot": "tendency"})
    u0 = random_states(solver)
    zero = Correction(Unknowns((1, *solver.spec.grid) if name == "qg" else (1,)).to(dtype), solver.spec)
    expected = plain.advance(u0, 20).states.tobytes()
    assert solver.advance(u0, 20).states.tobytes() == expected
    assert solver.advance(u0, 20, correction=zero).states.tobytes() == expected
    assert solver.advance(u0, 20).states.tobytes() == expected


@pytest.mark.parametrize(("name", "options"), [CASES[0], CASES[5]])
def test_members_do_not_see_each_other(name, options, open_solver, random_states):
    solver = open_solver(name, **options)
    u0, p = random_states(solver), torch.from_numpy(np.abs(coefficients(solver)) * 1e-2)
    together = solver.advance(u0, 10, correction=Held(p)).states
    for member in range(3):
        one = slice(member, member + 1)
        assert np.array_equal(solver.advance(u0[one], 10, correction=Held(p[one])).states, together[:, one])


def gradient_by(solver, correction, u0, gradient, steps=6, stride=2):
    start = torch.from_numpy(u0).requires_grad_()
    states = trimtab.rollout(solver, correction, start, steps, gradient=gradient, stride=stride)
    loss = (states * torch.linspace(0.5, 2, states.shape[-1], dtype=torch.float64)).square().mean()
    found = torch.autograd.grad(loss, [*correction.parameters(), start])
    return loss.item(), torch.cat([one.flatten() for one in found[:-1]]), found[-1]


@pytest.mark.parametrize(("name", "options"), [CASES[1], CASES[2], CASES[5]])
@pytest.mark.parametrize("place", ["stage", "step"])
def test_discrete_is_exact(name, options, place, open_solver, random_states):
    solver = open_solver(name, **options, correction_at=place)
    correction, u0 = network_of(solver), random_states(solver)
    _, theta, initial = gradient_by(solver, correction, u0, "discrete")
    _, exact, exact_initial = gradient_by(solver, correction, u0, "exact")
    np.testing.assert_allclose(theta, exact, rtol=0, atol=1e-10 * exact.abs().max())
    np.testing.assert_allclose(initial, exact_initial, rtol=0, atol=1e-10 * exact_initial.abs().max())
    _, theta, initial = gradient_by(solver, correction, u0, "tangent")
    np.testing.assert_allclose(initial, exact_initial, rtol=0, atol=1e-10 * exact_initial.abs().max())


def test_discrete_against_finite_differences(open_solver, random_states):
    """Forward runs of the Fortran alone, no twin: the directional derivative along the gradient and along random directions."""
    solver = open_solver("qg", **CASES[5][1])
    correction, u0 = network_of(solver), random_states(solver)
    _, theta, _ = gradient_by(solver, correction, u0, "discrete")
    vector = torch.nn.utils.parameters_to_vector(correction.parameters()).detach()
    for seed in range(3):
        v = theta if seed == 0 else torch.randn(len(vector), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        v, values = v / v.norm(), []
        for step in (1e-4, -1e-4):
            torch.nn.utils.vector_to_parameters(vector + step * v, correction.parameters())
            values.append(gradient_by(solver, correction, u0, "none")[0])
        torch.nn.utils.vector_to_parameters(vector, correction.parameters())
        assert (values[0] - values[1]) / 2e-4 == pytest.approx(float(theta @ v), rel=1e-5, abs=1e-6 * float(theta.norm()))


@pytest.mark.parametrize("gradient", ["static", "euler", "tangent"])
@pytest.mark.parametrize(("name", "options"), [CASES[0], CASES[5]])
def test_variants_converge(gradient, name, options, open_solver, random_states):
    """At a fixed number of steps every variant errs by O(h^2), so the relative error falls at least like h."""
    errors = []
    for h in (2e-3, 5e-4):
        solver = open_solver(name, **{**options, "dt": h / 2})
        correction, u0 = network_of(solver), random_states(solver)
        _, found, _ = gradient_by(solver, correction, u0, gradient)
        _, exact, _ = gradient_by(solver, correction, u0, "discrete")
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[1] < 0.3 * errors[0] and errors[0] < 0.3


class Box:
    """A black box: forward runs of a solver, and nothing else of it."""

    def __init__(self, solver):
        self.spec, self.advance, self.close = solver.spec, solver.advance, solver.close


def test_a_black_box_gets_its_cotangent_from_forward_runs(open_solver, random_states):
    solver = open_solver("lorenz63", slot="beta", dt=1e-3)
    correction, u0 = network_of(solver), random_states(solver)
    _, own, _ = gradient_by(solver, correction, u0, "static")
    _, found, _ = gradient_by(Box(solver), correction, u0, "static")
    assert (found - own).norm() < 0.02 * own.norm()
    with pytest.raises(ConfigError, match="influence, influence_adjoint and slot_adjoint"):
        box = Box(solver)
        box.tendency, box.tendency_adjoint = solver.tendency, solver.tendency_adjoint
        gradient_by(box, correction, u0, "euler")
    field = open_solver("qg", **CASES[5][1])
    with pytest.raises(ConfigError, match="a coefficient of 256 numbers and the solver offers no slot_adjoint"):
        gradient_by(Box(field), network_of(field), random_states(field), "static")


def test_smagorinsky_as_a_viscosity_is_smagorinsky_as_a_tendency(open_solver, random_states):
    tendency, viscosity = (open_solver("qg", slot=slot) for slot in ("tendency", "viscosity"))
    u0 = random_states(tendency)
    runs = [one.advance(u0, 10, correction=Smagorinsky(one.spec, 0.2)).states for one in (tendency, viscosity)]
    np.testing.assert_allclose(runs[0], runs[1], rtol=0, atol=1e-12 * np.abs(runs[0]).max())
    with pytest.raises(ConfigError, match="needs a vorticity field"):
        Smagorinsky(open_solver("lorenz63", slot="beta").spec, 0.2)


def test_refusals(open_solver):
    solver = open_solver("lorenz63", slot="beta")
    u = np.ones((2, 3))
    with pytest.raises(InputError, match=r"coefficient must be a \(members, 1\) float64 array"):
        solver.influence(u, u)
    with pytest.raises(InputError, match="a coefficient must be"):
        solver.influence(u, np.ones((3, 1)))
    with pytest.raises(InputError, match="NaN"):
        solver.influence(np.nan * u, np.ones((2, 1)))
    with pytest.raises(CorrectionError, match=r"where the solver wants \(2, 1\)"):
        solver.advance(u, 1, correction=Held(torch.ones(2, 3, dtype=torch.float64)))
    with pytest.raises(SolverError, match="takes a tendency and no coefficient"):
        open_solver("lorenz63").influence(u, u)
    for name, options, sentence in [("lorenz63", {"slot": "rho"}, "slot is 'tendency' or 'beta', not 'rho'"),
                                    ("qg", {"slot": "drag"}, "slot is 'tendency' or 'viscosity', not 'drag'"),
                                    ("qg", {"viscosity_pattern": -1.0}, "must not be negative"),
                                    ("qg", {"viscosity_pattern": 1.0, "pattern_wavenumber": 8}, "pattern_wavenumber must be")]:
        with pytest.raises(ConfigError, match=sentence):
            open_solver(name, **options)
    for build in (lambda: MLP((3, 1), output="abs"), lambda: Unknowns((1,), output="abs"), lambda: Unknowns((0,))):
        with pytest.raises(ConfigError):
            build()


BETA = """
[solver]
name = "lorenz63"
dt = 0.01
beta = 0.0
slot = "beta"
[network]
name = "Unknowns"
shape = [1]
output = "softplus"
[correction]
dtype = "float64"
input_mean = [0.0]
input_scale = [1.0]
output_scale = [1.0]
[reference]
solver = { beta = 2.6666666666666665 }
initial = [8.0, 0.0, 30.0]
perturbation = 1.0
spin_up = 1.0
snapshots = 300
training_runs = 1
test_runs = 1
[training]
gradient = "discrete"
window = 5
batch = 32
epochs = 4
steps_per_epoch = 50
rate = 0.1
rate_end = 1e-3
[score]
leads = [5]
starts = 2
long_steps = 50
closures = ["none", "online"]
"""


@pytest.fixture(scope="module")
def beta(tmp_path_factory):
    """A run that finds beta."""
    folder = tmp_path_factory.mktemp("beta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        Trainer(parse_experiment(BETA, "test"), folder / "run").fit()
    return folder / "run"


def test_beta_is_found_again(beta, open_solver):
    solver = open_solver("lorenz63", slot="beta")
    correction = load_correction(beta / "best.pt", solver.spec)
    with torch.no_grad():
        found = correction(torch.ones(2, 3, dtype=torch.float64))
    assert found.shape == (2, 1)
    assert float(found[0]) == pytest.approx(8 / 3, rel=1e-4)


def test_a_coefficient_is_no_tendency(beta, open_solver):
    """A checkpoint goes into the slot that it was trained for; there is no offline label; a scale cannot be fitted."""
    with pytest.raises(CheckpointError, match="to answer the coefficient beta, and the slot of the solver takes a tendency"):
        load_correction(beta / "best.pt", open_solver("lorenz63").spec)
    solver = open_solver("lorenz63", slot="beta")
    for change, sentence in [("offline.steps=10", "offline.steps = 0"),
                             ("correction={}", "give correction.input_mean, input_scale and output_scale")]:
        with pytest.raises(ConfigError, match=sentence):
            build_correction(parse_experiment(BETA, "test", [change]), solver.spec)
    experiment = parse_experiment(BETA, "test")
    with pytest.raises(ConfigError, match="no label for the coefficient beta"):
        Offline(experiment.offline, experiment.training, solver, None, None)


def test_strain_as_a_feature(open_solver, random_states):
    """Smagorinsky's viscosity is a number times it, also to its derivative; where nothing moves the derivative is 0, not NaN."""
    solver = open_solver("qg", n=16, slot="viscosity", forcing_wavenumber=3)
    correction = Correction(PeriodicCNN((1, 1), 1).double(), solver.spec, features=("strain",))
    u = torch.from_numpy(solver.project(random_states(solver))).requires_grad_()
    closure = Smagorinsky(solver.spec, 0.3)
    mine, theirs = correction.inputs(u).reshape(u.shape) * closure.mixing, closure(u)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad(value[:, 7].sum(), u) for value in (mine, theirs)), strict=True):
        np.testing.assert_allclose(solver.project(one.numpy()), solver.project(other.numpy()), rtol=0, atol=1e-12)
    still = torch.zeros(1, 256, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(correction(still).sum(), still)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("gradient", ["static", "discrete"])
def test_a_viscosity_that_depends_on_the_strain(gradient, open_solver, random_states):
    """The law nu = c |S| of a truth is found again online, by a network of one weight that knows the strain alone."""
    solver = open_solver("qg", n=16, dt=0.01, slot="viscosity", forcing_wavenumber=3)
    truth = Smagorinsky(solver.spec, 0.5)
    u0 = solver.advance(random_states(solver, 8), 20, correction=truth).states[-1]
    target = torch.from_numpy(solver.advance(u0, 5, correction=truth).states)
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 1, 1, bias=False).double()
    correction = Correction(network, solver.spec, features=("strain",), output_scale=3e-2)
    with torch.no_grad():
        network.weight.fill_(0.1)
    optimiser = torch.optim.Adam(network.parameters(), betas=(0.5, 0.9))
    for step in range(60):
        optimiser.param_groups[0]["lr"] = 0.2 * 0.93**step
        optimiser.zero_grad()
        (trimtab.rollout(solver, correction, u0, 5, gradient=gradient) - target).square().mean().backward()
        optimiser.step()
    assert 3e-2 * network.weight.item() == pytest.approx(truth.mixing, rel=1e-2)
