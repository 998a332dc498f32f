# SPDX-License-Identifier: MIT
"""An ensemble whose members several ranks share: the bits of one rank alone, and nothing gathered; checked by each of them."""

from __future__ import annotations

import numpy as np
import torch

import trimtab
from trimtab.core.errors import SolverError
from trimtab.gradient import EnsembleEGA, Tape
from trimtab.parallel.mpi import get_world
from trimtab.parallel.subgroup import Cohort

OPTIONS = (
    {"members": 13},
    {"members": 13, "group": 3, "base": "none"},
    {"members": 10, "aim": 0, "group": 1, "rank": 7, "ridge": 0.1},
    {"members": 12, "spectrum": "white", "group": 2},
    {"members": 9, "spectrum": 2.0, "group": 1, "quadrature": "trapezoid"},
    {"members": 9, "renew": "window", "spectrum": "white", "group": 1},
    {"members": 12, "aim": 0, "spectrum": "white", "localisation": 1, "group": 2},
    {"members": 11, "aim": 2, "spectrum": "white", "localisation": 1, "base": "none"},
    {"members": 5, "aim": 5},
)


class Counting:
    """A solver that counts its runs, and loses those of some starts."""

    def __init__(self, solver):
        self.solver, self.spec, self.runs, self.lost = solver, solver.spec, 0, False

    def advance(self, u0, steps, **options):
        self.runs += len(u0) * steps
        window = self.solver.advance(u0, steps, **options)
        if self.lost:
            window.states[1:, np.asarray(u0)[:, 0] > np.median(np.asarray(u0)[:, 0])] = np.nan
        return window

    def close(self):
        self.solver.close()


def tape_of(name, windows, **options):
    """A rollout of two steps with a network, the same on every rank."""
    solver = Counting(trimtab.open_solver(name, dt=1e-4, **options))
    torch.manual_seed(0)
    dimensions = len(solver.spec.fields[0].shape)
    network = trimtab.networks.PeriodicCNN(channels=(1, 3, 1), kernel=3, activation="tanh", dimensions=dimensions)
    correction = trimtab.Correction(network, solver.spec, features=(solver.spec.fields[0].name,), input_scale=1.0)
    u0 = np.random.default_rng(0).standard_normal((windows, solver.spec.size))
    window = solver.advance(u0, 2, correction=correction)
    return Tape(torch.from_numpy(window.states), window.h, 1, solver, correction)


if __name__ == "__main__":
    world = get_world()
    group = world.place(1, world.size)
    assert (group.cohort.size, group.cohort.rank, world.cohort.size) == (world.size, world.rank, 1)
    assert group.placement() == f"{world.size} ranks on 1 host, which share the members of a window"
    most = 0
    original = Cohort.gather

    def watched(self, rows, counts):
        global most
        found = original(self, rows, counts)
        most = max(most, found.size)
        return found

    Cohort.gather = watched
    for name, windows, size in (("burgers", 2, {"n": 1100}), ("qg", 1, {"n": 40})):
        tape = tape_of(name, windows, **size)
        lam = torch.from_numpy(np.random.default_rng(1).standard_normal(tape.states.shape[1:]))
        for options in OPTIONS:
            alone = [EnsembleEGA(**options).pullback(tape, k, lam) for k in (1, 0)]
            tape.solver.runs, most, together = 0, 0, EnsembleEGA(**options)
            together.join(group.cohort)
            found = [together.pullback(tape, k, lam) for k in (1, 0)]
            assert all(map(torch.equal, alone, found)), (name, options)
            general = options["members"] - together.aim
            runs = np.array(world.share(tape.solver.runs)) / (2 * windows) - together.aim
            assert runs.sum() == general and runs.max() <= -(-general // world.size) + options.get("group", 4), (runs, options)
            products = 8 * windows * (general * (2 * general + 1) + 1)
            localised = 8 * tape.states[0].numel()  # one vector a slice
            assert most <= max(products, tape.states[0].numel(), localised if "localisation" in options else 0), (most, options)
            assert most < general * tape.states[0].numel() or general < 2, (most, options)
    tape.solver.lost = True
    lossy, shared = EnsembleEGA(9, group=1), EnsembleEGA(9, group=1)
    shared.join(group.cohort)
    try:
        expected = lossy.pullback(tape, 0, lam)
    except SolverError:
        expected = None
    try:
        assert torch.equal(shared.pullback(tape, 0, lam), expected)
    except SolverError:
        assert expected is None
    if world.rank == 0:
        print("the same bits")
