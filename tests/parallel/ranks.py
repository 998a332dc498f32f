# SPDX-License-Identifier: MIT
"""What the ranks do together, checked by each of them; `sums` is the same on one rank."""

from __future__ import annotations

import hashlib

import numpy as np

from trimtab.core.errors import ConfigError
from trimtab.parallel.mpi import get_world

PARTS, LENGTH = 7, 1001
WEIGHTS = [0.1, 0.2, 0.3, 0.0, 0.1, 0.2, 0.1]


def sums(world, owners):
    """Digest of the weighted sum of vectors whose order of summation matters."""
    generator = np.random.default_rng(0)
    parts = generator.standard_normal((PARTS, LENGTH)) * 10.0 ** generator.uniform(-8, 8, (PARTS, 1))
    parts[3] = np.nan  # of weight 0
    total = world.sum(parts[np.flatnonzero(np.array(owners) == world.rank)], owners, WEIGHTS)
    return hashlib.sha256(total.tobytes()).hexdigest()


if __name__ == "__main__":
    world = get_world()
    digests = [sums(world, [number * world.size // PARTS for number in range(PARTS)]),
               sums(world, [3 * number % world.size for number in range(PARTS)]), sums(world, [0] * PARTS)]
    assert len(set(digests)) == 1
    assert world.share(world.rank) == list(range(world.size))
    assert world.broadcast({"of": world.rank}) == {"of": 0}
    table = world.table(np.array([world.rank, 0.5]))
    assert (table == [[rank, 0.5] for rank in range(world.size)]).all()
    assert world.placement() == f"{world.size} ranks on 1 host"
    if world.size % 2:
        try:
            world.place(2)
        except ConfigError as refusal:
            assert "does not divide" in str(refusal)
        else:
            raise AssertionError("place(2)")
    else:
        pairs = world.place(2)
        assert (pairs.team, pairs.block) == divmod(world.rank, 2) and pairs.domain.size == 2
        assert f"{world.size // 2} solver" in pairs.placement()
    if world.rank == 0:
        print(digests[0])
