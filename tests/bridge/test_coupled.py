# SPDX-License-Identifier: MIT
"""Codes with an adapter: bits, refusals, weights, slots, and the doctor's red lines, on two small codes with everything in the
main program."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trimtab
from helpers.coupled import build
from trimtab.config.experiment import load_experiment
from trimtab.core.errors import BlowUpError, ConfigError, SolverStopped
from trimtab.coupling.checks.basic import check_empty_slot, check_gradient
from trimtab.coupling.checks.restart import check_restart
from trimtab.coupling.checks.weight import check_weight
from trimtab.coupling.harness import Bench, Given
from trimtab.coupling.templates import lay_down
from trimtab.coupling.weight_line import write_weight


def test_sources_may_lie_elsewhere(tmp_path):
    """A code with a Makefile and README of its own keeps them: its sources are named from a folder beside it."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "Makefile").write_text("all:\n\tfalse\n")
    with pytest.raises(ConfigError, match=r"give a folder of its own, such as .*code/trimtab.*SOURCES = \.\./a\.f90"):
        lay_down(code, "spin")
    (code / "src").mkdir()
    folder = build(code / "trimtab", source="../src/spin.f90")
    files = [str(folder / "spin.nml")]
    with trimtab.open_solver("spin", library=str(folder / "libspin.so"), isolation="none", files=files) as one:
        assert one.spec.fields[0].shape == (48,)
    assert sorted(path.name for path in code.iterdir()) == ["Makefile", "src", "trimtab"]


def test_one_call_after_a_split_step_is_exact(tmp_path, monkeypatch):
    """What README.md says of stages and split steps: the output moves the state by dt times it, and nothing else."""
    bench = bench_of(build(tmp_path / "spin", factor="dt", after=True), monkeypatch)
    findings, weight = check_weight(bench)
    assert weight == {}, findings  # what is believed without a measurement: 1 c dt
    with bench.solver as solver:
        start, wanted = solver.initial_state(), np.random.default_rng(0).standard_normal(48)
        alone, hybrid = (solver.advance(start, 1, correction=one).states[1, 0] for one in (None, Given(solver.spec, wanted)))
    assert np.abs(hybrid[:48] - alone[:48] - solver.spec.dt * wanted).max() < 1e-15
    assert np.array_equal(hybrid[48:], alone[48:])


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("ring") / "spin")


@pytest.fixture
def open_ring(ring: Path) -> Iterator[Callable[..., Any]]:
    opened = []

    def opening(**options: Any) -> Any:
        options = {"isolation": "none", "files": [str(ring / "spin.nml")], **options}
        opened.append(trimtab.open_solver("spin", library=str(ring / "libspin.so"), **options))
        return opened[-1]

    yield opening
    for one in opened:
        one.close()


def bench_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return Bench(load_experiment("spin.toml"))


def test_the_compiler_says_kinds_and_sizes(open_ring):
    spec = open_ring().spec
    assert [(one.name, one.shape, one.dtype, one.hidden) for one in spec.fields] == [
        ("c", (48,), "real64", False), ("backwards", (), "bool", True)]
    assert (spec.dt, spec.time_units, spec.parameters) == (0.005, "s", {"decay": 0.0})
    assert np.array_equal(spec.visible, np.arange(48)) and spec.shown.size == 48


def test_copies_are_instances_and_namelists_are_their_own(open_ring):
    one, other = open_ring(), open_ring(decay=0.5, namelist={"spin.nml": {"control": {"dt": 0.0025}}})
    assert other.spec.dt == 0.0025 and one.spec.dt == 0.005
    first = one.advance(one.initial_state(), 5).states
    other.advance(other.initial_state(), 5)
    assert np.array_equal(one.advance(one.initial_state(), 5).states, first)


@pytest.mark.parametrize("options, sentence", [
    ({"decaz": 1.0}, "asks for decay"),
    ({"decay": "much"}, "decay = 'much' is not what the code takes"),
    ({"files": ["nowhere.nml"]}, "no file"),
    ({"namelist": {"spin.nml": {"contral": {"dt": 1.0}}}}, "no group 'contral'"),
    ({"weight": {"step": {"q": {"q": 1.0}}}}, "an output 'q'"),
    ({"snapshot": "image"}, "need isolation"),
])
def test_refusals_say_what_and_where(open_ring, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        open_ring(**options)


def test_a_library_without_an_adapter_is_refused(tmp_path):
    (tmp_path / "a.f90").write_text("subroutine a\nend subroutine a\n")
    subprocess.run(["gfortran", "-shared", "-fPIC", "-o", "liba.so", "a.f90"], cwd=tmp_path, check=True)
    with pytest.raises(ConfigError, match="no procedure trimtab_initialise"):
        trimtab.open_solver("a", library=str(tmp_path / "liba.so"), isolation="none")
    with pytest.raises(ConfigError, match="build it with make"):
        trimtab.open_solver("a", library=str(tmp_path / "libb.so"), isolation="none")


def test_an_unfilled_adapter_says_so(tmp_path):
    lay_down(tmp_path / "new", "thing")
    subprocess.run(["make"], cwd=tmp_path / "new", check=True, capture_output=True)
    with pytest.raises(ConfigError, match="not filled in yet"):
        trimtab.open_solver("thing", library=str(tmp_path / "new" / "libthing.so"), isolation="none")
    with pytest.raises(ConfigError, match="already holds"):
        lay_down(tmp_path / "new", "thing")
    with pytest.raises(ConfigError, match="small letters"):
        lay_down(tmp_path / "other", "My-Code")


def test_zeros_change_no_bit_and_exceptions_keep_their_type(open_ring):
    solver = open_ring()
    start = solver.initial_state()
    empty = solver.advance(start, 6).states
    window = solver.advance(start, 6, correction=Given(solver.spec))
    assert np.array_equal(window.states, empty)
    assert np.array_equal(window.inputs[0, 0], start[0, :48]), "the first call sees the state, here a half step has not moved it"

    class Failing(nn.Module):
        dtype = torch.float64

        def forward(self, seen):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        solver.advance(start, 6, correction=Failing())
    assert np.array_equal(solver.advance(start, 6).states, empty)


def test_processes_give_the_same_bits(open_ring):
    here, there = open_ring(), open_ring(isolation="process")
    torch.manual_seed(0)
    correction = trimtab.SlotCorrection(nn.Sequential(nn.Linear(48, 48)), here.spec, output_scale=0.1)
    start = np.repeat(here.initial_state(), 2, axis=0)
    one, other = (solver.advance(start, 5, correction=correction) for solver in (here, there))
    assert np.array_equal(one.states, other.states) and np.array_equal(one.inputs, other.inputs)
    assert np.array_equal(there.initial_state(), here.initial_state())


def test_a_blow_up_is_found_and_marked(open_ring):
    solver = open_ring()
    push = Given(solver.spec, np.full(48, 1e34))  # finite still, and no tracer
    with pytest.raises(BlowUpError, match="left the finite numbers"):
        solver.advance(solver.initial_state(), 50, correction=push)
    window = solver.advance(solver.initial_state(), 50, correction=push, on_blow_up="mark")
    assert window.failed_step[0] > 0 and np.isnan(window.states[-1]).all()


def test_a_stop_ends_its_process_alone(open_ring):
    """This code says STOP at the first NaN; in this process that would end the tests with code 0."""
    solver = open_ring(isolation="process")
    push = Given(solver.spec, np.full(48, np.nan))
    with pytest.raises(SolverStopped, match="spin: NaN"):
        solver.advance(solver.initial_state(), 5, correction=push)
    window = solver.advance(solver.initial_state(), 5, correction=push, on_blow_up="mark")
    assert window.failed_step[0] > 0 and np.isnan(window.states[-1]).all()
    assert np.isfinite(solver.advance(solver.initial_state(), 5).states).all()


def test_the_gradient_of_one_step_is_exact(open_ring):
    """The slot acts twice a step, by a half each time."""
    solver = open_ring()
    correction = trimtab.SlotCorrection(nn.Linear(48, 48), solver.spec, output_scale=1.0).double()
    states = trimtab.rollout(solver, correction, solver.initial_state(), 1, gradient="none")
    states[1, 0, :48].sum().backward()
    assert torch.allclose(correction.network.bias.grad, torch.full((48,), solver.spec.dt, dtype=torch.float64), rtol=1e-2)


def test_the_doctor_is_content_with_a_complete_adapter(ring, monkeypatch):
    bench = bench_of(ring, monkeypatch)
    findings, weight = check_weight(bench)
    assert weight == {} and "2 calls a step" in findings[0].found
    assert [one.state for one in (*check_restart(bench), *check_empty_slot(bench), *findings)] == ["ok"] * 4
    assert [one.state for one in check_gradient(bench, weight)] == ["ok", "ok"]
    bench.close()


def test_the_doctor_names_the_flag_that_was_left_out_and_the_double_counting(tmp_path, monkeypatch):
    bench = bench_of(build(tmp_path / "spin", hidden="", factor="1.0"), monkeypatch)
    (restart,) = check_restart(bench)
    assert restart.state == "bad" and "backwards (module spin)" in restart.found
    (finding,), weight = check_weight(bench)
    assert finding.state == "note" and weight == {"stride": 1, "steady": {"c": 2.0}, "step": {"c": {"c": 2.0}}}
    assert write_weight(Path("spin.toml"), weight) and not write_weight(Path("spin.toml"), weight)
    assert load_experiment("spin.toml").solver.options["weight"] == weight
    assert write_weight(Path("spin.toml"), {}) and "weight" not in load_experiment("spin.toml").solver.options
    bench.close()


def test_integers_of_eight_bytes_and_single_precision(tmp_path, monkeypatch):
    """The same adapter with other flags: nothing in it names a kind."""
    bench = bench_of(build(tmp_path / "spin", flags="-O2 -fdefault-integer-8"), monkeypatch)
    assert [one.dtype for one in bench.spec.fields] == ["real32", "bool"]
    assert check_restart(bench)[0].state == "ok"
    bench.close()


def test_a_silently_changed_kind_is_refused(tmp_path):
    folder = build(tmp_path / "spin", flags="-O2 -freal-8-real-4")
    with pytest.raises(ConfigError, match="of kind real32, where Python has"):
        trimtab.open_solver("spin", library=str(folder / "libspin.so"), isolation="none", files=[str(folder / "spin.nml")])


def test_an_interrupt_ends_a_rollout_within_a_step(open_ring):
    solver = open_ring()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            solver.advance(solver.initial_state(), 1, stride=10**9)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert np.isfinite(solver.advance(solver.initial_state(), 2).states).all()


class Turning:
    """What `check_weight` asks of a bench: Adams-Bashforth on pairs that turn by `angle` a step, called through one slot."""

    def __init__(self, angle: float, stride: int):
        field = trimtab.core.spec.Field("x", "x", "1", ("i",), (64,))
        old = trimtab.core.spec.Field("old", "old", "1", ("old_1",), (64,), {}, True)
        slot = trimtab.core.spec.Slot("turn", (field,), (field,))
        self.spec = trimtab.core.spec.SolverSpec("turning", 0.1, 1, (field, old), slots=(slot,))
        self.angle, self.stride, self.most, self.made = angle, stride, 10**6, 0
        self.state = np.random.default_rng(1).standard_normal((1, 128))  # of two levels
        self.own = self.library = self

    def calls(self) -> int:
        return self.made

    def run(self, state, steps, *, stride=1, outputs=None, noop=False):
        x, old = state[0, :64].copy(), state[0, 64:].copy()
        states = [state[0]]
        for step in range(steps * stride):
            self.made += 1
            tendency = self.angle / 0.1 * np.stack([-x[1::2], x[::2]], 1).ravel() + (0 if outputs is None else outputs)
            x, old = x + 0.1 * (1.5 * tendency - 0.5 * old), tendency
            if (step + 1) % stride == 0:
                states.append(np.concatenate([x, old]))
        return np.array(states)


@pytest.mark.parametrize(("angle", "stride", "told"), [(0.02, 1, True), (0.02, 10, True), (0.5, 10, False)])
def test_the_flow_is_not_taken_for_a_lasting_weight(angle, stride, told, tmp_path):
    """Over ten outer steps of ten the flow turns a push around: a weight below 0 was written, and the training diverged."""
    (finding,), weight = check_weight(Turning(angle, stride), tmp_path)
    assert "components" not in weight, "the flow mixes neighbours; it is no weight of each"
    assert weight.get("steady", {"x": 1.0}) == {"x": 1.0}
    assert ("cannot be told" in finding.found) != told, finding
