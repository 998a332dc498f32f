# SPDX-License-Identifier: MIT
"""Online training: a step against the sum of its bare parts, and Static-EGA against exact backpropagation.

Exact backpropagation runs through the torch twin: same network, window, scheme and precision. Peak memory is what a
fresh process grows by over its state before the step. Aims: 90 % of the bare parts; on Lorenz 63 a backward pass at least 14
times faster at n = 1000 (the authors' figure, for the backward pass), at most a tenth of the memory at n = 100.
"""

from __future__ import annotations

import torch

import trimtab
from clock import in_turn, median, ratio
from trimtab.reproduce.results.rollout_cost import in_fresh_process, lorenz, plane

LORENZ, PLANE = (10, 50, 100, 500, 1000), (5, 10, 20)


def against_exact() -> list[dict[str, object]]:
    """Time and memory, each figure from a process of its own."""
    rows: list[dict[str, object]] = []
    for kind, lengths in (("lorenz63", LORENZ), ("qg", PLANE)):
        for n in lengths:
            static, exact = (in_fresh_process(kind, how, n) for how in ("static", "graph"))
            totals = [one["forward"] + one["backward"] for one in (static, exact)]
            rows.append({"solver": kind, "n": n, "static [CPU s]": totals[0], "exact [CPU s]": totals[1],
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

