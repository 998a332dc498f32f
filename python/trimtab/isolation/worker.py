# SPDX-License-Identifier: MIT
"""The worker: opens the solver in a process of its own and does the jobs it is sent, itself or in forked children."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import gc
import importlib
import inspect
import os
import pickle
import resource
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.errors import ConfigError, SolverError
from trimtab.isolation import protocol as ch
from trimtab.isolation.descriptors import Output, make_private
from trimtab.isolation.shared_window import WindowMemory, grow, mapped, pack, unpack
from trimtab.isolation.snapshot_solver import ImagedSolver, innermost

_PLAIN = (bool, int, float, str, tuple)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(end: int, life: int) -> None:
    """Serve the parent until it closes its end.

    Args:
        end: descriptor of the socket to it.
        life: descriptor of a pipe whose other end the parent holds: when the parent is gone, so is this process.
    """
    for file in (end, life):
        os.set_inheritable(file, False)  # a program that the solver's code starts must not hold them
    _die_with_parent(life)
    _, most = resource.getrlimit(resource.RLIMIT_STACK)  # old codes have large automatic arrays
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_STACK, (most, most))
    faulthandler.enable()  # a crash leaves Python's stack in the log, too
    channel = ch.Channel(socket.socket(fileno=end))
    request, _ = channel.receive()
    try:
        solver = open_inner(request.opener, request.options, request.snapshot, request.libraries, request.verify)
        channel.send(describe(solver))
    except Exception as error:
        channel.send(ch.Failure.of(error))
        return
    server = _Forking(channel, solver) if request.fork else _Worker(channel, solver)
    with contextlib.suppress(EOFError):
        server.serve()
    with contextlib.suppress(Exception):  # nobody is there to be told
        solver.close()
    server.output.flush()


def open_inner(opener: str, options: dict[str, Any], snapshot: str, libraries: tuple[str, ...], verify: bool) -> Any:
    """Open a solver by its opener's import path.

    Raises:
        ConfigError: the opener cannot be imported or called so; whatever it raises itself.
    """
    name, colon, attribute = opener.partition(":")
    if not colon or not attribute or name in ("", "__main__"):
        raise ConfigError(f"The opener {opener!r} must be \"package.module:function\" of a module that another process can "
                          "import.")

    def open_solver() -> Any:
        try:
            function = getattr(importlib.import_module(name), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"The opener {opener!r} cannot be imported: {error}.") from error
        return function(**options)

    return ImagedSolver.opened(open_solver, name, libraries, verify) if snapshot == "image" else open_solver()


def describe(solver: Any) -> ch.Ready:
    """What of a solver another process can be told; a property is not looked at, but for `has_adjoint`."""
    missing = [name for name in ("spec", "advance", "close") if not hasattr(solver, name)]
    if missing:
        raise ConfigError(f"The opener returned a {type(solver).__name__} without {' and '.join(missing)}; a solver has spec, "
                          "advance and close.")
    inner = innermost(solver)
    names = [name for name in dir(inner) if not name.startswith("_") and name not in ("spec", "advance", "close")]
    static = {name: inspect.getattr_static(inner, name) for name in names}
    methods = tuple(name for name in names if not isinstance(static[name], property) and callable(getattr(inner, name)))
    attributes = {name: value for name, value in static.items() if isinstance(value, _PLAIN)}
    if "has_adjoint" in names:
        attributes["has_adjoint"] = bool(inner.has_adjoint)
    return ch.Ready(solver.spec, methods, attributes)


class _Worker:
    """Does jobs itself, one after the other."""

    def __init__(self, channel: ch.Channel, solver: Any):
        self.channel, self.solver = channel, solver
        self.correction: Any = None
        self.output = Output()

    def serve(self) -> None:
        """Until the parent closes."""
        while True:
            message, files = self.channel.receive()
            if isinstance(message, ch.Close):
                return
            if isinstance(message, ch.Correct):
                self.correct(message, files[0])
            else:
                self.channel.send(self.done(message, files[0]))
                self.output.flush()

    def correct(self, message: ch.Correct, file: int) -> None:
        """A new correction; one that cannot be built is refused when it is used."""
        from trimtab.isolation.shared_correction import attach  # torch: a second, that a solver without a correction saves

        try:
            self.correction = attach(message.structure, file, message.size)
        except Exception as error:
            self.correction = ch.Failure.of(error)

    def done(self, job: ch.Job, file: int) -> ch.Answer:
        """Do a job."""
        try:
            _apply(job.settings)
            value = self._advance(job, file) if isinstance(job, ch.Advance) else self._call(job, file)
            return ch.Answer(job.number, value)
        except Exception as error:
            return ch.Answer(job.number, failure=ch.Failure.of(error))
        finally:
            os.close(file)

    def _module(self) -> Any:
        if isinstance(self.correction, ch.Failure):
            raise self.correction.exception()
        return self.correction

    def _advance(self, job: ch.Advance, file: int) -> tuple[float, int | None, float]:
        """Write the members' part of the window; returns h, the width of the network's inputs if recorded, and the seconds that
        the network took, where the correction has a stopwatch."""
        layout = WindowMemory(job.shape)
        states, times, failed, done = layout.views(mapped(file, job.size))
        members, steps = slice(job.first, job.stop), job.shape[0] - 1
        inner = innermost(self.solver)
        if hasattr(inner, "on_step"):
            inner.on_step = _recorder(done, members)
        module = self._module() if job.corrected else None
        watch = getattr(module, "stopwatch", None)
        before = 0.0 if watch is None else watch.seconds
        window = self.solver.advance(states[0, members].copy(), steps, correction=module, stride=job.stride, time=job.time,
                                     on_blow_up="mark")
        network = 0.0 if watch is None else watch.seconds - before
        if window.states.shape != states[:, members].shape:
            raise SolverError(f"The solver returned a window of shape {window.states.shape}; {steps} steps of "
                              f"{job.stop - job.first} members are {states[:, members].shape}.")
        states[:, members], failed[members] = window.states, window.failed_step
        if job.first == 0:
            times[:] = window.times
        if window.inputs is None:
            return float(window.h), None, network
        width = window.inputs.shape[-1]
        size = layout.size_with_inputs(width)
        grow(file, size)
        layout.inputs(mapped(file, size), width)[:, members] = window.inputs
        return float(window.h), width, network

    def _call(self, job: Any, file: int) -> Any:
        positional, named = unpack(job.packed, file)
        if "correction" in named:
            named["correction"] = self._module() if named["correction"] else None
        return pack(getattr(self.solver, job.name)(*positional, **named), file, job.size)


class _Forking(_Worker):
    """Does each job in a forked child, several at a time; this process stays as it was prepared."""

    def __init__(self, channel: ch.Channel, solver: Any):
        super().__init__(channel, solver)
        self.waiting = selectors.DefaultSelector()
        self.waiting.register(channel, selectors.EVENT_READ)
        self.children: dict[int, tuple[int, int, bytearray]] = {}  # job -> process, pipe, answer so far

    def serve(self) -> None:
        """Until the parent closes; children that still run are killed."""
        try:
            while True:
                for key, _ in self.waiting.select():
                    if key.data is not None:
                        self._collect(key.data)
                    elif not self._receive():
                        return
        finally:
            for process, *_ in self.children.values():
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)

    def _receive(self) -> bool:
        message, files = self.channel.receive()
        if isinstance(message, ch.Correct):
            self.correct(message, files[0])
        elif isinstance(message, ch.Kill):
            if message.number in self.children:
                os.kill(self.children[message.number][0], signal.SIGKILL)
        elif isinstance(message, ch.Job):
            self._fork(message, files[0])
        return not isinstance(message, ch.Close)

    def _fork(self, job: ch.Job, file: int) -> None:
        _apply(job.settings)  # here, not in each child: torch imports its compiler for it, which takes seconds
        threads = len(os.listdir("/proc/self/task"))
        if threads > 1:
            os.close(file)
            error = SolverError(f"The prepared process has {threads} threads, and a forked copy would have one: keep the "
                                "solver's code from starting threads, or set isolation = \"process\".")
            self.channel.send(ch.Answer(job.number, failure=ch.Failure.of(error)))
            return
        gc.freeze()  # what is there now is never collected in a child, which would copy its pages
        self.output.flush()  # or every child would write it once more
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reading)
            self._be_child(job, file, writing)
        os.close(writing)
        os.close(file)
        self.children[job.number] = process, reading, bytearray()
        self.waiting.register(reading, selectors.EVENT_READ, job.number)

    def _be_child(self, job: ch.Job, file: int, writing: int) -> None:
        """Do the job, leave the answer in the pipe and end, without the clean-up that is the prepared process's to do."""
        code = 70
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            self.channel.close()
            folder = Path(job.folder)
            make_private(folder, folder.with_suffix(".log"))
            answer = pickle.dumps(self.done(job, file), pickle.HIGHEST_PROTOCOL)
            self.output.flush()
            with open(writing, "wb") as pipe:
                pipe.write(answer)
            code = 0
        except SystemExit as error:  # of Python code in the solver
            code = error.code if isinstance(error.code, int) else error.code is not None
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)

    def _collect(self, number: int) -> None:
        process, reading, answer = self.children[number]
        data = os.read(reading, 2**20)
        if data:
            answer += data
            return
        self.waiting.unregister(reading)
        os.close(reading)
        del self.children[number]
        status = os.waitpid(process, 0)[1]
        self.channel.send(pickle.loads(answer) if answer and not status else ch.Answer(number, status=status))


def _apply(settings: tuple[Any, ...]) -> None:
    """Put the parent's settings of torch in force; without torch there is nothing to set."""
    if "torch" in sys.modules:
        from trimtab.isolation.shared_correction import apply_settings

        apply_settings(settings)


def _recorder(done: np.ndarray, members: slice) -> Callable[[int], None]:
    def record(step: int) -> None:
        done[members] = step

    return record


def _die_with_parent(life: int) -> None:
    """Have the system send SIGIO, which ends this process and all of its group, when the parent's end of a pipe closes.

    Not PR_SET_PDEATHSIG: it strikes when the thread ends that started the worker. And no thread that waits: a process is
    forked safely while it has one.
    """
    linux = sys.platform.startswith("linux")
    signal.signal(signal.SIGIO, signal.SIG_DFL if linux else lambda *_: os._exit(1))  # elsewhere it is ignored by default
    fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    with selectors.DefaultSelector() as selector:
        selector.register(life, selectors.EVENT_READ)
        if selector.select(0):
            os._exit(1)  # it is gone already


