# SPDX-License-Identifier: MIT
"""A solver that is MPI-parallel itself: advection and diffusion of a tracer on a ring, each rank a stretch of it."""

from __future__ import annotations

import numpy as np
import torch

from trimtab.core.spec import Field, SolverSpec
from trimtab.core.window import Window


class Ring:
    """dc/dt = -speed dc/dx + viscosity d2c/dx2 + damping c + correction, upwind, explicit Euler, the ring of length 1.

    Ranks exchange the cells at the ends of their stretches in every step; the correction sees a rank's own cells alone.
    """

    def __init__(self, n=16, dt=0.01, speed=1.0, viscosity=0.01, damping=0.0, comm=None):
        self.comm, self.dx = comm, 1.0 / n
        self.speed, self.viscosity, self.damping = speed, viscosity, damping
        rank, size = (comm.rank, comm.size) if comm is not None else (0, 1)
        self.block = np.arange(n)[rank * n // size : (rank + 1) * n // size]
        self.whole, self.spec = self._spec(n, dt, np.arange(n)), self._spec(n, dt, self.block)

    def _spec(self, n, dt, cells):
        coords = {"x": (cells + 0.5) / n, "z": np.zeros(1)}
        return SolverSpec("ring", dt, 1, (Field("c", "tracer", "1", ("x", "z"), (len(cells), 1), coords),))

    def _ends(self, c):
        """The cell before the first and the one behind the last."""
        if self.comm is None:
            return c[:, -1:].copy(), c[:, :1].copy()
        before, behind = (self.comm.rank - 1) % self.comm.size, (self.comm.rank + 1) % self.comm.size
        left, right = np.empty((len(c), 1)), np.empty((len(c), 1))
        self.comm.Sendrecv(c[:, -1:].copy(), dest=behind, recvbuf=left, source=before)
        self.comm.Sendrecv(c[:, :1].copy(), dest=before, recvbuf=right, source=behind)
        return left, right

    def advance(self, u0, steps, *, correction=None, stride=1, time=0.0, on_blow_up="raise"):
        states = np.empty((steps + 1, *np.shape(u0)))
        c = states[0] = self.spec.check_states(u0)
        for k in range(steps):
            for _ in range(stride):
                left, right = self._ends(c)
                wide = np.concatenate([left, c, right], axis=1)
                tendency = -self.speed * (wide[:, 1:-1] - wide[:, :-2]) / self.dx
                tendency += self.viscosity * (wide[:, 2:] - 2 * wide[:, 1:-1] + wide[:, :-2]) / self.dx**2
                tendency += self.damping * c
                if correction is not None:
                    with torch.no_grad():
                        tendency += correction(torch.from_numpy(c)).numpy()
                c = c + self.spec.dt * tendency
            states[k + 1] = c
        h = stride * self.spec.dt
        return Window(states, time + h * np.arange(steps + 1), h, np.zeros(len(c), dtype=np.int64))

    def close(self):
        pass
