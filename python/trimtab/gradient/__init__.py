# SPDX-License-Identifier: MIT
"""Gradient variants: each answers one question, the transpose of the flow's Jacobian applied to a vector at a step."""

from __future__ import annotations

from typing import Any

from trimtab.core.errors import ConfigError
from trimtab.gradient.base import Gradient, StepGradient, Tape
from trimtab.gradient.discrete import DiscreteGradient
from trimtab.gradient.ensemble.ega import EnsembleEGA
from trimtab.gradient.euler import EulerEGA
from trimtab.gradient.exact import ExactGradient
from trimtab.gradient.none import NoGradient
from trimtab.gradient.static import StaticEGA
from trimtab.gradient.tangent import TangentEGA

GRADIENTS: dict[str, type[Gradient]] = {
    "static": StaticEGA,
    "none": NoGradient,
    "euler": EulerEGA,
    "tangent": TangentEGA,
    "discrete": DiscreteGradient,
    "ensemble": EnsembleEGA,
    "exact": ExactGradient,
}

__all__ = [
    "GRADIENTS",
    "DiscreteGradient",
    "EnsembleEGA",
    "EulerEGA",
    "ExactGradient",
    "Gradient",
    "NoGradient",
    "StaticEGA",
    "StepGradient",
    "TangentEGA",
    "Tape",
    "get_gradient",
]


def get_gradient(gradient: str | Gradient, **options: Any) -> Gradient:
    """A gradient variant by name, or the object itself.

    Args:
        gradient: a key of `GRADIENTS`, or a `Gradient`.
        options: arguments of a variant given by name.

    Returns:
        The variant.

    Raises:
        ConfigError: an unknown name, or arguments that the variant does not take.
    """
    if isinstance(gradient, Gradient):
        return gradient
    if gradient not in GRADIENTS:
        raise ConfigError(f"Unknown gradient {gradient!r}; known are {', '.join(GRADIENTS)}.")
    try:
        return GRADIENTS[gradient](**options)
    except TypeError as error:
        raise ConfigError(f"The gradient {gradient!r} does not take these options: {error}.") from error
