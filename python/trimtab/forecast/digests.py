# SPDX-License-Identifier: MIT
"""What tells whether weights and states are the same."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from trimtab.core.spec import SolverSpec
from trimtab.corrections.real_numbers import content
from trimtab.training.run_folder import Run, run_correction


def digest_of_weights(run: Run, checkpoint: str, spec: SolverSpec) -> str:
    """Digest of a checkpoint's weights; not of its file, which also tells when it was written.

    Args:
        run: see `load_run`.
        checkpoint: "best", "last" or "offline".
        spec: the solver's.
    """
    weights = run_correction(run, spec, checkpoint).state_dict()
    return digest_of_arrays(*(value.to(torch.float64).numpy() if isinstance(value, torch.Tensor) and not value.is_complex()
                              else np.frombuffer(content(value), np.uint8) for value in weights.values()))


def digest_of_arrays(*arrays: np.ndarray | None) -> str:
    """Sixteen hexadecimal digits that follow from shapes and bytes of arrays.

    Args:
        arrays: of any shape; None counts as itself.
    """
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(b"none" if array is None else str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
