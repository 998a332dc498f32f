# SPDX-License-Identifier: MIT
"""Experiments: frozen dataclasses read from TOML, written back to TOML, and to the namelist the Fortran solvers read.

An unknown section or key is an error that names the known ones; so is a value of another type or out of range.
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.config.sections import (
    CorrectionConfig,
    NetworkConfig,
    ObservationConfig,
    OfflineConfig,
    Options,
    ParallelConfig,
    ReferenceConfig,
    ScoreConfig,
    SolverConfig,
    TrainingConfig,
)
from trimtab.core.errors import ConfigError

STEPPER_KEYS = ("dt", "integrator", "order", "correction_at", "rtol", "atol")
FREE_TO_CHANGE = ("name", "description", "score", "training.epochs", "parallel.timeout")  # on resume


@dataclass(frozen=True)
class Experiment:
    """Everything one result depends on."""

    name: str = ""
    description: str = ""
    solver: SolverConfig = field(default_factory=SolverConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    observation: ObservationConfig = field(default_factory=ObservationConfig)
    offline: OfflineConfig = field(default_factory=OfflineConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)


def shipped_experiments() -> dict[str, Path]:
    """Names and files of the experiments that come with trimtab."""
    folder = Path(__file__).parent.parent / "experiments"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_experiment(source: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """Read an experiment.

    Args:
        source: a shipped name, or a TOML file.
        overrides: "section.key=value" strings, the value in TOML's own notation; a bare word is taken as a string.

    Returns:
        The experiment, every value checked for its type.

    Raises:
        ConfigError: no such experiment, not TOML, unknown key, wrong type.
    """
    shipped = shipped_experiments()
    path = shipped.get(str(source), Path(source))
    if not path.is_file():
        raise ConfigError(f"There is no experiment {str(source)!r}: give a TOML file or one of {', '.join(shipped)}.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}.") from error
    return parse_experiment(text, str(path), overrides, path.stem)


def parse_experiment(text: str, source: str, overrides: Iterable[str] = (), name: str = "") -> Experiment:
    """An experiment from TOML text.

    Args:
        text: TOML.
        source: where it comes from, for a refusal.
        overrides: see `load_experiment`.
        name: the experiment's name when the text gives none.

    Returns:
        The experiment.

    Raises:
        ConfigError: see `load_experiment`.
    """
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in a thousand brackets
        raise ConfigError(f"{source} is not valid TOML: {error}.") from error
    for override in overrides:
        _override(tree, override)
    tree.setdefault("name", name)
    experiment = _build(Experiment, tree, "")
    if not experiment.solver.name:
        raise ConfigError(f"{source} names no solver; add a section [solver] with name = \"qg\" or another.")
    return experiment


def dump_experiment(experiment: Experiment) -> str:
    """The experiment as TOML that `load_experiment` reads back to an equal one."""
    lines = [f"name = {_toml(experiment.name)}", f"description = {_toml(experiment.description)}"]
    for section in dataclasses.fields(Experiment)[2:]:
        values = vars(getattr(experiment, section.name))
        if section.name in ("solver", "network"):
            values = {"name": values["name"], **values["options"]}
        lines += ["", f"[{section.name}]", *(f"{_key(key)} = {_toml(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def changed_keys(one: Experiment, other: Experiment) -> list[str]:
    """Keys in which two experiments differ, as "section.key", in the order of the sections."""
    trees = [tomllib.loads(dump_experiment(experiment)) for experiment in (one, other)]
    keys = []
    for name in dict.fromkeys([*trees[0], *trees[1]]):
        first, second = (tree.get(name) for tree in trees)
        if isinstance(first, dict) and isinstance(second, dict):
            keys += [f"{name}.{key}" for key in dict.fromkeys([*first, *second]) if first.get(key) != second.get(key)]
        elif first != second:
            keys.append(name)
    return keys


def namelist(group: str, options: Options) -> str:
    """One Fortran namelist group as text.

    Args:
        group: its name.
        options: values: bool, int, float, str, or lists of them.

    Returns:
        One entry a line, "&group" first and "/" last.

    Raises:
        ConfigError: a value that a namelist cannot hold.
    """
    for key in (group, *options):
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", key):
            raise ConfigError(f"{key!r} cannot name a Fortran solver or one of its parameters.")
    body = [f"  {key} = {_fortran(key, value)}" for key, value in options.items()]
    return "\n".join([f"&{group}", *body, "/"])


def solver_namelists(name: str, options: Options) -> tuple[str, str]:
    """The two groups a Fortran solver reads: `&solver` (stepping) and the one of its physics.

    Args:
        name: solver.
        options: keywords of `open_solver`.

    Returns:
        (stepping group, physics group).

    Raises:
        ConfigError: a value of no namelist type; the solver itself checks the rest.
    """
    options = dict(options)
    stepping = {key: options.pop(key) for key in STEPPER_KEYS if key in options}
    return namelist("solver", {"name": name, **stepping}), namelist(name, options)


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"--set {override!r} is not of the form section.key=value.")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--set {key.strip()}: {_shown(text)} cannot be read: {error}.") from error
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override!r}: {part} is a value, not a section.")
    tree[path[-1]] = value


def _build(kind: Any, tree: Any, where: str) -> Any:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"[{where}] must be a section, not {tree!r}.")
    hints = typing.get_type_hints(kind)
    if "options" in hints:  # free keys: the solver's and the network's own arguments
        rest = {key: value for key, value in tree.items() if key != "name"}
        tree = {"options": rest, **({"name": tree["name"]} if "name" in tree else {})}
    known = {one.name for one in dataclasses.fields(kind)}
    for key in tree:
        if key not in known:
            place = f"in [{where}]" if where else "at the top"
            raise ConfigError(f"Unknown key {key!r} {place}; known are {', '.join(sorted(known))}.")
    dotted = f"{where}." if where else ""
    return kind(**{key: _value(hints[key], value, f"{dotted}{key}") for key, value in tree.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(_value(arguments[0], one, where) for one in value)
        if len(value) == len(arguments):
            return tuple(_value(kind, one, where) for kind, one in zip(arguments, value, strict=True))
    elif origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        if not _plain(value):
            raise ConfigError(f"{where} = {_shown(value)} must hold numbers, truth values, strings, lists or tables of them.")
        return types.MappingProxyType(dict(value))
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if _number(value) and math.isfinite(value):
            return float(value)
    elif isinstance(hint, type) and type(value) is hint and not (isinstance(value, int) and abs(value) >= 2**63):
        return value
    raise ConfigError(f"{where} = {_shown(value)} is not what is expected there: {_expected(hint)}.")


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_plain(one) for one in value.values())
    if isinstance(value, list | tuple):
        return all(_plain(one) for one in value)
    return isinstance(value, bool | str) or (isinstance(value, int | float) and _number(value))


def _number(value: int | float) -> bool:
    """Whether it is one for a computer, too; a whole number may have any number of digits."""
    return isinstance(value, float) or abs(value) < 10**300


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # of a number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"


def _expected(hint: Any) -> str:
    names = {float: "a finite number", int: "a whole number of 64 bits", str: "a string", bool: "true or false"}
    return names.get(hint, "a list" if typing.get_origin(hint) is tuple else "a table")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's strings are TOML's but for DEL
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return repr(value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _fortran(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return ".true." if value else ".false."
    if isinstance(value, numbers.Integral) and _number(int(value)):
        return str(int(value))
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and math.isfinite(value):
        value = float(value)
        return f"{value:.17g}".replace("e", "d") if "e" in f"{value:.17g}" else f"{value:.17g}d0"
    if isinstance(value, str) and value.isascii() and (value.isprintable() or not value):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, list | tuple) and value:
        return ", ".join(_fortran(key, one) for one in value)
    raise ConfigError(f"{key} = {_shown(value)} cannot be given to a Fortran solver: give a finite number, a truth value or "
                      "plain text.")
