# SPDX-License-Identifier: MIT
"""One worker as its parent sees it: started, spoken to, ended, and what it left when it ended by itself."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
from collections.abc import Mapping
from multiprocessing import spawn

from trimtab.config.import_path import search_path
from trimtab.core.errors import SolverError, SolverStopped
from trimtab.isolation import protocol as ch
from trimtab.isolation.workdir.folder import Place, Scratch

_START = ("import json, sys; sys.path[:] = json.loads(sys.argv[1]); from trimtab.isolation.worker import main; "
          "main(int(sys.argv[2]), int(sys.argv[3]))")
GRACE = 3.0      # seconds that a worker has to end after it was asked to
_LAUNCHER = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "MPI_LOCAL", "HYDRA_")  # what makes a process a rank
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TRIMTAB_THREADS")


class WorkerProcess:
    """A process that serves `worker.main`, in a process group of its own.

    Args:
        opening: what it opens.
        scratch: where its folder is.
        environment: variables on top of this process's own.
        threads: of torch and OpenMP in it.

    Attributes:
        channel: to it.
        place: its folder and log.
        version: of the correction that it has.
    """

    def __init__(self, opening: ch.Open, scratch: Scratch, environment: Mapping[str, str], threads: int):
        self.scratch, self.version, self._ready = scratch, 0, False
        self.place: Place = scratch.place("worker")
        here, there = socket.socketpair()
        life, self._life = os.pipe()
        own = {name: value for name, value in os.environ.items()
               if not name.startswith(_LAUNCHER) or name.startswith("OMPI_ALLOW")}
        own |= dict.fromkeys(_THREADS, str(threads)) | {"GFORTRAN_UNBUFFERED_PRECONNECTED": "y"}
        own |= {name: str(value) for name, value in environment.items()}
        try:
            with open(scratch.stdin or os.devnull, "rb") as stdin, self.place.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [os.fsdecode(spawn.get_executable()), "-uP", "-c", _START, json.dumps(search_path()), str(there.fileno()),
                     str(life)], stdin=stdin, stdout=log, stderr=log, cwd=self.place.folder, env=own,
                    pass_fds=(there.fileno(), life), process_group=0)
        except OSError as error:
            os.close(self._life)
            here.close()
            raise SolverError(f"The solver's process cannot be started with {spawn.get_executable()!r}: {error}.") from error
        finally:
            there.close()
            os.close(life)
        self.channel = ch.Channel(here)
        self.channel.send(opening)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def wait_ready(self, timeout: float | None) -> ch.Ready | None:
        """What the worker says of its solver when it has opened it; None when it has said so before.

        Raises:
            SolverStopped: it ended, or did not answer within `timeout` seconds.
            Exception: whatever the opener raised.
        """
        if self._ready:
            return None
        if timeout is not None and not self._readable(timeout):
            self.kill()
            raise self._not_opened(timeout)
        try:
            message, _ = self.channel.receive()
        except EOFError:
            raise self._not_opened() from None
        if isinstance(message, ch.Failure):
            raise message.exception()
        self._ready = True
        assert isinstance(message, ch.Ready)
        return message

    def _not_opened(self, timeout: float | None = None) -> SolverStopped:
        code, output = self.wait(), self.place.output()
        kept = self.give_up(failed=True)
        return stopped(self.place, code, "while it was opened", kept=kept, output=output, timeout=timeout)

    def kill(self) -> None:
        """End it and all that it has started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def ask_to_close(self) -> None:
        """Ask it to close its solver and end; one that has opened none yet is ended."""
        if not self._ready and not self._readable(0.0):
            self.kill()
            return
        with contextlib.suppress(OSError):
            self.channel.send(ch.Close())

    def close(self, seconds: float) -> None:
        """Give it so long to end, then end it; remove its folder."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self.kill()
        self.wait()
        self.give_up()

    def wait(self) -> int:
        """Exit code, minus the signal's number if one ended it; what is left of its group is ended, too."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # its end of the channel closes a moment before it has ended
            self._process.wait(GRACE)
        self.kill()
        return self._process.wait()

    def give_up(self, failed: bool = False) -> bool:
        """Give back all that an ended worker held; whether its folder is kept."""
        if self._life < 0:
            return False
        os.close(self._life)
        self._life = -1
        self.channel.close()
        return self.scratch.release(self.place, failed)

    def _readable(self, timeout: float) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self.channel, selectors.EVENT_READ)
            return bool(selector.select(timeout))


def stopped(place: Place, code: int, where: str, *, output: str, kept: bool, member: int | None = None,
            step: int | None = None, timeout: float | None = None) -> SolverStopped:
    """The exception for a process that ended.

    Args:
        place: where it worked.
        code: its exit code, or minus the signal's number.
        where: what it was doing, in words.
        output: the last lines it wrote.
        kept: whether its folder is still there.
        member, step: see `SolverStopped`.
        timeout: it was ended because it did not answer for so many seconds.
    """
    text = f"The solver {_how(code, timeout)} {where}" + (f"; its folder {place.folder} is kept" if kept else "")
    text += f"; the last lines of its output:\n{output}" if output else "; it had written nothing."
    return SolverStopped(text, member, step, code, output, place.log if kept else None)


def _how(code: int, timeout: float | None) -> str:
    if timeout is not None:
        return f"did not answer within {timeout:g} seconds and was ended"
    if code >= 0:
        return f"ended its process with exit code {code} (STOP, ERROR STOP or exit in its code)"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    meaning = {
        "SIGABRT": "abort in its code; output that was still buffered is missing",
        "SIGSEGV": "an address that is not there: an index out of bounds, or a stack too small (ulimit -s)",
        "SIGBUS": "an address that is not there",
        "SIGFPE": "a floating-point trap, or an integer divided by zero",
        "SIGILL": "an instruction that this processor has not",
        "SIGKILL": "from outside, by the system when memory runs out",
    }.get(name, "from outside")
    return f"was ended by {name} ({meaning})"
