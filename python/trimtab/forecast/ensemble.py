# SPDX-License-Identifier: MIT
"""Ensembles: many runs of a hybrid that differ by their start, their network or their solver's parameters.

Members are computed in groups that follow from the ensemble alone, never from the number of ranks, and a group that is not
full is filled up: so a torch network always sees batches of one size, and a member's bits depend neither on the ranks nor on
how many members there are.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from trimtab.bridge.opener import open_solver
from trimtab.config.experiment import dump_experiment, load_experiment
from trimtab.config.input_files import PHYSICS, input_digests
from trimtab.config.sections import SolverConfig
from trimtab.core.errors import BlowUpError, ConfigError
from trimtab.core.failures import HYBRID, UNSTABLE, Failures
from trimtab.core.progress import silent
from trimtab.core.provenance import provenance
from trimtab.core.solver import Solver, whole_number, whole_steps
from trimtab.core.spec import SolverSpec
from trimtab.data.reference import Progress, make_reference
from trimtab.forecast.digests import digest_of_arrays, digest_of_weights
from trimtab.forecast.initial_conditions import (
    Perturbation,
    Starts,
    bred_factor,
    breed,
    draw,
    held_out,
    of_file,
    perturbation_scales,
    vary,
)
from trimtab.parallel.launcher import asked_threads
from trimtab.parallel.mpi import get_world
from trimtab.parallel.world import LONGEST, World
from trimtab.training.run_folder import check_place, load_run, run_correction, warn_of_files

GROUP = 8             # members advanced in one call
CHUNK_BYTES = 2**25   # of states held at once, a rank
ANALYSIS = 2**32 - 1  # the number under which a displaced analysis draws its perturbation
PIECES = 20           # of a group's run at least, so that a kill loses little

Opener = Callable[..., Solver]


class Member(NamedTuple):
    """One member's run.

    Attributes:
        start, number: which start it belongs to, and which member it is.
        network: number of its network.
        parameters: the solver's parameters that are its own.
        times: (K+1,) since the start.
        states: (K+1, N) float64; NaN after a blow-up.
        failed_step: inner step of the blow-up, 0 for none.
    """

    start: int
    number: int
    network: int
    parameters: Mapping[str, float]
    times: np.ndarray
    states: np.ndarray
    failed_step: int


class Group(NamedTuple):
    """Members that one call advances: the same start, network and parameters."""

    number: int
    start: int
    network: int
    members: tuple[int, ...]


class Block(NamedTuple):
    """Consecutive records of a group.

    Attributes:
        first: number of the first record; record 0 is the start.
        states: (n, G, N) float64, G the group's size, filled up; NaN after a blow-up.
        failed: (n, G) int64, inner step of a blow-up up to that record, 0 for none.
    """

    first: int
    states: np.ndarray
    failed: np.ndarray


class Ensemble:
    """Runs of a hybrid from perturbed starts; iterates members lazily, a group in memory at a time.

        ensemble = trimtab.Ensemble.from_runs(["runs/l63"], members=64, steps=500, every=10)
        for member in ensemble:
            print(member.number, member.states[-1])

    Under `mpirun` each rank iterates its share of the members; `trimtab ensemble` calls `trimtab.write_ensemble(ensemble,
    "FILE.nc")`, which puts all of them into one file.

    Args:
        open_solver: called with the parameters that differ (none when nothing is varied), returns an open solver.
        starts: see `Starts`; or (S, N) float64 states.
        members: M, a start.
        steps: inner steps N of each run, a multiple of `every`.
        every: inner steps between two records.
        corrections: one a network, called without arguments when it is needed, returns a module (B, N) -> (B, N) or None;
            member m has number m modulo their number. Empty for the solver alone.
        perturbation: how members differ at the start.
        varied: solver parameter -> spread of its logarithm: each member has its own solver, and runs alone.
        seed: of all that is random.
        group: members advanced in one call; the bits of a torch network depend on it.
        world: the ranks that share the groups; None for those of this job.
        identity: what the runs depend on besides, for the file that holds them.

    Raises:
        ConfigError: numbers out of range, or see `Perturbation` and `vary`.
        InputError: starts of another shape, dtype, or not finite.
    """

    def __init__(
        self,
        open_solver: Opener,
        starts: Starts | np.ndarray,
        members: int,
        *,
        steps: int,
        every: int = 1,
        corrections: Sequence[Callable[[SolverSpec], Any]] = (),
        perturbation: Perturbation | None = None,
        varied: Mapping[str, float] | None = None,
        seed: int = 0,
        group: int = GROUP,
        world: World | None = None,
        identity: Mapping[str, Any] | None = None,
    ):
        members, group = whole_number("members", members), whole_number("group", group)
        self.steps, self.every = whole_number("steps", steps), whole_number("every", every)
        whole_steps(self.steps, 1)  # not too many
        if self.steps % self.every:
            raise ConfigError(f"{steps} steps are no multiple of {every}, the steps between two records.")
        if seed < 0:
            raise ConfigError(f"seed = {seed} must be 0 or more.")
        self.open_solver, self.members, self.seed, self.world = open_solver, members, seed, world or get_world()
        self.perturbation, self.varied = perturbation or Perturbation(), dict(varied or {})
        self.corrections, self.identity = tuple(corrections), dict(identity or {})
        self.group = 1 if self.varied else group
        with contextlib.closing(open_solver()) as solver:
            self.spec = solver.spec
        if not isinstance(starts, Starts):
            starts = Starts(starts, np.zeros(len(starts)))
        self.starts = starts
        self.spec.check_states(starts.states, "starts")
        if self.perturbation.kind == "bred" and (starts.before is None or starts.interval_steps < 1):
            raise ConfigError("Bred vectors need the states before the start: start from held-out snapshots, or perturb by "
                              "climatology.")
        self.parameters = [vary(self.varied, self.spec, member, seed) for member in range(members)] if self.varied \
            else [{}] * members
        self._solver: Solver | None = None
        self._loaded: tuple[int, Any] = (-1, None)
        self._failures = Failures("runs of members", UNSTABLE, first=HYBRID, later=0)

    @classmethod
    def from_runs(
        cls,
        folders: Sequence[str | Path],
        members: int,
        *,
        steps: int,
        starts: int | str | Path = 1,
        checkpoint: str | None = "best",
        perturbation: Perturbation | None = None,
        progress: Progress = silent,
        **options: Any,
    ) -> Ensemble:
        """The ensemble of one or several trained runs (seeds) of one solver.

        Args:
            folders: run folders; the networks take turns among the members. With checkpoint None an experiment will do.
            members: M, a start.
            steps: inner steps of each run.
            starts: how many held-out snapshots to start from; or a netCDF file, whose last record holds the starts.
            checkpoint: "best", "last" or "offline"; None for the solver alone.
            perturbation: how members differ at the start.
            progress: told how far the making of a reference run is.
            options: the other keywords of `Ensemble`.

        Returns:
            The ensemble.

        Raises:
            ConfigError: runs of different solvers, and see `Ensemble`.
            CheckpointError, DataError: a run or a reference run that cannot be read.
        """
        if not folders:
            raise ConfigError("An ensemble needs a run folder.")
        whole_number("members", members)  # before a reference run is made
        runs = [load_run(one) if checkpoint or (Path(one) / "experiment.toml").is_file() else None for one in folders]
        for run in filter(None, runs):
            check_place(run)
        experiments = [run.experiment if run else load_experiment(one) for run, one in zip(runs, folders, strict=True)]
        own, perturbation, world = experiments[0], perturbation or Perturbation(), options.get("world") or get_world()
        for one, folder in zip(experiments, folders, strict=True):
            if one.solver != own.solver or one.reference != own.reference:
                raise ConfigError(f"{folder} and {folders[0]} differ in [solver] or [reference]: networks of one ensemble act "
                                  "in one solver.")
        opener = solver_opener(own.solver)
        with contextlib.closing(opener()) as solver:
            spec = solver.spec
        used = [run for run in runs if run and checkpoint]
        files = input_digests(own, kinds=PHYSICS)
        identity = {"experiment": dump_experiment(own), **({"files": files} if files else {}),
                    "names": [f"{run.folder / str(checkpoint)}.pt" for run in used],
                    "networks": [digest_of_weights(run, str(checkpoint), spec) for run in used]}
        world.patience = own.parallel.timeout or LONGEST
        with world.working("the reference run"):
            if world.rank == 0:  # the others would make it, too, where locks do not reach
                for run in filter(None, runs):
                    warn_of_files(run, PHYSICS)
                make_reference(own, spec, progress=world.telling(progress))
            world.wait()
        chosen = held_out(own, spec, starts, steps * spec.dt, perturbation) if isinstance(starts, int) \
            else of_file(starts, own, spec)
        return cls(opener, chosen, members, steps=steps, perturbation=perturbation, identity=identity,
                   corrections=[functools.partial(run_correction, run, checkpoint=str(checkpoint)) for run in used], **options)

    @property
    def records(self) -> int:
        """Number K of records after the start."""
        return self.steps // self.every

    @property
    def block(self) -> int:
        """Records that are computed and held at once; a property of the ensemble, so that a run is always cut alike."""
        return max(1, min(CHUNK_BYTES // (8 * self.group * self.spec.size), -(-self.records // PIECES)))

    def plan(self) -> dict[str, Any]:
        """All that the runs' bits depend on, but for the machine; JSON can hold it."""
        return {
            **self.identity, "solver": self.spec.solver, "dt": self.spec.dt, "parameters": dict(self.spec.parameters),
            "fields": [[one.name, *one.shape] for one in self.spec.fields],
            "members": self.members, "steps": self.steps, "every": self.every, "group": self.group, "seed": self.seed,
            "perturbation": vars(self.perturbation), "varied": self.varied, "threads": asked_threads() or 1,
            "starts": digest_of_arrays(self.starts.states, self.starts.times, self.starts.climate, self.starts.before),
            "versions": provenance()["versions"],
        }

    def groups(self) -> list[Group]:
        """All groups, in the order of starts, networks and members."""
        networks = max(1, len(self.corrections))
        found: list[Group] = []
        for start in range(len(self.starts.states)):
            for network in range(min(networks, self.members)):
                mine = range(network, self.members, networks)
                for first in range(0, len(mine), self.group):
                    found.append(Group(len(found), start, network, tuple(mine[first : first + self.group])))
        return found

    def __iter__(self) -> Iterator[Member]:
        times = np.arange(self.records + 1) * self.every * self.spec.dt
        for group in self.groups()[self.world.rank :: self.world.size]:
            blocks = list(self.blocks(group))
            states, failed = (np.concatenate([getattr(one, name) for one in blocks]) for name in ("states", "failed"))
            for slot, number in enumerate(group.members):
                yield Member(group.start, number, group.network, self.parameters[number], times, states[:, slot],
                             int(failed[-1, slot]))

    def blocks(self, group: Group, after: Block | None = None) -> Iterator[Block]:
        """Run a group, some records at a time.

        Args:
            group: one of `groups()`.
            after: the last block of an interrupted run, to go on from; None to begin.

        Yields:
            The records in order; the first block is the start alone.

        Raises:
            BlowUpError: a perturbation blew up while it was bred.
            SolverError, CorrectionError: see `Solver.advance`; a blow-up of a member is in `failed` and NaN.
            SolverStopped: each of the first members ended the solver's process.
        """
        with self._opened(group) as solver:
            module = self._correction(group.network)
            if after is None:
                with _threads_of_torch(asked_threads() or 1):
                    states = self._start(group, solver, module)
                after = Block(0, states[None], np.zeros((1, self.group), dtype=np.int64))
                yield after
            states, failed, done = after.states[-1], after.failed[-1].copy(), after.first + len(after.states) - 1
            while done < self.records:
                count = min(self.block, self.records - done)
                # A member that has failed is zero inside a solver, too, and stays in the batch, whose size is to be the same.
                alive = np.where(failed[:, None] > 0, 0.0, states)
                time = float(self.starts.times[group.start]) + done * self.every * self.spec.dt
                if (failed > 0).all():  # of a code that stops, each would be the start of another process
                    lost = np.broadcast_to(failed, (count, self.group))
                    yield Block(done + 1, np.full((count, *states.shape), np.nan), lost)
                    done += count
                    continue
                with self._failures.watching(), _threads_of_torch(asked_threads() or 1):
                    window = solver.advance(alive, count, correction=module, stride=self.every, time=time,
                                            on_blow_up="mark")
                ends = (np.arange(1, count + 1) * self.every)[:, None]
                new = np.where((window.failed_step > 0) & (window.failed_step <= ends),
                               done * self.every + window.failed_step, 0)
                until = np.where(failed > 0, failed, new)
                records = np.where(until[:, :, None] > 0, np.nan, window.states[1:])
                yield Block(done + 1, records, until)
                states, failed, done = records[-1], until[-1].copy(), done + count

    def close(self) -> None:
        """Close the solver that is kept open between groups; a second call does nothing."""
        if self._solver is not None:
            self._solver.close()
            self._solver = None

    @contextlib.contextmanager
    def _opened(self, group: Group) -> Iterator[Solver]:
        if self.varied:
            with contextlib.closing(self.open_solver(**self.parameters[group.members[0]])) as solver:
                yield solver
            return
        if self._solver is None:
            self._solver = self.open_solver()
        yield self._solver

    def _correction(self, network: int) -> Any:
        if not self.corrections:
            return None
        if self._loaded[0] != network:  # the last one is kept, groups come network by network
            self._loaded = (network, self.corrections[network](self.spec))
        return self._loaded[1]

    def _start(self, group: Group, solver: Solver, module: Any) -> np.ndarray:
        """(G, N) perturbed states; a group that is not full is filled up with its first member."""
        members = [*group.members, *group.members[:1] * (self.group - len(group.members))]
        analysis = self.starts.states[group.start]
        rows = self._perturbed(group.start, members, solver, module)
        if self.perturbation.displaced:
            analysis = analysis + self._perturbed(group.start, [ANALYSIS], solver, module)
        return self.spec.check_states(analysis + rows, "the perturbed start")

    def _perturbed(self, start: int, members: Sequence[int], solver: Solver, module: Any) -> np.ndarray:
        """(G, N) perturbations."""
        rows = np.stack([draw(self.perturbation, self.spec, self.starts, start, one, self.seed) for one in members])
        project = getattr(solver, "project", None)
        if project and rows.any():  # what the solver does not hold is no perturbation
            rows = project(rows)
        if self.perturbation.kind != "bred" or self.starts.before is None:
            return rows
        before, steps = self.starts.before[start], self.starts.interval_steps
        begin = float(self.starts.times[start]) - (len(before) - 1) * steps * self.spec.dt

        def advance(states: np.ndarray, cycle: int) -> np.ndarray:
            time = begin + cycle * steps * self.spec.dt
            return solver.advance(states, 1, correction=module, stride=steps, time=time).states[1]

        scales = perturbation_scales(self.spec, self.starts.states[start], self.starts.climate)
        try:
            rows = breed(rows, before, scales, self.perturbation.amplitude, advance)
        except BlowUpError as error:
            raise BlowUpError(f"While perturbations of start {start} were bred: {error}", error.steps) from error
        return rows * np.array([bred_factor(start, one, self.seed) for one in members])[:, None]


def solver_opener(config: SolverConfig) -> Opener:
    """`trimtab.open_solver` of an experiment's section, taking parameters that differ.

    Args:
        config: the section [solver].

    Returns:
        Called with keywords that replace some of the section's, opens the solver.
    """
    def build(**changes: Any) -> Solver:
        return open_solver(config.name, **{**config.options, **changes})

    return build


@contextlib.contextmanager
def _threads_of_torch(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


