# SPDX-License-Identifier: MIT
"""A network is a function with a gradient, or is refused: random numbers, memory, the batch, no graph, no real numbers."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import trimtab
from helpers import TESTS
from helpers.jobs import mpirun
from trimtab.config.experiment import parse_experiment
from trimtab.core.errors import ConfigError, InputError
from trimtab.core.spec import Field, Slot, SolverSpec
from trimtab.corrections.factory import build_correction
from trimtab.corrections.repeatable import check_function, check_memory, fingerprint
from trimtab.evaluation.score_run import _stamp
from trimtab.gradient.gradcheck.check import gradcheck
from trimtab.training.run_folder import load_run
from trimtab.training.trainer import Trainer

MODULE = """
import torch
from torch import nn

class Normed(nn.Sequential):
    def __init__(self, layer="BatchNorm1d"):
        super().__init__(nn.Linear(3, 4), getattr(nn, layer)(4), nn.Tanh(), nn.Linear(4, 3))

class Kept(nn.Linear):
    '''Buffers of precisions that numpy does not know, and a state that is no tensor.'''
    def __init__(self, extra=None):
        super().__init__(3, 3)
        self.register_buffer("eight", torch.ones(2).to(torch.float8_e5m2))
        self.register_buffer("late", None)
        self.extra = {"seen": 3, "names": ["u"]} if extra is None else object()
    def _apply(self, change, recurse=True):
        super()._apply(change, recurse)
        self.late = torch.ones(3).to(torch.bfloat16)
        return self
    def get_extra_state(self):
        return self.extra
    def set_extra_state(self, state):
        self.extra = state

class Silent(nn.Linear):
    def __init__(self, training_too=True):
        super().__init__(3, 3)
        self.training_too = training_too
    def forward(self, u):
        with torch.no_grad():
            return super().forward(u)

class Idle(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
        self.idle = nn.Parameter(torch.ones(2))

class Noisy(nn.Linear):
    '''Draws in evaluation mode, too.'''
    def __init__(self):
        super().__init__(3, 3)
    def forward(self, u):
        return super().forward(u) * (1 + 0.1 * torch.randn(1, dtype=u.dtype))
"""
TEXT = """
name = "functions"
[solver]
name = "lorenz63"
dt = 0.01
beta = 0.0
[network]
name = "kinds:Normed"
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
steps = 4
batch = 8
microbatch = 2
[training]
window = 3
batch = 8
epochs = 1
steps_per_epoch = 2
validate_windows = 10
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the networks' module, on the path of all ranks, and a cache to share."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "kinds.py").write_text(MODULE)
    (folder / "functions.toml").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        patch.syspath_prepend(str(folder))
        yield folder


class Attention(nn.Module):
    """Dropout without a layer of that kind."""

    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
        self.enter, self.leave = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, u):
        x = self.enter(u)[:, None].repeat(1, 3, 1)
        return self.leave(self.inner(x, x, x)[0][:, 0])


class Always(nn.Linear):
    """Dropout that knows no mode; how much is a number that may change."""

    def __init__(self, share=0.5):
        super().__init__(3, 3)
        self.share = share

    def forward(self, u):
        return nn.functional.dropout(super().forward(u), self.share, training=True)


class Own(nn.Linear):
    """Draws from a generator that nobody seeds."""

    def __init__(self):
        super().__init__(3, 3)
        self.random = np.random.default_rng(0)

    def forward(self, u):
        return super().forward(u) * self.random.random()


class Counts(nn.Linear):
    """Remembers how often it was called: in a buffer, or in a plain number that no answer depends on."""

    def __init__(self, buffer=True):
        super().__init__(3, 3)
        self.calls = 0
        if buffer:
            self.register_buffer("number", torch.zeros(()))

    def forward(self, u):
        self.calls += 1
        if "number" in self._buffers:
            self.number += 1
        return super().forward(u)


class Remembers(nn.Linear):
    """Its answer depends on the one before."""

    def __init__(self):
        super().__init__(3, 3)
        self.before = 0.0

    def forward(self, u):
        answer = super().forward(u) + 0.1 * self.before
        self.before = float(answer.detach().mean())
        return answer


CHANGING = {
    "attention": (Attention, True, r"network.inner \(MultiheadAttention\) is in training mode and gives another answer"),
    "always": (Always, False, r"The layer network \(Always\) gives another answer"),
    "own": (Own, False, r"The layer network \(Own\) gives another answer"),
    "remembers": (Remembers, False, r"The layer network \(Remembers\) gives another answer"),
    "counts": (Counts, False, r"The layer network \(Counts\) changes its number at every call"),
    "spectral": (lambda: spectral_norm(nn.Linear(3, 3)), True, r"changes its _[uv] at every call"),
    "batch": (lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)), False,
              r"answers a state by the other states of the batch"),
}


@pytest.mark.parametrize("kind", CHANGING)
def test_what_is_no_function_has_no_gradient(kind, open_solver, random_states):
    build, training, sentence = CHANGING[kind]
    solver = open_solver("lorenz63")
    correction = trimtab.Correction(build(), solver.spec).train(training)
    before = {name: value.clone() for name, value in correction.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(ConfigError, match=sentence):
        trimtab.rollout(solver, correction, random_states(solver), 2)
    with pytest.raises(ConfigError, match=sentence):  # still
        trimtab.rollout(solver, correction, random_states(solver), 2)
    assert all(torch.equal(value, before[name]) for name, value in correction.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    target = np.zeros((2, 3, 3))
    with pytest.raises(ConfigError, match=sentence):
        gradcheck(solver, correction, random_states(solver), target, [2], gradients=("static",))
    with torch.no_grad():  # and runs where nobody asks for one
        trimtab.rollout(solver, correction, random_states(solver), 2)


def test_a_network_is_tried_again_when_it_changed_and_not_before(open_solver, random_states):
    solver = open_solver("lorenz63")
    correction, u0 = trimtab.Correction(Always(0.0), solver.spec), random_states(solver)
    calls = []
    correction.network.register_forward_hook(lambda *_: calls.append(1))

    def counted():
        calls.clear()
        trimtab.rollout(solver, correction, u0, 1)
        return len(calls)

    first, then = counted(), counted()
    assert first > then == counted() > 0
    with torch.no_grad():
        correction.network.weight.mul_(0.5)  # an optimiser's step is no reason
    assert counted() == then
    correction.network.share = 0.5
    with pytest.raises(ConfigError, match="another answer"):
        counted()
    correction.network.share = 0.0
    assert counted() == then or counted() == then
    correction.network = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    with pytest.raises(ConfigError, match=r"network\.1 "):
        counted()


def test_a_plain_counter_is_no_change(open_solver, random_states):
    solver = open_solver("lorenz63")
    correction = trimtab.Correction(Counts(buffer=False), solver.spec)
    trimtab.rollout(solver, correction, random_states(solver), 1)
    calls = correction.network.calls
    trimtab.rollout(solver, correction, random_states(solver), 1)
    assert correction.network.calls - calls == 4  # the stages of one step: it was not tried again


def test_named_slots_are_tried_on_what_they_see():
    slot = Slot("heat", (Field("t", "t", "K", ("x",), (4,)),), (Field("t", "t", "K", ("x",), (4,)),))
    spec = SolverSpec("code", 1.0, 1, slot.inputs, "s", {}, (slot,))
    correction = trimtab.SlotCorrection(nn.Sequential(nn.Conv1d(1, 1, 1), nn.Dropout(0.5)), spec)
    with pytest.raises(ConfigError, match=r"network.1 \(Dropout\) is in training mode"):
        check_function(correction, correction.examples(4))
    check_function(correction.eval(), correction.examples(4))
    assert torch.equal(correction.examples(4), correction.examples(4)) and correction.examples(4).shape == (4, 4)
    for network, sentence in ((lambda x: (x, x), "returned tuple"), (lambda x: x + 1j, "returned torch.complex128")):
        module = nn.Module()
        module.forward = network
        with pytest.raises(InputError, match=sentence):
            trimtab.SlotCorrection(module, spec)(torch.zeros(2, 4))


@pytest.mark.parametrize(("answer", "sentence"), [
    (lambda u: u + 1j, r"returned torch.complex64; it must return real numbers.*irfft"),
    (lambda u: (u, u), "returned a tuple; it must return a tensor"), (lambda u: u.long(), "returned torch.int64")])
def test_an_answer_that_is_no_tensor_of_real_numbers(answer, sentence, open_solver, random_states):
    class Odd(nn.Linear):
        def forward(self, u):
            return answer(super().forward(u))

    solver = open_solver("lorenz63")
    correction = trimtab.Correction(Odd(3, 3), solver.spec)
    for call in (solver.advance, lambda u0, steps, correction: trimtab.rollout(solver, correction, u0, steps)):
        with pytest.raises(InputError, match=sentence):
            call(random_states(solver), 2, correction=correction)


def test_memory_is_refused_where_ranks_share_a_batch(open_solver):
    spec, states = open_solver("lorenz63").spec, torch.randn(5, 3)
    for network, sentence in ((nn.BatchNorm1d(3), r"BatchNorm1d\) is in training mode and changes its running_mean.* 2 ranks"),
                              (Own(), "generator of its own.*each of 2 ranks"), (Remembers(), "remembers something"),
                              (Counts(), "changes its number")):
        with pytest.raises(ConfigError, match=sentence):
            check_memory(trimtab.Correction(network, spec), states, 2)
    for network in (Always(), Attention(), nn.LayerNorm(3)):  # what follows from the seeds is the same on every rank
        check_memory(trimtab.Correction(network, spec), states, 2)


def test_batch_statistics_on_two_ranks_are_refused_at_the_start(place):
    script = TESTS / "parallel" / "train.py"
    code, output = mpirun(2, script, "whole", 0, 0, place / "ranks", place / "functions.toml")
    assert code and "running_mean at every call, and each of 2 ranks would come to its own" in output, output
    assert "ranks round differently" not in output


def fit(place, folder, *changes):
    return Trainer(parse_experiment(TEXT, "test", changes), place / folder).fit()


def test_batch_statistics_on_one_rank_are_learnt_offline(place):
    assert fit(place, "one").status == "finished"


def test_a_network_without_a_graph_is_refused_before_anything_is_learnt(place, open_solver, random_states):
    for number, changes in enumerate((("offline.steps=0",), ())):
        with pytest.raises(ConfigError, match=r"no gradient by any of its parameters.*no_grad"):
            fit(place, f"silent-{number}", "network.name=\"kinds:Silent\"", *changes)
    solver = open_solver("lorenz63")
    silent = trimtab.Correction(nn.Linear(3, 3), solver.spec)
    silent.network.forward = torch.no_grad()(silent.network.forward)
    with pytest.raises(ConfigError, match="no gradient by any of its parameters"):
        trimtab.rollout(solver, silent, random_states(solver), 2)
    u0 = torch.from_numpy(random_states(solver)).requires_grad_()
    trimtab.rollout(solver, silent.requires_grad_(False), u0, 2).sum().backward()  # frozen, and for the state alone
    assert u0.grad.abs().max() > 0


def test_parameters_without_a_gradient_are_named(place, caplog):
    with caplog.at_level(logging.WARNING, "trimtab"):
        assert fit(place, "idle", "network.name=\"kinds:Idle\"").status == "finished"
    said = [one.getMessage() for one in caplog.records if "get no gradient" in one.getMessage()]
    assert [one.split(":")[0] for one in said] == ["offline", "online"] and all("network.idle;" in one for one in said)


def test_what_draws_in_evaluation_is_refused_before_the_offline_phase(place):
    with pytest.raises(ConfigError, match=r"\(Noisy\) gives another answer"):
        fit(place, "noisy", "network.name=\"kinds:Noisy\"")
    assert not (place / "noisy" / "offline.pt").exists()


def test_buffers_of_any_kind_and_states_that_are_no_tensors(place, open_solver):
    """To the end: trained, saved, read, scored by their bytes, compared between ranks."""
    assert fit(place, "kept", "network.name=\"kinds:Kept\"").status == "finished"
    run = load_run(place / "kept")
    assert len(_stamp(run)) == 16
    script = TESTS / "parallel" / "train.py"
    code, output = mpirun(2, script, "whole", 0, 0, place / "kept-2", place / "functions.toml", "network.name=\"kinds:Kept\"")
    assert code == 0, output
    assert _stamp(run) == _stamp(load_run(place / "kept-2"))
    spec = open_solver("lorenz63").spec
    with pytest.raises(ConfigError, match=r"keeps network._extra_state in its checkpoint, which could not be read"):
        build_correction(parse_experiment(TEXT, "test", ("network={name=\"kinds:Kept\", extra=1}",)), spec)


def test_a_fingerprint_sees_settings_and_not_numbers():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    network.table, network.options = np.zeros(3), {"a": [1, 2.0]}
    before = fingerprint(network)
    with torch.no_grad():
        network[0].weight.add_(1)
    assert fingerprint(network) == before
    for change in (lambda: setattr(network[1], "p", 0.2), lambda: network.table.__setitem__(0, 1.0), lambda: network.train(False),
                   lambda: network.options["a"].append(3), lambda: network.__setitem__(1, nn.ReLU()),
                   lambda: network[0].weight.requires_grad_(False), lambda: network.register_forward_hook(print)):
        change()
        now = fingerprint(network)
        assert now != before
        before = now
