# SPDX-License-Identifier: MIT
"""Ranks: online steps of QG 64x64 with a CNN at 4 windows a rank (weak scaling), what they spend on each other, and constants.

Aims: 2 ranks on 2 cores do at least 1.9 times the windows of one in the same time; the exchange takes less than 1 % of a step. 4
ranks on 2 cores are for information. The constants are those of the cost model in the README, chapter "On a cluster".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import torch
from torch import Tensor

import trimtab
from bench_training import plane
from clock import median
from trimtab.parallel.mpi import get_world
from trimtab.training.microbatches import TIMES, Crew
from trimtab.training.phase import Phase

WINDOWS, STEPS, LENGTH, ROUNDS = 4, 5, 5, 3  # windows a rank, steps a run, outer steps a window, runs


class Forced(Phase):
    """Windows that all start from one of a few states; the loss is the mean square of where they go."""

    name = "online"

    def __init__(self, solver, correction, starts, batch):
        self.solver, self.correction, self.starts = solver, correction, torch.from_numpy(starts)
        self.epochs, self.batch, self.microbatch, self.seed = 1, batch, 1, 0

    def loss(self, indices: np.ndarray, epoch: int) -> tuple[Tensor, int]:
        """See `Phase.loss`."""
        start = self.starts[indices % len(self.starts)]
        return trimtab.rollout(self.solver, self.correction, start, LENGTH).square().mean(), 0

    def size(self, epoch: int) -> int:
        """See `Phase.size`."""
        return self.batch

    def steps(self, epoch: int) -> int:
        """See `Phase.steps`."""
        return STEPS

    def rate(self, epoch: int, step: int) -> float:
        """See `Phase.rate`."""
        return 1e-3

    def window(self, epoch: int) -> int:
        """See `Phase.window`."""
        return LENGTH

    def held(self) -> list[np.ndarray]:
        """See `Phase.held`."""
        return []

    def judge(self, indices: np.ndarray) -> tuple[float, int]:
        """See `Phase.judge`."""
        return 0.0, 0


def one() -> None:
    """What one job measures; rank 0 prints it."""
    world = get_world()
    solver, correction, starts = plane()
    crew = Crew(world, correction, seed=0)
    phase = Forced(solver, correction, starts, WINDOWS * world.size)
    indices = np.arange(phase.batch)
    crew.step(phase, indices, 0, 0)
    crew.take_times()
    seconds = []
    for step in range(STEPS):
        world.wait()
        began = time.perf_counter()
        crew.step(phase, indices, 0, step)
        seconds.append(time.perf_counter() - began)
    times = crew.take_times()
    found = {"step": min(seconds), "idle": times["idle"], "parameters": sum(p.numel() for p in correction.parameters()),
             **{name: times[name] / STEPS for name in TIMES}}
    for label, count in (("small", 0), ("large", 10**6)):
        taken = []
        for _ in range(20):
            world.wait()
            began = time.perf_counter()
            if count:
                world.sum(np.ones((1, count), np.float32), range(world.size), [1 / world.size] * world.size)
            else:
                world.table(np.zeros(16))
            taken.append(time.perf_counter() - began)
        found[label] = median(taken)
    if world.rank == 0:
        print(json.dumps(found))


def measure() -> list[dict[str, object]]:
    """Rows for 1, 2 and 4 ranks, each the best of jobs that took turns."""
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1",
                   "OMPI_MCA_rmaps_base_oversubscribe": "1"}
    jobs: dict[int, list[dict[str, float]]] = {1: [], 2: [], 4: []}
    for turn in range(ROUNDS):
        for ranks, found in jobs.items():
            if ranks < 4 or not turn:
                run = subprocess.run(["mpirun", "-n", str(ranks), sys.executable, __file__], env=environment, capture_output=True,
                                     text=True, check=True)
                found.append(json.loads(run.stdout))
    single = min(one["step"] for one in jobs[1])
    rows: list[dict[str, object]] = []
    for ranks, found in jobs.items():
        best = min(found, key=lambda one: one["step"])
        rows.append({"ranks": ranks, "windows": WINDOWS * ranks, "step [s]": best["step"],
                     "windows/s, times 1 rank": ranks * single / best["step"],
                     **{f"{name} [s]": best[name] for name in ("solver", "network", "backward", "exchange", "wait")},
                     "exchange [%]": 100 * best["exchange"] / best["step"], "idle [%]": 100 * best["idle"]})
    for ranks, found in jobs.items():
        meeting, large = (min(one[name] for one in found) for name in ("small", "large"))
        rows.append({"ranks": ranks, "parameters": int(found[0]["parameters"]), "meeting [us]": 1e6 * meeting,
                     "sum of 1e6 float32 [ms]": 1e3 * large, "sum [GB/s]": 8e-3 / large})  # sent and received again
    return rows


if __name__ == "__main__":
    one()
