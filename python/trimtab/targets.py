# SPDX-License-Identifier: MIT
"""Target windows from a reference run: a netCDF or Zarr of the solver's fields, read lazily, checked before use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from trimtab.errors import ConfigError, DataError
from trimtab.sections import ReferenceConfig
from trimtab.state import Field, SolverSpec

Purpose = Literal["training", "validation", "test"]
IN_MEMORY = 2**30


class Targets:
    """The reference run of an experiment, cut into training, validation and test.

    The first runs train, the next validate, the last of the file test. A small file is read once and windows are
    gathered from memory; of a large one, only the windows of a batch are read.

    Args:
        path: netCDF file, or a folder or `.zarr` of Zarr, with one variable a field of the solver and dimensions
            (run, time, ...); a file without `run` is one run.
        spec: the solver's.
        reference: how many runs serve each purpose.
        h: outer step.
        in_memory: most bytes to hold.
        block: (N',) int, components that windows are cut down to, for a solver that holds a part of the domain; None for all.

    Attributes:
        interval: time between snapshots.
        shape: (runs, snapshots, N) of the file.
        skip, gap: snapshots an outer step, and outer steps a snapshot; one of them is 1.
        in_memory: whether the file is held in memory.

    Raises:
        DataError: no such file, a missing variable, another grid, gaps in time, an interval that does not fit h, values
            that are not finite, too few runs or snapshots.
    """

    def __init__(self, path: str | Path, spec: SolverSpec, reference: ReferenceConfig, h: float, *,
                 in_memory: int = IN_MEMORY, block: np.ndarray | None = None):
        self.path, self.spec, self.reference, self.h, self.block = Path(path), spec, reference, h, block
        self._file = _open(self.path)
        try:
            self._variables = [_variable(self._file, field, self.path) for field in spec.fields]
            runs, snapshots = self._variables[0].shape[:2]
            self.shape = (runs, snapshots, spec.size)
            self.interval = _interval(self._file, self.path)
            self.skip, self.gap = _match(self.interval, h, self.path)
            self._check_runs()
            self._values: np.ndarray | None = None
            self.in_memory = 8 * math.prod(self.shape) <= in_memory
            if self.in_memory:
                self._values = np.empty(self.shape)
                for run in range(runs):
                    self._values[run] = self._read(run, slice(None))
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def runs(self, purpose: Purpose) -> Runs:
        """The runs of one purpose.

        Args:
            purpose: "training", "validation" (empty when windows of the training runs validate) or "test".

        Returns:
            (R, T, N) view, see `Runs`.
        """
        return Runs(self, self._numbers(purpose))

    def windows(self, purpose: Purpose, steps: int, longest: int = 0) -> Windows:
        """Every window of a given length for one purpose; one starts at each snapshot.

        Args:
            purpose: "training" or "validation".
            steps: outer steps n of a window.
            longest: outer steps of the longest window ever asked for, which decides where the windows that validate
                begin; 0 for `steps`.

        Returns:
            The windows, in the order run, snapshot.

        Raises:
            DataError: runs too short for such a window.
        """
        span, longest_span = self._span(steps), self._span(longest or steps)
        held = self.reference.validation_windows
        first, last = 0, self.shape[1] - span
        if held:
            border = self.shape[1] - longest_span - held
            first, last = (0, min(border, last)) if purpose == "training" else (border, border + held)
        if first < 0 or last <= first:
            raise DataError(f"{self.path} has runs of {self.shape[1]} snapshots, too few for {purpose} windows of "
                            f"{steps} outer steps{f' with {held} windows held back' if held else ''}: shorten "
                            "training.window or give longer runs.")
        purpose = "training" if held else purpose
        return Windows(self, self._numbers(purpose), first, last - first, steps)

    def leads(self, steps: int, wanted: Sequence[int] = ()) -> list[int]:
        """Lead times of a window that have a target.

        Args:
            steps: outer steps of the window.
            wanted: lead times in outer steps; empty for all that have one. Those beyond `steps` are left out.

        Returns:
            Lead times in outer steps, rising, from 1 on.

        Raises:
            ConfigError: a wanted lead without a snapshot, or none at all.
        """
        for lead in wanted:
            if lead % self.gap:
                raise ConfigError(f"training.loss_at holds {lead}, but {self.path} has a snapshot only every "
                                  f"{self.gap} outer steps.")
        leads = [lead for lead in sorted(set(wanted)) or range(self.gap, steps + 1, self.gap) if lead <= steps]
        if not leads:
            raise ConfigError(f"A window of {steps} outer steps meets no target of {self.path}, which has one every "
                              f"{self.gap} outer steps: lengthen training.window, or mend training.loss_at and "
                              "training.curriculum.")
        return leads

    def states(self, run: int, times: slice | int) -> np.ndarray:
        """Snapshots of one run of the file.

        Args:
            run: its number in the file.
            times: which snapshots.

        Returns:
            (T, N) float64, or (N,) for one snapshot; a view when the file is held in memory.

        Raises:
            DataError: a value that is not finite.
        """
        if self._values is not None:
            return self._values[run, times]
        return self._read(run, times)

    def gather(self, runs: np.ndarray, snapshots: np.ndarray) -> np.ndarray:
        """States at given places.

        Args:
            runs: (B,) int, numbers in the file.
            snapshots: (L, B) int.

        Returns:
            (L, B, N) float64.
        """
        if self._values is not None:
            return self._values[runs, snapshots]
        batch = np.empty((*snapshots.shape, self.spec.size))
        for i, run in enumerate(runs):
            first = int(snapshots[:, i].min())
            stretch = self._read(int(run), slice(first, int(snapshots[:, i].max()) + 1))
            batch[:, i] = stretch[snapshots[:, i] - first]
        return batch

    def _numbers(self, purpose: Purpose) -> range:
        sizes = self.reference
        if purpose == "training":
            return range(sizes.training_runs)
        if purpose == "validation":
            return range(sizes.training_runs, sizes.training_runs + sizes.validation_runs)
        return range(self.shape[0] - sizes.test_runs, self.shape[0])

    def _span(self, steps: int) -> int:
        return steps * self.skip if self.gap == 1 else steps // self.gap

    def _check_runs(self) -> None:
        sizes = self.reference
        needed = sizes.training_runs + sizes.validation_runs + sizes.test_runs
        if self.shape[0] < needed:
            raise DataError(f"{self.path} holds {self.shape[0]} runs; [reference] asks for {sizes.training_runs} to "
                            f"train, {sizes.validation_runs} to validate and {sizes.test_runs} to test: lower these.")

    def _read(self, run: int, times: slice | int) -> np.ndarray:
        kept = slice(times, times + 1) if isinstance(times, int) else times
        try:
            parts = [variable.isel(run=run, time=kept).to_numpy() for variable in self._variables]
        except (OSError, RuntimeError) as error:
            raise DataError(f"{self.path} cannot be read to its end, it may be cut short: {error}.") from error
        states = np.concatenate([part.reshape(len(part), -1).astype(np.float64, copy=False) for part in parts], axis=1)
        finite = np.isfinite(states).all(axis=1)
        if not finite.all():
            at = range(self.shape[1])[kept][int(np.argmin(finite))]
            raise DataError(f"{self.path} holds a NaN or an infinity in run {run}, snapshot {at}: mend or cut the run.")
        return states[0] if isinstance(times, int) else states


@dataclass(frozen=True)
class Runs:
    """Some runs of a file, to be sliced like a (R, T, N) array: `runs[r, t]` is (N,), `runs[r, a:b:c]` (T, N)."""

    targets: Targets
    numbers: range

    @property
    def shape(self) -> tuple[int, int, int]:
        """(R, T, N)."""
        return len(self.numbers), *self.targets.shape[1:]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: tuple[int, slice | int]) -> np.ndarray:
        run, times = index
        return self.targets.states(self.numbers[run], times)


@dataclass(frozen=True)
class Windows:
    """Windows of one length: `count` of them in each run, from snapshot `first` on.

    Args:
        targets: where they come from.
        runs: numbers of the runs in the file.
        first, count: first starting snapshot and number of them, a run.
        steps: outer steps n.
    """

    targets: Targets
    runs: range
    first: int
    count: int
    steps: int

    def __len__(self) -> int:
        return len(self.runs) * self.count

    def batch(self, indices: Any, leads: Sequence[int]) -> np.ndarray:
        """States of some windows at some lead times.

        Args:
            indices: (B,) int, 0 to len - 1.
            leads: lead times in outer steps, 0 for the initial state; each must have a snapshot, see `Targets.leads`.

        Returns:
            (len(leads), B, N) float64; of `Targets.block` alone where there is one.
        """
        indices = np.asarray(indices)
        targets = self.targets
        offsets = np.array([lead * targets.skip // targets.gap for lead in leads])
        runs = self.runs.start + indices // self.count
        states = targets.gather(runs, (self.first + indices % self.count)[None, :] + offsets[:, None])
        return states if targets.block is None else states[..., targets.block]

    def spread(self, number: int) -> np.ndarray:
        """Indices of `number` windows, evenly spread; of all of them when number is 0 or too large."""
        if not number or number >= len(self):
            return np.arange(len(self))
        return np.linspace(0, len(self) - 1, number).astype(np.int64)


def _open(path: Path) -> xr.Dataset:
    if not path.exists():
        raise DataError(f"There is no reference run {path}; mend reference.file.")
    zarr = path.is_dir()
    options: dict[str, Any] = {"engine": "zarr", "consolidated": False} if zarr else {}
    try:
        return xr.open_dataset(path, decode_times=False, chunks=None, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        kind = "a Zarr store" if zarr else "a netCDF file"
        raise DataError(f"{path} cannot be opened as {kind}, it may be cut short: {_first_line(error)}") from error
    except ImportError as error:
        raise DataError(f"{path} is a Zarr store, and zarr is not installed: pip install zarr.") from error


def _variable(file: xr.Dataset, field: Field, path: Path) -> xr.DataArray:
    if field.name not in file:
        raise DataError(f"{path} has no variable {field.name!r} ({field.long_name}); it has "
                        f"{', '.join(map(str, file.data_vars)) or 'none'}.")
    variable = file[field.name]
    if variable.dtype.kind not in "fiu":
        raise DataError(f"The variable {field.name!r} of {path} holds {variable.dtype}; give it real numbers.")
    if "run" not in variable.dims:
        variable = variable.expand_dims("run")
    expected = ("run", "time", *field.dims)
    if set(variable.dims) != set(expected):
        raise DataError(f"The variable {field.name!r} of {path} has the dimensions "
                        f"({', '.join(map(str, variable.dims))}); it needs ({', '.join(expected)}), run optional.")
    variable = variable.transpose(*expected)
    if variable.shape[2:] != field.shape:
        raise DataError(f"The variable {field.name!r} of {path} has the grid {variable.shape[2:]}, the "
                        f"solver has {field.shape} ({', '.join(field.dims)}): filter the data to the solver's grid.")
    for dim, values in field.coords.items():
        if dim in file.coords and dim in variable.dims:
            found, tolerance = np.asarray(file[dim].values), 1e-5 * np.abs(values).max()
            if found.dtype.kind in "fiu" and not np.allclose(found, values, rtol=0, atol=tolerance):
                raise DataError(f"The coordinate {dim!r} of {path} runs from {found[0]:g} to {found[-1]:g}; the "
                                f"solver's from {values[0]:g} to {values[-1]:g}: put the data on the solver's grid.")
    if variable.shape[0] == 0 or variable.shape[1] < 2:
        raise DataError(f"{path} holds {variable.shape[0]} runs of {variable.shape[1]} snapshots; a target needs at "
                        "least one run of two.")
    return variable


def _interval(file: xr.Dataset, path: Path) -> float:
    if "time" not in file.coords:
        raise DataError(f"{path} has no coordinate `time`; give every snapshot its time, in the solver's unit.")
    units = str(file["time"].attrs.get("units", "1"))
    if units != "1":
        raise DataError(f"The coordinate `time` of {path} is in {units!r}; give it in the solver's own unit of time, with "
                        "units = \"1\".")
    times = np.asarray(file["time"].values)
    if times.ndim != 1 or times.dtype.kind not in "fiu" or not np.isfinite(times).all():
        raise DataError(f"The coordinate `time` of {path} must be one finite number a snapshot.")
    steps = np.diff(times.astype(np.float64))
    interval = float(np.median(steps))
    wrong = np.abs(steps - interval) > 1e-4 * abs(interval)
    if interval <= 0 or wrong.any():
        at = int(np.argmax(wrong)) if wrong.any() else 0
        raise DataError(f"The times of {path} have a gap or do not rise: {times[at]:g} is followed by "
                        f"{times[at + 1]:g}, elsewhere they are {interval:g} apart; cut the run there or fill the gap.")
    return float((times[-1] - times[0]) / (len(times) - 1))


def _match(interval: float, h: float, path: Path) -> tuple[int, int]:
    """(snapshots an outer step, outer steps a snapshot), one of them 1."""
    ratio = h / interval
    skip, gap = max(1, round(ratio)), max(1, round(1 / ratio))
    if not math.isclose(skip * interval, gap * h, rel_tol=1e-4):
        raise DataError(f"The snapshots of {path} are {interval:g} apart and the outer step is {h:g}: one must be a "
                        "whole multiple of the other; change training.stride or solver.dt.")
    return skip, gap


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
