# SPDX-License-Identifier: MIT
"""Target windows from a reference run: a netCDF or Zarr of the solver's fields, read lazily, checked before use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trimtab.config.sections import ObservationConfig, ReferenceConfig
from trimtab.core.errors import ConfigError, DataError
from trimtab.core.spec import SolverSpec
from trimtab.data.observations import Estimate, observation_of
from trimtab.data.reference_reader import complete, find_interval, find_variables, interval_error, match_interval, open_file

Purpose = Literal["training", "validation", "test"]
IN_MEMORY = 2**30


class Targets:
    """The reference run of an experiment, cut into training, validation and test.

    The first runs train, the next validate, the last of the file test. A small file is read once and windows are
    gathered from memory; of a large one, only the windows of a batch are read.

    Args:
        path: netCDF file, or a folder or `.zarr` of Zarr, with one variable a field of the solver and dimensions
            (run, time, ...), but for those in `reference.hidden`; a file without `run` is one run.
        spec: the solver's.
        reference: how many runs serve each purpose, and what stands for hidden fields.
        h: outer step.
        observation: what training sees of it; None for all.
        in_memory: most bytes to hold.
        block: (N',) int, components that windows are cut down to, for a solver that holds a part of the domain; None for all.

    Attributes:
        interval: time between snapshots.
        shape: (runs, snapshots, N) of the file.
        skip, gap: snapshots an outer step, and outer steps a snapshot; one of them is 1.
        in_memory: whether the file is held in memory.
        observation: the `Observation` operator.

    Raises:
        ConfigError: an observation that does not fit the solver.
        DataError: no such file, a missing variable, another grid, gaps in time, an interval that does not fit h, values
            that are not finite, too few runs or snapshots.
    """

    def __init__(self, path: str | Path, spec: SolverSpec, reference: ReferenceConfig, h: float,
                 observation: ObservationConfig | None = None, *, in_memory: int = IN_MEMORY, block: np.ndarray | None = None):
        self.path, self.spec, self.reference, self.h, self.block = Path(path), spec, reference, h, block
        self._config = observation or ObservationConfig()
        if block is not None and self._config != ObservationConfig():
            raise ConfigError("[observation] is of the whole state, and with parallel.domain above 1 each rank holds a block of "
                              "it: leave one of the two out.")
        self._noise: dict[int, np.ndarray] = {}
        self._estimate: Estimate | None = None
        self._file = open_file(self.path)
        try:
            self._variables = find_variables(self._file, spec, reference.hidden, self.path)
            runs, snapshots = self._variables[0].shape[:2]
            self.shape = (runs, snapshots, spec.size)
            self.interval = find_interval(self._file, self.path, spec.time_units)
            error = interval_error(self._file)
            self.skip, self.gap = match_interval(self.interval, h, self.path, error)
            if abs(self.interval - self.gap * h / self.skip) <= error:  # the same, as far as the stored times can tell
                self.interval = self.gap * h / self.skip
            self._check_runs()
            self._values: np.ndarray | None = None
            self.in_memory = 8 * math.prod(self.shape) <= in_memory
            if self.in_memory:
                self._values = np.empty(self.shape)
                for run in range(runs):
                    self._values[run] = self._read(run, slice(None))
            self.observation = observation_of(self._config, spec, self.climate)
        except BaseException:
            self._file.close()
            raise

    @property
    def counted(self) -> np.ndarray | None:
        """(M,) int64, components of what windows hold that are observed: of the block where there is one; None for all."""
        components = self.observation.components
        return components if components is None or self.block is None else np.flatnonzero(np.isin(self.block, components))

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

    def climate(self) -> np.ndarray:
        """States of the training runs, evenly spread, (S, N) float64 with S up to `observation.climate_states`."""
        runs, wanted = self._numbers("training"), self._config.climate_states
        every = max(1, -(-len(runs) * self.shape[1] // wanted))
        return np.concatenate([self.states(run, slice(0, None, every)) for run in runs])

    def observe(self, runs: np.ndarray, snapshots: np.ndarray) -> np.ndarray:
        """Observations y = H u + e of the states at given places.

        Args:
            runs: (B,) int, numbers in the file.
            snapshots: (L, B) int.

        Returns:
            (L, B, N) float64, NaN where nothing is observed.
        """
        observed = self.gather(runs, snapshots)
        if self.observation.deviation is not None:
            for i, run in enumerate(runs):
                observed[:, i] += self._errors(int(run), snapshots[:, i])
        return self.observation.hide(observed)

    def start(self, runs: np.ndarray, snapshots: np.ndarray) -> np.ndarray:
        """Initial states for windows at given places, as `observation.start` says.

        Args:
            runs: (B,) int, numbers in the file.
            snapshots: (B,) int.

        Returns:
            (B, N) float64.

        Raises:
            ConfigError: see `Estimate`.
        """
        if self._config.start == "truth":
            return self.gather(runs, snapshots[None])[0]
        if self._estimate is None:
            self._estimate = Estimate(self.observation, self.spec, self.climate())
        return self._estimate(self.observe(runs, snapshots[None])[0])

    def _errors(self, run: int, snapshots: np.ndarray) -> np.ndarray:
        """e of some snapshots of a run, (L, N); of a file in memory each is drawn once."""
        if not self.in_memory:
            return np.stack([self.observation.noise(run, int(one)) for one in snapshots])
        if run not in self._noise:
            self._noise[run] = np.stack([self.observation.noise(run, one) for one in range(self.shape[1])])
        return self._noise[run][snapshots]

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
        states = complete(self.spec, self.reference.hidden, states)
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
        """The truth's states of some windows at some lead times.

        Args:
            indices: (B,) int, 0 to len - 1.
            leads: lead times in outer steps, 0 for the initial state; each must have a snapshot, see `Targets.leads`.

        Returns:
            (len(leads), B, N) float64; of `Targets.block` alone where there is one.
        """
        return self._cut(self.targets.gather(*self._places(indices, leads)))

    def whole(self, indices: Any) -> np.ndarray:
        """Initial states of some windows as the truth has them, never cut down to a block, (B, N) float64."""
        return self.targets.gather(*self._places(indices, (0,)))[0]

    def observe(self, indices: Any, leads: Sequence[int]) -> np.ndarray:
        """What training sees of the same: observations, NaN where nothing is observed; arguments as in `batch`."""
        return self._cut(self.targets.observe(*self._places(indices, leads)))

    def start(self, indices: Any) -> np.ndarray:
        """Initial states of some windows, (B, N) float64, see `Targets.start`."""
        runs, snapshots = self._places(indices, (0,))
        return self._cut(self.targets.start(runs, snapshots[0]))

    def _cut(self, states: np.ndarray) -> np.ndarray:
        """The block of a solver that holds a part of the domain."""
        return states if self.targets.block is None else states[..., self.targets.block]

    def _places(self, indices: Any, leads: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Runs (B,) and snapshots (L, B)."""
        indices = np.asarray(indices)
        offsets = np.array([lead * self.targets.skip // self.targets.gap for lead in leads])
        return self.runs.start + indices // self.count, (self.first + indices % self.count)[None, :] + offsets[:, None]

    def place(self, index: int) -> tuple[int, int]:
        """Run and snapshot at which a window starts, as in the file."""
        runs, snapshots = self._places([index], (0,))
        return int(runs[0]), int(snapshots[0, 0])

    def spread(self, number: int) -> np.ndarray:
        """Indices of `number` windows, evenly spread; of all of them when number is 0 or too large."""
        if not number or number >= len(self):
            return np.arange(len(self))
        return np.linspace(0, len(self) - 1, number).astype(np.int64)
