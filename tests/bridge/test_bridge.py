# SPDX-License-Identifier: MIT
"""The border between Fortran and Python: layout, kinds, refusals, failures, life and death."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import trimtab
from conftest import SYSTEMS
from trimtab.core.errors import BlowUpError, ConfigError, CorrectionError, InputError, SolverError


class Record(nn.Module):
    """Keeps what it saw; returns a tendency that differs for every member and component."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.dtype, self.seen = dtype, []

    def forward(self, u):
        self.seen.append(u.clone())
        members, n = u.shape
        return (torch.arange(members)[:, None] * 100.0 + torch.arange(n)).to(u.dtype)


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make, self.dtype = make, torch.float64

    def forward(self, u):
        return self.make(u)


class Fails(nn.Module):
    """Raises at its k-th call."""

    dtype = torch.float64

    def __init__(self, error, at=3):
        super().__init__()
        self.error, self.at, self.calls = error, at, 0

    def forward(self, u):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return torch.zeros_like(u)


class Zero(nn.Module):
    dtype = torch.float64

    def forward(self, u):
        return torch.zeros_like(u)


def resident():
    """KiB held now: a peak would hide growth behind what an earlier test took."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_layout_is_one_rule(dtype, open_solver, random_states):
    """Fortran (n, members) is torch (members, n): sides are unequal, values all different."""
    solver = open_solver("lorenz96", n=7, dt=0.01, integrator="euler", forcing=0.0)
    u0, record = random_states(solver, 4), Record(dtype)
    free = solver.advance(u0, 1).states[1]
    pushed = solver.advance(u0, 1, correction=record).states[1]
    assert len(record.seen) == 1
    assert torch.equal(record.seen[0], torch.from_numpy(u0).to(dtype))
    expected = 0.01 * (np.arange(4)[:, None] * 100.0 + np.arange(7))
    np.testing.assert_allclose(pushed - free, expected, rtol=0, atol=1e-13)


def test_qg_field_is_y_then_x(open_solver):
    """A wave along x varies along the last axis: its velocity is v, so beta moves it."""
    solver = open_solver("qg", n=16, dt=1e-3, viscosity=0.0, drag=0.0, beta=1.0, forcing_amplitude=0.0)
    x = solver.spec.fields[0].coords["x"]
    along_x = np.broadcast_to(np.cos(x), (16, 16)).reshape(1, -1)
    along_y = np.ascontiguousarray(np.broadcast_to(np.cos(x), (16, 16)).T).reshape(1, -1)
    assert np.abs(solver.tendency(np.ascontiguousarray(along_x))).max() > 0.5
    assert np.abs(solver.tendency(along_y)).max() < 1e-13


@pytest.mark.parametrize("name", sorted(SYSTEMS))
@pytest.mark.parametrize("where", ["stage", "step"])
def test_no_op_correction_is_bit_identical(name, where, open_solver, random_states):
    solver = open_solver(name, correction_at=where)
    u0 = random_states(solver)
    assert np.array_equal(solver.advance(u0, 20).states, solver.advance(u0, 20, correction=Zero()).states)


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_cutting_a_run_changes_no_bit(name, open_solver, random_states):
    solver = open_solver(name)
    u0 = random_states(solver)
    whole = solver.advance(u0, 8, stride=3).states
    first = solver.advance(u0, 3, stride=3).states
    rest = solver.advance(first[-1], 5, stride=3).states
    assert np.array_equal(whole, np.concatenate([first, rest[1:]]))


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_members_do_not_see_each_other(name, open_solver, random_states):
    solver = open_solver(name)
    u0 = random_states(solver, 5)
    together = solver.advance(u0, 5).states
    for member in range(5):
        assert np.array_equal(solver.advance(u0[member : member + 1], 5).states[:, 0], together[:, member])


def test_two_solvers_are_independent(open_solver, random_states):
    coarse, fine = open_solver("qg", n=16), open_solver("qg", n=24)
    ode = open_solver("lorenz63")
    starts = {one: random_states(one) for one in (coarse, fine, ode)}
    alone = {one: one.advance(u0, 4).states for one, u0 in starts.items()}
    record = Record()
    coarse.advance(starts[coarse], 1, correction=record)
    for one, u0 in starts.items():
        assert np.array_equal(one.advance(u0, 4).states, alone[one])
    coarse.close()
    assert np.array_equal(fine.advance(starts[fine], 4).states, alone[fine])


def test_window_is_views_of_one_array(open_solver, random_states):
    solver = open_solver("lorenz63", dt=0.5e-2)
    window = solver.advance(random_states(solver, 2), 6, stride=4, time=3.0)
    assert window.states.shape == (7, 2, 3) and window.states.flags.c_contiguous
    assert window.h == pytest.approx(0.02)
    np.testing.assert_allclose(window.times, 3.0 + 0.02 * np.arange(7))


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda u: u[:1], r"returned shape \(1, 3\) where the solver wants \(4, 3\)"),
    (lambda u: u[:, :2], r"returned shape \(4, 2\)"),
    (lambda u: u.sum(), r"returned shape \(\)"),
    (lambda u: None, "returned a NoneType"),
    (lambda u: u > 0, "returned torch.bool"),
])
def test_a_wrong_answer_is_refused(make, sentence, open_solver, random_states):
    """Nothing is broadcast: (1, 3) into (4, 3) is an error."""
    solver = open_solver("lorenz63")
    with pytest.raises(CorrectionError, match=sentence):
        solver.advance(random_states(solver, 4), 2, correction=Returns(make))


@pytest.mark.parametrize("make", [
    lambda u: u.T.contiguous().T,
    lambda u: u.float(),
    lambda u: u,
    lambda u: u.expand(u.shape).clone()[:, torch.arange(3)],
], ids=["strided", "float32", "input itself", "indexed"])
def test_any_way_of_holding_the_same_numbers_is_right(make, open_solver, random_states):
    solver = open_solver("lorenz63")
    u0 = np.float64(np.float32(random_states(solver, 4)))
    expected = solver.advance(u0, 1, correction=Returns(lambda u: u.clone())).states
    found = solver.advance(u0, 1, correction=Returns(make)).states
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_exception_keeps_its_type_and_traceback(open_solver, random_states):
    class Odd(Exception):
        pass

    solver = open_solver("lorenz63")
    u0 = random_states(solver)
    with pytest.raises(Odd, match="this one") as caught:
        solver.advance(u0, 5, correction=Fails(Odd("this one")))
    assert any(frame.name == "forward" for frame in caught.traceback)
    assert np.isfinite(solver.advance(u0, 5).states).all()


def test_the_solver_works_on_after_a_failure(open_solver, random_states):
    solver = open_solver("qg")
    u0 = random_states(solver)
    expected = solver.advance(u0, 3, correction=Zero()).states
    failing = Fails(ValueError("once"))
    with pytest.raises(ValueError, match="once"):
        solver.advance(u0, 3, correction=failing)
    assert np.array_equal(solver.advance(u0, 3, correction=failing).states, expected)


@pytest.mark.parametrize(("u0", "sentence"), [
    (np.zeros((2, 4)), r"u0 has shape \(2, 4\); the solver lorenz63 takes \(members, 3\)"),
    (np.zeros(3), r"u0 has shape \(3,\)"),
    (np.zeros((2, 3), dtype=np.float32), "dtype float32"),
    (np.zeros((2, 3), dtype=int), "dtype int64"),
    (np.zeros((0, 3)), "holds no member"),
    (np.array([[1.0, 2.0, 3.0], [1.0, np.nan, 0.0]]), "NaN or an infinity in member 1"),
    ([[1.0, 2.0, 3.0]], "not list"),
    (torch.zeros(2, 3), "dtype float32"),
])
def test_bad_states_are_refused(u0, sentence, open_solver):
    solver = open_solver("lorenz63")
    with pytest.raises(InputError, match=sentence):
        solver.advance(u0, 1)
    with pytest.raises(InputError, match=sentence):
        trimtab.rollout(solver, None, u0, 1)


def test_strided_and_reversed_states_are_read_right(open_solver, random_states):
    solver = open_solver("lorenz63")
    u0 = random_states(solver, 6)
    fortran_order = np.asfortranarray(u0)
    every_second = u0[::-2]
    assert np.array_equal(solver.advance(fortran_order, 2).states, solver.advance(u0, 2).states)
    assert np.array_equal(solver.advance(every_second, 2).states, solver.advance(every_second.copy(), 2).states)


@pytest.mark.parametrize(("name", "options", "sentence"), [
    ("navier", {"dt": 0.1}, "navier"),
    ("lorenz63", {"dt": 0.0}, "dt"),
    ("lorenz63", {"dt": -0.1}, "dt"),
    ("lorenz63", {"dt": 0.1, "sigmma": 1.0}, "sigmma"),
    ("lorenz63", {"dt": 0.1, "order": 7}, "order"),
    ("lorenz63", {"dt": 0.1, "order": 2, "integrator": "rk4"}, "order"),
    ("lorenz63", {"dt": 0.1, "integrator": "leap"}, "leap"),
    ("lorenz63", {"dt": 0.1, "sigma": "ten"}, "sigma"),
    ("qg", {"dt": 0.1, "n": 15}, "n"),
    ("qg", {"dt": 0.1, "n": 16, "viscosity": -1.0}, "viscosity"),
    ("qg", {"dt": 0.1, "n": 16, "dealiasing": "4/5"}, "dealiasing"),
    ("lorenz63", {"dt": float("nan")}, "dt"),
])
def test_bad_parameters_are_refused_with_a_sentence(name, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        trimtab.open_solver(name, **options)


def test_blow_up_tells_its_step(open_solver):
    solver = open_solver("lorenz63")
    u0 = np.array([[1.0, 2.0, 20.0], [1e90, 1e90, 1e90]])
    with pytest.raises(BlowUpError, match=r"inner step \d+ of 100 \(1 of 2 members, the first is 1\)") as caught:
        solver.advance(u0, 10, stride=10)
    assert caught.value.steps[0] == 0 < caught.value.steps[1]
    window = solver.advance(u0, 10, stride=10, on_blow_up="mark")
    assert window.alive.tolist() == [True, False]
    assert np.array_equal(window.states[:, 0], solver.advance(u0[:1], 10, stride=10).states[:, 0])
    assert np.isnan(window.states[-1, 1]).all()


def test_a_network_that_returns_nan_is_a_blow_up(open_solver, random_states):
    solver = open_solver("qg")
    with pytest.raises(BlowUpError, match="inner step 1 of"):
        solver.advance(random_states(solver), 3, correction=Returns(lambda u: u * float("nan")))


def test_a_closed_solver_says_so(open_solver, random_states):
    solver = open_solver("lorenz63")
    u0 = random_states(solver)
    solver.close()
    solver.close()
    with pytest.raises(SolverError, match="clos"):
        solver.advance(u0, 1)


@pytest.mark.parametrize("with_network", [False, True])
def test_an_interrupt_is_honoured_within_a_step(with_network, open_solver, random_states):
    solver = open_solver("lorenz63", dt=1e-4)
    # From another process: a thread of this one would wait for the lock that the rollout holds.
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -INT {os.getpid()}"])
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        solver.advance(random_states(solver), 1, stride=2_000_000_000, correction=Zero() if with_network else None)
    assert time.monotonic() - start < 20.0  # of the minutes that it would take
    killer.wait()
    assert np.isfinite(solver.advance(random_states(solver), 2).states).all()


def test_a_million_calls_leave_no_memory_behind(open_solver, random_states):
    solver = open_solver("lorenz63", dt=1e-4)
    u0, identity = random_states(solver), Returns(lambda u: u)
    solver.advance(u0, 1, stride=20_000, correction=identity)
    gc.collect()
    before = resident()
    for _ in range(10):
        solver.advance(u0, 1, stride=25_000, correction=identity)
    assert resident() - before < 2048  # KiB


def test_opening_and_closing_leaves_no_memory_behind(random_states):
    def cycle():
        solver = trimtab.open_solver("qg", **{**SYSTEMS["qg"], "n": 64})
        solver.advance(random_states(solver), 1, correction=Zero())
        solver.close()

    for _ in range(5):
        cycle()
    gc.collect()
    before = resident()
    for _ in range(40):
        cycle()
    assert resident() - before < 4096  # KiB; one solver is over 500


@pytest.mark.parametrize("order", ["solver, correction", "correction, solver", "nothing"])
def test_exit_is_clean_in_any_order(order):
    script = textwrap.dedent(f"""
        import numpy, torch, trimtab
        solver = trimtab.open_solver("lorenz63", dt=0.01)
        other = trimtab.open_solver("qg", n=16, dt=0.01)
        correction = trimtab.Correction(trimtab.networks.MLP((3, 4, 3)), solver.spec)
        states = trimtab.rollout(solver, correction, numpy.ones((2, 3)), 3)
        {"del " + order if order != "nothing" else ""}
        print("done")
    """)
    run = subprocess.run([sys.executable, "-X", "faulthandler", "-c", script], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "done", "")


def test_the_network_in_float32_is_the_same_network(open_solver, random_states):
    """A float32 network in a float64 solver: the tendency is its own, in its precision, added in float64."""
    solver = open_solver("lorenz63", integrator="euler")
    torch.manual_seed(1)
    correction = trimtab.Correction(trimtab.networks.MLP((3, 8, 3)), solver.spec, input_scale=10.0)
    u0 = random_states(solver, 5)
    step = solver.advance(u0, 1, correction=correction).states[1]
    with torch.no_grad():
        tendency = correction(torch.from_numpy(u0).float()).double().numpy()
    np.testing.assert_allclose(step, u0 + 0.01 * (solver.tendency(u0) + tendency), rtol=1e-15, atol=1e-14)


def test_half_precision_networks_are_refused(open_solver, random_states):
    solver = open_solver("lorenz63")
    correction = trimtab.Correction(trimtab.networks.MLP((3, 4, 3)).to(torch.bfloat16), solver.spec)
    with pytest.raises(ConfigError, match="float32 or float64"):
        solver.advance(random_states(solver), 1, correction=correction)


def test_what_fuzzing_found_is_refused_or_taken(open_solver, random_states):
    solver = open_solver("lorenz63")
    u0, dense = random_states(solver, 1), torch.zeros(1, 3, dtype=torch.float64)

    class Sparse(torch.nn.Module):
        dtype = torch.float64

        def forward(self, u):
            return u.to_sparse()

    for odd in (dense.bfloat16(), dense.to_sparse(), [[1.0], [1.0, 2.0]]):
        for ask in (solver.project, solver.tendency, lambda u: solver.tendency_adjoint(u0, u), lambda u: solver.advance(u, 1)):
            with pytest.raises(InputError):
                ask(odd)
    for odd in (None, 10**400, 1j, "1"):
        with pytest.raises(ConfigError, match="must be a finite number"):
            solver.advance(u0, 1, time=odd)
    with pytest.raises(CorrectionError, match=r"layout torch.sparse_coo; the solver takes a dense one"):
        solver.advance(u0, 1, correction=Sparse())
    correction = trimtab.Correction(trimtab.networks.MLP((3, 4, 3)), solver.spec)
    reversed_row = solver.advance(u0[::-1], 2, correction=correction)
    assert np.array_equal(reversed_row.states, solver.advance(u0, 2, correction=correction).states)
    assert trimtab.rollout(solver, correction, u0[::-1], 2).shape == (3, 1, 3)


def test_a_network_seen_changing_is_the_changed_network(open_solver, random_states):
    """The slot holds the module itself: an optimiser's in-place step is seen without installing it anew."""
    solver = open_solver("lorenz63")
    correction = trimtab.Correction(trimtab.networks.MLP((3, 4, 3)), solver.spec)
    u0 = random_states(solver)
    before = solver.advance(u0, 2, correction=correction).states
    with torch.no_grad():
        for parameter in correction.parameters():
            parameter.add_(0.5)
    after = solver.advance(u0, 2, correction=correction).states
    assert not np.array_equal(before, after)
    correction.double()
    assert np.abs(solver.advance(u0, 2, correction=correction).states - after).max() < 1e-5


@pytest.mark.parametrize("stride", [1.5, 0.29 / 0.01, 0])
def test_a_stride_is_a_whole_number(stride, open_solver, random_states):
    """h / dt is a float: cut to an integer by the Fortran it would give another h than the window says."""
    solver = open_solver("lorenz63")
    with pytest.raises(ConfigError, match=r"whole numbers|at least one step"):
        solver.advance(random_states(solver), 1, stride=stride)


def test_an_open_solver_is_not_copied(open_solver):
    with pytest.raises(SolverError, match="cannot be copied"):
        copy.copy(open_solver("lorenz63"))
