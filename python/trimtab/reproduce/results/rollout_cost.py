# SPDX-License-Identifier: MIT
"""The cost of long rollouts: time and memory of one gradient, and its error, against exact backpropagation to n = 1000.

Exact backpropagation runs through the torch twin with the whole window's graph: same network, window, scheme, precision. Every
figure is the median of several passes in a fresh process. Time is the process's CPU time, which others on the machine hardly
change; memory is what its peak grows by over its state before the pass.

The authors (Ouala et al., arXiv 2311.10665, Lorenz 63, RK4, on a GPU): backward pass of Static-EGA 6 to 9 times faster than
through the full graph for n <= 50, 13.9 times at n = 1000; memory 0.27 of it. The error of a gradient is theirs to choose: h =
0.001, so that n = 1000 is 0.9 Lyapunov times, where Static-EGA is wrong and the tangent is not.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trimtab
from trimtab.core.errors import SolverError
from trimtab.data.reference import Progress
from trimtab.gradient.twin.torch_twin import twin
from trimtab.reproduce.cache import Pieces
from trimtab.reproduce.drawing import drawn, style
from trimtab.reproduce.gradient_metrics import VARIANTS, gradient_of, relative_error
from trimtab.reproduce.table import Check, Column, Table

TEXT = "time, memory and error of one gradient for windows to n = 1000, against exact backpropagation"
MINUTES = 20.0
LENGTHS = {"lorenz63": (10, 50, 100, 200, 500, 1000), "qg": (5, 10, 20, 50)}
HOWS = ("static", "tangent", "ensemble", "graph")  # the last is exact backpropagation, all of a window's graph at once
Setup = tuple[trimtab.Solver, trimtab.Correction, np.ndarray]


def lorenz() -> Setup:
    """Lorenz 63 with h = 0.001, MLP 3-32-32-3 in float32, batch 64."""
    solver = trimtab.open_solver("lorenz63", dt=0.001, beta=0.0)
    torch.manual_seed(0)
    network = trimtab.networks.MLP((3, 32, 32, 3))
    u0 = np.random.default_rng(0).standard_normal((64, 3)) * 5 + [0.0, 0.0, 25.0]
    return solver, trimtab.Correction(network, solver.spec, input_scale=15.0), u0


def plane(n: int = 64, batch: int = 8, width: int = 32) -> Setup:
    """QG, CNN 2-width-width-1 of 5x5 in float32, smooth random states."""
    solver = trimtab.open_solver("qg", n=n, dt=5e-3, viscosity=2e-4, drag=0.1, forcing_amplitude=4.0, forcing_wavenumber=4)
    torch.manual_seed(0)
    network = trimtab.networks.PeriodicCNN((2, width, width, 1), kernel=5)
    correction = trimtab.Correction(network, solver.spec, features=("q", "psi"), input_scale=5.0, output_scale=0.1)
    k2 = np.fft.fftfreq(n, 1 / n)[:, None] ** 2 + np.fft.rfftfreq(n, 1 / n) ** 2
    noise = np.fft.rfft2(np.random.default_rng(0).standard_normal((batch, n, n))) * np.exp(-k2 / 30) * (k2 > 0)
    q = np.fft.irfft2(noise, s=(n, n)).reshape(batch, -1)
    return solver, correction, 5 * q / q.std()


SETUPS: dict[str, Callable[[], Setup]] = {"lorenz63": lorenz, "qg": plane}


def run(out: Path, quick: bool, progress: Progress) -> Table:
    """See `trimtab.reproduce`."""
    lengths = {"lorenz63": (10,)} if quick else LENGTHS
    hows = ("static", "graph") if quick else HOWS
    pieces = Pieces(out, progress, sum(map(len, lengths.values())) * (1 + len(hows)), "rollout-cost")
    rows = []
    for kind, several in lengths.items():
        for n in several:
            costs = {how: pieces.get(f"{kind}-{n}-{how}", {}, partial(in_fresh_process, kind, how, n, 0.0 if quick else 1.0))
                     for how in hows}
            errors = pieces.get(f"{kind}-{n}-errors", {"hows": hows}, partial(_errors, kind, n, hows))
            for how in hows:
                rows.append({"solver": kind, "n": n, "gradient": "exact, full graph" if how == "graph" else how,
                             **costs[how], "faster": costs["graph"]["backward"] / costs[how]["backward"],
                             "memory": costs[how]["MiB"] / max(costs["graph"]["MiB"], 1e-9), "error": errors.get(how)})
    columns = (Column("solver", "solver"), Column("n", "n"), Column("gradient", "gradient"),
               Column("forward", "forward", "CPU s"), Column("backward", "backward", "CPU s"), Column("MiB", "memory", "MiB"),
               Column("faster", "backward, times faster than exact"), Column("memory", "memory over exact"),
               Column("error", "relative error"))
    _draw(out / "cost.png", rows)
    return Table("rollout-cost", TEXT, columns, rows, _checks(rows), ("cost.png",), (), quick)


def in_fresh_process(kind: str, how: str, n: int, least: float = 1.0) -> dict[str, float]:
    """`measure` in a process of its own; arguments as there.

    Raises:
        SolverError: it failed; its last line of output.
    """
    done = subprocess.run([sys.executable, "-P", "-m", "trimtab.reproduce.results.rollout_cost", kind, how, str(n), str(least)],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise SolverError(f"Measuring {how} on {kind} at n = {n} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(kind: str, how: str, n: int, least: float) -> dict[str, float]:
    """Median CPU seconds of the forward and backward pass, and peak growth of memory, in this process.

    Args:
        kind: a key of `SETUPS`.
        how: a gradient variant, or "graph" for backpropagation through the twin's whole graph.
        n: steps.
        least: seconds that the passes take together, at least, unless they are 20; there are 3 in any case.

    Returns:
        "forward" and "backward" in seconds, "MiB".
    """
    solver, correction, u0 = SETUPS[kind]()
    exact, start = twin(solver), torch.from_numpy(u0)

    def once(steps: int) -> tuple[float, float]:
        correction.zero_grad()
        begin = time.process_time()
        states = (exact.rollout(start, steps, correction) if how == "graph"
                  else trimtab.rollout(solver, correction, start, steps, gradient=how))
        loss = states.square().mean()
        middle = time.process_time()
        loss.backward()
        return middle - begin, time.process_time() - middle

    once(1)
    before = _peak(reset=True)
    passes: list[tuple[float, float]] = []
    while len(passes) < 3 or (sum(map(sum, passes)) < least and len(passes) < 20):
        passes.append(once(n))
    forward, backward = (statistics.median(times) for times in zip(*passes, strict=True))
    return {"forward": forward, "backward": backward, "MiB": _peak() - before}


def _peak(reset: bool = False) -> float:
    """Largest resident memory of this process in MiB; not getrusage's, which a process inherits from its parent.

    NaN on systems without /proc.
    """
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def _errors(kind: str, n: int, hows: tuple[str, ...]) -> dict[str, float]:
    solver, correction, u0 = SETUPS[kind]()
    try:
        exact, _ = gradient_of(solver, correction, u0, n, "exact", lambda states: states.square().mean())
        return {how: relative_error(gradient_of(solver, correction, u0, n, how, lambda states: states.square().mean())[0], exact)
                for how in hows if how in VARIANTS}
    finally:
        solver.close()


def _checks(rows: list[dict[str, Any]]) -> tuple[Check, ...]:
    static = {row["n"]: row for row in rows if row["solver"] == "lorenz63" and row["gradient"] == "static"}
    last = max(static)
    source = "the authors, Static-EGA on a GPU"
    checks = [Check(f"Lorenz 63, n = {n}: backward pass, times faster than exact", static[n]["faster"], least, "at least", 0.0,
                    source) for n, least in ((10, 6.0), (50, 6.0), (last, 13.9)) if n in static]
    return (*checks, Check(f"Lorenz 63, n = {last}: memory over exact", static[last]["memory"], 0.27, "at most", 0.0, source))


def _draw(path: Path, rows: list[dict[str, Any]]) -> None:
    kinds = list(dict.fromkeys(row["solver"] for row in rows))
    with drawn(path, 12, 3.6 * len(kinds)) as figure:
        for panels, kind in zip(figure.subplots(len(kinds), 3, squeeze=False), kinds, strict=True):
            for name in dict.fromkeys(row["gradient"] for row in rows):
                own = [row for row in rows if row["solver"] == kind and row["gradient"] == name]
                look, n = style(name.split(",")[0]), [row["n"] for row in own]
                panels[0].plot(n, [row["forward"] + row["backward"] for row in own], label=name, **look)
                panels[1].plot(n, [row["MiB"] for row in own], **look)
                if own[0]["error"] is not None:
                    panels[2].plot(n, [row["error"] for row in own], **look)
            for axes, what in zip(panels, ("CPU seconds a gradient", "memory, MiB", "relative error"), strict=True):
                axes.set(xscale="log", yscale="log", xlabel="window n", title=f"{kind}: {what}")
            panels[0].legend()


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))))
