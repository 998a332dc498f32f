# SPDX-License-Identifier: MIT
"""Anomalies of an ensemble, cut along the state: every rank holds a stretch of all of them, none holds them whole.

An inner product of two of them then is a sum over slices: what the ranks exchange are K x K products and K numbers. The slices
follow from the size of the state alone and are summed in their order, so that any number of ranks finds the same bits.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from trimtab.parallel.subgroup import Cohort

SLICES, SLICE_VALUES = 8, 2**9  # most slices of a state, and the least length that is worth one


class Slices:
    """How a state is cut, and which slices this rank holds. A field, below, is a list of what it holds of some vectors.

    Args:
        size: length N of the state here.
        cohort: ranks that share the slices.
        blocks: ranks that hold the other blocks of the state, of a solver that is MPI-parallel itself; else None.
    """

    def __init__(self, size: int, cohort: Cohort, blocks: Cohort | None = None):
        self.cohort, self.blocks = cohort, blocks
        number = max(1, min(SLICES, size // SLICE_VALUES))
        places = [size * i // number for i in range(number + 1)]
        firsts = cohort.bounds(number)
        self._counts = [stop - first for first, stop in pairwise(firsts)]
        self.columns = [places[first] for first in firsts]  # (ranks + 1,) where the stretch of each begins
        begin = self.columns[cohort.rank]
        self._own = [(places[i], places[i + 1]) for i in cohort.share(number)] or [(begin, begin)]

    @property
    def firsts(self) -> list[int]:
        """The first component of each slice that this rank holds."""
        return [first for first, _ in self._own]

    @property
    def stretch(self) -> slice:
        """The components that this rank holds."""
        return slice(self.columns[self.cohort.rank], self.columns[self.cohort.rank + 1])

    def cut(self, vectors: Tensor, first: int = 0) -> list[Tensor]:
        """What this rank holds of vectors (..., N), or of their components from `first` on, in memory of its own."""
        return [vectors[..., a - first : b - first].clone(memory_format=torch.contiguous_format) for a, b in self._own]

    def turn(self, rows: Tensor, counts: list[int]) -> list[Tensor]:
        """What this rank holds of rows (k, B, N) that lie whole on some rank, `counts` of them on each."""
        if self.cohort.size == 1:
            return self.cut(rows)
        turned = self.cohort.turn(rows.numpy(), counts, self.columns)
        return self.cut(torch.from_numpy(turned), self.stretch.start)

    def sum(self, parts: list[Tensor]) -> Tensor:
        """Sum over all slices, and all blocks, of what came of each; the same bits on every rank."""
        here = torch.stack(parts)[: self._counts[self.cohort.rank]]
        return self.over_blocks(_in_order(torch.from_numpy(self.cohort.gather(here.numpy(), self._counts))))

    def over_blocks(self, part: Tensor) -> Tensor:
        """Sum over the blocks of what came of this one."""
        return total_over(part, self.blocks)

    def whole(self, field: list[Tensor]) -> Tensor:
        """The vectors (B, N) of which every rank holds its part."""
        here = torch.cat(field, -1)
        if self.cohort.size == 1:
            return here
        widths = [stop - first for first, stop in pairwise(self.columns)]
        return torch.from_numpy(self.cohort.gather(here.T.contiguous().numpy(), widths)).T.contiguous()


def total_over(part: Tensor, blocks: Cohort | None) -> Tensor:
    """Sum over the blocks of a state of what came of each; the part itself where the state is whole."""
    if blocks is None:
        return part
    return _in_order(torch.from_numpy(blocks.gather(part[None].numpy(), [1] * blocks.size)))


def _in_order(parts: Tensor) -> Tensor:
    total = parts[0].clone()
    for one in parts[1:]:
        total += one
    return total
