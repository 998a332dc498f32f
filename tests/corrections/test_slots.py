# SPDX-License-Identifier: MIT
"""Corrections of named slots: channels or dictionaries, normalisation, several slots, weights."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from trimtab import SlotCorrection
from trimtab.config.experiment import parse_experiment
from trimtab.config.sections import TrainingConfig
from trimtab.core.errors import BlowUpError, ConfigError, InputError
from trimtab.core.spec import Field, Slot, SolverSpec
from trimtab.core.window import Window
from trimtab.corrections.factory import build_correction
from trimtab.corrections.slot_weights import SlotWeight
from trimtab.training.offline import Labels, fit_normalisation


def field(name: str, *shape: int, hidden: bool = False) -> Field:
    return Field(name, name, "1", tuple(f"{name}{i}" for i in range(len(shape))), shape, hidden=hidden)


FIELDS = (field("t", 3, 4), field("s", 3, 4), field("t_old", 3, 4, hidden=True), field("flag", hidden=True))
CHANNELS = SolverSpec("sea", 0.1, 1, FIELDS, slots=(Slot("mix", (field("t", 3, 4), field("s", 3, 4), field("n2", 3, 4)),
                                                         (field("t", 3, 4), field("s", 3, 4))),))
MIXED = SolverSpec("sea", 0.1, 1, FIELDS, slots=(Slot("mix", (field("t", 3, 4), field("depth", 3), field("sun")),
                                                      (field("t", 3, 4),)),))
SEVERAL = SolverSpec("sea", 0.1, 1, FIELDS, slots=(Slot("mix", (field("t", 3, 4),), (field("t", 3, 4),)),
                                                   Slot("flux", (field("s", 3, 4),), (field("s", 3, 4),))))


class Named(nn.Module):
    """A network of named tensors."""

    dtype = torch.float64

    def forward(self, x):
        assert {name: tuple(one.shape) for name, one in x.items()} == {"t": (2, 3, 4), "depth": (2, 3), "sun": (2,)}
        return {"t": x["t"] + x["depth"][:, :, None] + x["sun"][:, None, None]}


def test_inputs_of_one_shape_are_channels():
    network = nn.Conv2d(3, 2, 1).double()
    correction = SlotCorrection(network, CHANNELS, input_mean=(1.0, 2.0, 3.0), input_scale=(1.0, 2.0, 4.0),
                                output_scale=(5.0, 7.0))
    seen = torch.randn(2, 36, dtype=torch.float64)
    x = (seen.view(2, 3, 3, 4) - torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)) / torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    expected = network(x) * torch.tensor([5.0, 7.0]).view(2, 1, 1)
    assert torch.allclose(correction(seen), expected.reshape(2, -1), rtol=1e-14)
    assert torch.equal(correction.slot("mix")(seen), correction(seen))
    assert torch.equal(correction.scale_of_outputs(), torch.tensor([5.0] * 12 + [7.0] * 12, dtype=torch.float64))


class Pointwise(nn.Module):
    """As the template of `trimtab couple init` writes it: what it returns is no contiguous tensor."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Linear(3, 2).double()

    def forward(self, x):
        return self.layers(x.movedim(1, -1)).movedim(-1, 1)


def test_several_outputs_need_not_be_contiguous():
    network, seen = Pointwise(), torch.randn(2, 36, dtype=torch.float64)
    expected = network(seen.view(2, 3, 3, 4))
    assert torch.equal(SlotCorrection(network, CHANNELS)(seen), expected.reshape(2, -1))


def test_inputs_of_several_shapes_are_named():
    seen = torch.randn(2, 16, dtype=torch.float64)
    t, depth, sun = seen[:, :12].view(2, 3, 4), seen[:, 12:15], seen[:, 15]
    expected = t + depth[:, :, None] + sun[:, None, None]
    assert torch.allclose(SlotCorrection(Named(), MIXED)(seen), expected.reshape(2, -1))


def test_wrong_answers_are_refused():
    with pytest.raises(InputError, match=r"it must return a tensor of shape \(2, 2, 3, 4\)"):
        SlotCorrection(nn.Identity(), CHANNELS)(torch.zeros(2, 36, dtype=torch.float64))
    with pytest.raises(ConfigError, match="ModuleDict"):
        SlotCorrection(nn.Identity(), SEVERAL)
    with pytest.raises(ConfigError, match="says itself what the network sees"):
        SlotCorrection(nn.Identity(), CHANNELS, features=("q",))
    with pytest.raises(InputError, match="36 numbers, and 35 came"):
        SlotCorrection(nn.Identity(), CHANNELS)(torch.zeros(2, 35, dtype=torch.float64))


def test_several_slots_have_networks_of_their_own():
    text = 'solver = {name = "sea"}\nnetwork = {name = "MLP", sizes = [4, 4], flux = {sizes = [4, 8, 4]}}'
    experiment = parse_experiment(text, "x")
    correction = build_correction(experiment, SEVERAL)
    assert len(correction.network["mix"]) == 1 and len(correction.network["flux"]) == 3
    seen = torch.randn(2, 24)
    both = torch.cat([correction.slot(name)(part) for name, part in zip(("mix", "flux"), seen.split(12, 1), strict=True)], 1)
    assert torch.equal(both, correction(seen))


def test_normalisation_is_fitted_field_by_field():
    correction = SlotCorrection(nn.Conv2d(3, 2, 1), CHANNELS)
    seen = torch.randn(50, 36, dtype=torch.float64)
    seen[:, 12:24] = 3.0 * seen[:, 12:24] + 10.0
    seen[:, 24:] = 4.0  # the same everywhere: its mean is taken off, and it is divided by its size
    tendencies = torch.cat([torch.full((50, 12), 2.0), torch.zeros(50, 12)], 1)
    correction.fit_normalisation(seen, tendencies)
    assert torch.allclose(correction.input_mean, torch.tensor([0.0, 10.0, 4.0]), atol=0.5)
    assert torch.allclose(correction.input_scale, torch.tensor([1.0, 3.0, 4.0]), atol=0.3)  # a constant's is its size
    assert torch.equal(correction.output_scale, torch.tensor([2.0, 2.0]))


def test_weights_are_transposed():
    weight = SlotWeight(CHANNELS, {"stride": 2, "steady": {"t": 1.5}, "step": {"t": {"t": 2.0, "t_old": 0.1}}})
    lam = torch.randn(2, CHANNELS.size, dtype=torch.float64)
    t, s, old = lam[:, :12], lam[:, 12:24], lam[:, 24:36]
    assert torch.equal(weight.transpose(lam, 2, True), torch.cat([1.5 * t, s], 1))
    assert torch.equal(weight.transpose(lam, 2, False), torch.cat([2.0 * t + 0.1 * old, s], 1))
    labels = weight.outputs(lam.numpy(), 2)
    assert np.allclose(labels, torch.cat([t / 2.0, s], 1).numpy())
    with pytest.raises(ConfigError, match=r"measured at training.stride = 2, and 1"):
        weight.transpose(lam, 1, False)
    with pytest.raises(ConfigError, match="there is no field of that name"):
        odd = SolverSpec("sea", 0.1, 1, FIELDS, slots=(Slot("mix", (field("t", 3, 4),), (field("w", 3, 4),)),))
        SlotWeight(odd, {}).transpose(lam, 1, True)


class Counting(nn.Module):
    """As the template's: numbers of fields as arguments."""

    def __init__(self, inputs: int = 1, outputs: int = 1, width: int = 4):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.Linear(width, outputs))

    def forward(self, x):
        return self.layers(x.movedim(1, -1)).movedim(-1, 1)


def experiment_of(network: str):
    return parse_experiment(f'solver = {{name = "sea"}}\nnetwork = {{name = "test_slots:Counting"{network}}}', "x")


def test_a_network_of_fields_gets_their_numbers():
    correction = build_correction(experiment_of(", width = 7"), CHANNELS)
    assert [tuple(one.weight.shape) for one in correction.network.layers] == [(7, 3), (2, 7)]
    several = build_correction(experiment_of(", flux = {width = 5}"), SEVERAL)
    assert [several.network[name].layers[0].weight.shape for name in ("mix", "flux")] == [(4, 1), (5, 1)]
    before = torch.get_rng_state()
    correction.check_networks()
    assert torch.equal(torch.get_rng_state(), before) and all(one.training for one in correction.modules())


@pytest.mark.parametrize("network", [", inputs = 1", ", outputs = 1"])
def test_a_network_of_another_shape_is_refused_with_what_to_set(network):
    said = r"the slot hands \(B, 3, 3, 4\) and takes \(B, 2, 3, 4\): set inputs = 3, outputs = 2 .*in \[network\]"
    with pytest.raises(ConfigError, match=said):
        build_correction(experiment_of(network), CHANNELS)


def test_a_blow_up_is_called_one():
    correction = SlotCorrection(nn.Conv2d(3, 2, 1), CHANNELS)
    with pytest.raises(InputError, match=r"The input is not finite over the training data .* the solver blew up"):
        correction.fit_normalisation(torch.full((5, 36), torch.nan))
    seen = torch.randn(50, 36, dtype=torch.float64)
    seen[:, 24:] = 0.1  # whose standard deviation is not 0 in every rounding
    correction.fit_normalisation(seen)
    assert correction.input_scale[2] == pytest.approx(0.1, rel=1e-6)  # its size, and not that rounding


class Windows:
    """What `Labels` asks of windows: ten states, each with its successor."""

    targets = SimpleNamespace(gap=1, observation=SimpleNamespace(components=None))

    def __len__(self):
        return 10

    def start(self, indices):
        return np.asarray(indices)[:, None] + np.zeros((1, CHANNELS.size))

    def observe(self, indices, leads):
        return self.start(indices)[None] + 1.0

    def place(self, index):
        return 3, index

    def spread(self, number):
        return np.arange(10)


class Sea:
    """A code that leaves the finite numbers from states above a limit: within the step, or where it shows its inputs."""

    spec = CHANNELS

    def __init__(self, limit, shown=np.inf):
        self.limit, self.shown = limit, shown

    def advance(self, u0, steps, *, stride=1, on_blow_up="raise", correction=None):
        bad = u0[:, 0] > self.limit
        states = np.stack([u0, np.where(bad[:, None], np.nan, 0.5 * u0)])
        return Window(states, np.arange(2.0), 1.0, np.where(bad, 2, 0))

    def slot_view(self, states, tendencies, stride):
        seen = np.repeat(states[:, :1], 36, 1)
        return np.where(seen > self.shown, np.nan, seen), tendencies[:, :24]


@pytest.mark.parametrize(("sea", "kept", "where"), [(Sea(7), 8, (3, 8, 2)), (Sea(np.inf, 4), 5, (3, 5, 1))])
def test_states_on_which_the_solver_blows_up_are_left_out_and_named(sea, kept, where, caplog):
    labels = Labels(sea, Windows(), 1, keep=False)
    seen, missing = labels.get(np.arange(10))
    assert len(seen) == len(missing) == kept and np.isfinite(seen).all() and labels.blown == where
    correction, targets = SlotCorrection(nn.Conv2d(3, 2, 1), CHANNELS), SimpleNamespace(windows=lambda *_: Windows(), gap=1)
    fit_normalisation(correction, sea, targets, TrainingConfig())
    assert f"blew up on {10 - kept} of 10 states of the truth" in caplog.text and "run 3, snapshot" in caplog.text
    with pytest.raises(BlowUpError, match=r"blew up on all of 10 .*\(run 3, snapshot 0: by inner step 2\): shorten"):
        fit_normalisation(correction, Sea(-1), targets, TrainingConfig())
