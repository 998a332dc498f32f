# SPDX-License-Identifier: MIT
"""Names in data files: a field may be called as the user likes, also like a coordinate or dimension of the file.

Such a field is stored under another name and found again by its attribute `trimtab_field`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import netCDF4

from trimtab.core.spec import Field, SolverSpec

FIELD = "trimtab_field"  # attribute of a variable whose name is not its field's
LEADING = ("run", "start", "member", "time")  # dimensions of a file before a field's own
RESERVED = (*LEADING, "failed_step", "start_time", "start_run", "start_snapshot", "network")
PREFIX = "parameter_"  # of the variables of an ensemble that hold its members' parameters


def dimension_names(field: Field) -> tuple[str, ...]:
    """Names in a file of a field's dimensions: its own, but for those of the file, and for one that it has twice."""
    names: list[str] = []
    for dim in field.dims:
        name = f"{dim}_axis" if dim in LEADING else dim
        names.append(name if name not in names else f"{name}_{len(names) + 1}")
    return tuple(names)


def variable_names(spec: SolverSpec) -> dict[str, str]:
    """Field -> name of its variable in a file: its own, unless something else in a file is called so.

    Args:
        spec: the solver's.

    Returns:
        A name for each field, no two alike.
    """
    taken = {*RESERVED, *(dim for one in spec.fields for dim in dimension_names(one))}
    fields = {one.name for one in spec.fields}
    names: dict[str, str] = {}
    for name in fields - taken:
        if not name.startswith(PREFIX):
            names[name] = name
    for one in spec.fields:
        if one.name not in names:
            other = f"{one.name}_field"
            while other in fields or other in taken or other in names.values():
                other += "_"
            names[one.name] = other
    return {one.name: names[one.name] for one in spec.fields}


def find_name(variables: Mapping[Any, Any], field: Field) -> str | None:
    """The name under which a field stands in a file, trimtab's or any other.

    Args:
        variables: of an xarray or netCDF4 dataset, by name.
        field: the field.

    Returns:
        The variable that is marked as the field's; else the one of its name, unless that is a coordinate or another field's; for
        a name like a coordinate's also NAME_field; None when there is none of these.
    """
    marks = {name: _attributes(variable).get(FIELD) for name, variable in variables.items()}
    for name, mark in marks.items():
        if mark == field.name:
            return str(name)
    like_axis = field.name in variables or field.name in RESERVED or any(field.name in _dims(one) for one in variables.values())
    for name in (field.name, f"{field.name}_field") if like_axis else ():
        if name in variables and marks[name] is None and not _is_axis(name, variables[name], field):
            return name
    return None


def missing_sentence(variables: Mapping[Any, Any], field: Field) -> str:
    """What to say of a field that is not in a file."""
    text = f"no variable {field.name!r} ({field.long_name}); it has {', '.join(map(str, variables)) or 'none'}"
    if field.name in variables:
        text += f". Its {field.name!r} is a coordinate: store the field as '{field.name}_field'"
    return text


def define_fields(file: netCDF4.Dataset, spec: SolverSpec, leading: tuple[str, ...], *, fill_value: float | bool,
                  chunks: Callable[[Field], tuple[int, ...] | None] = lambda field: None) -> None:
    """The solver's fields in a netCDF file: dimensions, coordinates, and a variable each with its name and unit.

    Args:
        file: open for writing, with the leading dimensions.
        spec: the solver's.
        leading: dimensions before a field's own.
        fill_value: of the variables; False for none.
        chunks: of a field's variable; None leaves it to the library.
    """
    names = variable_names(spec)
    for field in spec.fields:
        dims = dimension_names(field)
        for dim, name, length in zip(field.dims, dims, field.shape, strict=True):
            if name not in file.dimensions:
                file.createDimension(name, length)
                if dim in field.coords:
                    axis = file.createVariable(name, "f8", (name,), fill_value=False)
                    axis.setncatts({"long_name": dim, "units": "1"})
                    if dim in ("x", "y"):
                        axis.axis = dim.upper()
                    axis[:] = field.coords[dim]
        variable = file.createVariable(names[field.name], "f8", (*leading, *dims), fill_value=fill_value,
                                       chunksizes=chunks(field))
        variable.setncatts({"long_name": field.long_name, "units": field.units})
        if names[field.name] != field.name:
            variable.setncattr(FIELD, field.name)


def _attributes(variable: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = vars(variable) if isinstance(variable, netCDF4.Variable) else variable.attrs
    return found


def _is_axis(name: str, variable: Any, field: Field) -> bool:
    """Whether a variable is a coordinate, or of a file's own, rather than the field."""
    dims = _dims(variable)
    return dims == (name,) or (name in RESERVED and not set(dimension_names(field)) <= set(dims))


def _dims(variable: Any) -> tuple[str, ...]:
    return tuple(variable.dimensions if isinstance(variable, netCDF4.Variable) else variable.dims)
