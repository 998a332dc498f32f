# SPDX-License-Identifier: MIT
"""`weight = ...` of a TOML: whose it is, what it says against what was measured, and how a measured one is written."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from trimtab.config.experiment import load_experiment
from trimtab.core.atomic_files import replacing
from trimtab.core.errors import TrimtabError
from trimtab.coupling.finding import Finding
from trimtab.coupling.settings import UNWRITTEN, not_written

MARK = "# measured by trimtab couple check"  # at the end of a line that a check may replace
ROW = "weight in TOML"
CLOSE = 0.02  # relative distance of a weight by hand from the measured one that passes as the same
SECTION = re.compile(r"^\[\s*solver\s*\][^\n]*\n(?:(?!^\[).*\n?)*", re.MULTILINE)
MEASURED = re.compile(rf"^[ \t]*weight\s*=.*{MARK}[ \t]*\n?", re.MULTILINE)


def by_hand(path: Path, believed: dict[str, Any]) -> bool:
    """Whether a TOML's weight is its author's: it has one, and no line of it bears the mark of a check.

    Args:
        path: the TOML.
        believed: its [solver] weight.
    """
    section = SECTION.search(path.read_text(encoding="utf-8"))
    return bool(believed) and (section is None or MEASURED.search(section[0]) is None)


def compare_weight(path: Path, believed: dict[str, Any], measured: dict[str, Any], write: bool, *, hand: bool = False,
                   untold: Collection[str] = ()) -> list[Finding]:
    """What the TOML believes against what was measured.

    Args:
        path: the TOML.
        believed, measured: [solver] weight.
        write: put the measured one into the TOML, where it is not its author's.
        hand: the TOML's is its author's, see `by_hand`.
        untold: outputs whose weight could not be measured.

    Returns:
        One finding.
    """
    if hand:
        return [_compare_hand(believed, measured, untold)]
    if measured == believed:
        return [Finding(ROW, "ok", "as measured" if measured else "none is needed: every output moves its field by c h")]
    said = "not what was measured" if believed else "none, and one is needed for the gradient"
    if not write:
        return [Finding(ROW, "note", said, "leave out --keep and it is written")]
    try:
        write_weight(path, measured)
    except TrimtabError as error:
        return [Finding(ROW, "note", f"{not_written(error)}; the TOML's is {said}", UNWRITTEN)]
    try:
        read_back = dict(load_experiment(path).solver.options.get("weight", {}))
    except TrimtabError as error:
        read_back = {"": str(error)}
    if read_back != measured:
        return [Finding(ROW, "bad", f"was {said}, and {path.name} does not say so after it was written",
                        f"write under [solver]: weight = {_inline(measured)}  {MARK}" if measured else
                        "take weight out of [solver]")]
    return [Finding(ROW, "ok", f"was {said}: {'written' if measured else 'taken out of'} {path.name}")]


def _compare_hand(believed: dict[str, Any], measured: dict[str, Any], untold: Collection[str]) -> Finding:
    names = {*believed.get("steady", {}), *believed.get("step", {}), *measured.get("steady", {}), *measured.get("step", {})}
    found = []
    for name in sorted(names - set(untold)):
        one, other = (side.get("steady", {}).get(name, 1.0) for side in (believed, measured))
        if _apart(one, other):
            found.append(f"steady of {name} is {one:g}, measured {other:.3g}")
        own = {name.rpartition(".")[2]: 1.0}
        steps = [side.get("step", {}).get(name, own) for side in (believed, measured)]
        for field in sorted({*steps[0], *steps[1]} - ({*own} if "response" in measured else set())):
            one, other = (side.get(field, 0.0) for side in steps)
            if _apart(one, other):
                found.append(f"step of {name} in {field} is {one:g}, measured {other:.3g}")
    for key, what in (("response", "the matrix of an output that is no field's tendency"),
                      ("components", "weights that differ by component")):
        if key in measured and key not in believed:
            found.append(f"{key} ({what}) is measured, and the TOML names none")
    told = f"; not compared, as it cannot be told: {', '.join(sorted(untold))}" if untold else ""
    if not found:
        return Finding(ROW, "note" if untold else "ok", f"written by hand, and kept: as measured{told}")
    return Finding(ROW, "note", f"written by hand, and kept: {'; '.join(found)}{told}; the gradient below is of what is written",
                   "where the measurement is right, delete the line: the next check writes it")


def _apart(one: Any, other: Any) -> bool:
    return abs(float(one) - float(other)) > CLOSE * max(abs(float(one)), abs(float(other)))


def write_weight(path: Path, weight: dict[str, Any]) -> bool:
    """Put `weight = ...` under [solver] in a TOML, in place of one that a check wrote, and nothing else.

    Args:
        path: the TOML.
        weight: [solver] weight; {} to take it out.

    Returns:
        Whether the file changed.
    """
    text = path.read_text(encoding="utf-8")
    section = SECTION.search(text)
    if section is None:
        return False
    body = MEASURED.sub("", section[0])
    if weight:
        line = f"weight = {_inline(weight)}  {MARK}\n"
        after = re.search(r"^[ \t]*library\s*=.*\n", body, re.MULTILINE) or re.match(r".*\n", body)
        if after is None:
            return False
        body = body[: after.end()] + line + body[after.end():]
    changed = text[: section.start()] + body + text[section.end() :]
    if changed == text:
        return False
    with replacing(path) as partial:
        partial.write_text(changed, encoding="utf-8")
    return True


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key if re.fullmatch(r'[A-Za-z0-9_-]+', key) else repr(key)} = {_inline(one)}"
                               for key, one in value.items()) + "}"
    return repr(value)
