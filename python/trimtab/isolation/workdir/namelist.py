# SPDX-License-Identifier: MIT
"""A namelist file changed for a run: the new values stand at the end of their group, where Fortran reads them last, and the file
is read back. All other text stays as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import f90nml

from trimtab.core.atomic_files import replacing
from trimtab.core.errors import ConfigError

NAME = re.compile(r"[a-z_][a-z0-9_]*", re.IGNORECASE)
_BEGIN = re.compile(r"^[ \t]*[&$](\w+)", re.MULTILINE)
# What may stand in a group; a quotation mark or exclamation mark hides a slash that does not end it.
_TOKEN = re.compile(r"!.*|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|/|[&$]end\b", re.IGNORECASE)


def patch_namelist(path: Path, groups: Mapping[str, Mapping[str, Any]]) -> None:
    """Set variables in a namelist file.

    Args:
        path: the file.
        groups: group -> variable -> value: a number, truth value, text, list of these, or a dictionary of components of a derived
            type.

    Raises:
        ConfigError: no namelist, a group that it does not have, or a value that is not there when the file is read back.
    """
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    before = _read(path.name, text)
    if not isinstance(groups, Mapping):
        raise ConfigError(f"solver.namelist has {path.name} = {groups!r}: give group -> variable -> value.")
    for group, values in groups.items():
        if group.lower() not in {name for name, _ in before}:
            known = ", ".join(dict.fromkeys(name for name, _ in before))
            raise ConfigError(f"The namelist {path.name} has no group {group!r}; it has {known or 'none'}.")
        if not isinstance(values, Mapping):
            raise ConfigError(f"solver.namelist gives the group {group!r} of {path.name} {values!r}: give variables and values.")
        for name in values:
            if not NAME.fullmatch(name):
                raise ConfigError(f"solver.namelist names {name!r} in the group {group!r} of {path.name}, which is no variable: "
                                  "give a whole array, or the components of a derived type as a dictionary.")
    wanted = {group.lower(): _parsed(path.name, group, values) for group, values in groups.items()}
    lines = {group.lower(): _lines(group, values) for group, values in groups.items()}
    for name, end in reversed(list(_ends(text))):  # from the last on, so that the places before stay right
        if name in lines:
            glue = "" if text[:end].endswith("\n") else "\n"
            text = f"{text[:end]}{glue}{lines[name]}\n{text[end:]}"
    _check(path.name, before, _read(path.name, text), wanted)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def _read(name: str, text: str) -> list[tuple[str, dict[str, Any]]]:
    """The groups of a namelist in their order, with names and variables in lower case."""
    try:
        found = f90nml.reads(text).todict()
    except Exception as error:  # f90nml raises a dozen kinds for text that is no namelist
        raise ConfigError(f"{name} cannot be read as a namelist: {error}.") from error
    return [(re.sub(r"^_grp_(\w+)_\d+$", r"\1", group), _plain(values)) for group, values in found.items()]


def _plain(value: Any) -> Any:
    """Names in lower case, a list of one as its element, and no first indices: those of f90nml."""
    if isinstance(value, Mapping):
        return {key.lower(): _plain(one) for key, one in value.items() if key != "_start_index"}
    if isinstance(value, list):
        return _plain(value[0]) if len(value) == 1 else [_plain(one) for one in value]
    return value


def _lines(group: str, values: Mapping[str, Any]) -> str:
    """The assignments as Fortran reads them."""
    return "\n".join(str(f90nml.Namelist({group: dict(values)})).splitlines()[1:-1])


def _parsed(name: str, group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they come out of a namelist that holds nothing else."""
    given = _plain(dict(values))
    try:
        found: dict[str, Any] = _read(name, f"&{group}\n{_lines(group, values)}\n/\n")[0][1]
    except (ConfigError, TypeError, ValueError, IndexError):
        found = {}
    if found != given:
        raise ConfigError(f"solver.namelist has values for the group {group!r} of {name} that no namelist can hold "
                          f"({dict(values)}): give numbers, truth values, text of one line, or lists of them.")
    return found


def _ends(text: str) -> Iterator[tuple[str, int]]:
    """Name of each group, and where what ends it stands."""
    at = 0
    while begin := _BEGIN.search(text, at):
        at = begin.end()
        while token := _TOKEN.search(text, at):
            at = token.end()
            if token[0] == "/" or token[0][0] in "&$":
                yield begin[1].lower(), token.start()
                break
        else:
            return


def _check(name: str, before: list[tuple[str, dict[str, Any]]], after: list[tuple[str, dict[str, Any]]],
           wanted: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a file that does not say, read back, what was asked for and for all else what it said before."""
    same = [group for group, _ in before] == [group for group, _ in after]
    for (group, old), (_, new) in zip(before, after, strict=same):
        asked = wanted.get(group, {})
        for variable in {**old, **new, **asked}:
            expected = _expected(old.get(variable), asked[variable]) if variable in asked else old.get(variable)
            same = same and new.get(variable) == expected
            if variable in asked and _length(old.get(variable)) > _length(asked[variable]):
                raise ConfigError(f"solver.namelist gives {group}.{variable} {_length(asked[variable])} values, and {name} gives "
                                  f"it {_length(old[variable])}, of which Fortran would keep the others: give all of them.")
            if not same:
                raise ConfigError(f"{name} cannot be changed by solver.namelist: read back, {group}.{variable} is "
                                  f"{new.get(variable)!r} and should be {expected!r}. Change it in the file itself, or write it "
                                  "there in a plain form (variable = value).")


def _expected(old: Any, asked: Any) -> Any:
    """A value after the change; of a derived type the components that are not spoken of stay."""
    if isinstance(old, Mapping) and isinstance(asked, Mapping):
        return {key: _expected(old.get(key), asked[key]) if key in asked else old[key] for key in {**old, **asked}}
    return asked


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 1
