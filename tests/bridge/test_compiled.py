# SPDX-License-Identifier: MIT
"""The compiled slot: the numbers of the module itself, parameters seen as they change, failures as sentences, no growth."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import re
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import trimtab
from trimtab.bridge.aot_compile import NotCompiledError
from trimtab.bridge.aot_function import TOLERANCE, Compiled, library
from trimtab.bridge.slot_callback import Callback
from trimtab.bridge.slot_function import slot_function
from trimtab.core.errors import CorrectionError

pytestmark = [pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++"),
              pytest.mark.usefixtures("compiled_cache")]
DTYPES = (torch.float32, torch.float64)


def mlp(spec, dtype=torch.float32, seed=0, **options):
    torch.manual_seed(seed)
    return trimtab.Correction(trimtab.networks.MLP((3, 32, 3)).to(dtype), spec, compiled=True, **options).eval()


def cnn(spec, dtype=torch.float32):
    torch.manual_seed(0)
    network = trimtab.networks.PeriodicCNN((3, 4, 1), kernel=3).to(dtype)
    return trimtab.Correction(network, spec, features=("q", "psi", "v"), input_scale=(7.0, 1.0, 2.0), compiled=True).eval()


class Looks(nn.Module):
    """Reads a table at the place that the state says: a place outside fails inside the compiled code."""

    dtype, compiled = torch.float64, True

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(8, dtype=torch.float64))

    def forward(self, u):
        return u * 0.0 + self.table[u[:, :1].long()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_mlp_gives_the_same_numbers(dtype, open_solver, random_states):
    solver = open_solver("lorenz63")
    correction = mlp(solver.spec, dtype, input_mean=(1.0, 2.0, 3.0), input_scale=(8.0, 9.0, 7.0), output_scale=(2.0, 3.0, 4.0))
    compiled = Compiled(correction, 3)
    for members in (1, 2, 5, 64):  # one compilation, any number of members
        states = torch.from_numpy(random_states(solver, members)).to(dtype)
        assert compiled.compare(states) <= TOLERANCE[dtype]
    hybrid = solver.advance(random_states(solver), 20, correction=correction).states
    assert isinstance(solver._filling, Compiled)
    correction.compiled = False
    eager = solver.advance(random_states(solver), 20, correction=correction).states
    assert isinstance(solver._filling, Callback)
    np.testing.assert_allclose(hybrid, eager, rtol=1e-6 if dtype is torch.float32 else 1e-12)
    assert np.abs(hybrid - solver.advance(random_states(solver), 20).states).max() > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cnn_with_spectral_features_gives_the_same_bits(dtype, open_solver, random_states):
    """The inverse FFT goes through the dispatcher's C function: no difference at all."""
    solver = open_solver("qg")
    correction = cnn(solver.spec, dtype)
    hybrid = solver.advance(random_states(solver), 3, correction=correction).states
    assert isinstance(solver._filling, Compiled)
    correction.compiled = False
    eager = solver.advance(random_states(solver), 3, correction=correction).states
    np.testing.assert_allclose(hybrid, eager, rtol=0, atol=1e-7 if dtype is torch.float32 else 1e-14)


def test_steps_of_the_optimiser_and_a_new_normalisation_are_seen(open_solver, random_states, compiled_cache):
    """Values at compile time are uniform (0 and 1), which tempts a compiler to make numbers of them."""
    solver = open_solver("lorenz63")
    correction = mlp(solver.spec)
    u0 = random_states(solver)
    before = solver.advance(u0, 3, correction=correction).states
    filling, count = solver._filling, len(list(compiled_cache.glob("compiled/*.so")))
    correction.fit_normalisation(u0 * np.array([1.0, 3.0, 5.0]), u0)
    optimiser = torch.optim.Adam(correction.parameters(), 0.1)
    for _ in range(2):
        loss = trimtab.rollout(solver, correction, u0, 2).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = solver.advance(u0, 3, correction=correction).states
    assert solver._filling is filling and len(list(compiled_cache.glob("compiled/*.so"))) == count
    assert np.abs(after - before).max() > 1e-3
    assert filling.compare(torch.from_numpy(u0)) <= TOLERANCE[torch.float32]
    for one in correction.parameters():
        one.data = one.data * 0.5  # not in place: other memory
    moved = solver.advance(u0, 3, correction=correction).states
    assert solver._filling is filling and np.abs(moved - after).max() > 1e-3
    assert filling.compare(torch.from_numpy(u0)) <= TOLERANCE[torch.float32]


def test_gradients_are_those_of_the_module(open_solver, random_states):
    """The sweep differentiates the module; only the recorded states carry the compiled rounding."""
    solver = open_solver("lorenz63")
    correction = mlp(solver.spec, torch.float64)
    found = []
    for compiled in (False, True):
        correction.compiled = compiled
        correction.zero_grad()
        trimtab.rollout(solver, correction, random_states(solver), 4).square().mean().backward()
        found.append(torch.cat([one.grad.flatten() for one in correction.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-13)
    assert found[0].abs().max() > 1e-6


def test_another_module_of_the_same_structure_is_not_compiled_again(open_solver):
    spec = open_solver("lorenz63").spec
    modules = mlp(spec), mlp(spec, seed=1)
    first, second = (Compiled(one, 3) for one in modules)
    assert first.path == second.path
    states = torch.ones(2, 3)
    assert not torch.equal(first(states), second(states))
    assert first.compare(states) <= 1e-5 >= second.compare(states)


def test_two_processes_compile_once(compiled_cache, open_solver):
    """As ranks of one run do: one waits for the other, and both have the same file."""
    compiled = Compiled(mlp(open_solver("lorenz63").spec, torch.float64), 3)
    compiled.path.unlink()
    code = ("import os, torch, trimtab; from trimtab.bridge.aot_function import Compiled\n"
            "solver = trimtab.open_solver('lorenz63', dt=0.01)\n"
            "network = trimtab.networks.MLP((3, 32, 3)).double()\n"
            "print(os.stat(Compiled(trimtab.Correction(network, solver.spec), 3).path).st_mtime_ns)")
    ranks = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    times = [rank.communicate(timeout=300)[0].strip() for rank in ranks]
    assert times == [str(compiled.path.stat().st_mtime_ns)] * 2


def test_failures_inside_are_sentences(open_solver):
    solver = open_solver("lorenz63")
    network = Looks()
    solver.advance(np.ones((1, 3)), 1, correction=network)
    assert isinstance(solver._filling, Compiled)
    with pytest.raises(CorrectionError, match=r"^In the solver's slot, the compiled correction failed: .*out of bounds.*\.$"):
        solver.advance(np.full((1, 3), 99.0), 1, correction=network)
    solver.advance(np.ones((1, 3)), 1, correction=network)  # and it works again


def test_wrong_sizes_are_refused(open_solver):
    compiled = Compiled(mlp(open_solver("lorenz63").spec), 3)
    with pytest.raises(NotCompiledError, match="takes states of 3 numbers and was given 2 states of 5"):
        compiled(torch.zeros(2, 5))
    with pytest.raises(NotCompiledError, match="was given 0 states"):
        compiled(torch.zeros(0, 3))
    with pytest.raises(NotCompiledError, match="returned 3 numbers of type 6 for 1 states; it must return 4 a state"):
        Compiled(mlp(open_solver("lorenz63").spec), 3, outputs=4)(torch.zeros(1, 3))


def test_a_file_that_is_no_library_is_refused(tmp_path):
    text = tmp_path / "text.so"
    text.write_text("no library")
    ours = trimtab.bridge.aot_function.installed("libtrimtab_correction")
    for path, version, sentence in ((text, torch.__version__, "cannot be loaded"),
                                    (ours, torch.__version__, "no compiled correction"),
                                    (ours, "1.13.0", "was compiled with torch 1.13.0 and finds torch 2.")):
        said = ctypes.create_string_buffer(1024)
        assert not library().trimtab_compiled_open(str(path).encode(), b"", version.encode(), 3, 3, 4, said, 1024)
        assert sentence in said.value.decode()


@pytest.mark.parametrize(("change", "reason"), [
    (lambda p: p.setenv("CXX", "no-such-compiler"), "there is no C\\+\\+ compiler no-such-compiler: install g\\+\\+"),
    (lambda p: p.setenv("TRIMTAB_CACHE", "/proc/nowhere"), "cannot be written .*set TRIMTAB_CACHE"),
])
def test_without_a_compiler_it_runs_as_it_is(change, reason, monkeypatch, open_solver, caplog):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3)).double()
    network.compiled = True
    solver = open_solver("lorenz63")
    change(monkeypatch)
    with caplog.at_level(logging.WARNING, "trimtab"):
        for _ in range(3):
            solver.advance(np.ones((1, 3)), 2, correction=network)
    assert isinstance(solver._filling, Callback)
    assert len(caplog.records) == 1
    assert re.search("The correction is not compiled, it runs as it is: .*" + reason, caplog.text)


def test_what_torch_cannot_follow_runs_as_it_is(open_solver, caplog):
    class Python(nn.Module):
        dtype, compiled = torch.float64, True

        def forward(self, u):
            return u * 2.0 if float(u.sum()) > 0 else u

    solver = open_solver("lorenz63")
    with caplog.at_level(logging.WARNING, "trimtab"):
        states = solver.advance(np.ones((1, 3)), 2, correction=Python()).states
    assert np.isfinite(states).all() and isinstance(solver._filling, Callback)
    assert "torch.export does not follow it" in caplog.text


def test_tensors_that_nobody_can_hand_over_are_not_compiled(open_solver, caplog):
    """A parameter hidden from its module would be a number in the code, and an optimiser's step would not be seen."""
    class Hides(nn.Module):
        dtype, compiled = torch.float64, True

        def __init__(self):
            super().__init__()
            self.hidden = (nn.Linear(3, 3).double(),)

        def forward(self, u):
            return self.hidden[0](u)

    solver = open_solver("lorenz63")
    with caplog.at_level(logging.WARNING, "trimtab"):
        solver.advance(np.ones((1, 3)), 2, correction=Hides())
    assert isinstance(solver._filling, Callback) and "neither a parameter nor a buffer" in caplog.text


def test_memory_does_not_grow(open_solver):
    """100,000 calls through Fortran, and views of two sizes in turn."""
    solver = open_solver("lorenz63", dt=1e-6, integrator="euler")
    correction = mlp(solver.spec)

    def resident():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for members in (1, 2):
        solver.advance(np.ones((members, 3)), 1, stride=1000, correction=correction)
    before = resident()
    solver.advance(np.ones((1, 3)), 1, stride=90_000, correction=correction)
    for _ in range(500):
        solver.advance(np.ones((1, 3)), 1, stride=10, correction=correction)
        solver.advance(np.ones((2, 3)), 1, stride=10, correction=correction)
    assert resident() - before < 4 * 2**20  # 40 bytes a call


def test_a_compiled_form_dies_with_its_module(open_solver):
    solver = open_solver("lorenz63")
    correction = mlp(solver.spec)
    known = weakref.ref(slot_function(correction, 3))
    assert isinstance(known(), Compiled)
    del correction
    gc.collect()
    assert known() is None


def test_a_named_slot_may_return_another_number_of_values():
    """As in a coupled code: what fills the slot is called as the code calls it."""
    network = nn.Linear(3, 2).double()
    filling = slot_function(network, 3, outputs=2)
    assert isinstance(filling, Callback) and slot_function(network, 3, filling, outputs=2) is filling
    states = torch.arange(6.0, dtype=torch.float64).view(2, 3)
    address = filling._call(states.data_ptr(), 3, 2, 0.0)
    found = torch.frombuffer((ctypes.c_double * 4).from_address(address), dtype=torch.float64).view(2, 2)
    assert torch.equal(found, network(states))
    assert slot_function(network, 3, filling) is not filling


def test_a_training_runs_compiled(tmp_path, monkeypatch):
    """The trainer's own hooks keep nobody from compiling, and what is learnt in the compiled slot is what the sweep learns."""
    monkeypatch.chdir(tmp_path)
    changes = ["correction.compiled=true", "training.epochs=1", "training.steps_per_epoch=5", "reference.snapshots=200",
               "reference.validation_windows=20", "reference.spin_up=0.1"]
    losses = []
    for number, compiled in enumerate(("true", "false")):
        experiment = trimtab.load_experiment("lorenz63", [*changes, f"correction.compiled={compiled}"])
        trainer = trimtab.Trainer(experiment, tmp_path / str(number))
        losses.append(trainer.fit().best_validation)
        assert isinstance(trainer.solver._filling, Compiled) == (compiled == "true")
        trainer.solver.close()
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
