# SPDX-License-Identifier: MIT
"""A solver whose fields are declared in reverse alphabetical order, two of them of one shape; a counter and the time are hidden.

Its options decide what fields there are, so that the order of a mapping in a TOML has to survive, too.
"""

from __future__ import annotations

import numpy as np
import torch

from trimtab.core.errors import ConfigError
from trimtab.core.spec import Field, SolverSpec
from trimtab.core.window import Window

START = {"z": 1000.0, "y": 100.0, "b": 10.0, "a": 1.0}


class Backwards:
    """dz/dt = -rate z + b, dy/dt = -2 rate y, db/dt = 0, da/dt = rate; counter += 1 and time += dt at each step."""

    def __init__(self, dt=0.1, rate=0.1, sizes=None):
        sizes = sizes or {"z": 3, "y": 3, "b": 2, "a": 1}
        if list(sizes) != sorted(sizes, reverse=True):
            raise ConfigError(f"The order {list(sizes)} is not the one of the experiment.")
        self.rate = rate
        fields = [Field(name, name, "m", (f"{name}_1",), (size,)) for name, size in sizes.items()]
        fields.insert(2, Field("time", "its time", "s", ("time_1",), (1,), {}, True))
        fields.insert(1, Field("counter", "steps", "1", ("counter_1",), (1,), {}, True, "int64"))
        self.spec = SolverSpec("backwards", dt, 1, tuple(fields), "s")

    def initial_state(self):
        parts = {one.name: np.zeros(one.size) for one in self.spec.fields}
        parts |= {name: value + np.arange(len(parts[name])) for name, value in START.items()}
        return np.concatenate(list(parts.values()))[None]

    def advance(self, u0, steps, *, correction=None, stride=1, time=0.0, on_blow_up="raise"):
        states = np.empty((steps + 1, *np.shape(u0)))
        state = states[0] = self.spec.check_states(u0)
        dt = self.spec.dt
        for k in range(steps):
            for _ in range(stride):
                views, state = self.spec.split(state), state.copy()
                after = self.spec.split(state)
                after["z"] += dt * (views["b"][:, :1] - self.rate * views["z"])
                after["y"] -= 2 * dt * self.rate * views["y"]
                after["a"] += dt * self.rate
                after["counter"] += 1
                after["time"] += dt
                if correction is not None:
                    with torch.no_grad():
                        state = state + dt * correction(torch.from_numpy(states[k])).numpy()
            states[k + 1] = state
        h = stride * dt
        return Window(states, time + h * np.arange(steps + 1), h, np.zeros(len(state), dtype=np.int64))

    def close(self):
        pass
