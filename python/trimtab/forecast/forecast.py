# SPDX-License-Identifier: MIT
"""A trained correction at work: RUN -> correction -> hybrid run -> netCDF, written as it goes."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from trimtab import __version__
from trimtab.core.atomic_files import check_file, commit, only_writer_of, writing
from trimtab.core.errors import BlowUpError, ConfigError, DataError, OutputError
from trimtab.core.progress import silent
from trimtab.core.solver import Solver
from trimtab.core.spec import Field, SolverSpec
from trimtab.data.field_names import define_fields, dimension_names, variable_names
from trimtab.data.reference import Progress

CHUNK_BYTES = 2**25  # of states held at once
PIECES = 50          # of a run, at least: between two the progress is told and the file is up to date


def _start_values(found: xr.DataArray, field: Field, path: Path) -> np.ndarray:
    """(B, size) float64 of one field in the last record."""
    name, dims = found.name, dimension_names(field)
    if set(dims) <= set(found.dims):  # found by their names, in whatever order they stand
        found = found.transpose(..., *dims)
    values = found.to_numpy().astype(np.float64)
    if values.shape[values.ndim - len(field.shape) :] != field.shape:
        raise DataError(f"The variable {name!r} of {path} has the shape {values.shape}; the solver needs "
                        f"{field.shape} ({', '.join(dims)}), after any members.")
    fill = found.encoding.get("_FillValue", np.nan)
    if np.isfinite(fill) and np.isnan(values).any():
        raise DataError(f"The variable {name!r} of {path} was not written to its end: its last record has missing values. Write "
                        "the file again, or cut that record off.")
    return values.reshape(-1, field.size)


def forward(
    solver: Solver,
    correction: Any,
    start: np.ndarray,
    steps: int,
    out: str | Path,
    *,
    every: int = 1,
    time: float = 0.0,
    attributes: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    writes: bool = True,
) -> Path:
    """Run the hybrid forward and write it to a netCDF file as it goes, in pieces of bounded memory.

    Until it is done the file is called FILE.nc.partial, up to date after each piece; so a killed run leaves that, and an earlier
    FILE.nc as it was. After a blow-up or an interrupt FILE.nc holds what was computed. The file's dimensions are
    (time, member, ...); it holds each field with its name and unit, the coordinates, and `failed_step`.
    A member that blows up is missing from then on, the others go on.

    Args:
        solver: the solver.
        correction: module (B, N) -> (B, N), or None for the solver alone.
        start: (B, N) float64.
        steps: inner steps, a multiple of `every`.
        out: the file.
        every: inner steps between two records.
        time: of the initial state.
        attributes: more global attributes.
        overwrite: replace a file that is there.
        progress: told how far it is.
        writes: whether to write the file, which of the ranks that share the solver one does.

    Returns:
        The file.

    Raises:
        ConfigError: steps that are no multiple of `every`, or a file that is already there; a device, a pipe or a folder has
            that name.
        DataError: another process is writing the file.
        BlowUpError: a member left the finite numbers; what was computed is in the file.
        OutputError: the disk is full, or the folder cannot be written to.
    """
    if steps < 1 or every < 1 or steps % every:
        raise ConfigError(f"--steps {steps} must be a positive multiple of --every {every}.")
    spec, records = solver.spec, steps // every
    states = spec.check_states(start)
    failed = np.zeros(len(states), dtype=np.int32)
    alive = np.arange(len(states))
    most = max(1, min(CHUNK_BYTES // (8 * states.size), -(-records // PIECES)))
    with _output(Path(out), spec, len(states), attributes or {}, overwrite) if writes else contextlib.nullcontext() as file:
        _write(file, Path(out), spec, 0, np.array([time]), states[None], failed)
        for first in range(0, records, most):
            count = min(most, records - first)
            window = solver.advance(states[alive], count, correction=correction, stride=every,
                                    time=time + first * every * spec.dt, on_blow_up="mark")
            block = np.full((count, len(states), spec.size), np.nan)
            block[:, alive] = window.states[1:]
            at_failure = np.asarray(window.failed_step)
            failed[alive] = np.where(at_failure > 0, first * every + at_failure, 0)
            alive = alive[window.alive]
            kept = count if alive.size else max(0, (int(failed.max()) - 1) // every - first)
            times = time + np.arange(first + 1, first + kept + 1) * every * spec.dt
            _write(file, Path(out), spec, first + 1, times, block[:kept], failed)
            states = block[-1]
            progress((first + count) / records, f"run: step {(first + count) * every} of {steps}")
            if alive.size == 0:
                break
    if failed.any():
        raise BlowUpError(_blow_up_sentence(failed, spec, time, Path(out)), failed)
    return Path(out)


@contextlib.contextmanager
def _output(
    path: Path, spec: SolverSpec, members: int, attributes: Mapping[str, str], overwrite: bool
) -> Iterator[netCDF4.Dataset]:
    check_file(path)
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} is already there: give another --out, or --overwrite.")
    if not path.parent.is_dir():
        raise ConfigError(f"There is no folder {path.parent} to write {path.name} to.")
    with contextlib.ExitStack() as stack:
        with writing(path):
            stack.enter_context(only_writer_of(path))
        yield from _held_output(path, spec, members, attributes)


def _held_output(path: Path, spec: SolverSpec, members: int, attributes: Mapping[str, str]) -> Iterator[netCDF4.Dataset]:
    """The file as it grows; one process at a time."""
    partial, interrupt, file = path.with_name(f"{path.name}.partial"), None, None
    check_file(partial)
    try:
        with writing(path, RuntimeError):  # the netCDF library keeps for itself what the system said
            file = netCDF4.Dataset(partial, "w")
            _describe(file, spec, members, attributes)
        try:
            yield file
        except KeyboardInterrupt as error:
            interrupt = error
        with writing(path, RuntimeError):
            file.close()
            commit(partial, path)
    except OutputError:
        with contextlib.suppress(OSError, RuntimeError):  # it has been said; and what it holds is not to be trusted
            if file is not None and file.isopen():
                file.close()
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    except BaseException:  # not the file's: it stays, with what was computed
        if file is not None:
            file.close()
        raise
    if interrupt is not None:
        raise interrupt


def _describe(file: netCDF4.Dataset, spec: SolverSpec, members: int, attributes: Mapping[str, str]) -> None:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    file.setncatts({"Conventions": "CF-1.11", "title": f"{spec.solver}, run forward by trimtab",
                    "source": f"trimtab {__version__}, solver {spec.solver}",
                    "history": f"{now} trimtab run", "solver": spec.solver, "dt": spec.dt,
                    "parameters": ", ".join(f"{key} = {value}" for key, value in spec.parameters.items()),
                    **attributes})
    file.createDimension("time", None)
    file.createDimension("member", members)
    clock = file.createVariable("time", "f8", ("time",))
    clock.setncatts({"long_name": "time", "units": spec.time_units, "axis": "T"})
    number = file.createVariable("member", "i4", ("member",))
    number.setncatts({"long_name": "member", "standard_name": "realization", "units": "1"})
    number[:] = np.arange(members)
    failed = file.createVariable("failed_step", "i4", ("member",))
    failed.setncatts({"long_name": "step at which the member blew up, 0 when it did not", "units": "1"})
    failed[:] = 0
    define_fields(file, spec, ("time", "member"), fill_value=np.nan,
                  chunks=lambda field: (1, 1, *field.shape) if field.size >= 1024 else None)


def _write(file: netCDF4.Dataset | None, path: Path, spec: SolverSpec, first: int, times: np.ndarray, states: np.ndarray,
           failed: np.ndarray) -> None:
    """Records `first` on; the file is up to date afterwards."""
    if len(times) == 0 or file is None:
        return
    with writing(path, RuntimeError):
        file["time"][first : first + len(times)] = times
        names = variable_names(spec)
        for name, values in spec.split(states).items():
            file[names[name]][first : first + len(times)] = values
        file["failed_step"][:] = failed
        file.sync()


def _blow_up_sentence(failed: np.ndarray, spec: SolverSpec, time: float, out: Path) -> str:
    members = np.flatnonzero(failed)
    first = int(members[np.argmin(failed[members])])
    step = int(failed[first])
    who = "The run" if failed.size == 1 else f"{members.size} of {failed.size} members (first member {first})"
    return (f"{who} blew up at step {step}, time {time + step * spec.dt:.6g}; what was computed before is kept in "
            f"{out}: shorten dt, or train the correction on longer windows.")
