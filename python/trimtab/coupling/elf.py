# SPDX-License-Identifier: MIT
"""What a shared library's symbol tables tell: its static variables, what is allocated through them, what it calls elsewhere."""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimtab.coupling.dwarf import Layout, Unreadable, derived, parts
from trimtab.coupling.harness import Bench
from trimtab.isolation.static_memory import mappings

SYMBOLS, DYNAMIC = 2, 11        # section types of the Executable and Linkable Format
OBJECT, THREAD_LOCAL = 1, 6     # symbol types
WRITABLE = 1                    # section flag
LONGEST_KIND = 4096             # bytes of an array's element, beyond which eight bytes are no length
IN_PART = ", of which only a section is described"
RANKS = {64 + 24 * (rank - 1): rank for rank in range(1, 16)}  # size of gfortran's array descriptor -> rank


@dataclass(frozen=True)
class Symbol:
    """One entry of a symbol table.

    Args:
        name: the linker's.
        address: in the file; 0 where it is defined elsewhere.
        size: bytes.
        kind: its type.
        writable: whether it stands in a section that is written to.
        defined: whether it is this library's own.
    """

    name: str
    address: int
    size: int
    kind: int
    writable: bool
    defined: bool


def symbols(path: Path, table: int = SYMBOLS) -> Iterator[Symbol]:
    """The entries of a table of a 64-bit ELF file; none of a file of another kind, or without that table (`strip`)."""
    data = path.read_bytes()
    if data[:5] != b"\x7fELF\x02":
        return
    (first,), (width, count) = struct.unpack_from("<Q", data, 40), struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, first + width * one) for one in range(count)]
    for _, kind, _, _, offset, size, link, _, _, entry in sections:
        if kind != table:
            continue
        texts = sections[link][4]
        for at in range(offset, offset + size, entry):
            name, info, _, section, address, length = struct.unpack_from("<IBBHQQ", data, at)
            text = data[texts + name : data.index(b"\0", texts + name)].decode(errors="replace")
            inside = 0 < section < count
            yield Symbol(text, address, length, info & 15, inside and bool(sections[section][2] & WRITABLE), inside)


def called(path: Path) -> set[str]:
    """Names that a library takes from other libraries."""
    return {one.name for one in symbols(path, DYNAMIC) if not one.defined}


class Statics:
    """The static variables of an opened code: module variables, COMMON blocks, SAVEd locals; and the arrays allocated through
    them, which gfortran's array descriptors lead to. Of a library built with -g also what components of derived types lead to.
    Not seen: threads' own copies.

    Args:
        bench: the code.

    Attributes:
        known: whether the library has a symbol table.
        unseen: what cannot be looked at, as a part of a sentence.
    """

    def __init__(self, bench: Bench):
        library = bench.own.library
        table = [one for one in symbols(library.private) if one.defined]
        anchor = next((one.address for one in table if one.name == "trimtab_slot_status"), None)
        self.known = anchor is not None
        base = library.address("trimtab_slot_status") - (anchor or 0)
        self._variables = [(one.name, base + one.address, one.size) for one in table if anchor is not None
                           and one.kind == OBJECT and one.writable and one.size and _owned(one.name)]
        self._derived: dict[int, Layout] = {}
        self.unseen = "not seen is what other libraries remember"
        try:
            layouts = derived(library.private)
            self._derived = {base + address: layout for address, layout in (layouts or {}).items()}
            if layouts is None:
                self.unseen += (" and, as the library was built without -g, what components of derived types lead to: add -g to "
                                "FFLAGS and to the flags of your own build, make anew, and they are named, too")
        except Unreadable as error:
            self.unseen += f", and what components of derived types lead to: the debug information cannot be read ({error})"

    def look(self) -> dict[str, tuple[int, bytes]]:
        """Address and bytes of each by the linker's name: of an allocated array the array's, of one that is not, none; of a
        derived type each component's, by the name with %component behind."""
        heap = [(one.start, one.stop) for one in mappings() if one.access.startswith("rw")] if self._variables else []
        found = {}
        for name, address, size in self._variables:
            if address in self._derived:
                continue
            held = ctypes.string_at(address, size)
            span = _allocated(held, heap) if size in RANKS else None
            found[name] = (address, held) if span is None else (span[0], ctypes.string_at(span[0], span[1] - span[0]))
        structures = [(name, address, self._derived[address]) for name, address, _ in self._variables if address in self._derived]
        for name, address, size in parts(structures, lambda held: _allocated(held, heap),
                                         lambda start, stop: _inside(start, stop, heap)):
            found[name] = (address, ctypes.string_at(address, size))
        return found


def _owned(name: str) -> bool:
    """Whether a variable is the code's: not the compiler's, the linker's or trimtab's."""
    return "_MOD_" in name or not (name == "T" or name.startswith(("_", "trimtab_", "completed.", "options.")))


def _allocated(held: bytes, heap: list[tuple[int, int]]) -> tuple[int, int] | None:
    """From and up to where the array of a descriptor of gfortran (since 8) lies; None where this is none, or not allocated."""
    rank = RANKS[len(held)]
    base, _, length, version, said, kind = struct.unpack_from("<QQQiBB", held)
    (span,) = struct.unpack_from("<q", held, 32)
    if version or said != rank or not 0 < kind < 12 or not 0 < length <= LONGEST_KIND or span != length or not base:
        return None
    start = stop = base
    for stride, lower, upper in struct.iter_unpack("<qqq", held[40:]):
        if upper < lower:
            return base, base
        step = stride * span * (upper - lower)
        start, stop = min(start, start + step), max(stop, stop + step)
    stop += length
    return (start, stop) if _inside(start, stop, heap) else None


def _inside(start: int, stop: int, heap: list[tuple[int, int]]) -> bool:
    return any(low <= start and stop <= high for low, high in heap)


def difference(name: str, one: tuple[int, bytes], other: tuple[int, bytes], described: list[tuple[int, int]]) -> str:
    """A variable and, of a block, the bytes in it that differ and are in no described array; "" when there are none."""
    if len(one[1]) != len(other[1]):
        return f"{spoken(name)}, allocated anew"
    differ = np.frombuffer(one[1], np.uint8) != np.frombuffer(other[1], np.uint8)
    for address in {one[0], other[0]}:
        for start, stop in described:
            differ[max(0, start - address) : max(0, stop - address)] = False
    places = np.flatnonzero(differ)
    if not places.size:
        return ""
    if "_MOD_" in name or "." in name or len(differ) <= 8:
        held = any(start < address + len(differ) and address < stop for address in {one[0], other[0]}
                   for start, stop in described)
        return spoken(name) + (IN_PART if held else "")
    words = 4 * np.unique(places // 4)
    runs = np.split(words, np.flatnonzero(np.diff(words) > 64) + 1)
    spans = [f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1] + 3}" for run in runs]
    return f"{spoken(name)} at byte {', '.join(spans[:4])}{' ...' if len(spans) > 4 else ''} of {len(differ)}"


def spoken(symbol: str) -> str:
    """A linker's name as the Fortran has it."""
    module = re.fullmatch(r"__(\w+)_MOD_([\w%()]+)", symbol)
    if module:
        return f"{module[2]} (module {module[1]})"
    saved = re.fullmatch(r"(\w+)\.\d+", symbol)
    if saved:
        return f"{saved[1]} (a local variable that is saved)"
    return f"COMMON /{symbol.rstrip('_')}/" if symbol.endswith("_") else symbol
