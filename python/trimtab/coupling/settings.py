# SPDX-License-Identifier: MIT
"""Lines of a TOML that the doctor chose and may choose again: written over its own lines alone, and read back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.config.experiment import changed_keys, parse_experiment
from trimtab.core.atomic_files import replacing
from trimtab.core.errors import ConfigError, TrimtabError
from trimtab.coupling.finding import Finding
from trimtab.coupling.templates import ADAPTER

MARK = "chosen by trimtab couple check: "  # the value follows, so that an edited line is known even where its comment stayed
ROW = "training in TOML"
UNWRITTEN = "check again where the TOML can be written: a copy of the folder, or write access to it"
TELLING = ("window", "rate", "epochs", "batch")  # of [training]: an author who sets one of these sets the others as he means them
Settings = Mapping[str, Mapping[str, Any]]


def is_free(text: str, section: str, key: str) -> bool:
    """Whether the doctor may choose a key of a TOML: its line is the doctor's own and nobody edited it; or it is absent, from a
    TOML that is not all of its author's making: the doctor's mark stands in it, or nothing is said in it of a training.

    Args:
        text: the TOML.
        section, key: of the value.
    """
    found = _line(_section(text, section), key)
    if found is None:
        return MARK in text or not any(_line(_section(text, "training"), one) for one in TELLING)
    return found["value"].strip() == (found["comment"] or "").partition(MARK)[2].strip() != ""


def is_chosen(text: str) -> bool:
    """Whether somebody chose the training of a TOML, the doctor or its author; what `trimtab couple init` laid down nobody chose.

    Args:
        text: the TOML, one that can be read.
    """
    marked = set(re.findall(rf"^(\w+)[ \t]*=.*{MARK}(.*)$", text, re.MULTILINE))
    if marked:
        laid_down = ADAPTER.joinpath("NAME.toml").read_text(encoding="utf-8")
        return not marked <= set(re.findall(rf"^(\w+)[ \t]*=.*{MARK}(.*)$", laid_down, re.MULTILINE))
    return bool(re.search(rf"^[ \t]*(training[ \t]*=|(training\.)?({'|'.join(TELLING)})[ \t]*=)", text, re.MULTILINE))


def write_settings(path: Path, settings: Settings, write: bool) -> list[Finding]:
    """Put chosen values into a TOML, over the doctor's own lines and where a key is absent, see `is_free`.

    Args:
        path: the TOML.
        settings: section -> key -> value: numbers, strings, lists of them.
        write: put them there; else only say which would change.

    Returns:
        One finding: what was written, and which of the user's own lines say otherwise.
    """
    text = path.read_text(encoding="utf-8")
    changed, written, kept = text, [], []
    for section, values in settings.items():
        for key, value in values.items():
            if is_free(text, section, key):
                placed = _placed(changed, section, key, _shown(value))
                written += [f"{section}.{key}"] * (_value(changed, section, key) != _shown(value))
                changed = placed
            elif _value(text, section, key) != _shown(value):
                kept.append(f"{section}.{key} = {_value(text, section, key) or 'default'} ({_shown(value)})")
    found = f"yours, with what was chosen beside it: {', '.join(kept)}" if kept else ""
    if not written:
        return [Finding(ROW, "ok", "; ".join(filter(None, ["as chosen", found])))]
    if not write:
        return [Finding(ROW, "note", "; ".join(filter(None, [f"not as chosen: {', '.join(written)}", found])),
                        "leave out --keep and they are written")]
    wrong = _misread(path, text, changed, settings)
    if wrong:
        return [Finding(ROW, "note", f"the chosen values cannot be put into {path.name} line by line ({wrong})",
                        "write its sections as `trimtab couple init` lays them down, one key a line, or set them by hand")]
    try:
        with replacing(path) as partial:
            partial.write_text(changed, encoding="utf-8")
    except TrimtabError as error:
        chosen = "; ".join(f"{name} = {_shown(_read_value(settings, name))}" for name in written)
        return [Finding(ROW, "note", "; ".join(filter(None, [f"{not_written(error)}; chosen: {chosen}", found])), UNWRITTEN)]
    return [Finding(ROW, "ok", "; ".join(filter(None, [f"written into {path.name}: {', '.join(written)}", found])))]


def overrides(text: str, settings: Settings) -> list[str]:
    """What `write_settings` would put into a TOML, as `load_experiment` takes it: "section.key=value"."""
    return [f"{section}.{key}={_shown(value)}" for section, values in settings.items() for key, value in values.items()
            if is_free(text, section, key)]


def not_written(error: Exception) -> str:
    """Why a TOML could not be written, without what to do about it, as a row says it."""
    return f"not written: {str(error).partition(': ')[0].rstrip('.')}"


def _misread(path: Path, before: str, after: str, settings: Settings) -> str:
    """Why the changed text does not say what it should; "" when it does."""
    try:
        one, other = (parse_experiment(text, path.name, (), path.stem) for text in (before, after))
    except ConfigError as error:
        return str(error).rstrip(".")
    allowed = {f"{section}.{key}" for section, values in settings.items() for key in values if is_free(before, section, key)}
    strange = [key for key in changed_keys(one, other) if key not in allowed]
    strange += [name for name in sorted(allowed) if _read(other, *name.split(".")) != _read_value(settings, name)]
    return f"{', '.join(strange)} would read otherwise" if strange else ""


def _read(experiment: Any, section: str, key: str) -> Any:
    value = getattr(getattr(experiment, section), key)
    return list(value) if isinstance(value, tuple) else value


def _read_value(settings: Settings, name: str) -> Any:
    section, key = name.split(".")
    return settings[section][key]


def _section(text: str, name: str) -> re.Match[str] | None:
    return re.search(rf"^\[{name}\][^\n]*\n?(?:(?!^[ \t]*\[).*\n?)*", text, re.MULTILINE)


def _line(section: re.Match[str] | None, key: str) -> re.Match[str] | None:
    """A key's line: its value, and its comment."""
    return section and re.search(rf"^{key}[ \t]*=[ \t]*(?P<value>\"[^\"\n]*\"|[^#\n]*?)[ \t]*(?P<comment>#[^\n]*)?$", section[0],
                                 re.MULTILINE)


def _value(text: str, section: str, key: str) -> str | None:
    found = _line(_section(text, section), key)
    return found and found["value"].strip()


def _placed(text: str, section: str, key: str, value: str) -> str:
    """The text with a marked line for a key, in place of the one there, at the top of its section, or in a new section."""
    body = _section(text, section)
    found = _line(body, key)
    said = ((found and found["comment"]) or "# ").partition(MARK)[0]
    line = f"{f'{key} = {value}':<30} {said}{MARK}{value}"
    if body is None:
        return f"{text.rstrip()}\n\n[{section}]\n{line}\n"
    if found is not None:
        return text[: body.start() + found.start()] + line + text[body.start() + found.end() :]
    head = re.match(r"[^\n]*\n?", body[0])
    assert head is not None
    at = body.start() + head.end()
    return text[:at] + ("" if head[0].endswith("\n") else "\n") + line + "\n" + text[at:]


def _shown(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    return repr(value)
