# SPDX-License-Identifier: MIT
"""A slot's output that is no tendency of a field of its shape: grid to spectral coefficients, a flux through edges, a stress.

Its way into the state is linear then, and `trimtab couple check` measures it: one forward step an output number, no adjoint, no
transform written twice. The matrix R lies in a file beside the TOML, (N, m) float64 an output, with the names of the state's
fields, whose rows are found by them; an output c held over an outer step of length h moves the state by h R c.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.core.atomic_files import replacing
from trimtab.core.errors import ConfigError
from trimtab.core.spec import Field, SolverSpec

LARGEST = 2**26   # numbers of a matrix: 512 MiB
STATE = "fields of the state"  # the array in the file that holds their names and sizes
RIDGE = 1e-10     # of the largest diagonal of R^T R: a mean that a transform drops is not blown up


class SlotResponse:
    """Matrices of some outputs.

    Args:
        spec: the solver's.
        matrices: output -> (N, m) float64, state per output and unit of time.
        outputs: all outputs of the slots, by name.

    Raises:
        ConfigError: an unknown output, a matrix of another shape, or one that is not finite.
    """

    def __init__(self, spec: SolverSpec, matrices: Mapping[str, np.ndarray], outputs: Mapping[str, Field]):
        self.matrices: dict[str, Tensor] = {}
        self._fields = _described(spec)
        visible = spec.visible
        self._visible = slice(None) if visible is None else torch.from_numpy(visible)
        for name, matrix in matrices.items():
            shape = (spec.size, outputs[name].size) if name in outputs else ()
            if matrix.shape != shape or not np.isfinite(matrix).all():
                raise ConfigError(f"The response of the output {name!r} is {matrix.shape} and should be finite numbers {shape}: "
                                  "let `trimtab couple check` measure it anew.")
            self.matrices[name] = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float64))

    @classmethod
    def read(cls, path: str | Path, spec: SolverSpec, outputs: Mapping[str, Field]) -> SlotResponse:
        """Read what `write` wrote.

        Raises:
            ConfigError: no such file, or not one of these.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                rows = _rows([str(one) for one in stored[STATE]], spec)
                matrices = {name: stored[name] for name in stored.files if name != STATE}
            return cls(spec, {name: one[rows] if len(one) == len(rows) else one for name, one in matrices.items()}, outputs)
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise ConfigError(f"solver.weight names the response {path}, which cannot be read ({error}): let `trimtab couple "
                              "check` measure it anew.") from error

    def write(self, path: str | Path) -> None:
        """Write the matrices, compressed: most of a local response is zeros."""
        with replacing(Path(path)) as partial, partial.open("wb") as file:
            arrays: dict[str, Any] = {name: matrix.numpy() for name, matrix in self.matrices.items()}
            arrays[STATE] = np.array(self._fields)
            np.savez_compressed(file, **arrays)

    def transpose(self, name: str, lam: Tensor) -> Tensor:
        """R^T lam: (B, N) float64 to (B, m)."""
        return lam @ self.matrices[name]

    def solve(self, tendencies: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs that come nearest to given tendencies of the visible state, together: (B, N) to (B, m) each."""
        seen = torch.from_numpy(np.ascontiguousarray(tendencies))[:, self._visible]
        right = (seen @ self._stacked).T
        found = torch.cholesky_solve(right, self._factor).T.numpy()
        parts = np.split(found, np.cumsum([one.shape[1] for one in self.matrices.values()])[:-1], axis=1)
        return dict(zip(self.matrices, parts, strict=True))

    def size(self, name: str) -> float:
        """Root mean square, over the visible components it moves, of what a random output of size 1 gives a unit of time."""
        squares = self.matrices[name][self._visible].square().sum(1)
        return float(squares[squares > 0].mean().sqrt()) if bool((squares > 0).any()) else 0.0

    @cached_property
    def _stacked(self) -> Tensor:
        return torch.cat(list(self.matrices.values()), 1)[self._visible]

    @cached_property
    def _factor(self) -> Tensor:
        square = self._stacked.T @ self._stacked
        largest = float(square.diagonal().max()) or 1.0
        return torch.linalg.cholesky(square + RIDGE * largest * torch.eye(square.shape[0], dtype=square.dtype))


def _described(spec: SolverSpec) -> list[str]:
    """Size and name of each field, in the order of the state."""
    return [f"{one.size} {one.name}" for one in spec.fields]


def _rows(stored: list[str], spec: SolverSpec) -> np.ndarray:
    """(N,) the row of a stored matrix for each component of the state, whose fields may stand in another order by now."""
    if sorted(stored) != sorted(_described(spec)):
        raise ValueError(f"it was measured for the fields {', '.join(stored)}, sizes first")
    starts = np.cumsum([0, *(int(one.split()[0]) for one in stored)])
    return np.concatenate([np.arange(starts[at], starts[at + 1]) for at in (stored.index(one) for one in _described(spec))])
