# SPDX-License-Identifier: MIT
"""Losses of a rollout against its targets; members that blew up are left out, and give no gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import ConfigError, DataError, InputError
from trimtab.core.spec import Field, SolverSpec


def alive(states: Tensor) -> Tensor:
    """Members of a rollout that stayed finite.

    Args:
        states: (K+1, B, N).

    Returns:
        (B,) bool.
    """
    # A member that blows up is NaN from then on, so its last state tells.
    return torch.isfinite(states[-1]).all(dim=1)


def mean_square(states: Tensor, truth: Tensor, leads: Sequence[int] = (), components: np.ndarray | None = None,
                scale: Tensor | None = None) -> Tensor:
    """Mean square difference over lead times, members that stayed finite, and chosen components.

    Args:
        states: (K+1, B, N) float64, a rollout.
        truth: (L, B, N) float64, the targets at the lead times, in the same unit.
        leads: (L,) lead times in outer steps; empty for 1 to K.
        components: (M,) int64, those of the N that count (`SolverSpec.visible`); None for all.
        scale: (N,) float64 by which differences are divided (`field_scale`); None for 1.

    Returns:
        () float64, without unit, or in the square of the state's without a scale; NaN when no member stayed finite.

    Raises:
        InputError: targets of another shape.
    """
    chosen = states[list(leads)] if leads else states[1:]
    if chosen.shape != truth.shape:
        raise InputError(f"The targets have shape {tuple(truth.shape)}; states at {len(chosen)} lead times have "
                         f"{tuple(chosen.shape)}.")
    kept = alive(states)
    if not kept.all():
        chosen, truth = chosen[:, kept], truth[:, kept]
    if components is not None:
        counted = torch.from_numpy(components)
        chosen, truth = chosen[..., counted], truth[..., counted]
    difference = chosen - truth
    if scale is not None:
        difference = difference / (scale if components is None else scale[counted])
    return difference.square().mean()


def field_size(spec: SolverSpec, states: np.ndarray) -> Tensor:
    """Root mean square of each field, its mean included: a scale where states are too few to know how they vary.

    Args:
        spec: the solver's.
        states: (R, N) float64.

    Returns:
        (N,) float64, one number per field; of a field that is zero the largest of its unit, or infinity.
    """
    sizes = [float(np.sqrt(np.square(values).mean())) for values in spec.split(states).values()]
    return _spread(spec, sizes, [0.0] * len(sizes))


def field_scale(spec: SolverSpec, states: np.ndarray, weights: Mapping[str, Any] | None = None) -> Tensor:
    """What a loss divides differences by, so that it has no unit: the standard deviation of each field's anomalies.

    Anomalies are deviations from each component's mean over the states, so that a field with a steep mean profile counts like
    one without. A component that varies by no more than rounding has none. A field without any is measured by the largest
    deviation of a field in the same unit, else by its own root mean square. A field that is zero throughout and alone in its
    unit has no measure: it is divided by infinity, and so left out.

    Args:
        spec: the solver's.
        states: (R, N) float64, of the truth.
        weights: factors of the squared differences, see `TrainingConfig.weights`.

    Returns:
        (N,) float64, positive: one number per field over the root of its weight; infinity for a weight of 0.

    Raises:
        ConfigError: see `field_weights`.
        DataError: no visible field has both a measure and a weight.
    """
    deviations, sizes = [], []
    for one, values in zip(spec.fields, spec.split(states).values(), strict=True):
        variance, square = values.var(axis=0), np.square(values).mean(axis=0)
        deviations.append(float(np.sqrt(np.where(variance > one.rounding**2 * square, variance, 0.0).mean())))
        sizes.append(float(np.sqrt(square.mean())))
    scale = _spread(spec, deviations, sizes)
    if weights:
        scale = scale / field_weights(spec, weights).sqrt()
    counted = scale if spec.visible is None else scale[torch.from_numpy(spec.visible)]
    if not counted.isfinite().any():
        raise DataError("The loss has nothing to measure by: every field of the truth is zero throughout, or has the weight 0 in "
                        "training.weights.")
    return scale


def field_weights(spec: SolverSpec, weights: Mapping[str, Any]) -> Tensor:
    """The weight of every component in a loss.

    Args:
        spec: the solver's.
        weights: field -> number; or list, one number per index of the field's first dimension, as netCDF lists them; or
            {dimension = list}.

    Returns:
        (N,) float64, at least 0; 1 where nothing is given.

    Raises:
        ConfigError: no such visible field or dimension, a list of another length, or a number below 0.
    """
    shown = [one for one in spec.fields if not one.hidden]
    for name in weights:
        if name not in {one.name for one in shown}:
            raise ConfigError(f"training.weights names {name!r}; the fields of {spec.solver} are "
                              f"{', '.join(one.name for one in shown)}.")
    parts = [torch.ones(one.size, dtype=torch.float64) if one.name not in weights
             else _weights_of(one, weights[one.name]).flatten() for one in spec.fields]
    return torch.cat(parts)


def output_weights(spec: SolverSpec, weights: Tensor) -> Tensor:
    """The same at every place of a network's outputs.

    Args:
        spec: the solver's, of the block that is here.
        weights: (N,) see `field_weights`.

    Returns:
        (N,), or of a solver with named slots (M',): those of the field that an output is named after, 1 for another output.
    """
    if not spec.slots:
        return weights
    by_name = dict(zip([one.name for one in spec.fields], weights.split([one.size for one in spec.fields]), strict=True))
    return torch.cat([by_name[one.name] if one.name in by_name and len(by_name[one.name]) == one.size
                      else torch.ones(one.size, dtype=weights.dtype) for slot in spec.slots for one in slot.outputs])


def _weights_of(own: Field, given: Any) -> Tensor:
    """(*shape) weights of one field."""
    dim = own.dims[0] if own.dims else ""
    if isinstance(given, Mapping):
        if len(given) != 1 or next(iter(given)) not in own.dims:
            raise ConfigError(f"training.weights.{own.name} = {dict(given)} must name one dimension of the field, of "
                              f"{', '.join(own.dims) or 'which it has none'}, with a list of weights.")
        dim, given = next(iter(given.items()))
    values = np.atleast_1d(np.asarray(given if isinstance(given, list | tuple) else [given], dtype=object))
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one < np.inf for one in values.tolist()):
        raise ConfigError(f"training.weights.{own.name} = {given!r} must hold numbers of at least 0.")
    tensor = torch.tensor(values.tolist(), dtype=torch.float64)
    if not isinstance(given, list | tuple):
        return tensor.expand(own.shape or (1,))
    length = own.shape[own.dims.index(dim)] if dim else 1
    if len(tensor) != length:
        raise ConfigError(f"training.weights.{own.name} holds {len(tensor)} numbers; its dimension {dim or '(none)'} has "
                          f"{length}: give one number for the field, or one for each.")
    if not dim:
        return tensor
    along = [1] * len(own.shape)
    along[own.dims.index(dim)] = length
    return tensor.reshape(along).expand(own.shape)


def _spread(spec: SolverSpec, first: list[float], second: list[float]) -> Tensor:
    """(N,) of one measure per field: the first, else the largest first of its unit, else the second, else infinity."""
    scales = []
    for i, one in enumerate(spec.fields):
        alike = max(value for other, value in zip(spec.fields, first, strict=True) if other.units == one.units)
        scales.append(torch.full((one.size,), first[i] or alike or second[i] or math.inf, dtype=torch.float64))
    return torch.cat(scales)
