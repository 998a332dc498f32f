# SPDX-License-Identifier: MIT
"""Exceptions, and the Fortran status codes they come from.

Every message is one sentence that names what is wrong, where, and the remedy. An exception raised inside a network
keeps its own type and traceback and is not wrapped.
"""

from __future__ import annotations

from typing import Any


class TrimtabError(Exception):
    """Base of every exception trimtab raises by itself."""


class ConfigError(TrimtabError, ValueError):
    """An experiment, an option or a parameter is unknown, missing or out of range."""


class NoModuleError(ConfigError):
    """A network is named by an import path that Python does not find.

    Attributes:
        sentence: what is missing, without the remedy and without a stop.
    """

    def __init__(self, message: str, sentence: str):
        super().__init__(message)
        self.sentence = sentence

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.sentence)


class InputError(TrimtabError, ValueError):
    """An array has the wrong shape, dtype or a value that is not finite."""


class DataError(TrimtabError, ValueError):
    """A data file is missing, cut short, or does not fit the solver."""


class OutputError(TrimtabError, OSError):
    """A file cannot be written: the disk is full, the folder read-only; files that are whole stay as they are."""


class CheckpointError(TrimtabError, RuntimeError):
    """A checkpoint is missing, corrupt, or belongs to another experiment."""


class SolverError(TrimtabError, RuntimeError):
    """The solver refused or failed; the sentence is the solver's own."""


class CorrectionError(SolverError):
    """The correction failed inside the solver, or never ran."""


class BlowUpError(SolverError):
    """The state became NaN or Inf.

    Attributes:
        steps: (B,) int, inner step at which each member failed, 0 for a member that did not.
    """

    def __init__(self, message: str, steps: Any):
        super().__init__(message)
        self.steps = steps

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.steps)


class SolverStopped(SolverError):
    """The process in which the solver ran came to an end: STOP, exit, a signal, or a time limit.

    Attributes:
        member: the first member that was running, None when it was not a rollout.
        step: outer steps it had done, None when the solver does not say (`on_step` in `isolation/__init__.py`).
        code: exit code of the process; minus the signal's number when a signal ended it.
        output: the last lines it wrote.
        log: file with all that it wrote; None when that has been removed.
    """

    def __init__(self, message: str, member: int | None = None, step: int | None = None, code: int | None = None,
                 output: str = "", log: Any = None):
        super().__init__(message)
        self.member, self.step, self.code, self.output, self.log = member, step, code, output, log

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.member, self.step, self.code, self.output, self.log)


class StepError(BlowUpError):
    """An adaptive or implicit integrator could not make a member's step; the sentence is the solver's own."""


# The same numbers and order as in fortran/status.f90; tests/test_house.py holds them together.
STATUS: dict[int, tuple[str, type[TrimtabError] | None]] = {
    0: ("OK", None),
    1: ("BAD_PARAMETER", ConfigError),
    2: ("UNKNOWN_SOLVER", ConfigError),
    3: ("BAD_HANDLE", SolverError),
    4: ("BAD_SHAPE", InputError),
    5: ("BLOW_UP", BlowUpError),
    6: ("CORRECTION_FAILED", CorrectionError),
    7: ("INTERRUPTED", SolverError),
    8: ("NOT_FINITE", InputError),
    9: ("UNSUPPORTED", SolverError),
    10: ("STEP_FAILED", StepError),
}
