# SPDX-License-Identifier: MIT
"""`IsolatedSolver`: any solver, in processes of its own, behind the same protocol."""

from __future__ import annotations

import logging
import os
import pickle
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.errors import ConfigError, InputError, SolverError, SolverStopped
from trimtab.core.failures import report
from trimtab.core.solver import OnBlowUp, refuse_blow_up, whole_steps
from trimtab.core.spec import SolverSpec, tensor_array
from trimtab.core.window import Window
from trimtab.isolation import protocol as ch
from trimtab.isolation.pool import Crew, Outcome, Task
from trimtab.isolation.shared_correction import Mirror, torch_settings
from trimtab.isolation.shared_window import WindowMemory, anonymous_file, mapped, pack, unpack
from trimtab.isolation.snapshot_solver import PROBE, same_bits
from trimtab.isolation.solver_lock import Turn
from trimtab.isolation.workdir.folder import Scratch
from trimtab.isolation.worker import open_inner

log = logging.getLogger("trimtab")
ISOLATIONS, SNAPSHOTS = ("none", "process", "fork"), ("none", "image")


def open_isolated(opener: str, options: Mapping[str, Any], *, isolation: str = "process", snapshot: str = "none",
                  libraries: Sequence[str] = (), verify: bool = True, **settings: Any) -> Any:
    """Open a solver in this process or in others; `trimtab.isolation` says which to choose.

    Args:
        opener: "package.module:function" that returns a `Solver`.
        options: its keywords.
        isolation: "none" (in this process), "process" or "fork".
        snapshot: "none" or "image".
        libraries, verify: see `IsolatedSolver`.
        settings: the other arguments of `IsolatedSolver`; without isolation there are none.

    Returns:
        A `Solver`.

    Raises:
        ConfigError: an unknown choice, or settings of workers where there are none; else see `IsolatedSolver`.
    """
    if isolation != "none":
        return IsolatedSolver(opener, options, isolation=isolation, snapshot=snapshot, libraries=libraries, verify=verify,
                              **settings)
    if settings:
        raise ConfigError(f"{', '.join(settings)}: only with isolation = \"process\" or \"fork\".")
    _one_of("snapshot", snapshot, SNAPSHOTS)
    return open_inner(opener, dict(options), snapshot, tuple(libraries), verify)


class IsolatedSolver:
    """A solver in worker processes: what ends there is a process, never this program.

    Members are distributed by number, `group` of them a call of the inner solver: member i always goes with the same others
    and in the same order, so that windows have the same bits whatever `instances` is, provided that a rollout is a function
    of its initial state (`trimtab.isolation` says when it is).

    A solver that stops gives `SolverStopped`; with on_blow_up = "mark" its members are NaN after u0 and `failed_step` is the
    first inner step of the outer step in which it stopped, or 1 when the solver does not say; the others are unharmed, and
    the worker is replaced. What a network changes in itself during a rollout (a counter, a buffer) is lost.

    Args:
        opener: "package.module:function" that another process can import; returns the solver.
        options: its keywords. The working folder is another there: give absolute paths.
        isolation: "process" or "fork".
        snapshot: "none" or "image" (in each worker).
        instances: members run at once; in "fork" mode from one prepared process.
        group: members handed to the solver in one call; above 1 for a solver that advances them as a batch, or the second
            begins with what the first one left, snapshot or not.
        threads: of torch and OpenMP in a worker; 1 in "fork" mode.
        timeout: seconds that a rollout of one group, or another call, may take; 0 for any.
        folder: under which a folder for this solver is made; None for a temporary one.
        files, links, stdin, keep: see `folder.Scratch`.
        environment: variables of the workers on top of this process's; those of an MPI launcher are taken out, so that a
            worker is nobody's rank.
        libraries: parts of names of the shared objects for an image; none for those that the opener loads.
        verify: before the first rollout of a snapshot, compare two short ones and refuse when their bits differ.

    Attributes:
        spec: the inner solver's. Its other public methods and plain attributes are here, too.
        scratch: folder of this solver.

    Raises:
        ConfigError: an unknown choice, an opener that cannot be imported, a missing file; what the opener raises.
        SolverStopped: the solver stopped while it was opened.
    """

    def __init__(self, opener: str, options: Mapping[str, Any], *, isolation: str = "process", snapshot: str = "none",
                 instances: int = 1, group: int = 1, threads: int = 1, timeout: float = 0.0,
                 folder: str | Path | None = None, files: Sequence[str | Path] = (), links: Sequence[str | Path] = (),
                 stdin: str | Path | None = None, keep: bool = False, environment: Mapping[str, str] | None = None,
                 libraries: Sequence[str] = (), verify: bool = True):
        _one_of("isolation", isolation, ISOLATIONS[1:])
        _one_of("snapshot", snapshot, SNAPSHOTS)
        fork = isolation == "fork"
        for name, value in (("instances", instances), ("group", group), ("threads", threads)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} = {value!r} must be a whole number above 0.")
        if fork and (snapshot != "none" or threads != 1 or not Path("/proc/self/fd").exists()):
            raise ConfigError("isolation = \"fork\" needs Linux and threads = 1, and snapshot \"none\": it is one.")
        if timeout < 0:
            raise ConfigError(f"timeout = {timeout} must be seconds, or 0 for no limit.")
        opening = ch.Open(opener, dict(options), fork, snapshot, tuple(libraries), verify)
        try:
            pickle.dumps(opening)
        except Exception as error:
            raise ConfigError(f"The solver's options cannot be sent to another process ({type(error).__name__}: {error}): give "
                              "numbers, text and paths, and have the opener make the rest.") from error
        self._places = Scratch(folder, files, links, stdin, keep)
        self.scratch = self._places.base
        self._fork, self._group, self._mirror = fork, group, Mirror()
        self._verify = verify and fork  # an image verifies itself, in each worker
        self._turn, self._process = Turn(opener), os.getpid()
        self._crew = Crew(opening, self._places, instances, environment or {}, threads, timeout or None)
        self._finalizer = weakref.finalize(self, _end, self._crew, self._places, self._mirror, os.getpid())
        try:
            self._ready = self._crew.open()
        except BaseException:
            self._finalizer()
            raise
        self.spec: SolverSpec = self._ready.spec
        self._turn.name = self.spec.solver

    @property
    def processes(self) -> list[int]:
        """Numbers of the worker processes, for a look from outside."""
        return self._crew.processes

    def advance(self, u0: Any, steps: int, *, correction: Any = None, stride: int = 1, time: float = 0.0,
                on_blow_up: OnBlowUp = "raise") -> Window:
        """See `Solver.advance`; the window's arrays stand in memory that the workers wrote.

        Raises:
            SolverStopped: a process ended, or took longer than `timeout`; the first member's, if several.
        """
        start = self.spec.check_states(u0)
        steps, stride = whole_steps(steps, stride)
        _one_of("on_blow_up", on_blow_up, ("raise", "mark"))
        with self._turn.taken():
            self._usable()
            if correction is not None:
                self._mirror.update(correction)
            run = _Rollout(self, stride, time, correction is not None, on_blow_up == "mark")
            if self._verify:
                self._compare(run, start[: self._group], min(steps, PROBE))
                self._verify = False
            window = run(start, steps)
            watch = getattr(correction, "stopwatch", None)
            if watch is not None:
                watch.seconds += run.network
        if on_blow_up == "raise":
            refuse_blow_up(self.spec, window.failed_step, steps * stride)
        return window

    def close(self) -> None:
        """End the workers, each closing its solver, once no thread is in a rollout; a second call does nothing."""
        if self._process != os.getpid():  # a fork, in which nobody would give a lock back
            self._finalizer.detach()
            return
        with self._turn.taken():
            if self._finalizer.detach():
                self._crew.close()
                self._mirror.close()
                self._places.close()

    def __getattr__(self, name: str) -> Any:
        ready = self.__dict__.get("_ready")
        if ready is not None and name in ready.attributes:
            return ready.attributes[name]
        if ready is None or name not in ready.methods:
            raise AttributeError(f"{type(self).__name__!r} and the solver in it have no attribute {name!r}")

        def method(*positional: Any, **named: Any) -> Any:
            return self._call(name, positional, named)

        method.__name__ = name
        return method

    def __reduce__(self) -> Any:
        raise SolverError("An open solver cannot be copied or sent to another process: open one there with the same options.")

    def __enter__(self) -> IsolatedSolver:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _call(self, name: str, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """A method of the inner solver, in the first worker or a fork; tensors become arrays, a correction is the mirror's."""
        with self._turn.taken():
            self._usable()
            mirror = None
            if named.get("correction") is not None:
                mirror = self._mirror
                mirror.update(named["correction"])
            named = {key: _array(value) for key, value in named.items()}
            if "correction" in named:
                named["correction"] = mirror is not None
            file = anonymous_file(0)
            try:
                packed = pack(([_array(one) for one in positional], named), file, 0)
                size = os.fstat(file).st_size

                def job(number: int, folder: str) -> ch.Job:
                    return ch.Call(number, torch_settings(), size, folder, name, packed)

                (outcome,) = self._crew.run([Task(job, file, lambda: (f"in {name}", None, None))], mirror, True)
                return unpack(_value(outcome), file)
            finally:
                os.close(file)

    def _usable(self) -> None:
        if not self._finalizer.alive:
            raise SolverError(f"The solver {self.spec.solver} is closed: open it again.")
        if os.getpid() != self._process:
            raise SolverError("This process is a fork of the one that opened the solver, whose workers serve that one alone: "
                              "open a solver here.")

    @staticmethod
    def _compare(run: _Rollout, start: np.ndarray, steps: int) -> None:
        """Two equal short rollouts of a snapshot; different bits mean that something outside of it is remembered."""
        if not same_bits(run(start, steps), run(start, steps)):
            raise SolverError("Two equal rollouts gave different bits although each ran in a fork of the same prepared process: "
                              "the code depends on something outside of it (a file elsewhere, the clock, a random number that "
                              "nothing has seeded, several threads); mend that, or set verify = false and do without "
                              "repeatable rollouts.")


class _Rollout:
    """One rollout after the other with the same settings.

    Attributes:
        network: seconds of the last one that passed while the network ran; of workers side by side, their mean.
    """

    network = 0.0

    def __init__(self, solver: IsolatedSolver, stride: int, time: float, corrected: bool, mark: bool):
        self.crew, self.group, self.mirror = solver._crew, solver._group, solver._mirror if corrected else None
        self.stride, self.time, self.mark, self.dt = stride, time, mark, solver.spec.dt

    def __call__(self, start: np.ndarray, steps: int) -> Window:
        members, size = start.shape
        layout = WindowMemory((steps + 1, members, size))
        file = anonymous_file(layout.size)
        try:
            states, times, failed, done = layout.views(mapped(file, layout.size))
            states[0] = start
            firsts = range(0, members, self.group)
            tasks = [self._task(layout, file, first, min(first + self.group, members), steps, done) for first in firsts]
            outcomes = self.crew.run(tasks, self.mirror, self.mark, self._tell)
            widths, stopped = self._settle(outcomes, states, failed, done)
            inputs = None
            if widths:
                if len(set(widths)) > 1:
                    raise InputError(f"The solver recorded network inputs of different lengths for its members: {set(widths)}.")
                inputs = layout.inputs(mapped(file, layout.size_with_inputs(widths[0])), widths[0])
                inputs[:, stopped] = np.nan
        finally:
            os.close(file)
        answered = [one.value[0] for one in outcomes if isinstance(one, ch.Answer) and one.value]
        spent = [one.value[2] for one in outcomes if isinstance(one, ch.Answer) and one.value]
        self.network = sum(spent) / min(self.crew.lanes, max(1, len(spent)))
        h = answered[0] if answered else self.stride * self.dt
        if not isinstance(outcomes[0], ch.Answer):
            times[:] = self.time + h * np.arange(steps + 1)
        return Window(states, times, h, failed, inputs)

    def _task(self, layout: WindowMemory, file: int, first: int, stop: int, steps: int, done: np.ndarray) -> Task:
        settings, stride, time, corrected = torch_settings(), self.stride, self.time, self.mirror is not None

        def job(number: int, folder: str) -> ch.Job:
            return ch.Advance(number, settings, layout.size, folder, layout.shape, first, stop, stride, time, corrected)

        def where() -> tuple[str, int | None, int | None]:
            named = f"in member {first}" if stop == first + 1 else f"in one of the members {first} to {stop - 1}"
            step = int(done[first])
            return (f"{named}, after {step} of {steps} outer steps", first, step) if step else (named, first, None)

        return Task(job, file, where)

    def _tell(self, outcome: Outcome) -> None:
        """Say at once, not after all the others, that a process ended; and tell the stage that counts them."""
        if not self.mark:
            return
        ended = outcome if isinstance(outcome, SolverStopped) else None
        if ended is not None:
            log.warning("%s", ended)
        report(ended)

    def _settle(self, outcomes: list[Outcome | None], states: np.ndarray, failed: np.ndarray,
                done: np.ndarray) -> tuple[list[int], np.ndarray]:
        """Raise the first failure, or mark members whose process stopped; widths of recorded inputs, members that stopped."""
        widths, stopped = [], np.zeros(len(failed), bool)
        for index, outcome in enumerate(outcomes):
            members = slice(index * self.group, (index + 1) * self.group)
            if isinstance(outcome, SolverStopped) and self.mark:
                stopped[members], states[1:, members] = True, np.nan
                failed[members] = done[members] * self.stride + 1
            elif outcome is not None:
                width = _value(outcome)[1]
                widths += [] if width is None else [width]
        return widths, stopped


def _value(outcome: Outcome | None) -> Any:
    """What a job returned; raises what it raised."""
    if isinstance(outcome, SolverStopped):
        raise outcome
    assert outcome is not None
    if outcome.failure is not None:
        raise outcome.failure.exception()
    return outcome.value


def _array(value: Any) -> Any:
    return tensor_array(value, "A state") if hasattr(value, "detach") else value


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} = {value!r}: give one of {', '.join(allowed)}.")


def _end(crew: Crew, places: Scratch, mirror: Mirror, process: int) -> None:
    """What is done when nobody closed the solver: end the workers; not in a fork of the process that has them."""
    if process == os.getpid():
        crew.kill()
        mirror.close()
        places.close()
