# SPDX-License-Identifier: MIT
"""What debug information (`-g`) tells of module variables of derived types: their components, and where those lie that are
allocated.

Read with pyelftools, in the form of DWARF that gfortran writes (DWARF 5, sections 5.5, 5.7 and 5.18.1): an allocatable or pointer
array is an array type with a data location, kept as gfortran's array descriptor; a scalar one is a pointer.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elftools.common.exceptions import DWARFError, ELFError
from elftools.elf.elffile import ELFFile

THROUGH = ("DW_TAG_const_type", "DW_TAG_restrict_type", "DW_TAG_typedef", "DW_TAG_volatile_type")
MOST_PARTS = 100_000    # components of one variable, all elements and all that they point to counted
ADDRESS = 3             # DW_OP_addr
WORD = 8                # bytes of an address
DESCRIPTOR, DIMENSION = 64, 24  # bytes of gfortran's array descriptor of rank 1, and of each further dimension

Span = Callable[[bytes], tuple[int, int] | None]


@dataclass
class Layout:
    """A type.

    Args:
        size: bytes where a variable of it stands.
        kind: "plain", "structure", "fixed" (an array that stands there), "descriptor" (one that is allocated or pointed to) or
            "pointer".
        members: of a structure, (name, offset, layout).
        _inner: of an array its element, of a pointer what it points to.
        count: elements of a fixed array.
        points: of an array that is pointed to, and not allocated.
    """

    size: int
    kind: str = "plain"
    members: list[tuple[str, int, Layout]] = field(default_factory=list)
    _inner: Layout | None = None
    count: int = 1
    points: bool = False

    @property
    def inner(self) -> Layout:
        """What an array or a pointer leads to."""
        assert self._inner is not None
        return self._inner


class Unreadable(Exception):
    """Debug information that is damaged, or of a form unknown here."""


@functools.lru_cache(maxsize=4)
def derived(path: Path) -> dict[int, Layout] | None:
    """Module variables of derived types.

    Args:
        path: a shared library.

    Returns:
        Address in the file -> layout, of variables that are, hold or lead to a structure; None without debug information.

    Raises:
        Unreadable: see there.
    """
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            if not elf.has_dwarf_info(strict=True):
                return None
            types: dict[int, Layout] = {}
            found = {}
            for unit in elf.get_dwarf_info().iter_CUs():
                for die in _variables(unit.get_top_DIE()):
                    at = die.attributes["DW_AT_location"].value
                    if isinstance(at, list) and len(at) == 1 + WORD and at[0] == ADDRESS:
                        layout = _layout(die.get_DIE_from_attribute("DW_AT_type"), types)
                        if _leads_on(layout):
                            found[int.from_bytes(bytes(at[1:]), "little")] = layout
            return found
    except (DWARFError, ELFError, KeyError, struct.error) as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def parts(variables: Iterable[tuple[str, int, Layout]], span: Span, readable: Callable[[int, int], bool],
          ) -> Iterator[tuple[str, int, int]]:
    """The memory of variables, component by component, each once: under the name that leads to it without a pointer, if one does.

    Args:
        variables: name, address and layout of each.
        span: the bytes of a descriptor -> from and up to where its array lies, None when it is not allocated.
        readable: whether memory from and up to an address may be read.

    Yields:
        Name (`grid%u`, `list(2)%z`), address and bytes of each component that is neither descriptor nor pointer, at most
        `MOST_PARTS` of them; an array of plain numbers is one.
    """
    waiting, later = deque(variables), deque[tuple[str, int, Layout]]()
    met: set[tuple[int, int]] = set()
    while (waiting or later) and len(met) < MOST_PARTS:
        behind = not waiting  # whether it is time to look behind pointers
        name, address, layout = later.popleft() if behind else waiting.popleft()
        if layout.size == 0 or (not behind and (address, id(layout)) in met):
            continue
        if (layout.kind == "pointer" or layout.points) and not behind:
            later.append((name, address, layout))
            continue
        met.add((address, id(layout)))
        if layout.kind == "plain":
            yield name, address, layout.size
        elif layout.kind == "structure":
            waiting.extend((f"{name}%{member}" if member != "_data" else name, address + offset, inner)
                           for member, offset, inner in layout.members if member not in ("_vptr", "_len"))
        elif layout.kind == "fixed":
            waiting.extend(_elements(name, address, layout.inner, layout.count))
        else:
            start, stop = _target(ctypes.string_at(address, layout.size), layout, span)
            if start < stop and readable(start, stop) and (start, id(layout.inner)) not in met:
                if layout.kind == "pointer" or layout.inner.kind != "plain":
                    count = 1 if layout.kind == "pointer" else (stop - start) // layout.inner.size
                    waiting.extend(_elements(name, start, layout.inner, count, layout.kind == "pointer"))
                else:
                    met.add((start, id(layout.inner)))
                    yield name, start, stop - start


def _target(held: bytes, layout: Layout, span: Span) -> tuple[int, int]:
    """From and up to where what a descriptor or pointer leads to lies; (0, 0) when it leads nowhere."""
    if layout.kind == "descriptor":
        return span(held) or (0, 0)
    start = int.from_bytes(held, "little")
    return start, start + layout.inner.size if start else 0


def _elements(name: str, address: int, inner: Layout, count: int, single: bool = False) -> Iterator[tuple[str, int, Layout]]:
    for number in range(min(count, MOST_PARTS)):
        yield name if single else f"{name}({number + 1})", address + number * inner.size, inner


def _variables(top: Any) -> Iterator[Any]:
    """Variables of a compilation unit and of its modules that have a place; those within procedures are passed over unread."""
    for die in top.iter_children():
        if die.tag == "DW_TAG_module":
            yield from _variables(die)
        elif die.tag == "DW_TAG_variable" and "DW_AT_location" in die.attributes and "DW_AT_artificial" not in die.attributes \
                and "DW_AT_type" in die.attributes:
            yield die


def _layout(die: Any, types: dict[int, Layout]) -> Layout:
    """The layout of a type; types that refer to themselves are made once."""
    while die.tag in THROUGH and "DW_AT_type" in die.attributes:
        die = die.get_DIE_from_attribute("DW_AT_type")
    known = types.get(die.offset)
    if known is not None:
        return known
    size = die.attributes.get("DW_AT_byte_size")
    layout = types[die.offset] = Layout(size.value if size is not None and isinstance(size.value, int) else 0)
    inner = die.get_DIE_from_attribute("DW_AT_type") if "DW_AT_type" in die.attributes else None
    if die.tag == "DW_TAG_structure_type":
        layout.kind = "structure"
        layout.members = [(_name(one), one.attributes["DW_AT_data_member_location"].value,
                           _layout(one.get_DIE_from_attribute("DW_AT_type"), types))
                          for one in die.iter_children() if one.tag == "DW_TAG_member"]
    elif die.tag == "DW_TAG_pointer_type":
        layout.size = WORD
        if inner is not None and inner.tag != "DW_TAG_subroutine_type":
            layout.kind, layout._inner = "pointer", _layout(inner, types)
    elif die.tag == "DW_TAG_array_type" and inner is not None:
        ranges = [one for one in die.iter_children() if one.tag == "DW_TAG_subrange_type"]
        layout._inner = _layout(inner, types)
        if "DW_AT_data_location" in die.attributes:
            layout.points = "DW_AT_associated" in die.attributes
            layout.kind, layout.size = "descriptor", DESCRIPTOR + DIMENSION * (len(ranges) - 1)
        else:
            layout.count = functools.reduce(lambda count, one: count * _length(one), ranges, 1)
            layout.kind = "plain" if layout.inner.kind == "plain" else "fixed"
            layout.size = layout.count * layout.inner.size
    return layout


def _name(die: Any) -> str:
    name = die.attributes.get("DW_AT_name")
    return "?" if name is None else name.value.decode(errors="replace")


def _length(dimension: Any) -> int:
    """Elements along a dimension that the type fixes."""
    lower, upper = (dimension.attributes.get(one) for one in ("DW_AT_lower_bound", "DW_AT_upper_bound"))
    first = 1 if lower is None or not isinstance(lower.value, int) else lower.value
    return max(0, upper.value - first + 1) if upper is not None and isinstance(upper.value, int) else 0


def _leads_on(layout: Layout) -> bool:
    """Whether a variable is a structure, or leads to one."""
    while layout.kind in ("fixed", "descriptor", "pointer"):
        layout = layout.inner
    return layout.kind == "structure"
