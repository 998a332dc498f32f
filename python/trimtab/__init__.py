# SPDX-License-Identifier: MIT
"""trimtab trains a neural correction inside a Fortran solver that nobody can differentiate.

    solver = trimtab.open_solver("qg", n=64, dt=8e-4, viscosity=5e-5, drag=0.1)
    correction = trimtab.Correction(network, solver.spec)
    states = trimtab.rollout(solver, correction, u0, steps=20, gradient="static")
    loss(states).backward()

The names below are the face; they are imported when first used, so that `import trimtab` itself costs nothing.
"""

import importlib

TYPE_CHECKING = False  # typing is not imported, nor __future__: `python -m trimtab` would take those of the working folder
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

_HOME = {
    "open_solver": "trimtab.bridge.opener",
    "Correction": "trimtab.corrections.correction",
    "SlotCorrection": "trimtab.corrections.slots",
    "rollout": "trimtab.gradient.rollout",
    "StaticEGA": "trimtab.gradient",
    "NoGradient": "trimtab.gradient",
    "EulerEGA": "trimtab.gradient",
    "TangentEGA": "trimtab.gradient",
    "DiscreteGradient": "trimtab.gradient",
    "ExactGradient": "trimtab.gradient",
    "EnsembleEGA": "trimtab.gradient",
    "Ensemble": "trimtab.forecast.ensemble",
    "Perturbation": "trimtab.forecast.initial_conditions",
    "write_ensemble": "trimtab.forecast.ensemble_netcdf",
    "gradcheck": "trimtab.gradient.gradcheck.check",
    "open_isolated": "trimtab.isolation.process_solver",
    "Window": "trimtab.core.window",
    "Solver": "trimtab.core.solver",
    "load_experiment": "trimtab.config.experiment",
    "Trainer": "trimtab.training.trainer",
    "TrimtabError": "trimtab.core.errors",
}
_MODULES = {"networks": "trimtab.corrections.networks", "gradient": "trimtab.gradient", "scores": "trimtab.evaluation.metrics",
            "errors": "trimtab.core.errors"}

__all__ = [*_HOME, *_MODULES, "__version__"]


def __getattr__(name: str) -> "Any":
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    else:
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
