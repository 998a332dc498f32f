# SPDX-License-Identifier: MIT
"""How the outputs of a solver's slots enter its state: effective weights, as `trimtab couple check` measures them.

An output c held over an outer step of length h moves the fields by h times their weights. Two weights matter: the steady
one, of a drift that lasts (1 when c is the tendency that the code believes it is, 2 when a split sweep counts it twice), and
that of one step alone (leapfrog moves the new level by 2 dt c, and an Asselin filter the old one by a little). An output that
is the tendency of no field of its name and shape enters by a matrix: `slot_response.py`. Where the weight differs by component
(a metric, a mask), a file beside the TOML has it for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.core.atomic_files import replacing
from trimtab.core.errors import ConfigError
from trimtab.core.spec import Field, SolverSpec
from trimtab.corrections.slot_response import SlotResponse

Weight = float | Tensor


class SlotWeight:
    """The transpose of how the slots' outputs enter the state.

    Args:
        spec: the solver's.
        weight: {"stride": s, "steady": {output: w}, "step": {output: {field: w}}} of outputs by name ("slot.output" with
            several slots); w per unit of time, "step" at outer steps of s inner ones. What is left out is 1 for the output's own
            field and 0 for others. "response": the file of matrices of those outputs that are no field's tendency; their "steady"
            multiplies the matrix. "components": the file of weights by component, see `write_components`, which take the place
            of those numbers.

    Raises:
        ConfigError: an unknown output or field, a weight that is no number, or a file that does not fit.
    """

    def __init__(self, spec: SolverSpec, weight: Mapping[str, Any]):
        self.spec = spec
        self.stride = weight.get("stride", 0)
        self.outputs_by_name = named_outputs(spec)
        known = set(self.outputs_by_name)
        if set(weight) - {"stride", "steady", "step", "response", "components"} or not isinstance(self.stride, int) or \
                not _numbers(weight):
            raise ConfigError(f"solver.weight = {dict(weight)} has the keys stride (a whole number), steady (output = number), "
                              "step (output = {field = number}), response and components (files); let `trimtab couple check` "
                              "write it.")
        self.steady: dict[str, Weight] = dict(weight.get("steady", {}))
        self.step: dict[str, dict[str, Weight]] = {key: dict(value) for key, value in weight.get("step", {}).items()}
        for one in (*self.steady, *self.step):
            if one not in known:
                raise ConfigError(f"solver.weight speaks of an output {one!r}; the adapter describes "
                                  f"{', '.join(known) or 'none'}: let "
                                  "`trimtab couple check` write it anew.")
        self._parts, start = {}, 0
        for field in spec.fields:
            self._parts[field.name] = (field, slice(start, start + field.size))
            start += field.size
        self.response = None
        if "response" in weight:
            self.response = SlotResponse.read(weight["response"], spec, self.outputs_by_name)
        for output, fields in self.step.items():
            for name in fields:
                if name not in self._parts or self._parts[name][0].shape != self.outputs_by_name[output].shape:
                    raise ConfigError(f"solver.weight says that the output {output!r} moves the field {name!r}, which is none "
                                      "of its "
                                      "shape: let `trimtab couple check` write it anew.")

        if "components" in weight:
            self._read_components(weight["components"])

    def check(self, stride: int) -> None:
        """Refuse outer steps of another length than the weight of one step was measured at.

        Raises:
            ConfigError: see above.
        """
        if self.step or self.response is not None:
            self._at_stride(stride)

    def transpose(self, lam: Tensor, stride: int, steady: bool) -> Tensor:
        """The cotangent of the slots' outputs.

        Args:
            lam: (B, N) float64, cotangent of the state.
            stride: inner steps an outer step.
            steady: the weight of a lasting drift, or of one outer step alone.

        Returns:
            (B, M') float64.

        Raises:
            ConfigError: an output that is the tendency of no field, or weights measured at another stride.
        """
        parts = []
        for name in self.outputs_by_name:
            if self.response is not None and name in self.response.matrices:
                self._at_stride(stride)
                part = self.response.transpose(name, lam)
                parts.append(part * self.steady.get(name, 1.0) if steady else part)
                continue
            total = None
            for field, weight in self.of(name, stride, steady).items():
                part = weight * lam[:, self._parts[field][1]]
                total = part if total is None else total + part
            assert total is not None
            parts.append(total)
        return torch.cat(parts, 1)

    def outputs(self, tendencies: np.ndarray, stride: int) -> np.ndarray:
        """The outputs that give a state's tendency over one outer step: (B, N) to (B, M') float64.

        Raises:
            ConfigError: see `transpose`.
        """
        parts, solved = [], {} if self.response is None else self.response.solve(tendencies)
        for name, field in self.outputs_by_name.items():
            if name in solved:
                self._at_stride(stride)
                parts.append(solved[name])
                continue
            own = np.asarray(self.of(name, stride, False)[field.name])
            wanted = tendencies[:, self._parts[field.name][1]]
            parts.append(np.divide(wanted, own, out=np.zeros_like(wanted), where=own != 0))  # 0: whatever it is, nothing moves
        return np.concatenate(parts, 1)

    def of(self, output: str, stride: int, steady: bool) -> dict[str, Weight]:
        """Field -> weight of one output: a number, or (m,) float64 by component."""
        field = self.outputs_by_name[output]
        own = self._parts.get(field.name)
        if own is None or own[0].shape != field.shape:
            there = f"a field of that name has shape {own[0].shape}" if own else "there is no field of that name"
            raise ConfigError(f"The output {output!r} of shape {field.shape} is the tendency of no field of its name and shape "
                              f"({there}): describe that field, or let `trimtab couple check` measure how the output enters the "
                              "state.")
        if steady:
            return {field.name: self.steady.get(output, 1.0)}
        step = self.step.get(output)
        if step is None:
            return {field.name: 1.0}
        self._at_stride(stride)
        return dict(step)

    def _read_components(self, path: str | Path) -> None:
        """Take the weights that differ by component from their file."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: np.asarray(stored[name], dtype=np.float64) for name in stored.files}
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise ConfigError(f"solver.weight names the weights by component {path}, which cannot be read ({error}): let "
                              "`trimtab couple check` measure them anew.") from error
        for key, array in arrays.items():
            output, _, which = key.partition("/")
            kind, _, field = which.partition("/")
            known = output in self.outputs_by_name and (which == "steady" or (kind == "step" and field in self._parts))
            if not known or array.shape != (self.outputs_by_name[output].size,) or not np.isfinite(array).all():
                raise ConfigError(f"{path} has weights {key} of shape {array.shape}, and the code has no such output, or another "
                                  "number of components here: let `trimtab couple check` measure them anew (a code that is "
                                  "divided among ranks takes numbers alone).")
            if which == "steady":
                self.steady[output] = torch.from_numpy(array)
            else:
                self.step.setdefault(output, {})[field] = torch.from_numpy(array)

    def _at_stride(self, stride: int) -> None:
        if self.stride != stride:
            raise ConfigError(f"solver.weight was measured at training.stride = {self.stride}, and {stride} is asked for: run "
                              "`trimtab couple check` again.")


def write_components(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write weights that differ by component.

    Args:
        path: the file, ".npz".
        arrays: "OUTPUT/steady" and "OUTPUT/step/FIELD" -> (m,) float64, 0 where a component never answers.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        found: dict[str, Any] = dict(arrays)
        np.savez_compressed(file, **found)


def _numbers(weight: Mapping[str, Any]) -> bool:
    """Whether what should be numbers are."""
    try:
        found = [*weight.get("steady", {}).values(), *(one for fields in weight.get("step", {}).values()
                                                       for one in fields.values())]
    except AttributeError:
        return False
    return all(isinstance(one, int | float) and not isinstance(one, bool) and np.isfinite(one) for one in found)


def named_outputs(spec: SolverSpec) -> dict[str, Field]:
    """All outputs of a solver's slots in order, by the name that solver.weight uses."""
    several = len(spec.slots) > 1
    return {f"{slot.name}.{one.name}" if several else one.name: one for slot in spec.slots for one in slot.outputs}
