# SPDX-License-Identifier: MIT
"""The observation operator: the same noise every time, nothing of what is hidden, and starts no better than they can be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trimtab.config.experiment import parse_experiment
from trimtab.config.sections import ObservationConfig
from trimtab.core.errors import ConfigError
from trimtab.core.loss import mean_square
from trimtab.core.spec import Field, SolverSpec
from trimtab.corrections.factory import build_correction
from trimtab.data.observations import Estimate, Observation, observation_of
from trimtab.data.reference import make_reference
from trimtab.data.windows import Targets
from trimtab.training.offline import Labels, Offline, fit_normalisation
from trimtab.training.online import Online

TEXT = """
[solver]
name = "lorenz63"
dt = 0.01
beta = 0.0
[network]
name = "MLP"
sizes = [3, 4, 3]
[correction]
dtype = "float64"
[reference]
solver = { beta = 2.6666666666666665 }
initial = [8.0, 0.0, 30.0]
perturbation = 1.0
interval = 0.05
spin_up = 1.0
snapshots = 120
training_runs = 2
test_runs = 1
[observation]
noise = [0.5]
components = [0, 1]
[training]
gradient = "tangent"
window = 10
"""
PLANE = SolverSpec("plane", 0.1, 1, (Field("q", "vorticity", "1", ("y", "x"), (8, 8)),))
TWO = SolverSpec("two", 0.1, 1, (Field("a", "a", "1", ("x",), (4,)), Field("b", "b", "1", ("x",), (6,))))


def seen(spec, **keys):
    return observation_of(ObservationConfig(**keys), spec, lambda: np.zeros((2, spec.size))).seen


@pytest.fixture
def opened(tmp_path, monkeypatch, open_solver):
    """Solver, targets and experiment from changes of TEXT."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    made = []

    def build(*changes, in_memory=2**30):
        experiment = parse_experiment(TEXT, "test", changes)
        solver = open_solver(experiment.solver.name, **experiment.solver.options)
        path = make_reference(experiment, solver.spec)
        made.append(Targets(path, solver.spec, experiment.reference, 0.01, experiment.observation, in_memory=in_memory))
        return solver, made[-1], experiment

    yield build
    for one in made:
        one.close()


def test_which_points_are_seen():
    grid = seen(PLANE, every=2).reshape(8, 8)
    assert grid[::2, ::2].all() and grid.sum() == 16
    assert seen(PLANE, region="left").reshape(8, 8)[:, :4].all() and seen(PLANE, region="left").sum() == 32
    assert np.array_equal(seen(PLANE, region="right"), ~seen(PLANE, region="left"))
    assert seen(PLANE, region="left", every=2).sum() == 8
    assert np.flatnonzero(seen(TWO, fields=("b",))).tolist() == [4, 5, 6, 7, 8, 9]
    assert np.flatnonzero(seen(TWO, fields=("b",), every=3)).tolist() == [4, 7]
    assert np.flatnonzero(seen(TWO, components=(1, 7), fields=("b",))).tolist() == [7]
    some = [seen(PLANE, fraction=0.25, seed=one) for one in (0, 0, 1)]
    assert some[0].sum() == 16 and np.array_equal(some[0], some[1]) and not np.array_equal(some[0], some[2])


def test_fields_of_one_number_are_seen():
    spec = SolverSpec("numbers", 0.1, 1, (Field("a", "", "1", (), ()), Field("b", "", "1", ("x",), (4,))))
    assert [np.flatnonzero(seen(spec, region=region)).tolist() for region in ("all", "left", "right")] == [
        [0, 1, 2, 3, 4], [0, 1, 2], [0, 3, 4]]


def test_no_section_changes_nothing(opened):
    _, targets, _ = opened("observation.noise=[]", "observation.components=[]")
    windows = targets.windows("training", 10)
    assert targets.observation.whole
    assert np.array_equal(windows.observe([0, 7], (5, 10)), windows.batch([0, 7], (5, 10)))
    assert np.array_equal(windows.start([3]), windows.batch([3], (0,))[0])


@pytest.mark.parametrize("noise, unit, expected", [
    ((0.5,), "field", [0.5] * 10), ((0.1, 0.2), "field", [0.1] * 4 + [0.2] * 6), ((0.1, 0.2), "climate", [0.3] * 4 + [1.0] * 6)])
def test_deviation_of_the_noise(noise, unit, expected):
    climate = np.concatenate([3.0 * np.ones((2, 4)), 5.0 * np.ones((2, 6))], axis=1) * np.array([[1.0], [-1.0]])
    found = observation_of(ObservationConfig(noise=noise, noise_unit=unit), TWO, lambda: climate)
    np.testing.assert_allclose(found.deviation, expected, rtol=1e-12)
    draws = np.stack([found.noise(0, snapshot) for snapshot in range(4000)])
    np.testing.assert_allclose(draws.std(0), expected, rtol=0.05)
    assert np.abs(draws.mean(0) / found.deviation).max() < 0.07
    assert np.abs(np.corrcoef(draws.T) - np.eye(10)).max() < 0.08


def test_noise_belongs_to_a_snapshot_and_to_nothing_else(opened):
    """Two windows that share a snapshot see the same value, from memory and from the file, whatever the batch."""
    _, targets, _ = opened()
    _, lazy, _ = opened(in_memory=0)
    windows, other = targets.windows("training", 10), lazy.windows("training", 10)
    batch = windows.observe([0, 1, 150], (5, 10))
    assert np.array_equal(batch[1, 0], batch[0, 1], equal_nan=True)
    assert np.array_equal(windows.observe([150], (10,))[0, 0], batch[1, 2], equal_nan=True)
    assert np.array_equal(other.observe([0, 1, 150], (5, 10)), batch, equal_nan=True)
    error = batch - windows.batch([0, 1, 150], (5, 10))
    assert np.isnan(error[..., 2]).all() and (error[..., :2] != 0).all() and np.abs(error[..., :2]).max() < 3.0
    assert not np.array_equal(Observation(3, None, np.ones(3), 1).noise(0, 0), Observation(3, None, np.ones(3), 2).noise(0, 0))


def test_the_loss_sees_nothing_else():
    states = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    observed = torch.randn(2, 2, 4, dtype=torch.float64)
    observed[..., [0, 3]] = torch.nan
    loss = mean_square(states, observed, components=np.array([1, 2]))
    assert loss.item() == pytest.approx((states[1:, :, 1:3] - observed[..., 1:3]).square().mean().item(), rel=1e-15)
    loss.backward()
    assert (states.grad[1:, :, 1:3] != 0).all() and (states.grad[..., [0, 3]] == 0).all() and (states.grad[0] == 0).all()


def test_labels_are_finite_differences_of_what_is_there(opened):
    solver, targets, experiment = opened()
    windows = targets.windows("training", 5)
    states, labels = Labels(solver, windows, 1, keep=True).get(np.array([0, 9]))
    start = windows.batch([0, 9], (0,))[0]
    assert np.array_equal(states, start)  # start = "truth"
    end = solver.advance(start, 1, stride=5).states[1]
    np.testing.assert_allclose(labels[:, :2], (windows.observe([0, 9], (5,))[0] - end)[:, :2] / 0.05, rtol=1e-12)
    assert np.isnan(labels[:, 2]).all()
    torch.manual_seed(0)
    correction = build_correction(experiment, solver.spec)
    fit_normalisation(correction, solver, targets, experiment.training)
    scale = correction.output_scale
    assert torch.isfinite(scale).all() and scale[2] == scale[:2].max()
    loss, dropped = Offline(experiment.offline, experiment.training, solver, correction, targets).loss(np.array([0, 9]), 0)
    loss.backward()
    last = correction.network[-1]
    assert torch.isfinite(loss) and not dropped
    assert (last.bias.grad[:2] != 0).all() and last.bias.grad[2] == 0 and torch.isfinite(last.weight.grad).all()


@pytest.mark.parametrize("gradient, reaches", [("static", False), ("tangent", True)])
def test_only_a_jacobian_reaches_what_is_not_observed(gradient, reaches, opened):
    """Static-EGA hands dJ/du on as it is: the network's output for an unobserved component gets no gradient at all."""
    solver, targets, experiment = opened(f'training.gradient="{gradient}"')
    torch.manual_seed(0)
    correction = build_correction(experiment, solver.spec)
    phase = Online(experiment.training, solver, correction, targets)
    loss, _ = phase.loss(np.array([0, 9, 130]), 0)
    loss.backward()
    last = correction.network[-1]
    assert (last.bias.grad[:2] != 0).all()
    assert bool(last.bias.grad[2] != 0) == reaches
    value, lost = phase.judge(phase.held()[0])
    assert np.isfinite(value) and not lost


def test_estimate_is_the_conditional_mean():
    """Of a Gaussian climate: no linear estimate errs less, and its error is the one that the covariances promise."""
    generator = np.random.default_rng(0)
    spec = SolverSpec("three", 0.1, 1, (Field("u", "u", "1", ("c",), (3,)),))
    mixing = np.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.5, -1.0, 0.7]])
    states = generator.standard_normal((20000, 3)) @ mixing.T + np.array([1.0, -2.0, 5.0])
    observation = Observation(3, np.array([0, 1]), np.full(3, 0.5), 0)
    observed = observation.hide(states + 0.5 * generator.standard_normal(states.shape))
    estimate = Estimate(observation, spec, states)(observed)
    c = mixing @ mixing.T
    promised = c - c[:, :2] @ np.linalg.solve(c[:2, :2] + 0.25 * np.eye(2), c[:2])
    np.testing.assert_allclose(np.square(estimate - states).mean(0), np.diag(promised), rtol=0.03)


def test_estimate_on_a_plane_fills_gaps():
    """A smooth homogeneous field, seen at every second point with noise: far closer than the noise, and than the mean."""
    generator = np.random.default_rng(1)
    k = np.hypot(np.fft.fftfreq(8, 1 / 8)[:, None], np.fft.fftfreq(8, 1 / 8))
    fields = np.fft.ifft2(np.fft.fft2(generator.standard_normal((400, 8, 8))) * np.exp(-k**2 / 2)).real
    fields = (fields / fields.std()).reshape(400, 64)
    config = ObservationConfig(every=2, noise=(0.2,))
    observation = observation_of(config, PLANE, lambda: fields)
    observed = observation.hide(fields + 0.2 * generator.standard_normal(fields.shape))
    error = Estimate(observation, PLANE, fields)(observed) - fields
    assert np.sqrt(np.square(error).mean()) < 0.25


def test_observed_starts_know_only_what_is_observed(opened):
    _, targets, _ = opened("observation.start=\"observed\"")
    windows = targets.windows("training", 10)
    start, truth = windows.start(np.arange(100)), windows.batch(np.arange(100), (0,))[0]
    error = np.sqrt(np.square(start - truth).mean(0))
    assert 0.2 < error[0] < 0.6 and 0.2 < error[1] < 0.6   # about the noise
    assert 0.5 < error[2] / truth[:, 2].std() < 1.1        # about the climate
    changed = windows.observe(np.arange(100), (0,))[0]
    changed[:, 2] = 1e9
    assert np.array_equal(targets._estimate(changed), start)


@pytest.mark.parametrize("change, sentence", [
    ("noise=[1.0, 2.0]", "observation.noise holds 2 numbers; give one, or one for each of the 1 fields"),
    ("noise=[-1.0]", "standard deviations"), ("noise_unit=\"metre\"", "must be one of field, climate"),
    ("fields=[\"v\"]", "holds 'v'; the solver lorenz63 has u"), ("components=[3]", "components 0 to 2"),
    ("fraction=0.01", "not one component"), ("fraction=1.5", "a number up to 1"), ("region=\"top\"", "all, left, right"),
    ("start=\"guess\"", "must be one of truth, observed"), ("every=0", "at least 1"), ("mask=1", "Unknown key 'mask'")])
def test_refusals(change, sentence, opened):
    with pytest.raises(ConfigError, match=sentence):
        opened(f"observation.{change}")


def test_estimates_that_cannot_be_made_are_refused():
    many = SolverSpec("many", 0.1, 1, (Field("q", "q", "1", ("y", "x"), (65, 65)),))
    with pytest.raises(ConfigError, match="up to 4096 components"):
        Estimate(Observation(many.size), many, np.zeros((2, many.size)))
    with pytest.raises(ConfigError, match="climate_states to 20 or more"):
        Estimate(Observation(TWO.size), TWO, np.zeros((2, TWO.size)))
