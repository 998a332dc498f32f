# SPDX-License-Identifier: MIT
"""The Smagorinsky constant that fits a truth best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.core.errors import ConfigError
from trimtab.core.solver import Solver
from trimtab.corrections.smagorinsky import Smagorinsky
from trimtab.evaluation.metrics import rmse


def best_smagorinsky(solver: Solver, starts: Any, truth: np.ndarray, constants: Sequence[float], *, steps: int,
                     stride: int = 1) -> tuple[Smagorinsky, dict[float, float]]:
    """The Smagorinsky closure whose constant forecasts best, to be chosen on training runs only.

    Args:
        solver: the solver without its correction.
        starts: (B, N) float64, initial states.
        truth: (B, N) float64, the truth `steps` outer steps later.
        constants: constants to try.
        steps: lead time in outer steps.
        stride: inner steps an outer step.

    Returns:
        The closure, and the mean RMSE of each constant (infinite where a forecast blew up).

    Raises:
        ConfigError: no constant given, or a solver without vorticity.
    """
    if not constants:
        raise ConfigError("score.smagorinsky is empty: give at least one constant, or leave \"smagorinsky\" out of "
                          "score.closures.")
    errors = {}
    for constant in constants:
        window = solver.advance(starts, 1, correction=Smagorinsky(solver.spec, constant), stride=steps * stride,
                                on_blow_up="mark")
        error = rmse(window.states[-1], truth).mean()
        errors[float(constant)] = float(error) if np.isfinite(error) else float("inf")
    return Smagorinsky(solver.spec, min(errors, key=errors.__getitem__)), errors
