# SPDX-License-Identifier: MIT
"""One line of the doctor's table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "bad"]


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
