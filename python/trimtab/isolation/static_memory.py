# SPDX-License-Identifier: MIT
"""The writable static memory of a loaded shared object: COMMON, SAVE and module variables; saved, and put back."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimtab.core.errors import ConfigError

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_LOAD, _TLS, _RELRO = 1, 7, 0x6474E552  # p_type of the Executable and Linkable Format
_WRITABLE = 2
_LOWEST_POINTER = 1 << 40               # position-independent programs and their heap stand far above it


@dataclass(frozen=True)
class Mapping:
    """One line of /proc/self/maps."""

    start: int
    stop: int
    access: str
    offset: int
    path: str


def mappings() -> list[Mapping]:
    """The address space of this process.

    Raises:
        ConfigError: not Linux.
    """
    if not sys.platform.startswith("linux"):
        raise ConfigError("snapshot = \"image\" reads /proc/self/maps, which Linux alone has: use isolation = \"process\".")
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, offset, _, _, *path = line.split(maxsplit=5)
        start, stop = (int(one, 16) for one in span.split("-"))
        found.append(Mapping(start, stop, access, int(offset, 16), path[0] if path else ""))
    return found


class LibraryImage:
    """A copy of the writable static memory (.data, .bss) of a shared object in this process.

    Where it stands follows from the program headers of the file and from /proc/self/maps. What the dynamic linker has made
    read-only after relocation is no part of it; entries of the procedure table that are bound at the first call may be, and
    putting an unbound one back binds it once more.

    Args:
        path: of the loaded shared object, as /proc/self/maps has it.

    Attributes:
        path: the same.
        thread_local: bytes of thread-local variables, which are not in the image.

    Raises:
        ConfigError: not Linux, not loaded, or not a 64-bit ELF file.
    """

    def __init__(self, path: str):
        self.path = path
        here = mappings()
        own = [one for one in here if one.path == path]
        if not own:
            raise ConfigError(f"{path} is not loaded in this process; an image is taken of a loaded library.")
        loads, relro, self.thread_local = _program_headers(Path(path))
        first = min(own, key=lambda one: one.start)
        base = first.start - min(address for address, *_ in loads) // _PAGE * _PAGE
        writable = [(one.start, one.stop) for one in here if one.access.startswith("rw")]
        spans = []
        for address, size, flags in loads:
            if flags & _WRITABLE:
                start, stop = base + address, base + address + size
                if relro is not None and relro[0] <= address < sum(relro):
                    start = max(start, (base + sum(relro)) // _PAGE * _PAGE)
                spans += [(max(start, low), min(stop, high)) for low, high in writable if low < stop and high > start]
        self._spans = [(-(-start // 8) * 8, stop // 8 * 8) for start, stop in spans if stop - start >= 8]
        self._memory = [np.ctypeslib.as_array((ctypes.c_uint64 * ((stop - start) // 8)).from_address(start))
                        for start, stop in self._spans]
        self.save()

    @property
    def nbytes(self) -> int:
        """Size of the image."""
        return sum(one.nbytes for one in self._memory)

    def save(self) -> None:
        """Take the image of what is there now."""
        self._saved = [one.copy() for one in self._memory]

    def restore(self) -> None:
        """Put back what was there when the image was taken."""
        for memory, saved in zip(self._memory, self._saved, strict=True):
            np.copyto(memory, saved)

    def changed(self) -> int:
        """Number of 8-byte words that differ from the image."""
        return sum(int(np.count_nonzero(memory != saved)) for memory, saved in zip(self._memory, self._saved, strict=True))

    def moved_pointers(self) -> int:
        """How many words that point into the heap, now or in the image, have changed.

        Such a word is the address of an ALLOCATABLE or POINTER array that was allocated, freed or exchanged since. Putting
        the old address back would lead to memory that is no longer there, or no longer holds what it held.
        """
        values = []
        for memory, saved in zip(self._memory, self._saved, strict=True):
            where = np.flatnonzero(memory != saved)
            pairs = np.stack([memory[where], saved[where]])
            likely = ((pairs >= _LOWEST_POINTER) & (pairs < 1 << 47)).any(0)
            values.append(pairs[:, likely])
        pairs = np.concatenate(values, 1) if values else np.empty((2, 0), np.uint64)
        if not pairs.size:
            return 0
        hits = np.zeros(pairs.shape, bool)
        for one in mappings():
            if one.access.startswith("rw") and one.path in ("", "[heap]"):
                hits |= (pairs >= one.start) & (pairs < one.stop)
        for start, stop in self._spans:  # its own variables are in the image
            hits &= ~((pairs >= start) & (pairs < stop))
        return int(hits.any(0).sum())


def _program_headers(path: Path) -> tuple[list[tuple[int, int, int]], tuple[int, int] | None, int]:
    """Segments to load as (address, size, flags), what is read-only after relocation as (address, size), size of TLS."""
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:5] != b"\x7fELF\x02":
            raise ConfigError(f"{path} is not a 64-bit ELF file; an image can be taken of those.")
        (table,), (size, count) = struct.unpack_from("<Q", head, 32), struct.unpack_from("<HH", head, 54)
        file.seek(table)
        headers = [struct.unpack_from("<IIQQQQQQ", file.read(size)) for _ in range(count)]
    loads = [(address, length, flags) for kind, flags, _, address, _, _, length, _ in headers if kind == _LOAD]
    relro = [(address, length) for kind, _, _, address, _, _, length, _ in headers if kind == _RELRO]
    local = sum(length for kind, *_, length, _ in headers if kind == _TLS)
    return loads, relro[0] if relro else None, local
