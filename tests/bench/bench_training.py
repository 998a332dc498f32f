# SPDX-License-Identifier: MIT
"""Online training: a step against the sum of its bare parts, and Static-EGA against exact backpropagation.

Exact backpropagation runs through the torch twin: same network, window, scheme and precision. Peak memory is what a
fresh process grows by over its state before the step. Aims: 90 % of the bare parts; on Lorenz 63 a backward pass at least 14
times faster at n = 1000 (the authors' figure, for the backward pass), at most a tenth of the memory at n = 100.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import trimtab
from clock import in_turn, median, ratio

LORENZ, PLANE = (10, 50, 100, 500, 1000), (5, 10, 20)


def lorenz() -> tuple[trimtab.Solver, trimtab.Correction, np.ndarray]:
    """Lorenz 63, MLP 3-32-32-3 in float32, batch 64."""
    solver = trimtab.open_solver("lorenz63", dt=0.001, beta=0.0)
    torch.manual_seed(0)
    network = trimtab.networks.MLP((3, 32, 32, 3))
    u0 = np.random.default_rng(0).standard_normal((64, 3)) * 5 + [0.0, 0.0, 25.0]
    return solver, trimtab.Correction(network, solver.spec, input_scale=15.0), u0


def plane(n: int = 64, batch: int = 8, width: int = 32) -> tuple[trimtab.Solver, trimtab.Correction, np.ndarray]:
    """QG, CNN 2-width-width-1 of 5x5 in float32, smooth random states."""
    solver = trimtab.open_solver("qg", n=n, dt=5e-3, viscosity=2e-4, drag=0.1, forcing_amplitude=4.0, forcing_wavenumber=4)
    torch.manual_seed(0)
    network = trimtab.networks.PeriodicCNN((2, width, width, 1), kernel=5)
    correction = trimtab.Correction(network, solver.spec, features=("q", "psi"), input_scale=5.0, output_scale=0.1)
    k2 = np.fft.fftfreq(n, 1 / n)[:, None] ** 2 + np.fft.rfftfreq(n, 1 / n) ** 2
    noise = np.fft.rfft2(np.random.default_rng(0).standard_normal((batch, n, n))) * np.exp(-k2 / 30) * (k2 > 0)
    q = np.fft.irfft2(noise, s=(n, n)).reshape(batch, -1)
    return solver, correction, 5 * q / q.std()


SETUPS: dict[str, Callable[[], tuple[trimtab.Solver, trimtab.Correction, np.ndarray]]] = {"lorenz63": lorenz, "qg": plane}


def one(kind: str, how: str, n: int) -> dict[str, float]:
    """Median seconds of the forward and backward pass, and peak growth of memory, in this process."""
    from trimtab.torch_solver import twin

    solver, correction, u0 = SETUPS[kind]()
    exact, start = twin(solver), torch.from_numpy(u0)

    def once(steps: int) -> tuple[float, float]:
        correction.zero_grad()
        begin = time.perf_counter()
        states = (trimtab.rollout(solver, correction, start, steps) if how == "static"
                  else exact.rollout(start, steps, correction))
        loss = states.square().mean()
        middle = time.perf_counter()
        loss.backward()
        return middle - begin, time.perf_counter() - middle

    once(1)
    before = peak(reset=True)
    passes: list[tuple[float, float]] = []
    while len(passes) < 3 or (sum(map(sum, passes)) < 1.0 and len(passes) < 20):
        passes.append(once(n))
    forward, backward = (median(list(times)) for times in zip(*passes, strict=True))
    return {"forward": forward, "backward": backward, "MiB": peak() - before}


def peak(reset: bool = False) -> float:
    """Largest resident memory of this process in MiB; not getrusage's, which a process inherits from its parent."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def against_exact() -> list[dict[str, object]]:
    """Time and memory, each figure from a process of its own."""
    rows: list[dict[str, object]] = []
    for kind, lengths in (("lorenz63", LORENZ), ("qg", PLANE)):
        for n in lengths:
            found = {}
            for how in ("static", "exact"):
                run = subprocess.run([sys.executable, __file__, kind, how, str(n)], capture_output=True, text=True, check=True)
                found[how] = json.loads(run.stdout)
            static, exact = found["static"], found["exact"]
            totals = [one["forward"] + one["backward"] for one in (static, exact)]
            rows.append({"solver": kind, "n": n, "static [s]": totals[0], "exact [s]": totals[1],
                         "step, times faster": totals[1] / totals[0],
                         "backward, times faster": exact["backward"] / static["backward"],
                         "static [MiB]": static["MiB"], "exact [MiB]": exact["MiB"],
                         "memory ratio": static["MiB"] / max(exact["MiB"], 1e-9)})
    return rows


def efficiency() -> list[dict[str, object]]:
    """An online step against solver without network + network at the same batches + its vector-Jacobian product."""
    rows: list[dict[str, object]] = []
    for label, setup, n in (("lorenz63, n = 10", lorenz, 10), ("qg 32x32, n = 5, batch 16", lambda: plane(32, 16), 5),
                            ("qg 64x64, n = 10, batch 8", plane, 10)):
        solver, correction, u0 = setup()
        start, target = torch.from_numpy(u0), torch.zeros(n + 1, *u0.shape, dtype=torch.float64)
        optimiser = torch.optim.Adam(correction.parameters(), 1e-12)
        ready = start.to(correction.dtype)
        many = start.repeat(n, 1)

        def whole(solver=solver, correction=correction, start=start, target=target, optimiser=optimiser, n=n):
            optimiser.zero_grad()
            loss = (trimtab.rollout(solver, correction, start, n) - target).square().mean()
            loss.backward()
            optimiser.step()

        def bare_solver(solver=solver, u0=u0, n=n):
            solver.advance(u0, n)

        def bare_network(correction=correction, ready=ready, n=n):
            with torch.inference_mode():
                for _ in range(4 * n):
                    correction(ready)

        def bare_product(correction=correction, many=many):
            torch.autograd.grad(correction(many), list(correction.parameters()), many)

        parts = {"solver": bare_solver, "network": bare_network, "product": bare_product}
        seconds = in_turn({"whole": whole, **parts}, rounds=9, least=0.2)
        bare = [sum(times) for times in zip(*(seconds[part] for part in parts), strict=True)]
        rows.append({"online step": label, "step [ms]": 1e3 * median(seconds["whole"]),
                     **{f"{part} [ms]": 1e3 * median(seconds[part]) for part in parts},
                     "efficiency": ratio(bare, seconds["whole"])})
    return rows


def measure() -> list[dict[str, object]]:
    """Rows of both tables."""
    return efficiency() + against_exact()


if __name__ == "__main__":
    print(json.dumps(one(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
