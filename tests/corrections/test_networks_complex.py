# SPDX-License-Identifier: MIT
"""Not every number is real: a network with complex parameters trains as its twin that writes them as pairs of real ones."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import torch
from torch import nn

import trimtab
from helpers import TESTS
from helpers.jobs import mpirun
from trimtab.config.experiment import parse_experiment
from trimtab.corrections.factory import build_correction
from trimtab.corrections.networks import network_dtype
from trimtab.corrections.real_numbers import content, in_precision, pairs, set_from_vector, shaped, to_vector
from trimtab.gradient.gradcheck.check import gradcheck
from trimtab.isolation.shared_correction import Mirror, attach
from trimtab.training.checkpoint import load_correction, read_checkpoint
from trimtab.training.kalman_inversion import prior, set_parameters
from trimtab.training.run_folder import load_run
from trimtab.training.trainer import Trainer

# One law, written twice: with complex weights, and with their real and imaginary parts in a real tensor.
MODULE = """
import torch
from torch import nn

WEIGHTS = torch.tensor([[0.3, 0.2], [-0.1, 0.4]])

class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.view_as_complex(WEIGHTS.clone()))
        self.shift = nn.Parameter(torch.zeros(3))

    def spectral(self):
        return self.weights

    def forward(self, u):
        return torch.fft.irfft(torch.fft.rfft(u) * self.spectral(), n=3) + self.shift

class Real(Complex):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(WEIGHTS.clone())

    def spectral(self):
        return torch.view_as_complex(self.weights)
"""
TEXT = """
name = "complex"
[solver]
name = "lorenz63"
dt = 0.01
beta = 0.0
[network]
name = "twins:Complex"
[correction]
dtype = "float64"
[reference]
solver = { beta = 2.6666666666666665 }
initial = [8.0, 0.0, 30.0]
perturbation = 1.0
spin_up = 0.5
snapshots = 60
training_runs = 2
validation_runs = 1
test_runs = 1
[offline]
steps = 8
batch = 8
microbatch = 2
rate = 0.02
[training]
window = 3
batch = 8
microbatch = 8
epochs = 1
steps_per_epoch = 4
rate = 0.01
clip = 1e-3
validate_windows = 10
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the twins' module, on the path of all ranks, and a cache to share."""
    folder = tmp_path_factory.mktemp("complex")
    (folder / "twins.py").write_text(MODULE)
    (folder / "complex.toml").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        patch.syspath_prepend(str(folder))
        yield folder


def trained(place, folder, *changes):
    Trainer(parse_experiment(TEXT, "test", changes), place / folder).fit()
    return read_checkpoint(place / folder / "last.pt")


def weights(content):
    return {name: pairs(value).double() for name, value in content["correction"].items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_complex_parameters_keep_their_precision_and_their_imaginary_parts(dtype, place, open_solver):
    spec = open_solver("lorenz63").spec
    correction = build_correction(parse_experiment(TEXT, "test", (f"correction.dtype={dtype}",)), spec)
    wanted = {"float32": torch.complex64, "float64": torch.complex128}[dtype]
    assert correction.network.weights.dtype == wanted and correction.dtype == getattr(torch, dtype)
    assert correction.network.weights.imag.tolist() == pytest.approx([0.2, 0.4])
    for convert, real in ((correction.double, torch.float64), (correction.float, torch.float32),
                          (lambda: correction.to(torch.float64), torch.float64), (lambda: correction.to("cpu"), torch.float64)):
        convert()
        assert correction.network.weights.dtype == real.to_complex() and correction.dtype == real
        assert correction.network.weights.imag.abs().min() > 0.1


def test_the_precision_of_a_network_of_complex_numbers_alone():
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.Parameter(torch.randn(2, dtype=torch.complex64))

    assert network_dtype(Alone()) == torch.float32
    assert network_dtype(in_precision(Alone(), torch.float64)) == torch.float64


@pytest.mark.parametrize("microbatch", [8, 2])
def test_a_training_is_that_of_the_real_twin(microbatch, place):
    """Offline in pieces of two and of eight, online clipped: gradients, sums, clipping and optimiser see every imaginary part."""
    cut = (f"training.microbatch={microbatch}", f"offline.microbatch={microbatch}")
    found, twin = (trained(place, f"{name}-{microbatch}", f"network.name=\"twins:{name}\"", "training.optimiser=\"sgd\"", *cut)
                   for name in ("Complex", "Real"))
    for name, value in weights(found).items():
        torch.testing.assert_close(value, weights(twin)[name], rtol=1e-9, atol=1e-11)
    moved = found["correction"]["network.weights"].imag - torch.tensor([0.2, 0.4])
    assert moved.abs().max() > 1e-5  # rfft's first wave alone has an imaginary part that counts
    norms = [[row[7] for row in one["history"]] for one in (found, twin)]
    np.testing.assert_allclose(np.array(norms[0][1:], float), np.array(norms[1][1:], float), rtol=1e-9)


def test_two_ranks_have_the_bits_of_one(place):
    whole = trained(place, "whole", "training.microbatch=2")
    script = TESTS / "parallel" / "train.py"
    code, output = mpirun(2, script, "whole", 0, 0, place / "ranks", place / "complex.toml", "training.microbatch=2")
    assert code == 0, output
    for name, value in read_checkpoint(place / "ranks" / "last.pt")["correction"].items():
        assert torch.equal(value, whole["correction"][name]), name
    spec = trimtab.open_solver("lorenz63", dt=0.01, beta=0.0)
    correction = load_correction(load_run(place / "ranks").checkpoints["best"], spec.spec)
    assert correction.network.weights.dtype == torch.complex128
    spec.close()


@pytest.mark.parametrize("gradient", ["static", "tangent", "discrete", "exact"])
def test_gradients_are_those_of_the_real_twin(gradient, place, open_solver, random_states):
    solver, found = open_solver("lorenz63"), []
    for name in ("Complex", "Real"):
        experiment = parse_experiment(TEXT, "test", (f"network.name=\"twins:{name}\"",))
        correction = build_correction(experiment, solver.spec).eval()
        trimtab.rollout(solver, correction, random_states(solver), 3, gradient=gradient).square().mean().backward()
        found.append(to_vector(one.grad for one in correction.parameters()))
    assert found[0].abs().max() > 1e-6
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-13)


def test_gradcheck_and_inversion_move_both_parts(place, open_solver, random_states):
    solver = open_solver("lorenz63")
    start = random_states(solver)
    target = solver.advance(start, 3).states[1:]
    tables, ensembles = [], []
    for name in ("Complex", "Real"):
        correction = build_correction(parse_experiment(TEXT, "test", (f"network.name=\"twins:{name}\"",)), solver.spec).eval()
        tables.append(gradcheck(solver, correction, start, target, [3], gradients=("static",), directions=7))
        ensembles.append(prior(correction, 4, 0.1))
        set_parameters(correction, ensembles[-1][0])
        np.testing.assert_allclose(to_vector(correction.parameters()).numpy(), ensembles[-1][0])
    assert ensembles[0].shape == (4, 7)
    np.testing.assert_array_equal(*ensembles)
    for one, other in zip(*(table.rows for table in tables), strict=True):
        assert one.cosine == pytest.approx(other.cosine, abs=1e-6)
    discrete = tables[0].rows[-1]
    assert discrete.gradient == "exact" and discrete.cosine == pytest.approx(1, abs=1e-6)


def test_complex_numbers_travel_to_the_solvers_process_and_into_digests():
    module = nn.Linear(2, 2, dtype=torch.complex64)
    mirror = Mirror()
    mirror.update(module)
    there = attach(mirror.structure, os.dup(mirror.file), mirror.size)
    assert torch.equal(there.weight, module.weight)
    mirror.close()
    other = copy.deepcopy(module.weight.detach())
    other.imag.add_(1e-3)
    assert content(other) != content(module.weight)
    assert content(other.conj()) == content(other.conj().clone())


def test_rows_and_back():
    tensors = [torch.randn(2, 3), torch.randn(3, dtype=torch.complex64), torch.randn((), dtype=torch.complex128)]
    row = to_vector(tensors)
    assert row.shape == (6 + 6 + 2,)
    others = [torch.zeros_like(one) for one in tensors]
    set_from_vector(row, others)
    assert all(torch.equal(*both) for both in zip(tensors, others, strict=True))
    conjugate = tensors[1].conj()
    assert torch.equal(shaped(pairs(conjugate), conjugate), conjugate)
