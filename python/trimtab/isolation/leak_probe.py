# SPDX-License-Identifier: MIT
"""Marks that a rollout leaves where an image of a library's static memory does not reach."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import numpy as np

from trimtab.isolation.descriptors import loaded_libraries, positions
from trimtab.isolation.static_memory import LibraryImage

_NOTABLE = 65536  # bytes of heap; Python's own comings and goings stay below


@dataclass
class Traces:
    """What is outside of the image, at one moment.

    Args:
        others: files that are no concern of the solver's.
    """

    others: frozenset[str] = frozenset()
    files: dict[int, tuple[str, int]] = field(default_factory=positions)
    random: list[bytes] = field(default_factory=lambda: [one.state() for one in gfortran_generators()])
    runtimes: list[LibraryImage] = field(default_factory=lambda: [LibraryImage(one) for one in runtime_libraries()])
    heap: int = field(default_factory=lambda: heap_bytes())  # after all that takes some

    def changes(self) -> list[str]:
        """What has changed since, in words."""
        grown = heap_bytes() - self.heap
        found = []
        now = positions()
        for file, (path, position) in now.items():
            if file not in self.files or self.files[file][0] != path:
                found.append(f"{path} was opened and stays open")
            elif self.files[file][1] != position and file > 2 and path not in self.others:
                found.append(f"{path} was read or written on")
        found += [f"{path} was closed" for file, (path, _) in self.files.items() if file not in now]
        if self.random != [one.state() for one in gfortran_generators()]:
            found.append("gfortran's random numbers were drawn")
        if grown > _NOTABLE:
            found.append(f"the heap grew by {grown / 1024:.0f} kB")
        found += [f"static memory of {one.path.rpartition('/')[2]} changed" for one in self.runtimes if one.changed()]
        held = sorted({path for file, (path, _) in now.items() if file > 2} - self.others)
        if held and not found:
            found.append(f"open files are not put back: {', '.join(held)}")
        return found


def runtime_libraries() -> list[str]:
    """Fortran run-time libraries in this process."""
    return [path for path in loaded_libraries() if path.rpartition("/")[2].startswith(("libgfortran", "libifcore", "libflang"))]


class _Mallinfo(ctypes.Structure):  # malloc.h of the GNU C library
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
                                                     "uordblks", "fordblks", "keepcost")]


def heap_bytes() -> int:
    """Memory in use from malloc in this process; 0 where the C library does not tell."""
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        return 0
    function.restype = _Mallinfo
    info = function()
    return int(info.uordblks + info.hblkhd)


class _Descriptor(ctypes.Structure):  # of an integer(4) array of rank 1; libgfortran.h since gcc 8
    _fields_ = [("base", ctypes.c_void_p), ("offset", ctypes.c_size_t), ("elem_len", ctypes.c_size_t),
                ("version", ctypes.c_int), ("rank", ctypes.c_byte), ("type", ctypes.c_byte), ("attribute", ctypes.c_short),
                ("span", ctypes.c_ssize_t), ("stride", ctypes.c_ssize_t), ("lower", ctypes.c_ssize_t),
                ("upper", ctypes.c_ssize_t)]


class GfortranGenerator:
    """The generator behind random_number of one libgfortran; that of this thread.

    Args:
        path: of the library.
    """

    def __init__(self, path: str):
        self._seed = ctypes.CDLL(path)._gfortran_random_seed_i4
        size = ctypes.c_int()
        self._seed(ctypes.byref(size), None, None)
        self._length = size.value

    def state(self) -> bytes:
        """Its state, as random_seed(get=) has it."""
        numbers = np.zeros(self._length, np.int32)
        self._seed(None, None, ctypes.byref(self._described(numbers)))
        return numbers.tobytes()

    def set(self, state: bytes) -> None:
        """Give it a state, as random_seed(put=)."""
        numbers = np.frombuffer(state, np.int32).copy()
        self._seed(None, ctypes.byref(self._described(numbers)), None)

    def _described(self, numbers: np.ndarray) -> _Descriptor:
        return _Descriptor(numbers.ctypes.data, ctypes.c_size_t(-1).value, 4, 0, 1, 1, 0, 4, 1, 1, len(numbers))


def gfortran_generators() -> list[GfortranGenerator]:
    """One a libgfortran in this process."""
    return [GfortranGenerator(path) for path in loaded_libraries("libgfortran")]
