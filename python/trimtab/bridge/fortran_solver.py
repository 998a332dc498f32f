# SPDX-License-Identifier: MIT
"""`Solver` over the compiled Fortran: opens it, describes it, drives it, fills its slot."""

from __future__ import annotations

import ctypes
import json
import math
import weakref
from typing import Any

import numpy as np
import torch
from torch import nn

from trimtab.bridge import api
from trimtab.bridge.callback import Callback
from trimtab.bridge.runtime import configure_runtime
from trimtab.config import solver_namelists
from trimtab.errors import BlowUpError, ConfigError, InputError, SolverError
from trimtab.networks import network_dtype
from trimtab.solver import OnBlowUp, whole_steps
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
        has_adjoint: whether `tendency_adjoint` answers.
    """

    def __init__(self, name: str, **options: Any):
        configure_runtime()
        self._handle = api.open_handle(*solver_namelists(name, options))
        self._finalizer = weakref.finalize(self, api.close_handle, self._handle)
        api.set_interrupt(self._handle, _CHECK_SIGNALS or 0)
        self._callback: Callback | None = None
        described = json.loads(api.describe(self._handle))
        self.spec, self.has_adjoint = _spec(described), bool(described["adjoint"])

    def advance(self, u0: Any, steps: int, *, correction: nn.Module | None = None, stride: int = 1, time: float = 0.0,
                on_blow_up: OnBlowUp = "raise") -> Window:
        """See `Solver.advance`."""
        start = self.spec.check_states(u0)
        steps, stride = whole_steps(steps, stride)
        if on_blow_up not in ("raise", "mark"):
            raise ConfigError(f"on_blow_up = {on_blow_up!r}: give \"raise\" or \"mark\".")
        if isinstance(time, complex | str | bytes) or not math.isfinite(time):
            raise ConfigError(f"time = {time!r} must be a finite number.")
        try:
            states = np.empty((steps + 1, *start.shape))
        except (MemoryError, ValueError) as error:
            raise ConfigError(f"A window of {steps + 1} states of {start.size} numbers needs "
                              f"{8 * (steps + 1) * start.size / 2**30:.3g} GiB and there is no room for it: ask for fewer "
                              "steps, with a larger stride.") from error
        states[0] = start
        failed = np.zeros(start.shape[0], dtype=np.int64)
        self._fill(correction)
        with torch.no_grad():  # not inference mode: what a network makes at its first call must serve in the sweep, too
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

    def tendency_adjoint(self, u: Any, lam: Any) -> np.ndarray:
        """Transpose of the Jacobian of the physics tendency at the border, applied to a vector.

        Args:
            u: (B, N) float64 states.
            lam: (B, N) float64, numpy or torch; NaN in it is handed on.

        Returns:
            (B, N) float64, (dF/du(u))^T lam in the Euclidean inner product, lam's unit per unit of time.

        Raises:
            InputError: u as in `advance`; lam has another shape or dtype.
            SolverError: the solver has no adjoint, see `has_adjoint`.
        """
        return api.tendency_adjoint(self._handle, self.spec.check_states(u, "u"), self._check_vector(lam, "lam"))

    def project(self, u: Any) -> np.ndarray:
        """What the solver holds of a state or a tendency: an orthogonal projection, the identity for an ODE.

        For QG these are the retained modes; whatever else a network or a start has, the flow does not see.

        Args:
            u: (B, N) float64, numpy or torch; NaN in it is handed on.

        Returns:
            (B, N) float64 in the unit of u.

        Raises:
            InputError: another shape or dtype.
        """
        return api.project(self._handle, self._check_vector(u, "u"))

    def _check_vector(self, vector: Any, name: str) -> np.ndarray:
        """As `SolverSpec.check_states`, but what is not finite passes: an adjoint may overflow where a state did not."""
        array = vector.detach().cpu().numpy() if isinstance(vector, torch.Tensor) else np.asarray(vector)
        if array.dtype != np.float64 or array.ndim != 2 or array.shape[1] != self.spec.size or array.shape[0] == 0:
            raise InputError(f"{name} must be a (members, {self.spec.size}) float64 array, not {array.shape} {array.dtype}.")
        return np.require(array, requirements=("C", "A", "W"))

    def close(self) -> None:
        """Close the Fortran solver; a second call does nothing."""
        self._finalizer()
        self._callback = None

    def __reduce__(self) -> Any:
        raise SolverError("An open solver cannot be copied or sent to another process: open one there with the same options.")

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
