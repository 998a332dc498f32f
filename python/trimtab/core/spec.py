# SPDX-License-Identifier: MIT
"""Field names, shapes and units, and the way between them and the flat vector a flow is a map of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trimtab.core.errors import InputError


@dataclass(frozen=True)
class Field:
    """One field of a solver's state.

    Args:
        name: short name, the variable's name in files.
        long_name: what it is, in words.
        units: its unit; "1" when non-dimensional.
        dims: names of its dimensions, slowest first.
        shape: their lengths, in the same order.
        coords: one (length,) float64 array a dimension.
        hidden: a restart needs it, but no loss and no score looks at it (a previous time level, a flag).
        dtype: how the solver keeps it; at the border every field is float64.
    """

    name: str
    long_name: str
    units: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    coords: Mapping[str, np.ndarray] = field(default_factory=dict)
    hidden: bool = False
    dtype: str = "float64"

    @property
    def size(self) -> int:
        """Number of values of the field."""
        return math.prod(self.shape)

    @property
    def rounding(self) -> float:
        """Share of its values below which a standard deviation is rounding: the field is constant."""
        return 5e-7 if self.dtype.endswith("32") else 1e-12


@dataclass(frozen=True)
class Slot:
    """A named place where a network enters a solver whose network does not see the state itself.

    Args:
        name: its name.
        inputs: what the network sees, in the order in which the slot hands it over.
        outputs: what it returns: each the tendency of the field of the same name.
    """

    name: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]


@dataclass(frozen=True)
class SolverSpec:
    """What a solver says of itself: everything Python knows of it is read back from it, never typed twice.

    Args:
        solver: its name.
        dt: inner time step, in `time_units`.
        order: order of its time integrator.
        fields: the fields, in the order in which the flat state holds them.
        time_units: unit of time; "1" when non-dimensional.
        parameters: the parameters in force, by name.
        slots: named slots; empty where one network sees the state and returns its tendency.
        coefficient: what the slot takes when that is a coefficient of the solver's own tendency, with its shape and unit;
            None when it is the tendency of the state.
        dt_kind: how the solver keeps dt, which decides how exactly a time can be a whole number of steps.
    """

    solver: str
    dt: float
    order: int
    fields: tuple[Field, ...]
    time_units: str = "1"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    slots: tuple[Slot, ...] = ()
    coefficient: Field | None = None
    dt_kind: str = "real64"

    @property
    def size(self) -> int:
        """Length N of one state."""
        return sum(one.size for one in self.fields)

    @property
    def visible(self) -> np.ndarray | None:
        """(V,) int64, places of the fields that are not hidden; None when that is all of them."""
        if not any(one.hidden for one in self.fields):
            return None
        return np.flatnonzero(np.concatenate([np.full(one.size, not one.hidden) for one in self.fields]))

    @property
    def shown(self) -> SolverSpec:
        """The same without the hidden fields."""
        return dataclasses.replace(self, fields=tuple(one for one in self.fields if not one.hidden))
    @property
    def outputs(self) -> int:
        """Numbers M that the slot takes for one state."""
        return self.size if self.coefficient is None else self.coefficient.size

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the state as the network sees it: the field's own when there is one field, else (N,)."""
        return self.fields[0].shape if len(self.fields) == 1 else (self.size,)

    def split(self, states: np.ndarray) -> dict[str, np.ndarray]:
        """Views of the fields in flat states.

        Args:
            states: (..., N) array.

        Returns:
            One (..., *shape) view a field name.
        """
        views, start = {}, 0
        for one in self.fields:
            views[one.name] = states[..., start : start + one.size].reshape((*states.shape[:-1], *one.shape))
            start += one.size
        return views

    def check_states(self, states: Any, name: str = "u0") -> np.ndarray:
        """States as the solver takes them.

        Args:
            states: (B, N) float64, a numpy array or a torch tensor.
            name: what to call it in a refusal.

        Returns:
            (B, N) float64 C-contiguous, aligned array; the same memory when nothing had to be copied.

        Raises:
            InputError: another shape, dtype, or a value that is not finite.
        """
        if hasattr(states, "detach"):
            states = tensor_array(states, name)
        if not isinstance(states, np.ndarray):
            raise InputError(f"{name} must be a numpy array or a torch tensor of shape (members, {self.size}), "
                             f"not {type(states).__name__}.")
        if states.dtype != np.float64:
            raise InputError(f"{name} has dtype {states.dtype}; the solver {self.solver} works in float64: "
                             f"convert it on purpose with .astype('float64') or .double().")
        if states.ndim != 2 or states.shape[1] != self.size:
            raise InputError(f"{name} has shape {tuple(states.shape)}; the solver {self.solver} takes "
                             f"(members, {self.size}), each state flattened in the order {self._order()}.")
        if states.shape[0] == 0:
            raise InputError(f"{name} holds no member; give at least one state of length {self.size}.")
        finite = np.isfinite(states).all(axis=1)
        if not finite.all():
            raise InputError(f"{name} holds a NaN or an infinity in member {int(np.argmin(finite))}; "
                             f"remove that member or mend its data.")
        return plain(states)

    def _order(self) -> str:
        return ", ".join(f"{one.name}({', '.join(one.dims)})" for one in self.fields)


def visible_size(spec: SolverSpec) -> int:
    """Length of one state without the hidden fields."""
    return sum(one.size for one in spec.fields if not one.hidden)


def plain(array: np.ndarray) -> np.ndarray:
    """An array as Fortran and torch take it: C-contiguous, aligned, writeable, with no stride below 0; a copy only if need be.

    numpy calls a reversed array of one row contiguous, and torch refuses its stride.
    """
    return np.require(array.copy() if any(one < 0 for one in array.strides) else array, requirements=("C", "A", "W"))


def tensor_array(tensor: Any, name: str) -> np.ndarray:
    """A torch tensor as an array, without a copy where there need not be one.

    Args:
        tensor: of any shape.
        name: what to call it in a refusal.

    Returns:
        The array, of the same shape and dtype.

    Raises:
        InputError: a tensor that numpy has nothing like: bfloat16, sparse, without data.
    """
    try:
        return np.asarray(tensor.detach().cpu().numpy())
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{name} is a torch tensor of {tensor.dtype} ({tensor.layout}, {tensor.device}) that no array can hold: "
                         "give a dense one, with .to_dense() and .double().") from error


def is_vorticity(spec: SolverSpec) -> bool:
    """Whether the state is one field of vorticity q(y, x), so that spectra and stream function have a meaning."""
    return len(spec.fields) == 1 and spec.fields[0].name == "q" and len(spec.fields[0].shape) == 2


def grid_length(spec: SolverSpec) -> tuple[float, float]:
    """Length of the periodic plane in y and in x; the solver's parameter `length`, 2 pi when it has none."""
    length = float(spec.parameters.get("length", 2 * np.pi))
    return length, length


def resolved_wavenumber(spec: SolverSpec) -> int:
    """Largest annulus a grid solver evolves without aliasing: n/3 with the 2/3 rule, else the last below n/2."""
    n = min(spec.grid)
    return n // 3 if str(spec.parameters.get("dealiasing")) == "2/3" else (n - 1) // 2
