# SPDX-License-Identifier: MIT
"""The paper reproduced, and what goes beyond it: one file a result, one line a result below.

A result's file has `TEXT` (one line), `MINUTES` (of one core, measured) and `run(out, quick, progress) -> Table`: it computes
into the folder `out` (an existing one, of its own), draws its figures there, and gives its table. Its docstring says what is
compared, with which equation or source, and what was measured. What takes long it keeps in pieces (`cache.py`): killed
at any moment and run again it goes on, and once finished it only draws again. `quick` does all of the same in seconds, so that
a test can; its numbers mean nothing. Whatever is random follows from fixed seeds.
"""

from __future__ import annotations

import importlib
from typing import Any

from trimtab.core.errors import ConfigError

RESULTS: tuple[str, ...] = (
    "convergence",
    "lorenz63-training",
    "rollout-cost",
    "qg",
    "map",
    "corner",
    "lorenz96",
    "burgers",
    "stepping",
    "sparse",
    "kalman",
    "ensemble",
)


def result(name: str) -> Any:
    """The module of a result.

    Args:
        name: one of `RESULTS`.

    Returns:
        The module.

    Raises:
        ConfigError: no such result.
    """
    if name not in RESULTS:
        raise ConfigError(f"There is no result {name!r} to reproduce; there are {', '.join(RESULTS)}.")
    return importlib.import_module(f"trimtab.reproduce.results.{name.replace('-', '_')}")
