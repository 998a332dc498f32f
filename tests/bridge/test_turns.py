# SPDX-License-Identifier: MIT
"""One solver and several threads: they take turns, with the bits of one; who would wait for itself is told so."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import trimtab
from helpers import TESTS
from trimtab.core.errors import ConfigError, SolverError


class Switching(torch.nn.Module):
    """A network that lets another thread in, as torch does now and then."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = torch.nn.Linear(3, 3).double()

    def forward(self, u):
        answer = self.layer(u)
        time.sleep(1e-4)
        return answer


def starts(count: int = 16) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 1, 3)) * 5


def in_threads(work, arguments) -> list[bytes]:
    with ThreadPoolExecutor(2) as pool:
        return [one.states.tobytes() for one in pool.map(work, arguments)]


@pytest.fixture
def solver():
    with trimtab.open_solver("lorenz63", dt=0.01, beta=0.0) as opened:
        yield opened


def test_two_threads_share_a_solver(solver):
    network = Switching()

    def run(u):
        return solver.advance(u, 20, correction=network)

    assert in_threads(run, starts()) == [run(one).states.tobytes() for one in starts()]


def test_two_threads_share_a_solver_with_a_network_each(solver):
    networks = [Switching(seed) for seed in range(16)]

    def run(which):
        return solver.advance(starts()[which], 20, correction=networks[which])

    assert in_threads(run, range(16)) == [run(which).states.tobytes() for which in range(16)]


def test_two_solvers_share_a_correction(solver):
    torch.manual_seed(0)
    correction = trimtab.Correction(trimtab.networks.MLP(sizes=(3, 64, 3)), solver.spec).double()
    alone = [solver.advance(one, 20, correction=correction).states.tobytes() for one in starts()]
    with trimtab.open_solver("lorenz63", dt=0.01, beta=0.0) as other:
        solvers = [solver, other]
        assert in_threads(lambda i: solvers[i % 2].advance(starts()[i], 20, correction=correction), range(16)) == alone


def test_what_a_solver_offers_besides_waits_for_a_rollout(solver):
    """An adjoint in one thread, a rollout in another."""
    network, u, lam = Switching(), starts()[0], np.ones((1, 3))
    alone = solver.advance(u, 200, correction=network).states.tobytes(), solver.tendency_adjoint(u, lam).tobytes()
    with ThreadPoolExecutor(2) as pool:
        window = pool.submit(solver.advance, u, 200, correction=network)
        adjoints = {pool.submit(solver.tendency_adjoint, u, lam).result().tobytes() for _ in range(50)}
        assert (window.result().states.tobytes(), *adjoints) == alone


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_a_network_that_calls_its_own_solver_is_refused(solver, isolation):
    class Nested(torch.nn.Module):
        dtype = torch.float64

        def __init__(self, call):
            super().__init__()
            self.call = call

        def forward(self, u):
            self.call(u.numpy())
            return 0 * u

    u = starts(1)[0]
    if isolation == "none":
        calls = (lambda u: solver.advance(u.copy(), 1), lambda u: solver.tendency(u.copy()), lambda u: solver.close())
        for call in calls:
            with pytest.raises(SolverError, match=r"The solver lorenz63 is called while it runs.*open a second one"):
                solver.advance(u, 3, correction=Nested(call))
            assert solver.advance(u, 3).alive.all()
        with trimtab.open_solver("lorenz63", dt=0.01) as other:  # another solver may be
            assert solver.advance(u, 3, correction=Nested(lambda u: other.advance(u.copy(), 1))).alive.all()
        return
    with trimtab.open_solver("stopping:Stopping", isolation=isolation, dt=0.01) as isolated, \
            pytest.raises(ConfigError, match="cannot be copied or sent"):
        isolated.advance(u, 3, correction=Nested(isolated.advance))


@pytest.fixture(autouse=True)
def place(monkeypatch):
    monkeypatch.syspath_prepend(TESTS / "isolation")


@pytest.mark.parametrize("isolation", ["none", "fork"])
def test_close_waits_for_a_rollout_of_another_thread(isolation):
    solver = trimtab.open_solver("lorenz63", dt=0.01, beta=0.0) if isolation == "none" else \
        trimtab.open_solver("stopping:Stopping", isolation="fork", dt=0.01, beta=0.0, pause=0.01)
    network = Switching() if isolation == "none" else None
    expected = solver.advance(starts()[0], 50, correction=network).states.tobytes()
    with ThreadPoolExecutor(1) as pool:
        window = pool.submit(solver.advance, starts()[0], 50, correction=network)
        while not (solver.turn if isolation == "none" else solver._turn)._lock.locked():
            time.sleep(1e-4)
        solver.close()
        assert window.done() or window.result(timeout=1)
        assert window.result().states.tobytes() == expected
    with pytest.raises(SolverError):
        solver.advance(starts()[0], 1)


def test_an_interrupted_rollout_gives_the_turn_back(solver):
    class Interrupting(torch.nn.Module):
        dtype = torch.float64

        def forward(self, u):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solver.advance(starts()[0], 3, correction=Interrupting())
    done = threading.Event()
    threading.Thread(target=lambda: (solver.advance(starts()[0], 3), done.set()), daemon=True).start()
    assert done.wait(30)
