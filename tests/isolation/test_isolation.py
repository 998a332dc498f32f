# SPDX-License-Identifier: MIT
"""Solvers in processes of their own: the same bits, whatever the code remembers; and whatever it does, Python goes on."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import trimtab
from helpers import TESTS
from trimtab.core.errors import BlowUpError, ConfigError, InputError, SolverError, SolverStopped
from trimtab.isolation import IsolatedSolver, load_private_copy, open_isolated
from trimtab.isolation.leak_probe import Traces
from trimtab.isolation.protocol import Failure
from trimtab.isolation.shared_correction import Mirror, attach

HERE = TESTS / "isolation"
OPENER = "hidden_case:Hidden"
NOTHING, COMMON, HEAP, LATE, RANDOM, FILE, SCRATCH_FILE, STDIN, ALL = range(9)
ENDS = {91: ("exit code 0", ""), 92: ("exit code 3", "STOP 3"), 93: ("exit code 1", "ERROR STOP CFL violated"),
        94: ("SIGABRT", "Aborted"), 95: ("SIGSEGV", "Segmentation fault"), 96: ("SIGFPE", "Floating"),
        97: ("exit code 0", ""), 99: ("exit code 2", "Fortran runtime error")}
HANG = 98.0


@pytest.fixture(scope="module", autouse=True)
def _openers(tmp_path_factory):
    sys.path.insert(0, str(HERE))
    yield
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with the library, a forcing file and a standard input."""
    folder = tmp_path_factory.mktemp("inputs")
    subprocess.run(["gfortran", "-shared", "-fPIC", "-O1", "-fcray-pointer", "-o", folder / "libhidden.so", HERE / "hidden.f"],
                   check=True, cwd=folder)
    (folder / "forcing.txt").write_text("\n".join(str(0.1 * i) for i in range(2000)))
    (folder / "stdin.txt").write_text("2.5\n")
    return folder


@pytest.fixture(scope="module")
def workers(inputs):
    """Two worker processes, of a code without hidden state."""
    options = {"library": str(inputs / "libhidden.so"), "kind": STDIN}
    with IsolatedSolver(OPENER, options, instances=2, folder=inputs / "run", files=[inputs / "forcing.txt"],
                        links=[HERE / "hidden.f"], stdin=inputs / "stdin.txt", environment={"YEAR": "1979"}) as solver:
        yield solver


@pytest.fixture(scope="module")
def forked(inputs):
    """Two forks at a time, of a code that remembers in COMMON and SAVE."""
    options = {"library": str(inputs / "libhidden.so"), "kind": COMMON, "seen": True}
    with IsolatedSolver(OPENER, options, isolation="fork", instances=2) as solver:
        yield solver


@pytest.fixture
def here(inputs, tmp_path):
    """Opens the code in this process; a copy of the library each time, so that it is as new."""
    opened = []

    def build(kind=NOTHING, **settings):
        own = shutil.copy(inputs / "libhidden.so", tmp_path / f"lib{len(opened)}.so")
        opened.append(open_isolated(OPENER, {"library": str(own), "kind": kind}, isolation="none", **settings))
        return opened[-1]

    yield build
    for solver in opened:
        solver.close()


def starts(members: int = 5) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((members, 3))


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()


def equal(one, other) -> bool:
    return one.states.tobytes() == other.states.tobytes()


# -- the same window ---------------------------------------------------------------------------------------------------


def test_workers_give_the_bits_of_this_process(workers, here):
    for correction in (None, network()):
        mine = here().advance(starts(), 7, correction=correction, stride=3, time=2.0)
        theirs = workers.advance(starts(), 7, correction=correction, stride=3, time=2.0)
        assert equal(mine, theirs) and theirs.h == mine.h and np.array_equal(theirs.times, mine.times)
        assert theirs.failed_step.dtype == np.int64 and theirs.inputs is None and theirs.alive.all()


def test_windows_stay_as_they_were_when_the_next_one_is_made(workers):
    first = workers.advance(starts(), 5)
    kept = first.states.copy()
    workers.advance(2 * starts(), 5)
    assert np.array_equal(first.states, kept)
    first.states[0] = 7.0  # they are the caller's own
    files = len(os.listdir("/proc/self/fd"))
    many = [workers.advance(starts(1), 1) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == files and len(many) == 20  # none is held by a window


def test_a_fork_begins_as_it_was_opened(forked):
    whole = forked.advance(starts(), 9)
    assert equal(whole, forked.advance(starts(), 9))
    for member in range(5):  # in whatever lane, with whatever before it
        alone = forked.advance(starts()[member : member + 1], 9)
        assert np.array_equal(whole.states[:, member], alone.states[:, 0])
    assert whole.inputs.shape == (9, 5, 4)
    assert np.array_equal(whole.inputs[..., :3], whole.states[:-1]) and (whole.inputs[..., 3] == 1).all()


def test_without_a_snapshot_the_code_remembers(here):
    solver = here(COMMON)
    assert not equal(solver.advance(starts(1), 9), solver.advance(starts(1), 9))


def test_a_fork_covers_heap_generators_and_files(inputs, here, monkeypatch):
    options = {"library": str(inputs / "libhidden.so"), "kind": ALL}
    with IsolatedSolver(OPENER, options, isolation="fork", instances=3, files=[inputs / "forcing.txt"]) as solver:
        whole = solver.advance(starts(), 9)
        assert equal(whole, solver.advance(starts(), 9))
    monkeypatch.chdir(inputs)
    solver = here(ALL)
    fresh, second = (solver.advance(starts()[[member]], 9) for member in (0, 1))
    assert np.array_equal(fresh.states[:, 0], whole.states[:, 0])
    assert not np.array_equal(second.states[:, 0], whole.states[:, 1])  # it does matter


# -- the correction ----------------------------------------------------------------------------------------------------


def test_every_change_of_a_network_is_seen(workers, here):
    net, u = network(), starts(3)

    def check():
        assert equal(workers.advance(u, 4, correction=net), here().advance(u, 4, correction=net))

    check()
    version = workers._mirror.version
    with torch.no_grad():
        net[0].weight.add_(0.5)
    check()
    net[0].weight = torch.nn.Parameter(net[0].weight.detach() * 2)
    check()
    assert workers._mirror.version == version  # numbers alone do not make the module travel
    net[1] = torch.nn.ReLU()
    check()
    net[2].register_forward_hook(importlib.import_module("hidden_networks").double)
    check()
    net[2].weight = net[2].weight.__class__(torch.ones(8, 3, dtype=torch.float64).T)  # other strides
    check()
    assert workers._mirror.version == version + 3
    net.float()
    with pytest.raises(RuntimeError, match="dtype"):
        workers.advance(u, 4, correction=net)


def test_a_module_is_the_same_on_the_other_side():
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last), torch.nn.BatchNorm2d(4))
    net[0].bias.requires_grad_(False)
    net.tied, net.empty = net[0].weight, torch.empty(0, 3)
    net.register_buffer("spread", torch.ones(1, 3).expand(2, 3))  # one number for many: it travels by value
    mirror = Mirror()
    mirror.update(net)
    other = attach(mirror.structure, os.dup(mirror.file), mirror.size)
    assert list(other.state_dict()) == list(net.state_dict()) and other.tied is other[0].weight
    for one, two in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two) and one.dtype == two.dtype and one.stride() == two.stride()
    assert [one.requires_grad for one in other.parameters()] == [one.requires_grad for one in net.parameters()]
    version = mirror.version
    with torch.no_grad():
        net[0].weight.mul_(3.0)
    mirror.update(net)
    assert mirror.version == version and torch.equal(other[0].weight, net[0].weight)
    net.train(False)
    mirror.update(net)
    assert mirror.version == version + 1
    mirror.close()


class Awkward(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def test_exceptions_travel():
    steps = np.array([0, 3])
    back = Failure.of(BlowUpError("It blew up.", steps)).exception()
    assert type(back) is BlowUpError and np.array_equal(back.steps, steps) and str(back) == "It blew up."
    back = Failure.of(SolverStopped("It stopped.", 1, 2, -6, "text", Path("log"))).exception()
    assert (back.member, back.step, back.code, back.output, back.log) == (1, 2, -6, "text", Path("log"))
    back = Failure.of(Awkward(1, 2)).exception()
    assert type(back) is SolverError and "Awkward: 1 and 2" in str(back)


def test_training_through_workers_is_training_here(workers, here):
    results = []
    for solver in (workers, here()):
        net = network(1)
        optimiser = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(4):
            states = trimtab.rollout(solver, net, starts(3), 6, gradient="static")
            optimiser.zero_grad()
            states.square().mean().backward()
            optimiser.step()
        results.append(torch.cat([one.flatten() for one in net.parameters()]))
    assert torch.equal(*results)


def test_an_exception_of_the_network_keeps_its_type_and_traceback(workers, forked):
    for solver in (workers, forked):
        with pytest.raises(ZeroDivisionError, match="in the network") as caught:
            solver.advance(starts(3), 4, correction=importlib.import_module("hidden_networks").Failing())
        assert "raise ZeroDivisionError" in str(caught.value.__cause__) and "in forward" in str(caught.value.__cause__)
        assert solver.advance(starts(3), 4).alive.all()


def test_a_network_that_cannot_travel_is_refused(workers):
    net = network()
    net.lock = threading.Lock()
    with pytest.raises(ConfigError, match="cannot be sent"):
        workers.advance(starts(1), 1, correction=net)


def test_workers_share_what_decides_the_bits(workers):
    assert workers.threads() == 1
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        workers.advance(starts(1), 1)
        assert workers.deterministic() is True
    finally:
        torch.use_deterministic_algorithms(False)


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", sorted(ENDS))
def test_an_end_is_an_exception_with_the_last_output(forked, end):
    u = starts()
    before = forked.advance(u, 4)
    u[3, 0] = end
    with pytest.raises(SolverStopped) as caught:
        forked.advance(u, 4)
    error, (how, last) = caught.value, ENDS[end]
    assert how in str(error) and "member 3" in str(error) and error.member == 3
    assert "wind above limit" in error.output and last in error.output
    marked = forked.advance(u, 4, on_blow_up="mark")
    assert marked.failed_step.tolist() == [0, 0, 0, 1, 0]
    assert np.isnan(marked.states[1:, 3]).all() and np.array_equal(marked.states[0], u)
    others = [0, 1, 2, 4]
    assert np.array_equal(marked.states[:, others], before.states[:, others])


def test_it_says_the_step(forked):
    u = starts(2)
    u[1] = 80.0, 500.0, 0.0  # passes 90 in the third step
    with pytest.raises(SolverStopped, match="after 2 of 6 outer steps") as caught:
        forked.advance(u, 6, correction=None)
    assert caught.value.step == 2 and caught.value.member == 1
    assert forked.advance(u, 6, on_blow_up="mark").failed_step.tolist() == [0, 3]


def test_the_first_member_that_stopped_is_told(forked):
    u = starts(6)
    u[5, 0], u[2, 0] = 92, 93
    for _ in range(3):
        with pytest.raises(SolverStopped, match="member 2") as caught:
            forked.advance(u, 4)
        assert caught.value.code == 1


def test_a_worker_that_ended_is_replaced(workers, caplog):
    u = starts(4)
    before, pids = workers.advance(u, 4), workers.processes
    u[1, 0] = 92
    marked = workers.advance(u, 4, on_blow_up="mark")
    assert marked.failed_step.tolist() == [0, 1, 0, 0] and "exit code 3" in caplog.text
    assert np.array_equal(marked.states[:, [0, 2, 3]], before.states[:, [0, 2, 3]])  # member 3 ran in the new one
    assert workers.processes[0] == pids[0] and workers.processes[1] != pids[1]
    assert not Path(f"/proc/{pids[1]}").exists()
    os.kill(pids[0], signal.SIGSEGV)  # between two rollouts: nobody's rollout is lost
    wait_for(lambda: state_of(pids[0]) in ("Z", ""))
    assert equal(workers.advance(starts(4), 4), before)


def test_a_window_that_stopped_is_dropped_and_the_rest_trains(workers, here):
    u, gradients = starts(3), []
    u[1, 0] = 92
    for solver, members in ((workers, [0, 1, 2]), (here(), [0, 2])):
        net = network()
        states = trimtab.rollout(solver, net, u[members], 5, on_blow_up="mark")
        states[:, [-1, 0]].square().sum().backward()
        gradients.append(torch.cat([one.grad.flatten() for one in net.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-13, atol=0)


def test_a_hang_is_bounded(forked, monkeypatch, caplog):
    monkeypatch.setattr(forked._crew, "timeout", 4.0)
    u = starts(3)
    u[1, 0] = HANG
    assert forked.advance(u, 4, on_blow_up="mark").failed_step.tolist() == [0, 1, 0]
    assert "did not answer within 4 seconds and was ended in member 1" in caplog.text


def test_an_interrupt_ends_a_rollout_at_once(workers):
    before, pids = workers.advance(starts(2), 4), workers.processes
    u = starts(2)
    u[:, 0] = HANG
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        workers.advance(u, 4)
    assert time.monotonic() - began < 30 and not any(state_of(one) for one in pids)
    assert equal(workers.advance(starts(2), 4), before)


def test_a_script_whose_workers_die_with_it(inputs):
    script = (f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
              "import numpy, torch, trimtab.isolation as t\n"
              "class Mine(torch.nn.Module):\n"
              "    def forward(self, u):\n"
              "        return 0 * u\n"
              f"options = dict(library={str(inputs / 'libhidden.so')!r})\n"
              f"s = t.IsolatedSolver({OPENER!r}, options, isolation='fork', verify=False)\n"
              "print(*s.processes, flush=True)\n"
              "assert (s.advance(numpy.ones((1, 3)), 1, correction=Mine()).states > 0).all()\n"
              f"s.advance(numpy.full((1, 3), {HANG}), 1)\n")
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        prepared = int(parent.stdout.readline())
        wait_for(lambda: children_of(prepared))
        (child,) = children_of(prepared)
        parent.kill()
    wait_for(lambda: not state_of(child) and not state_of(prepared))


@pytest.mark.parametrize("opener, options, kind, words", [
    ("hidden_case:refusing", {"year": 1850}, LookupError, "no forcing for 1850"),
    ("hidden_case:stopping", {}, SolverStopped, "exit code 4 .* while it was opened.*\n.*no licence"),
])
def test_an_opener_that_fails(opener, options, kind, words):
    with pytest.raises(kind, match=words):
        IsolatedSolver(opener, options)
    assert not [one for one in children_of(os.getpid()) if state_of(one) == "Z"]


def test_blow_ups_are_those_of_any_solver(workers):
    u = starts(3)
    u[1] = -1.7e308
    with pytest.raises(BlowUpError, match="1 of 3 members, the first is 1") as caught:
        workers.advance(u, 60, stride=40)
    assert workers.advance(u, 60, stride=40, on_blow_up="mark").failed_step.tolist() == caught.value.steps.tolist()


# -- a place of its own ------------------------------------------------------------------------------------------------


def test_each_instance_has_its_own_place(workers, inputs):
    pid, folder = workers.where()
    assert pid != os.getpid() and Path(folder).is_relative_to(inputs / "run") and Path(folder) != Path.cwd()
    assert {"forcing.txt", "hidden.f"} <= set(workers.files())
    assert (Path(folder) / "hidden.f").is_symlink() and not (Path(folder) / "forcing.txt").is_symlink()
    logs = [path.read_text() for path in workers.scratch.glob("worker-*.log")]
    assert len(logs) >= 2 and all("namelist says   2.5" in text for text in logs)
    assert workers.variable("YEAR") == "1979" and workers.variable("OMP_NUM_THREADS") == "1"


def test_a_log_does_not_grow_for_ever(workers, monkeypatch):
    log = workers._crew._workers[0].place.log
    monkeypatch.setattr("trimtab.isolation.workdir.folder.LONGEST_LOG", log.stat().st_size - 1)
    workers.say("once")
    assert log.read_text() == "once\n"
    workers.say("twice")
    assert log.read_text() == "once\ntwice\n"


def shared_memory() -> set[str]:
    """What lies in shared memory, but for that of MPI jobs, which other tests may run meanwhile."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith(("vader_segment", "sm_segment", "open_mpi"))}


def test_closing_leaves_nothing(inputs, tmp_path):
    gc.collect()
    shared, files = shared_memory(), len(os.listdir("/proc/self/fd"))
    solver = IsolatedSolver(OPENER, {"library": str(inputs / "libhidden.so")}, folder=tmp_path)
    solver.advance(starts(2), 3, correction=network())
    (pid,) = solver.processes
    assert solver.scratch.parent == tmp_path and solver.scratch.exists()
    solver.close()
    solver.close()
    assert not solver.scratch.exists() and not state_of(pid)
    assert shared_memory() <= shared and len(os.listdir("/proc/self/fd")) == files
    with pytest.raises(SolverError, match="is closed"):
        solver.advance(starts(1), 1)


def test_what_is_to_be_kept_is_kept(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")  # as under mpirun
    (tmp_path / "large.bin").write_bytes(bytes(100))
    (tmp_path / "large.bin").chmod(0o444)
    options = {"library": str(inputs / "libhidden.so")}
    with IsolatedSolver(OPENER, options, isolation="fork", folder=tmp_path, keep=True,
                        files=[inputs / "forcing.txt", tmp_path / "large.bin"]) as solver:
        solver.advance(starts(2), 3)
        with pytest.raises(KeyError, match="OMPI_COMM_WORLD_RANK"):
            solver.variable("OMPI_COMM_WORLD_RANK")
    folders = sorted(path.name for path in solver.scratch.iterdir() if path.is_dir())
    assert folders == ["member-2", "member-3", "member-4", "member-5", "member-6", "worker-1"]  # two compared, two run, a call
    assert (solver.scratch / "worker-1.log").read_text() == "closed\n"
    assert all((solver.scratch / name / "forcing.txt").exists() for name in folders)
    assert [(solver.scratch / name / "large.bin").is_symlink() for name in folders] == [True] * 5 + [False]


def test_memory_does_not_grow(workers, forked):
    for solver, rollouts in ((workers, 60), (forked, 6)):
        measured = []
        for _ in range(3):
            for _ in range(rollouts):
                solver.advance(starts(2), 200)  # 12 kB in memory
                solver.advance(starts(2), 4, correction=network())
            measured.append((len(os.listdir("/proc/self/fd")), resident(os.getpid()),
                             *(resident(one) for one in solver.processes)))
        last, before = np.array(measured[2]), np.array(measured[1])
        assert last[0] == before[0] and (last[1:] - before[1:] < 400).all(), measured


# -- what else a solver offers -----------------------------------------------------------------------------------------


def test_what_the_solver_offers_is_there_and_nothing_else(workers, forked):
    for solver in (workers, forked):
        assert isinstance(solver, trimtab.Solver) and solver.has_adjoint is False
        assert np.array_equal(solver.tendency(torch.tensor([[1.0, 2.0, 3.0]]).double()), [[2.0, -1.0, -0.1 * 3.0]])
        assert not hasattr(solver, "tendency_adjoint") and not hasattr(solver, "slot_adjoint")
        with pytest.raises(ConfigError, match="adjoint"):
            trimtab.rollout(solver, network(), starts(1), 2, gradient="euler")
        with pytest.raises(InputError, match="float64"):
            solver.advance(starts(1).astype("float32"), 1)
        with pytest.raises(SolverError, match="another process"):
            solver.__reduce__()


def test_our_own_solver_in_workers(open_solver, random_states):
    inner = open_solver("lorenz63")
    u = random_states(inner)
    with IsolatedSolver("trimtab:open_solver", {"name": "lorenz63", "dt": 0.01, "beta": 0.0}, group=3) as solver:
        net = network()
        assert solver.has_adjoint is True and solver.spec.parameters == inner.spec.parameters
        for gradient in ("static", "tangent"):
            one, two = (trimtab.rollout(each, net, u, 10, gradient=gradient) for each in (inner, solver))
            assert torch.equal(one, two)
            grads = [torch.autograd.grad(each.square().mean(), list(net.parameters())) for each in (one, two)]
            assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("settings, words", [
    ({"isolation": "thread"}, "isolation = 'thread'"), ({"snapshot": "disk"}, "snapshot = 'disk'"),
    ({"instances": 0}, "instances = 0"), ({"isolation": "fork", "threads": 2}, "threads = 1"),
    ({"isolation": "fork", "snapshot": "image"}, "it is one"), ({"timeout": -1.0}, "timeout"),
    ({"files": ["nowhere.txt"]}, "nowhere.txt does not exist"), ({"isolation": "none", "instances": 2}, "instances: only with"),
    ({"isolation": "none"}, "cannot be imported"), ({"folder": "/proc/nowhere"}, "No folder can be made"),
])
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        open_isolated("hidden_case:missing", {}, **settings)


def test_options_that_cannot_travel_are_refused():
    with pytest.raises(ConfigError, match="cannot be sent"):
        IsolatedSolver(OPENER, {"library": threading.Lock()})


def test_a_fork_wants_one_thread(inputs):
    options = {"library": str(inputs / "libhidden.so"), "thread": True}
    with IsolatedSolver(OPENER, options, isolation="fork") as solver, pytest.raises(SolverError, match="has 2 threads"):
        solver.advance(starts(1), 1)


# -- images and copies, in this process --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [NOTHING, COMMON, RANDOM])
def test_an_image_covers_static_memory(here, kind):
    solver = here(kind, snapshot="image")
    whole = solver.advance(starts(), 9)
    assert solver.times_restored == 5 + 2  # each member, and two rollouts that were compared first
    assert equal(whole, solver.advance(starts(), 9))
    assert np.array_equal(whole.states[:, 3], solver.advance(starts()[3:4], 9).states[:, 0])
    fresh = here(kind).advance(starts(1), 9)
    assert kind == RANDOM or np.array_equal(fresh.states[:, 0], whole.states[:, 0])
    assert solver.has_adjoint is False and np.array_equal(solver.tendency(starts(1)), here().tendency(starts(1)))


@pytest.mark.parametrize("kind, words", [
    (HEAP, "an array on the heap, most likely"), (LATE, "allocated, freed or exchanged"), (FILE, "forcing.txt"),
    (SCRATCH_FILE, "gfortrantmp|open files|was read"),
])
def test_what_an_image_does_not_cover_is_refused(here, inputs, monkeypatch, kind, words):
    monkeypatch.chdir(inputs)
    with pytest.raises(SolverError, match=words) as caught:
        here(kind, snapshot="image").advance(starts(1), 9)
    assert "isolation = \"fork\"" in str(caught.value)


def test_a_log_that_others_write_on_is_no_trace_of_the_solver(tmp_path):
    with open(tmp_path / "log.txt", "w") as log:
        known, asked = Traces(frozenset({str(tmp_path / "log.txt")})), Traces()
        log.write("a line of somebody else's")
        log.flush()
        assert any("log.txt was read or written on" in one for one in asked.changes())
        assert not any("log.txt" in one for one in known.changes())


def test_an_image_in_workers(inputs):
    options = {"library": str(inputs / "libhidden.so"), "kind": COMMON}
    with IsolatedSolver(OPENER, options, instances=2, snapshot="image", libraries=["hidden"]) as solver:
        assert equal(solver.advance(starts(), 9), solver.advance(starts(), 9))


def test_an_image_names_what_it_does_not_find(here):
    with pytest.raises(ConfigError, match="'libnowhere' is loaded"):
        here(COMMON, snapshot="image", libraries=["libnowhere"])


def test_private_copies_have_their_own_common(inputs):
    def set_to(library, value):
        library.lset((ctypes.c_double * 3)(*[value] * 3))

    def get(library):
        held = (ctypes.c_double * 3)()
        library.lget(held)
        return list(held)

    path = inputs / "libhidden.so"
    one, two = load_private_copy(path), load_private_copy(path)
    set_to(one, 1.0)
    set_to(two, 2.0)
    assert get(one) == [1.0] * 3 and get(two) == [2.0] * 3
    shared, again = ctypes.CDLL(str(path)), ctypes.CDLL(str(path))
    set_to(shared, 3.0)
    assert get(again) == [3.0] * 3 and get(one) == [1.0] * 3  # loaded twice by one name it is one library
    with pytest.raises(ConfigError, match="does not exist"):
        load_private_copy(inputs / "libmissing.so")


def state_of(pid: int) -> str:
    """Letter of a process's state; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def children_of(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def resident(pid: int) -> int:
    """kB in memory, files apart."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(one.split()[1]) for one in lines if one.startswith(("RssAnon", "RssShmem")))


def wait_for(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
