# SPDX-License-Identifier: MIT
"""What goes between a solver's parent and its worker: small messages with open files, and exceptions that keep their type."""

from __future__ import annotations

import contextlib
import pickle
import socket
import struct
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle

from trimtab.core.errors import SolverError

_HEADER = struct.Struct("<Q")
_MOST_FILES = 4


@dataclass(frozen=True)
class Open:
    """Open the solver: `opener` "package.module:function" with `options`; `fork` for a child a job."""

    opener: str
    options: dict[str, Any]
    fork: bool
    snapshot: str
    libraries: tuple[str, ...]
    verify: bool


@dataclass(frozen=True)
class Correct:
    """The correction from now on: its structure, and with it the file of its numbers; see `shared_correction.py`."""

    structure: bytes
    size: int


@dataclass(frozen=True)
class Job:
    """What one job is, and the size of the shared memory that came with it.

    Args:
        number: comes back with the answer.
        settings: see `mirror.torch_settings`.
        size: bytes of the shared memory.
        folder: working folder and log of a forked child, empty in a process of its own.
    """

    number: int
    settings: tuple[Any, ...]
    size: int
    folder: str


@dataclass(frozen=True)
class Advance(Job):
    """Run members first to stop-1 of a window, whose shape is (K+1, B, N)."""

    shape: tuple[int, int, int]
    first: int
    stop: int
    stride: int
    time: float
    corrected: bool


@dataclass(frozen=True)
class Call(Job):
    """Call another method of the solver with packed arguments; see `memory.pack`."""

    name: str
    packed: Any


@dataclass(frozen=True)
class Kill:
    """End the forked child of a job."""

    number: int


@dataclass(frozen=True)
class Close:
    """Close the solver and end."""


@dataclass(frozen=True)
class Ready:
    """What the solver is: its spec, the names of its other public methods, and its plain attributes."""

    spec: Any
    methods: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What became of a job: a value, or a failure, or the wait status of a child that ended without an answer."""

    number: int
    value: Any = None
    failure: Failure | None = None
    status: int | None = None


class WorkerTraceback(Exception):
    """The traceback of an exception where it was raised, in another process; the cause of the one raised here."""

    def __str__(self) -> str:
        return f"\n\"\"\"\n{self.args[0]}\"\"\""


@dataclass(frozen=True)
class Failure:
    """An exception on its way between processes.

    Args:
        pickled: the exception; None when it cannot travel.
        sentence: its type and text.
        traceback: as printed.
    """

    pickled: bytes | None
    sentence: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Pack an exception; one that does not survive pickling travels as its text."""
        pickled = None
        with contextlib.suppress(Exception):
            data = cloudpickle.dumps(error)
            if type(pickle.loads(data)) is type(error):
                pickled = data
        text = "".join(traceback.format_exception(error))
        return cls(pickled, f"{type(error).__name__}: {error}", text)

    def exception(self) -> BaseException:
        """The exception, with its own type where that can be had here, and the worker's traceback as its cause."""
        error: BaseException | None = None
        if self.pickled is not None:
            with contextlib.suppress(Exception):
                error = pickle.loads(self.pickled)
        if error is None:
            error = SolverError(f"The solver's process raised an exception that cannot leave it, {self.sentence}")
        error.__cause__ = WorkerTraceback(self.traceback)
        return error


class Channel:
    """Messages and open files both ways over a socket.

    Args:
        end: one end of a pair of stream sockets.
    """

    def __init__(self, end: socket.socket):
        self._end = end

    def fileno(self) -> int:
        """The socket's, so that a selector takes the channel."""
        return self._end.fileno()

    def send(self, message: Any, files: Sequence[int] = ()) -> None:
        """Send a message and, with it, descriptors of open files.

        Raises:
            OSError: the other end is gone.
        """
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        header = _HEADER.pack(len(data))
        if files:
            socket.send_fds(self._end, [header], list(files))
        else:
            self._end.sendall(header)
        self._end.sendall(data)

    def receive(self) -> tuple[Any, list[int]]:
        """The next message, and descriptors that the caller has to close.

        Raises:
            EOFError: the other end is gone.
        """
        try:
            header, files, *_ = socket.recv_fds(self._end, _HEADER.size, _MOST_FILES)
            while len(header) < _HEADER.size:
                header += self._some(_HEADER.size - len(header))
            data = bytearray()
            (length,) = _HEADER.unpack(header)
            while len(data) < length:
                data += self._some(length - len(data))
        except OSError as error:
            raise EOFError from error
        return pickle.loads(data), files

    def close(self) -> None:
        """Close this end."""
        self._end.close()

    def _some(self, most: int) -> bytes:
        data = self._end.recv(min(most, 2**20))
        if not data:
            raise EOFError
        return data
