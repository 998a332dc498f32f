# SPDX-License-Identifier: MIT
"""A domain divided among ranks: which block of the undivided state a rank holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from trimtab.core.errors import ConfigError
from trimtab.core.spec import Field, SolverSpec

SHARED = (" A point that two ranks hold (a face or vertex between blocks) is described by one of them, and sent to the other at "
          "the end of trimtab_set_state and after each trimtab_add to it.")


class Division:
    """What a rank holds of a domain whose dimensions, some of them, are divided.

    Args:
        spec: of this rank's block.
        dims: a divided dimension -> (points in all, points before this rank's).

    Attributes:
        lengths: of the divided dimensions, on this rank.
        whole: the `SolverSpec` of the undivided state; inputs of slots are in it without their halo.
        places: (N,) int64, where the numbers of the block stand in the undivided state; a field without a divided dimension is
            the same on every rank.

    Raises:
        ConfigError: a block that lies outside, a dimension of no field, or an input whose halo is wider on one side.
    """

    def __init__(self, spec: SolverSpec, dims: Mapping[str, tuple[int, int]]):
        self.spec, self.dims = spec, dict(dims)
        every = [pair for one in spec.fields for pair in zip(one.dims, one.shape, strict=True)]
        self.lengths = {dim: length for dim, length in every if dim in dims}
        for dim, (whole, before) in self.dims.items():
            if dim not in self.lengths:
                raise ConfigError(f"trimtab_block in the adapter of {spec.solver} divides the dimension {dim!r}, which no field "
                                  f"has: name one of trimtab_field ({', '.join(dict.fromkeys(name for name, _ in every))}).")
            if before < 0 or before + self.lengths[dim] > whole:
                raise ConfigError(f"trimtab_block in the adapter of {spec.solver} says that {before} of {whole} points {dim!r} "
                                  f"lie before this block of {self.lengths[dim]}: give the points in all, and those that lie "
                                  "before this rank's.")
        slots = tuple(dataclasses.replace(slot, inputs=tuple(self._whole(one) for one in slot.inputs),
                                          outputs=tuple(self._whole(one) for one in slot.outputs)) for slot in spec.slots)
        self.whole = dataclasses.replace(spec, fields=tuple(self._whole(one) for one in spec.fields), slots=slots)
        self.places, start = np.empty(spec.size, dtype=np.int64), 0
        first = 0
        for one, undivided in zip(spec.fields, self.whole.fields, strict=True):
            self.places[first : first + one.size] = start + self.within(one)[1]
            first, start = first + one.size, start + undivided.size

    def divided(self, field: Field) -> bool:
        """Whether a rank holds only a part of a field."""
        return any(dim in self.dims for dim in field.dims)

    def within(self, field: Field) -> tuple[np.ndarray, np.ndarray]:
        """Places of a field, or of a slot's input without its halo: in the rank's own array, and in the undivided one; flat."""
        own, there, shape = [], [], []
        for dim, length in zip(field.dims, field.shape, strict=True):
            halo = self._halo(field, dim, length)
            points = np.arange(length - 2 * halo)
            whole, before = self.dims.get(dim, (length, 0))
            own.append(points + halo)
            there.append(points + before)
            shape.append(whole)
        if not shape:
            return np.zeros(1, np.int64), np.zeros(1, np.int64)
        return (np.ravel_multi_index(np.ix_(*own), field.shape).ravel(), np.ravel_multi_index(np.ix_(*there), shape).ravel())

    def _halo(self, field: Field, dim: str, length: int) -> int:
        if dim not in self.dims:
            return 0
        more = length - self.lengths[dim]
        if more < 0 or more % 2:
            raise ConfigError(f"{field.name} in the adapter of {self.spec.solver} has {length} points along {dim!r}, of which "
                              f"the block has {self.lengths[dim]}: give it with a halo of one width on both sides, or without, "
                              "or name another dimension.")
        return more // 2

    def _whole(self, field: Field) -> Field:
        for dim, length in zip(field.dims, field.shape, strict=True):
            self._halo(field, dim, length)
        shape = [self.dims[dim][0] if dim in self.dims else length for dim, length in zip(field.dims, field.shape, strict=True)]
        return dataclasses.replace(field, shape=tuple(shape))


def check_blocks(division: Division, all_places: list[np.ndarray]) -> None:
    """Refuse blocks that do not make one state.

    Args:
        division: this rank's.
        all_places: of every rank that shares the domain.

    Raises:
        ConfigError: a visible field that every rank holds whole, a hidden array of unknown dimensions, or blocks that overlap or
            leave points out.
    """
    name = division.spec.solver
    if len(all_places) == 1:
        return
    if not division.dims:
        raise ConfigError(f"{len(all_places)} ranks share {name}, and its adapter does not say which block each holds: call "
                          "trimtab_block in trimtab_describe.")
    counts = np.zeros(division.whole.size, dtype=np.int64)
    for places in all_places:
        counts += np.bincount(places, minlength=division.whole.size)
    start = 0
    for one in division.whole.fields:
        found = counts[start : start + one.size]
        start += one.size
        if division.divided(one):
            if (found != 1).any():
                wrong = "overlap" if found.max() > 1 else "leave points out"
                shared = SHARED if found.max() > 1 else ""
                raise ConfigError(f"The blocks of {one.name} in the adapter of {name} {wrong}: see what trimtab_block is told on "
                                  f"each rank, and describe fields without their halo.{shared}")
        elif not one.hidden:
            raise ConfigError(f"The field {one.name} in the adapter of {name} has no divided dimension, and each of "
                              f"{len(all_places)} ranks would count its error: name the dimension as trimtab_block does, or make "
                              "it hidden.")
        elif one.size > 1 and one.dims[0] == f"{one.name}_1":
            raise ConfigError(f"The adapter of {name} does not say how the hidden array {one.name} is divided: name its "
                              f"dimensions, trimtab_hidden(array, '{one.name}', 'x y').")
