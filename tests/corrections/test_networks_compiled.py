# SPDX-License-Identifier: MIT
"""The compiled slot follows its module: another setting or layer is seen in the next run; what is not compiled is named."""

from __future__ import annotations

import logging
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

import trimtab
from trimtab.bridge import slot_function as slot
from trimtab.bridge.aot_compile import NotCompiledError, _spectral, compile_library, export_program, save_program
from trimtab.bridge.slot_callback import Callback
from trimtab.bridge.slot_function import slot_function
from trimtab.core.spec import Field, Slot, SolverSpec

SCALE = {"strength": 0.1}  # no attribute of any module: what no fingerprint can see


class Stirred(nn.Module):
    """A law with a number that is no tensor, one outside, and a count of its calls."""

    dtype, compiled = torch.float64, True

    def __init__(self):
        super().__init__()
        self.strength, self.calls = 0.1, 0

    def forward(self, u):
        self.calls += 1
        return self.strength * SCALE["strength"] * u


class Fake:
    """Stands for a compiled form, where the compiler is not what is tested."""

    made = 0

    def __init__(self, module, size, outputs):
        Fake.made += 1
        self.dtype, self.bytes, self.address, self.context = torch.float64, 8, 1, 1

    def refresh(self):
        pass

    def compare(self, states):
        return 0.0


class Frozen(Fake):
    """A compiled form of what `Stirred` was when it was made."""

    def __init__(self, module, size, outputs):
        super().__init__(module, size, outputs)
        self.module, self.factor = module, module.strength * SCALE["strength"]

    def compare(self, states):
        expected = self.module(states)
        return float((self.factor * states - expected).abs().max() / expected.abs().max())


def test_a_setting_that_is_changed_is_seen(monkeypatch, caplog):
    monkeypatch.setattr(slot, "Compiled", Frozen)
    network, states = Stirred(), torch.ones(1, 3, dtype=torch.float64)
    first = slot_function(network, 3, states=states)
    assert slot_function(network, 3, states=states) is first  # the count of calls is no setting
    network.strength = 20.0
    second = slot_function(network, 3, states=states)
    assert second is not first and second.factor == 2.0
    network.strength = 0.1
    assert slot_function(network, 3, states=states) is first
    with caplog.at_level(logging.INFO, "trimtab"):
        monkeypatch.setitem(SCALE, "strength", 3.0)
        third = slot_function(network, 3, states=states)
    assert third is not first and third.factor == pytest.approx(0.3) and "compiled again" in caplog.text
    assert slot_function(network, 3, states=states) is third


def test_another_layer_is_compiled_and_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(slot, "Compiled", Fake)
    network = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    network.compiled, Fake.made = True, 0
    first = slot_function(network, 3)
    assert slot_function(network, 3) is first and Fake.made == 1
    network[1] = nn.ReLU()
    second = slot_function(network, 3)
    assert second is not first and Fake.made == 2
    for number in range(3 * slot.MOST_FORMS):
        network.number = number
        slot_function(network, 3)
    assert len(slot._compiled[network].known) == slot.MOST_FORMS


def test_named_slots_are_compared_on_what_they_may_see(monkeypatch):
    seen = []

    class Watching(Fake):
        def compare(self, states):
            seen.append(states)
            return 0.0

    monkeypatch.setattr(slot, "Compiled", Watching)
    heat = Slot("heat", (Field("t", "t", "K", ("x",), (4,)),),
                              (Field("t", "t", "K", ("x",), (4,)),))
    spec = SolverSpec("code", 1.0, 1, heat.inputs, "s", {}, (heat,))
    correction = trimtab.SlotCorrection(nn.Conv1d(1, 1, 1).double(), spec, input_mean=280.0, input_scale=1e-3, compiled=True)
    part = correction.slot("heat")
    for _ in range(3):
        slot_function(part, 4, outputs=4)
    assert len(seen) == 3 and all((one - 280).abs().max() < 1 for one in seen)


def test_what_writes_to_its_buffers_runs_as_it_is(open_solver, caplog):
    class Counts(nn.Linear):
        compiled = True

        def __init__(self):
            super().__init__(3, 3)
            self.register_buffer("number", torch.zeros(()))

        def forward(self, u):
            self.number += 1
            return super().forward(u)

    with pytest.raises(NotCompiledError, match="changes its buffer number at every call"):
        export_program(Counts(), 3, torch.float32)
    solver = open_solver("lorenz63")
    with caplog.at_level(logging.WARNING, "trimtab"):
        solver.advance(np.ones((1, 3)), 1, correction=Counts())
    assert isinstance(solver._filling, Callback) and "changes its buffer number" in caplog.text


class Spectral(nn.Module):
    """Mixes waves, as a Fourier operator of several channels does."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))

    def forward(self, u):
        return torch.fft.irfft(torch.einsum("bi,ij->bj", torch.fft.rfft(u), self.weights), n=4)


def test_a_spectrum_that_is_not_compiled_is_named(monkeypatch, tmp_path):
    """Whatever the compiler says, the sentence names the operations and what to do; a shim stands for it, which takes seconds."""
    program = export_program(Spectral(), 4, torch.float32)
    for code, sentence in (("import sys; print('TypeError: got int', file=sys.stderr); sys.exit(1)", "does not take it"),
                           ("import sys; print('x aten.bmm.default is missing a c-shim implementation', file=sys.stderr); "
                            "open(sys.argv[-1], 'wb').write(b'aoti_torch_proxy_executor_call_function')", r"alone \(aten.bmm")):
        def instead(command, tick, code=code, **options):
            target = command[-1].split("build(")[1].split("'")[3]
            return subprocess.run([command[0], "-c", code, target], capture_output=True, text=True, **options)

        monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
        with monkeypatch.context() as patch:
            patch.setattr("trimtab.bridge.aot_compile.run_program", instead)
            patch.setattr("trimtab.bridge.aot_compile.shutil.which", lambda name: name)
            with pytest.raises(NotCompiledError, match=sentence + r".*complex numbers \(aten.*fft_rfft.*view_as_real"):
                compile_library(program, {})
    def refuses(program, file):
        raise AssertionError("expected SymInt, got <class 'int'>")

    monkeypatch.setattr("torch.export.save", refuses)
    with pytest.raises(NotCompiledError, match=r"cannot write it .*got <class 'int'>.*view_as_real"):
        save_program(program, tmp_path / "program.pt2")
    assert _spectral(export_program(nn.Linear(3, 3), 3, torch.float32)) == ""
