# SPDX-License-Identifier: MIT
"""What an ensemble starts from, in units of each field's size, and the regression of a step on stencils."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import ConfigError
from trimtab.core.random_fields import climate_scales, coloured, field_parts
from trimtab.core.spec import SolverSpec
from trimtab.gradient.base import Tape
from trimtab.gradient.ensemble.anomalies import total_over
from trimtab.parallel.subgroup import Cohort

STENCIL_VALUES = 2**21  # numbers of the normal equations held at once


def field_scales(tape: Tape, k: int, blocks: Cohort | None = None) -> Tensor:
    """Size of each field of each member at a step, at every place of the state: its root mean square.

    A field that is next to nothing at this step (less than a thousandth of itself over the window) is as large as over the
    window; one that holds nothing but rounding, as large as those of the same unit. A perturbation of 1e-4 of a field that
    passes through zero would else be lost in the rounding of all others.

    Args:
        tape: the rollout.
        k: step, 0 to K.
        blocks: ranks that hold the other blocks of the state; None where it is whole.

    Returns:
        (B, N), in the state's unit; 1 for a field that is zero and alone of its unit.
    """
    fields = tape.solver.spec.fields
    sizes = [one.size for one in fields]
    points = torch.tensor(sizes, dtype=torch.float64)
    now, over = tape.squares(k), tape.window_squares
    if blocks is not None:
        now, over, points = (total_over(one, blocks) for one in (now, over, points))
    now, over = (now / points).sqrt(), (over / points / len(tape.states)).sqrt()
    alike = torch.stack([torch.stack([over[:, i] for i, other in enumerate(fields) if other.units == one.units]).amax(0)
                         for one in fields], -1)
    rounding = torch.tensor([one.rounding for one in fields], dtype=torch.float64)
    typical = torch.where(over > rounding * alike, over, alike)
    part = torch.where(now > 1e-3 * typical, now, torch.where(typical > 0, typical, 1.0))
    return part.repeat_interleave(torch.tensor(sizes), 1)


def perturbations(spec: SolverSpec, number: int, spectrum: str | float, climatology: np.ndarray | None,
                  key: tuple[int, int], which: range | None = None) -> Tensor:
    """Directions in state space, each of norm 1; as many as the state has numbers are its axes.

    Each follows from its own number, so that ranks may make some of them each.

    Args:
        spec: the solver's.
        number: M, at most N.
        spectrum: "smooth" for the waves of lowest wavenumber, field by field in turn; "white"; or the slope s of random
            fields of amplitude (1 + k)^-s.
        climatology: (T, N) states to mix instead, or None.
        key: what random ones follow from, (seed, step), with their number.
        which: the wanted ones of the M; None for all.

    Returns:
        (M or fewer, N) float64.

    Raises:
        ConfigError: a climatology that does not vary.
    """
    which = range(number) if which is None else which
    if number >= spec.size:
        return torch.eye(spec.size, dtype=torch.float64)[which.start : which.stop]
    shapes = tuple(field.shape for field in spec.fields)
    if spectrum == "smooth" and climatology is None:
        return _smooth(shapes, number, which, range(spec.size))
    generators = [np.random.default_rng(np.random.SeedSequence([*key, row])) for row in which]
    if climatology is not None:
        anomalies = climatology - climatology.mean(0)
        anomalies /= climate_scales(anomalies, shapes)
        found = [one.standard_normal(len(anomalies)) @ anomalies for one in generators]
    else:
        found = [one.standard_normal(spec.size) for one in generators]
        if not isinstance(spectrum, str):
            found = [np.concatenate([coloured(row[None, part], shape, float(spectrum))[0] for part, shape in field_parts(shapes)])
                     for row in found]
    rows = np.stack(found) if found else np.empty((0, spec.size))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (norms > 0).all():
        raise ConfigError("The ensemble's climatology does not vary: give states of different times.")
    return torch.from_numpy(rows / norms)


def smooth_stretch(spec: SolverSpec, number: int, columns: slice) -> Tensor:
    """Some components of all smooth directions, (M, n) float64; see `perturbations`."""
    return _smooth(tuple(field.shape for field in spec.fields), number, range(number), range(columns.start, columns.stop))


def stencil_transpose(rows: Tensor, responses: Tensor, first: int, lam: Tensor, spec: SolverSpec, radius: int,
                      ridge: float) -> Tensor:
    """Regress the responses of some points on the perturbations of their stencils, and apply the transpose.

    Stencils are squares of 2 radius + 1 points, in all fields of the same shape, that close around the edges of a field; on a
    grid that has walls the points beyond them are regressed on, too, and get about nothing.

    Args:
        rows: (M, N) perturbations.
        responses: (M, B, n) at n points.
        first: the first of these points.
        lam: (B, N).
        spec: the solver's.
        radius: in grid points.
        ridge: added to the covariance, over its mean diagonal.

    Returns:
        (B, N), what these points contribute.
    """
    result, last = torch.zeros_like(lam), first + responses.shape[2]
    fields = list(field_parts(tuple(field.shape for field in spec.fields)))
    for part, shape in fields:
        dims = tuple(range(len(shape)))
        offsets = list(itertools.product(*(range(-min(radius, (n - 1) // 2), min(radius, (n - 1) // 2) + 1) for n in shape)))
        alike = [torch.arange(one.start, one.stop).reshape(shape) for one, other in fields if other == shape]
        stencil = torch.stack([torch.roll(places, offset, dims).flatten() for places in alike for offset in offsets])
        width = len(stencil)
        chunk = max(1, STENCIL_VALUES // (width * (width + len(rows))))
        begin, stop = max(first, part.start) - part.start, min(last, part.stop) - part.start
        for point in range(begin, stop, chunk):
            here = stencil[:, point : min(point + chunk, stop)]
            place = part.start + point
            own = slice(place, place + here.shape[1])
            local = rows[:, here].permute(2, 1, 0)  # (n, S, M)
            matrix = local @ local.mT
            size = matrix.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
            matrix = matrix + max(ridge, 1e-12) * size * torch.eye(width, dtype=matrix.dtype)
            there = responses[:, :, own.start - first : own.stop - first]
            weights = torch.linalg.solve(matrix, local @ there.permute(2, 0, 1))  # (n, S, B)
            result.index_add_(1, here.T.flatten(), (weights * lam[:, own].T[:, None]).flatten(0, 1).T)
    return result


@functools.lru_cache(maxsize=4)
def _smooth(shapes: tuple[tuple[int, ...], ...], number: int, which: range, columns: range) -> Tensor:
    """Products of cos + sin along each axis: an orthonormal basis of real periodic fields, without special cases."""
    reach = number if max(map(len, shapes)) == 1 else math.isqrt(number) + 1  # no wave beyond can be among the first
    waves = sorted((sum(k**2 for k in wave), tuple(-k for k in wave), field)
                   for field, shape in enumerate(shapes)
                   for wave in itertools.product(*(range(-min(n // 2, reach), min((n + 1) // 2, reach + 1)) for n in shape)))
    rows = torch.zeros(len(which), len(columns), dtype=torch.float64)
    parts, whole = list(field_parts(shapes)), torch.zeros(sum(map(math.prod, shapes)), dtype=torch.float64)
    for row, (_, wave, field) in zip(rows, waves[which.start : which.stop], strict=True):
        part, shape = parts[field]
        product = torch.ones(())
        for k, n in zip(wave, shape, strict=True):
            angle = 2 * math.pi * k / n * torch.arange(n, dtype=torch.float64)
            product = product[..., None] * (angle.cos() + angle.sin()) / math.sqrt(n)
        whole.zero_()
        whole[part] = product.flatten()
        row[:] = whole[columns.start : columns.stop]
    return rows
