# SPDX-License-Identifier: MIT
"""The shared library of somebody's code, adapter and slots: loaded, shaken hands with, described.

ctypes' PyDLL: Python's lock is held while the code runs, and an exception of the network comes out of the call as it is.
"""

from __future__ import annotations

import ctypes
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.bridge.adapter_mpi import start_mpi
from trimtab.core.errors import STATUS, ConfigError, SolverError
from trimtab.isolation.workdir.surroundings import Surroundings

VERSION = 2  # of trimtab_slot.h
TEXT = 2**12
_LONG, _POINTER = ctypes.c_int64, ctypes.c_void_p


class Library:
    """The procedures of an adapter and of its slots.

    The file is copied into the scratch folder first: each copy has its own COMMON blocks and module variables, so that two
    solvers may be open at once. Libraries that it links with in turn are shared.

    Args:
        path: the shared library.
        surroundings: where it runs.
        comm: communicator (mpi4py) of the ranks that share the code; None for this rank alone.

    Raises:
        ConfigError: no such file, not a library of an adapter, or of another version; see `start_mpi`.
    """

    def __init__(self, path: str | Path, surroundings: Surroundings, comm: Any = None):
        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"There is no library {path} in {Path.cwd()}: build it with make, and call trimtab where the "
                              "TOML is.")
        communicator = start_mpi(path, comm)
        self.private = surroundings.own / path.name
        shutil.copy(path, self.private)
        try:
            self._dll = ctypes.PyDLL(str(self.private))
        except OSError as error:
            missing = re.search(r"undefined symbol: (\S+)", str(error))
            why = f"{missing[1]} is in none of its sources, add the file or library that holds it" if missing else error
            raise ConfigError(f"{path} cannot be loaded: {why}.") from error
        self.path, self.surroundings = path, surroundings
        self._text = ctypes.create_string_buffer(TEXT)
        self._initialise = self._procedure("trimtab_initialise")
        self._get = self._procedure("trimtab_get_state", _LONG, _POINTER)
        self._set = self._procedure("trimtab_set_state", _LONG, _POINTER)
        self._advance = self._procedure("trimtab_advance", _LONG)
        self._status = self._procedure("trimtab_slot_status", ctypes.c_char_p, _LONG, result=_LONG)
        self._describe = self._procedure("trimtab_slot_description", ctypes.c_char_p, _LONG, result=_LONG)
        self._fill = self._procedure("trimtab_slot_fill", ctypes.c_char_p, _POINTER, _POINTER, _LONG, result=_LONG)
        self._record = self._procedure("trimtab_slot_record", _POINTER, _LONG, result=_LONG)
        self._calls = self._procedure("trimtab_slot_calls", ctypes.c_char_p, result=_LONG)
        self._empty = self._procedure("trimtab_slot_empty", ctypes.c_char_p)
        self._option = self._procedure("trimtab_slot_option", ctypes.c_char_p, ctypes.c_char_p)
        self._handshake = self._procedure("trimtab_slot_handshake", _LONG)
        self._settled = self._procedure("trimtab_slot_settled", _POINTER, result=_LONG)
        self._driver = self._procedure("trimtab_slot_driver")
        self._clear = self._procedure("trimtab_slot_clear")
        surroundings.on_entry = self._procedure("trimtab_slot_entered", _LONG, ctypes.c_char_p)
        if communicator is not None:
            self._procedure("trimtab_slot_communicator", _LONG)(communicator)
        self._procedure("trimtab_slot_go_on", _POINTER)(ctypes.cast(ctypes.pythonapi.PyErr_CheckSignals, _POINTER))

    def initialise(self, options: Mapping[str, Any]) -> None:
        """Set the options and have the code set itself up.

        Raises:
            ConfigError: the adapter's own refusal.
        """
        for name, value in options.items():
            self._option(name.encode(), _text(name, value).encode())
        self._run(self._initialise)

    def describe(self) -> dict[str, Any]:
        """What the adapter says: dt, time_units, fields, slots, options; sizes are the compiler's.

        Raises:
            ConfigError: the adapter's description does not hold together.
        """
        length = int(self._describe(None, 0))
        self.check()
        buffer = ctypes.create_string_buffer(length + 1)
        self._describe(buffer, length + 1)
        described: dict[str, Any] = json.loads(buffer.value.decode(errors="replace"))
        if described["version"] != VERSION:
            raise ConfigError(f"{self.path} was built with version {described['version']} of trimtab_slot.c, and this trimtab "
                              "needs "
                              f"{VERSION}: take the files from `trimtab couple init` anew.")
        return described

    def shake_hands(self, state: np.ndarray) -> None:
        """Send the code's own state through the adapter, and have kind, number and value checked on the other side.

        Args:
            state: (N,) contiguous float64, as `get_state` has just returned it: the code keeps it, whatever trimtab_set_state
                does.

        Raises:
            ConfigError: what arrived is not what was sent.
        """
        self._handshake(1)
        try:
            self.set_state(state)
        finally:
            self._handshake(0)

    def get_state(self, state: np.ndarray) -> None:
        """Copy the code's state into (N,) contiguous float64."""
        self._run(self._get, state.size, state.ctypes.data)

    def set_state(self, state: np.ndarray) -> None:
        """Copy (N,) contiguous float64 into the code's state; refused when a field does not lie any more where it was put."""
        self._run(self._set, state.size, state.ctypes.data)
        self._settled(state.ctypes.data)
        self.check()

    def advance(self, steps: int) -> None:
        """Run the code by so many of its time steps."""
        self._run(self._advance, steps)

    def record(self, inputs: np.ndarray | None) -> int:
        """What the slots saw at their first calls since the last record goes to (M,) float64; number of slots not called."""
        if inputs is None:
            return int(self._record(None, 0))
        return int(self._record(inputs.ctypes.data, inputs.size))

    def fill(self, slot: str, address: int, context: int, size: int) -> None:
        """Fill a slot with a C function."""
        self._fill(slot.encode(), address, context, size)
        self.check()

    def empty(self) -> None:
        """Empty every slot."""
        self._empty(b"")

    def calls(self) -> int:
        """Calls of all slots since the library was loaded."""
        return int(self._calls(b""))

    def flush(self) -> None:
        """Write out what the code's Fortran and C run-time libraries still hold of files and of what was printed."""
        for names in (("_gfortran_flush_i4", "_gfortran_flush_i8"), ("fflush",)):
            for name in names:
                try:
                    function = self._dll[name]  # in the library or in those that it links with
                except AttributeError:
                    continue
                function.argtypes, function.restype = (_POINTER,), None
                function(None)  # every unit, every stream
                break

    def address(self, name: str) -> int:
        """Where a procedure or variable of the library stands."""
        return ctypes.cast(self._dll[name], _POINTER).value or 0

    def spans(self) -> list[tuple[int, int]]:
        """Addresses, from and up to, of the memory that the described fields lie in."""
        return [(one["address"], one["address"] + one["span"]) for one in self.describe()["fields"]]

    def check(self) -> None:
        """Raise what the adapter or a slot refused, and forget it.

        Raises:
            ConfigError, SolverError, CorrectionError: with the sentence.
        """
        code = int(self._status(self._text, TEXT))
        if code:
            self._clear()
            kind = STATUS[code][1] or SolverError
            raise kind(f"{self.path.name}: {self._text.value.decode(errors='replace')}.")

    def _run(self, procedure: Any, *arguments: Any) -> None:
        self._driver()
        try:
            procedure(*arguments)
        except BaseException:  # the network's, or an interrupt: the sentence that it left in the slot is told by it
            self._clear()
            raise
        self.check()

    def _procedure(self, name: str, *arguments: Any, result: Any = None) -> Any:
        try:
            function = self._dll[name]
        except AttributeError as error:
            raise ConfigError(f"{self.path} has no procedure {name}: build it with the adapter and trimtab_slot.c from "
                              "`trimtab couple init`.") from error
        function.argtypes, function.restype = arguments, result
        return function


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(one, int | float) for one in value):
        return " ".join(_text(name, one) for one in value)
    raise ConfigError(f"solver.{name} = {value!r} cannot be given to the code: give a number, a truth value, text or a list of "
                      "numbers.")
