# SPDX-License-Identifier: MIT
"""States that represent the climate of a reference run."""

from __future__ import annotations

import numpy as np

from trimtab.data.windows import Runs

CLIMATE_STATES = 200     # of the training runs at most, that make the climatology
CLIMATE_VALUES = 2**22   # numbers of it at most


def climate_states(training: Runs) -> np.ndarray:
    """A sample of the training runs, evenly spaced.

    Args:
        training: the runs.

    Returns:
        (T, N) float64, at most `CLIMATE_STATES` states.
    """
    runs, length, size = training.shape
    most = max(2, min(CLIMATE_STATES, CLIMATE_VALUES // size))
    picked = np.unique(np.linspace(0, runs * length - 1, most).astype(int))
    return np.stack([training[int(one) // length, int(one) % length] for one in picked])
