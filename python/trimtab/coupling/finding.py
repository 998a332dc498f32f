# SPDX-License-Identifier: MIT
"""One line of the doctor's table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "bad"]
START = "own start"                       # the check without which there are no others
MEND = "mend that, then check again"      # the remedy of a check that a sentence ended
GRADCHECK = "see trimtab gradcheck"       # and of a gradient's


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        check: what was checked.
        state: "ok", "note" (works, mind the remedy) or "bad" (a training would be wrong or would not end).
        found: what was found, with figures.
        remedy: what to do; empty where there is nothing to do.
    """

    check: str
    state: State
    found: str
    remedy: str = ""


def unchecked(name: str, cause: str) -> Finding:
    """A check that cannot be told, for what another found."""
    return Finding(name, "note", f"not checked, see {cause}")


def in_unit(number: float, unit: str, digits: int = 6) -> str:
    """A number and its unit, in words; the unit 1 is none."""
    return f"{number:.{digits}g}{'' if unit in ('', '1') else f' {unit}'}"


def once(findings: Sequence[Finding]) -> list[Finding]:
    """Findings in which one mistake has one row: a check that the same sentence ended as one before it was not checked."""
    first: dict[str, str] = {}
    kept = []
    for one in findings:
        if one.remedy in (MEND, GRADCHECK):
            said = one.found.partition("; the code printed last")[0]
            said = re.sub(r"\d[\d.e+-]*", "#", re.sub(r"^By inner step \d+ of a run: ", "", said))
            cause = first.setdefault(said, one.check)
            kept.append(one if cause == one.check else unchecked(one.check, cause))
        else:
            kept.append(one)
    return kept
