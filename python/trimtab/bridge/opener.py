# SPDX-License-Identifier: MIT
"""The one door to solvers: trimtab's own, a code with an adapter, a Python class."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from trimtab.bridge.coupled import CoupledSolver
from trimtab.bridge.fortran_solver import FortranSolver
from trimtab.errors import ConfigError
from trimtab.solver import Solver


def open_solver(name: str, **options: Any) -> Any:
    """Open a solver by name.

    Args:
        name: "lorenz63", "lorenz96", "lorenz96_two_scale", "oscillator" or "qg"; any name together with `library`, for a code
            with an adapter; or "package.module:Class", for a class of yours with `spec`, `advance` and `close`.
        options: of trimtab's own, `dt` (required), `integrator` ("euler", "rk2", "rk3", "rk4") or `order` (1 to 4),
            `correction_at` ("stage" or "step"), and the solver's parameters, see `spec.parameters` and README. With `library`,
            see `bridge/coupled.py`; of a class, its arguments.

    Returns:
        The solver; several may be open at once.

    Raises:
        ConfigError: an unknown solver or parameter, or a value out of range, with the solver's own sentence.
    """
    if ":" in name:
        return _open_class(name, options)
    if "library" in options:
        return CoupledSolver(name, **options)
    return FortranSolver(name, **options)


def _open_class(name: str, options: dict[str, Any]) -> Solver:
    module, _, attribute = name.partition(":")
    try:
        kind: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"The solver {name!r} cannot be imported: {error}.") from error
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        raise ConfigError(f"The solver {name} does not take these arguments: {error}.") from error
    solver: Solver = kind(**options)
    if not isinstance(solver, Solver):
        raise ConfigError(f"{name!r} gave a {type(solver).__name__}; a solver has `spec`, `advance` and `close`, see trimtab.solver.")
    return solver
