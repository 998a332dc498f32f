# SPDX-License-Identifier: MIT
"""The crew: workers, started when needed and replaced when they end; jobs go to them by number, never by who is free."""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trimtab.core.errors import SolverStopped
from trimtab.isolation import protocol as ch
from trimtab.isolation.shared_correction import Mirror
from trimtab.isolation.workdir.folder import Place, Scratch
from trimtab.isolation.worker_process import GRACE, WorkerProcess, stopped

_SLOWEST_START = 60.0  # seconds that starting Python and opening a solver may take in any case


@dataclass(frozen=True)
class Task:
    """A job, the memory that goes with it, and how to say where its solver stopped.

    Args:
        job: makes the message, given its number and the folder of a forked child.
        file: descriptor of its shared memory.
        where: what it does, its first member, and the outer steps that member has done; asked when it stopped.
    """

    job: Callable[[int, str], ch.Job]
    file: int
    where: Callable[[], tuple[str, int | None, int | None]]


Outcome = ch.Answer | SolverStopped


@dataclass
class _Running:
    worker: WorkerProcess
    task: int
    place: Place
    log_start: int
    deadline: float | None
    timed_out: bool = False


class Crew:
    """Lanes that each do one job at a time: a process each, or in "fork" mode children of one prepared process.

    Args:
        opening: what each worker opens.
        scratch: where their folders are.
        lanes: how many jobs run at once.
        environment, threads: see `WorkerProcess`.
        timeout: seconds that a job may take; None for any.
    """

    def __init__(self, opening: ch.Open, scratch: Scratch, lanes: int, environment: Mapping[str, str], threads: int,
                 timeout: float | None):
        self.opening, self.scratch, self.lanes, self.timeout = opening, scratch, lanes, timeout
        self._start: Callable[[], WorkerProcess] = lambda: WorkerProcess(opening, scratch, environment, threads)
        self._workers: list[WorkerProcess | None] = [None] * (1 if opening.fork else lanes)
        self._number = 0

    @property
    def processes(self) -> list[int]:
        """Numbers of the workers' processes."""
        return [one.pid for one in self._workers if one is not None]

    def open(self) -> ch.Ready:
        """Start all workers and wait for the first; what it says of its solver."""
        for index in range(len(self._workers)):
            self._workers[index] = self._start()
        try:
            _, ready = self._ready(0)
        except BaseException:
            self.kill()
            raise
        assert ready is not None
        return ready

    def run(self, tasks: Sequence[Task], mirror: Mirror | None, keep_going: bool,
            told: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome | None]:
        """Do tasks, task i in lane i modulo the number of lanes.

        Args:
            tasks: what to do.
            mirror: the correction that workers must have, or None.
            keep_going: go on after a process has stopped. Else, and after an exception, only tasks before the first one
                that failed are begun still, so that it does not depend on the lanes which failure is found first.
            told: given each outcome when it comes; may raise, and all ends.

        Returns:
            What became of each: an answer, or how its process stopped; None for one that was not begun.
        """
        outcomes: list[Outcome | None] = [None] * len(tasks)
        queues = [deque(range(lane, len(tasks), self.lanes)) for lane in range(self.lanes)]
        running: dict[int, _Running] = {}
        last = len(tasks)
        try:
            while any(queues) or running:
                for queue in queues:
                    while queue and queue[0] > last:
                        queue.popleft()
                busy = {one.task % self.lanes for one in running.values()}
                for lane, queue in enumerate(queues):
                    if queue and lane not in busy:
                        index = queue.popleft()
                        number, begun = self._begin(index, tasks[index], mirror)
                        running[number] = begun
                for index, outcome in self._wait(running, tasks):
                    outcomes[index] = outcome
                    told(outcome)
                    if not keep_going if isinstance(outcome, SolverStopped) else outcome.failure is not None:
                        last = min(last, index)
        except BaseException:  # an interrupt, or a worker that could not be replaced: nothing may run on behind it
            self.kill()
            raise
        return outcomes

    def kill(self) -> None:
        """End all workers at once."""
        for worker in self._workers:
            if worker is not None:
                self._drop(worker)

    def close(self) -> None:
        """End all workers, each closing its solver; all together have the time that one has."""
        workers = [one for one in self._workers if one is not None]
        until = time.monotonic() + GRACE
        for worker in workers:
            worker.ask_to_close()
        try:
            for worker in workers:
                worker.close(max(0.0, until - time.monotonic()))
        finally:
            self.kill()  # what an interrupt left

    def _ready(self, slot: int) -> tuple[WorkerProcess, ch.Ready | None]:
        """A worker that has opened its solver, started anew if there is none."""
        worker = self._workers[slot]
        if worker is None:
            worker = self._workers[slot] = self._start()
        try:
            return worker, worker.wait_ready(None if self.timeout is None else max(self.timeout, _SLOWEST_START))
        except BaseException:
            self._drop(worker)
            raise

    def _begin(self, index: int, task: Task, mirror: Mirror | None) -> tuple[int, _Running]:
        """Send a task to its lane; a worker that ended since its last job is replaced."""
        slot = 0 if self.opening.fork else index % self.lanes
        worker, _ = self._ready(slot)
        try:
            return self._send(worker, index, task, mirror)
        except OSError:
            self._drop(worker)
        worker, _ = self._ready(slot)
        return self._send(worker, index, task, mirror)

    def _send(self, worker: WorkerProcess, index: int, task: Task, mirror: Mirror | None) -> tuple[int, _Running]:
        self._number += 1
        if mirror is not None and mirror.file is not None and worker.version != mirror.version:
            worker.channel.send(ch.Correct(mirror.structure, mirror.size), [mirror.file])
            worker.version = mirror.version
        place = self.scratch.reserve("member") if self.opening.fork else worker.place
        start = self.scratch.log_position(place)
        worker.channel.send(task.job(self._number, str(place.folder)), [task.file])
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        return self._number, _Running(worker, index, place, start, deadline)

    def _wait(self, running: dict[int, _Running], tasks: Sequence[Task]) -> list[tuple[int, Outcome]]:
        """What has ended, waiting until something has or a time is up."""
        if not running:
            return []
        workers = {id(one.worker): one.worker for one in running.values()}
        deadlines = [one.deadline for one in running.values() if one.deadline is not None]
        with selectors.DefaultSelector() as selector:
            for worker in workers.values():
                selector.register(worker.channel, selectors.EVENT_READ, worker)
            ready = selector.select(max(0.0, min(deadlines) - time.monotonic()) if deadlines else None)
        ended: list[tuple[int, Outcome]] = []
        for key, _ in ready:
            ended += self._receive(key.data, running, tasks)
        now = time.monotonic()
        for number, one in running.items():
            if one.deadline is not None and now >= one.deadline:
                one.deadline, one.timed_out = None, True
                if self.opening.fork:
                    with contextlib.suppress(OSError):  # it has ended itself, and that is seen next
                        one.worker.channel.send(ch.Kill(number))
                else:
                    one.worker.kill()
        return ended

    def _receive(self, worker: WorkerProcess, running: dict[int, _Running], tasks: Sequence[Task]) -> list[tuple[int, Outcome]]:
        try:
            answer, _ = worker.channel.receive()
        except EOFError:
            numbers = [number for number, one in running.items() if one.worker is worker]
            return self._ended(worker, [running.pop(number) for number in numbers], tasks)
        one = running.pop(answer.number)
        if answer.status is None:
            if self.opening.fork:
                self.scratch.release(one.place)
            return [(one.task, answer)]
        code = os.waitstatus_to_exitcode(answer.status)
        output = one.place.output()
        kept = self.scratch.release(one.place, failed=True)
        return [(one.task, self._stopped(one, code, output, kept, tasks))]

    def _ended(self, worker: WorkerProcess, lost: list[_Running], tasks: Sequence[Task]) -> list[tuple[int, Outcome]]:
        """A worker has ended; its replacement is started and opens its solver while others go on."""
        code = worker.wait()
        outputs = [one.place.output(one.log_start) for one in lost]
        kept = worker.give_up(failed=True)
        slot = self._workers.index(worker)
        self._workers[slot] = self._start()
        return [(one.task, self._stopped(one, code, output, kept, tasks)) for one, output in zip(lost, outputs, strict=True)]

    def _stopped(self, one: _Running, code: int, output: str, kept: bool, tasks: Sequence[Task]) -> SolverStopped:
        where, member, step = tasks[one.task].where()
        return stopped(one.place, code, where, member=member, step=step, kept=kept, output=output,
                       timeout=self.timeout if one.timed_out else None)

    def _drop(self, worker: WorkerProcess) -> None:
        worker.kill()
        worker.wait()
        worker.give_up()
        self._workers = [None if one is worker else one for one in self._workers]
