# SPDX-License-Identifier: MIT
"""What the slot costs: Fortran calling a torch module, as it is and compiled, against Python calling it with a ready tensor.

The solver's own time is taken off: the same steps without a correction, timed in turn. Aims: at most 1 microsecond more than from
Python; compiled at most 6 microseconds for the smallest network, and never slower than the module as it is.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

import trimtab
from clock import in_turn, median, ratio

STEPS = 200


class OnGrid(nn.Module):
    """A CNN of the state alone, (B, n n) -> (B, n n), with two channels: the state and its square."""

    def __init__(self, network: nn.Module, n: int):
        super().__init__()
        self.network, self.n = network, n

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        q = u.view(-1, 1, self.n, self.n)
        return self.network(torch.cat([q, q * q], 1)).view(u.shape)


def cases() -> list[tuple[str, str, nn.Module, int]]:
    """(name, solver, module in float32, members)."""
    networks = trimtab.corrections.networks
    mlp = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 3))
    cnn = OnGrid(networks.PeriodicCNN((2, 64, 64, 1), kernel=5), 64)
    return [("identity", "lorenz63", nn.Identity(), 1),
            *((f"MLP 3-32-3, batch {b}", "lorenz63", mlp, b) for b in (1, 64, 1024)),
            ("CNN 2-64-64-1, 5x5, 64x64", "qg", cnn, 1),
            ("CNN 2-8-1, 3x3, 64x64", "qg", OnGrid(networks.PeriodicCNN((2, 8, 1), kernel=3), 64), 1)]


def measure() -> list[dict[str, object]]:
    """One row a case and precision: microseconds a call, and the slot's share of it."""
    rows: list[dict[str, object]] = []
    for name, kind, module, members in cases():
        for dtype in (torch.float32, torch.float64):
            module = module.to(dtype)
            module.dtype = dtype  # type: ignore[assignment]
            options = {"n": 64} if kind == "qg" else {}
            solver = trimtab.open_solver(kind, dt=1e-9, integrator="euler", **options)
            u0 = np.random.default_rng(0).standard_normal((members, solver.spec.size))
            ready = torch.from_numpy(u0).to(dtype)
            steps = 3 if kind == "qg" else STEPS

            def hybrid(solver=solver, u0=u0, module=module, steps=steps):
                solver.advance(u0, 1, stride=steps, correction=module)

            compiled = trimtab.open_solver(kind, dt=1e-9, integrator="euler", **options)
            twin = copy.deepcopy(module)
            twin.compiled = True  # type: ignore[assignment]

            def without_python(solver=compiled, u0=u0, module=twin, steps=steps):
                solver.advance(u0, 1, stride=steps, correction=module)

            def alone(solver=solver, u0=u0, steps=steps):
                solver.advance(u0, 1, stride=steps)

            def direct(module=module, ready=ready, steps=steps):
                with torch.no_grad():  # as the slot does
                    for _ in range(steps):
                        module(ready)

            seconds = in_turn({"hybrid": hybrid, "compiled": without_python, "alone": alone, "direct": direct})
            slot = [(a - b) / steps * 1e6 for a, b in zip(seconds["hybrid"], seconds["alone"], strict=True)]
            fast = [(a - b) / steps * 1e6 for a, b in zip(seconds["compiled"], seconds["alone"], strict=True)]
            call = [a / steps * 1e6 for a in seconds["direct"]]
            more = [a - b for a, b in zip(slot, call, strict=True)]
            rows.append({"case": name, "dtype": str(dtype).removeprefix("torch."),
                         "from Python [us]": median(call), "from Fortran [us]": median(slot),
                         "more [us]": median(more), "compiled [us]": median(fast), "compiled / as it is": ratio(fast, slot)})
            solver.close()
            compiled.close()
    return rows
