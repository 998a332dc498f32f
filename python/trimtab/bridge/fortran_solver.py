# SPDX-License-Identifier: MIT
"""`Solver` over the compiled Fortran: opens it, describes it, drives it, fills its slot."""

from __future__ import annotations

import ctypes
import json
import math
import reprlib
import weakref
from typing import Any

import numpy as np
import torch
from torch import nn

from trimtab.bridge import api
from trimtab.bridge.aot_function import Compiled
from trimtab.bridge.slot_callback import Callback
from trimtab.bridge.slot_function import explained, slot_function
from trimtab.bridge.threads import configure_runtime
from trimtab.config.experiment import solver_namelists
from trimtab.core.errors import ConfigError, InputError, SolverError, StepError
from trimtab.core.solver import OnBlowUp, refuse_blow_up, whole_steps
from trimtab.core.spec import Field, SolverSpec, plain, tensor_array
from trimtab.core.window import Window
from trimtab.isolation.solver_lock import Turn, in_turn

# Called by Fortran once a step while this thread holds the interpreter: an interrupt ends a rollout within one step.
_CHECK_SIGNALS = ctypes.cast(ctypes.pythonapi.PyErr_CheckSignals, ctypes.c_void_p).value


class FortranSolver:
    """A compiled solver behind the `Solver` protocol; see `trimtab.open_solver`. Several threads may share it, in turn.

    Attributes:
        spec: what the solver says of itself.
        has_adjoint: whether `tendency_adjoint` answers.
    """

    def __init__(self, name: str, **options: Any):
        configure_runtime()
        self.turn = Turn(name)
        self._handle = api.open_handle(*solver_namelists(name, options))
        self._finalizer = weakref.finalize(self, api.close_handle, self._handle)
        api.set_interrupt(self._handle, _CHECK_SIGNALS or 0)
        self._filling: Callback | Compiled | None = None
        described = json.loads(api.describe(self._handle))
        self.spec, self.has_adjoint = described_spec(described), bool(described["adjoint"])

    @in_turn
    def advance(self, u0: Any, steps: int, *, correction: nn.Module | None = None, stride: int = 1, time: float = 0.0,
                on_blow_up: OnBlowUp = "raise") -> Window:
        """See `Solver.advance`."""
        start = self.spec.check_states(u0)
        steps, stride = whole_steps(steps, stride)
        if on_blow_up not in ("raise", "mark"):
            raise ConfigError(f"on_blow_up = {on_blow_up!r}: give \"raise\" or \"mark\".")
        time = _finite(time)
        try:
            states = np.empty((steps + 1, *start.shape))
        except (MemoryError, ValueError) as error:
            raise ConfigError(f"A window of {steps + 1} states of {start.size} numbers needs "
                              f"{8 * (steps + 1) * start.size / 2**30:.3g} GiB and there is no room for it: ask for fewer "
                              "steps, with a larger stride.") from error
        states[0] = start
        failed = np.zeros(start.shape[0], dtype=np.int64)
        self._fill(correction, start)
        # Not inference mode: what a network makes at its first call must serve in the sweep, too.
        with explained((self._filling,)), torch.no_grad():
            reason = api.advance(self._handle, steps * stride, stride, time, states, failed)
        if on_blow_up == "raise":
            if reason:
                raise StepError(f"The solver {self.spec.solver} could not go on: {reason}.", failed)
            refuse_blow_up(self.spec, failed, steps * stride)
        h = stride * self.spec.dt
        return Window(states, time + h * np.arange(steps + 1), h, failed)

    @in_turn
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

    @in_turn
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

    @in_turn
    def influence(self, u: Any, coefficient: Any) -> np.ndarray:
        """What a coefficient in the slot adds to the tendency, N(u, P) - N(u, 0), linear in P.

        Args:
            u: (B, N) float64 states.
            coefficient: (B, M) float64, P, in the unit of `spec.coefficient`.

        Returns:
            (B, N) float64, the state's unit per unit of time.

        Raises:
            InputError: as in `advance`; a coefficient of another shape or dtype.
            SolverError: the slot takes a tendency.
        """
        return api.influence(self._handle, self.spec.check_states(u, "u"), self._check_vector(coefficient, "coefficient", True))

    @in_turn
    def influence_adjoint(self, u: Any, coefficient: Any, lam: Any) -> np.ndarray:
        """The derivative by the state of `influence`, transposed and applied to a vector.

        Args:
            u: (B, N) float64 states.
            coefficient: (B, M) float64, P, held fixed.
            lam: (B, N) float64; NaN in it is handed on.

        Returns:
            (B, N) float64.

        Raises:
            InputError, SolverError: as in `influence`.
        """
        return api.influence_state_adjoint(self._handle, self.spec.check_states(u, "u"),
                                           self._check_vector(coefficient, "coefficient", True), self._check_vector(lam, "lam"))

    @in_turn
    def slot_adjoint(self, u: Any, lam: Any, *, stride: int = 1, steady: bool = False) -> Any:
        """How what the slot answers enters the state, transposed: (dN/dP(u))^T lam, or lam itself where it is a tendency.

        Args:
            u: (B, N) float64 states.
            lam: (B, N) float64; NaN in it is handed on.
            stride, steady: of no consequence to a one-step scheme.

        Returns:
            (B, M) float64, per unit of time.

        Raises:
            InputError: as in `tendency_adjoint`.
        """
        if self.spec.coefficient is None:
            return lam
        return api.influence_adjoint(self._handle, self.spec.check_states(u, "u"), self._check_vector(lam, "lam"),
                                     self.spec.outputs)

    @in_turn
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

    @in_turn
    def substeps(self, u: Any, *, correction: nn.Module | None = None) -> np.ndarray:
        """Lengths of the steps that one inner step dt is made of: dt itself, but for an adaptive integrator.

        Args:
            u: (B, N) float64 states.
            correction: as in `advance`.

        Returns:
            (S, B) float64 in `time_units`, S those of the member with most; 0 where a member has fewer, or fails.

        Raises:
            InputError, CorrectionError: as in `advance`.
        """
        start = self.spec.check_states(u, "u")
        self._fill(correction, start)
        with explained((self._filling,)), torch.no_grad():
            return api.substeps(self._handle, start)

    def _check_vector(self, vector: Any, name: str, coefficient: bool = False) -> np.ndarray:
        """As `SolverSpec.check_states`, but what is not finite passes: an adjoint may overflow where a state did not."""
        if isinstance(vector, torch.Tensor):
            vector = tensor_array(vector, name)
        try:
            array = np.asarray(vector)
        except (TypeError, ValueError) as error:  # lists of several lengths, for instance
            raise InputError(f"{name} is no array ({error}).") from error
        size = self.spec.outputs if coefficient else self.spec.size
        if array.dtype != np.float64 or array.ndim != 2 or array.shape[1] != size or array.shape[0] == 0:
            raise InputError(f"{name} must be a (members, {size}) float64 array, not {array.shape} {array.dtype}.")
        return plain(array)

    @in_turn
    def close(self) -> None:
        """Close the Fortran solver; a second call does nothing."""
        self._finalizer()
        self._filling = None

    def __reduce__(self) -> Any:
        raise SolverError("An open solver cannot be copied or sent to another process: open one there with the same options.")

    def __enter__(self) -> FortranSolver:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _fill(self, correction: nn.Module | None, start: np.ndarray) -> None:
        """Leave in the slot what this run needs."""
        present = self._filling
        wanted = None
        if correction is not None:
            wanted = slot_function(correction, start.shape[1], present, outputs=self.spec.outputs, states=torch.from_numpy(start))
        if wanted is not present:
            if wanted is None:
                api.set_correction(self._handle, 0, 0, 8)
            else:
                api.set_correction(self._handle, wanted.address, wanted.context, wanted.bytes)
            self._filling = wanted


def _finite(time: Any) -> float:
    try:
        number = math.nan if isinstance(time, str | bytes) else float(time)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"time = {reprlib.repr(time)} must be a finite number.")
    return number


def described_spec(text: dict[str, Any]) -> SolverSpec:
    """What a Fortran solver says of itself.

    Args:
        text: its JSON, read; see `describe` of `fortran/driver.f90`.

    Returns:
        The spec.
    """
    fields = tuple(_field(one) for one in text["fields"])
    coefficient = _field(text["coefficient"]) if "coefficient" in text else None
    stepping: dict[str, Any] = {key: text[key] for key in ("integrator", "correction_at", "rtol", "atol") if key in text}
    return SolverSpec(text["solver"], text["dt"], text["order"], fields, text["time_units"],
                      {**text["parameters"], **stepping}, coefficient=coefficient)


def _field(one: dict[str, Any]) -> Field:
    lengths = dict(zip(one["dims"], one["shape"], strict=True))
    coords = {dim: axis["start"] + axis["step"] * np.arange(lengths[dim]) for dim, axis in one["coords"].items()}
    return Field(one["name"], one["long_name"], one["units"], tuple(one["dims"]), tuple(one["shape"]), coords)
