# SPDX-License-Identifier: MIT
"""`Solver` over the compiled Fortran: opens it, describes it, drives it, fills its slot."""

from __future__ import annotations

import ctypes
import json
import weakref
from typing import Any

import numpy as np
import torch
from torch import nn

from trimtab.bridge import api
from trimtab.bridge.callback import Callback
from trimtab.bridge.runtime import configure_runtime
from trimtab.config import solver_namelists
from trimtab.errors import BlowUpError, ConfigError
from trimtab.networks import network_dtype
from trimtab.solver import OnBlowUp
from trimtab.state import Field, SolverSpec
from trimtab.window import Window

# Called by Fortran once a step while this thread holds the interpreter: an interrupt ends a rollout within one step.
_CHECK_SIGNALS = ctypes.cast(ctypes.pythonapi.PyErr_CheckSignals, ctypes.c_void_p).value


def open_solver(name: str, **options: Any) -> FortranSolver:
    """Open one of trimtab's Fortran solvers.

    Args:
        name: "lorenz63", "lorenz96", "lorenz96_two_scale", "oscillator" or "qg".
        options: `dt` (required), `integrator` ("euler", "rk2", "rk3", "rk4") or `order` (1 to 4),
            `correction_at` ("stage" or "step"), and the solver's own parameters, see `spec.parameters` and README.

    Returns:
        The solver; several may be open at once.

    Raises:
        ConfigError: an unknown solver or parameter, or a value out of range, with the solver's own sentence.
    """
    return FortranSolver(name, **options)


class FortranSolver:
    """A compiled solver behind the `Solver` protocol; see `open_solver`.

    Attributes:
        spec: what the solver says of itself.
    """

    def __init__(self, name: str, **options: Any):
        configure_runtime()
        self._handle = api.open_handle(*solver_namelists(name, options))
        self._finalizer = weakref.finalize(self, api.close_handle, self._handle)
        api.set_interrupt(self._handle, _CHECK_SIGNALS or 0)
        self._callback: Callback | None = None
        self.spec = _spec(json.loads(api.describe(self._handle)))

    def advance(self, u0: Any, steps: int, *, correction: nn.Module | None = None, stride: int = 1, time: float = 0.0,
                on_blow_up: OnBlowUp = "raise") -> Window:
        """See `Solver.advance`."""
        start = self.spec.check_states(u0)
        if steps < 1 or stride < 1:
            raise ConfigError(f"advance takes at least one step of at least one inner step, not {steps} of {stride}.")
        if on_blow_up not in ("raise", "mark"):
            raise ConfigError(f"on_blow_up = {on_blow_up!r}: give \"raise\" or \"mark\".")
        states = np.empty((steps + 1, *start.shape))
        states[0] = start
        failed = np.zeros(start.shape[0], dtype=np.int64)
        self._fill(correction)
        with torch.inference_mode():
            api.advance(self._handle, steps * stride, stride, time, states, failed)
        if failed.any() and on_blow_up == "raise":
            members = np.flatnonzero(failed)
            raise BlowUpError(
                f"The solver {self.spec.solver} left the finite numbers at inner step {int(failed[members].min())} "
                f"of {steps * stride} ({members.size} of {failed.size} members, the first is {int(members[0])}): "
                "shorten dt, or check the correction's scale.", failed)
        h = stride * self.spec.dt
        return Window(states, time + h * np.arange(steps + 1), h, failed)

    def tendency(self, u: Any) -> np.ndarray:
        """Physics tendency, without correction, at the border.

        Args:
            u: (B, N) float64 states.

        Returns:
            (B, N) float64, the state's unit per unit of time.

        Raises:
            InputError: as in `advance`.
        """
        return api.tendency(self._handle, self.spec.check_states(u, "u"))

    def close(self) -> None:
        """Close the Fortran solver; a second call does nothing."""
        self._finalizer()
        self._callback = None

    def __enter__(self) -> FortranSolver:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _fill(self, correction: nn.Module | None) -> None:
        """Leave in the slot what this run needs; a callback is made once a module and precision."""
        callback = self._callback
        if correction is None:
            wanted = None
        elif callback is not None and callback.module is correction and callback.dtype == network_dtype(correction):
            wanted = callback
        else:
            wanted = Callback(correction)
        if wanted is not callback:
            if wanted is None:
                api.set_correction(self._handle, 0, 0, 8)
            else:
                api.set_correction(self._handle, wanted.address, wanted.context, wanted.bytes)
            self._callback = wanted


def _spec(text: dict[str, Any]) -> SolverSpec:
    fields = []
    for one in text["fields"]:
        coords = {
            dim: axis["start"] + axis["step"] * np.arange(length)
            for (dim, axis), length in zip(one["coords"].items(), one["shape"], strict=True)
        }
        fields.append(Field(one["name"], one["long_name"], one["units"], tuple(one["dims"]), tuple(one["shape"]), coords))
    stepping = {key: text[key] for key in ("integrator", "correction_at")}
    return SolverSpec(text["solver"], text["dt"], text["order"], tuple(fields), text["time_units"],
                      {**text["parameters"], **stepping})
