# SPDX-License-Identifier: MIT
"""The file of a reference run: opened, and refused in one sentence when it does not fit the solver."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from trimtab.core.errors import ConfigError, DataError
from trimtab.core.spec import Field, SolverSpec
from trimtab.data.completeness import check_chunks, open_data, stored_spacing
from trimtab.data.field_names import dimension_names, find_name, missing_sentence


def open_file(path: Path) -> xr.Dataset:
    """A netCDF file or Zarr store, opened lazily.

    Raises:
        DataError: missing, neither of the two, or cut short.
    """
    if not path.exists():
        raise DataError(f"There is no reference run {path}; mend reference.file.")
    return open_data(path, chunks=None)


def known_fields(spec: SolverSpec, hidden: Mapping[str, Any]) -> SolverSpec:
    """What a truth has to know of a solver: all but the fields that `reference.hidden` speaks of.

    Raises:
        ConfigError: `reference.hidden` does not fit the solver.
    """
    fields = {one.name: one for one in spec.fields}
    for name, value in hidden.items():
        if name not in fields or not fields[name].hidden:
            known = ", ".join(one.name for one in spec.fields if one.hidden)
            raise ConfigError(f"reference.hidden speaks of {name!r}; the hidden fields of {spec.solver} are {known or 'none'}.")
        if isinstance(value, str):
            other = fields.get(value)
            if other is None or other.shape != fields[name].shape or value in hidden:
                raise ConfigError(f"reference.hidden has {name} = {value!r}: give a field of the shape {fields[name].shape} that "
                                  "the truth knows, or a number.")
        elif not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"reference.hidden has {name} = {value!r}: give the name of a field, or a finite number.")
    return dataclasses.replace(spec, fields=tuple(one for one in spec.fields if one.name not in hidden))


def complete(spec: SolverSpec, hidden: Mapping[str, Any], states: np.ndarray) -> np.ndarray:
    """States with all fields, (T, N) float64, from those that the truth knows, (T, N'); see `known_fields`."""
    if not hidden:
        return states
    views = known_fields(spec, hidden).split(states)
    parts = []
    for one in spec.fields:
        value = hidden.get(one.name, one.name)
        parts.append(views[value].reshape(len(states), -1) if isinstance(value, str) else np.full((len(states), one.size), value))
    return np.concatenate(parts, axis=1, dtype=np.float64)


def find_variables(file: xr.Dataset, spec: SolverSpec, hidden: Mapping[str, Any], path: Path) -> list[xr.DataArray]:
    """The variables of all fields that a truth has to know, see `find_variable` and `known_fields`.

    Raises:
        ConfigError, DataError: see there; or a hidden field that is neither in the file nor in `reference.hidden`.
    """
    fields = known_fields(spec, hidden).fields
    names = {one.name: find_name(file.variables, one) for one in fields}
    missing = [one.name for one in fields if one.hidden and names[one.name] is None]
    if missing and all(names[one.name] for one in fields if not one.hidden):
        raise DataError(f"{path} has every visible field of {spec.solver} and not its hidden ones, {', '.join(missing)}: say "
                        "what the code starts with instead, in [reference] hidden = {u_old = \"u\", counter = 0} for instance "
                        "(names of fields, numbers), or write them into the file.")
    found = [find_variable(file, one, path) for one in fields]
    check_chunks(path, [name for name in (*names.values(), "time") if name is not None and name in file.variables])
    return found


def find_variable(file: xr.Dataset, field: Field, path: Path) -> xr.DataArray:
    """The variable of a solver's field, with dimensions (run, time, *field.dims).

    Raises:
        DataError: missing, of another kind, or on another grid.
    """
    name = find_name(file.variables, field)
    if name is None:
        raise DataError(f"{path} has {missing_sentence(file.data_vars if field.name not in file else file.variables, field)}.")
    variable = file[name]
    if variable.dtype.kind not in "fiu":
        raise DataError(f"The variable {field.name!r} of {path} holds {variable.dtype}; give it real numbers.")
    if "run" not in variable.dims:
        variable = variable.expand_dims("run")
    expected = ("run", "time", *dimension_names(field))
    if set(variable.dims) != set(expected):
        raise DataError(f"The variable {field.name!r} of {path} has the dimensions "
                        f"({', '.join(map(str, variable.dims))}); it needs ({', '.join(expected)}), run optional.")
    variable = variable.transpose(*expected)
    if variable.shape[2:] != field.shape:
        raise DataError(f"The variable {field.name!r} of {path} has the grid {variable.shape[2:]}, the "
                        f"solver has {field.shape} ({', '.join(field.dims)}): filter the data to the solver's grid.")
    for dim, name in zip(field.dims, dimension_names(field), strict=True):
        values = field.coords.get(dim)
        if values is not None and name in file.coords and file[name].dims == (name,):
            found, tolerance = np.asarray(file[name].values), 1e-5 * np.abs(values).max()
            if found.dtype.kind in "fiu" and not np.allclose(found, values, rtol=0, atol=tolerance):
                raise DataError(f"The coordinate {dim!r} of {path} runs from {found[0]:g} to {found[-1]:g}; the "
                                f"solver's from {values[0]:g} to {values[-1]:g}: put the data on the solver's grid.")
    if variable.shape[0] == 0 or variable.shape[1] < 2:
        raise DataError(f"{path} holds {variable.shape[0]} runs of {variable.shape[1]} snapshots; a target needs at "
                        "least one run of two.")
    return variable


def find_interval(file: xr.Dataset, path: Path, unit: str) -> float:
    """Time between two snapshots, in the solver's unit.

    Raises:
        DataError: no times, in another unit, or with gaps.
    """
    if "time" not in file.coords:
        raise DataError(f"{path} has no coordinate `time`; give every snapshot its time, in the solver's unit.")
    units = str(file["time"].attrs.get("units", "1"))
    if units not in ("1", unit):
        raise DataError(f"The coordinate `time` of {path} is in {units!r}; give it in the solver's own unit of time, with "
                        f"units = {unit!r}.")
    times = np.asarray(file["time"].values)
    if times.ndim != 1 or times.dtype.kind not in "fiu" or not np.isfinite(times).all():
        raise DataError(f"The coordinate `time` of {path} must be one finite number a snapshot.")
    steps = np.diff(times.astype(np.float64))
    interval = float(np.median(steps))
    spacing = stored_spacing(file["time"])
    if 4 * spacing > abs(interval) > 0:
        raise DataError(f"The times of {path} are {interval:g} apart, and two neighbouring numbers of their type are {spacing:g} "
                        "apart there, so that a gap cannot be told: store them in double precision, or from 0 on.")
    wrong = np.abs(steps - interval) > 1e-4 * abs(interval) + 2 * spacing
    if interval <= 0 or wrong.any():
        at = int(np.argmax(wrong)) if wrong.any() else 0
        raise DataError(f"The times of {path} have a gap or do not rise: {times[at]:g} is followed by "
                        f"{times[at + 1]:g}, elsewhere they are {interval:g} apart; cut the run there or fill the gap.")
    return float((times[-1] - times[0]) / (len(times) - 1))


def interval_error(file: xr.Dataset) -> float:
    """How far `find_interval` may be off, because times are rounded to the type in which they are stored."""
    return stored_spacing(file["time"]) / max(1, file["time"].size - 1)


def match_interval(interval: float, h: float, path: Path, error: float = 0.0) -> tuple[int, int]:
    """(snapshots an outer step, outer steps a snapshot), one of them 1; see `interval_error` for the error.

    Raises:
        DataError: neither is a multiple of the other.
    """
    ratio = h / interval
    skip, gap = max(1, round(ratio)), max(1, round(1 / ratio))
    if not math.isclose(skip * interval, gap * h, rel_tol=1e-4, abs_tol=skip * error):
        raise DataError(f"The snapshots of {path} are {interval:g} apart and the outer step is {h:g}: one must be a "
                        "whole multiple of the other; change training.stride or solver.dt.")
    return skip, gap
