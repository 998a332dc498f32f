# SPDX-License-Identifier: MIT
"""Whose an error is that ended a check: trimtab's own, or that of Python code of the user's, a network or a solver's class."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path

import torch

import trimtab
from trimtab.core.errors import TrimtabError
from trimtab.coupling.finding import MEND, Finding

TORCH = Path(torch.__file__).parent
PACKAGE = Path(trimtab.__file__).parent
LIBRARIES = tuple(Path(one).resolve() for one in {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"),
                                                  sysconfig.get_path("platlib")})
REPORT = "report it with what `trimtab couple check --debug` prints, the traceback: there is nothing to fix in your code for it"
YOURS = "fix that, then check again; `trimtab couple check --debug` prints the traceback"
SYSTEM = "make room or give the permission, then check again; `trimtab couple check --debug` prints the traceback"


def finding_of(check: str, error: Exception) -> Finding:
    """The row of a check that an error ended.

    Args:
        check: its name.
        error: a sentence of trimtab's stays as it is; of another, its type, file and line are said, and whose it is.
    """
    if isinstance(error, TrimtabError):
        return Finding(check, "bad", str(error), MEND)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [one for one in frames if _is_theirs(one.filename)]
    inside = [one for one in frames if Path(one.filename).is_relative_to(PACKAGE)]
    place = (theirs or inside or list(frames))[-1:]
    said = f"{type(error).__name__}: {str(error).strip() or 'without a word'}"
    said += f" ({place[0].filename}, line {place[0].lineno})" if place else ""
    if theirs:
        return Finding(check, "bad", f"an error in Python code of yours: {said}", YOURS)
    if isinstance(error, OSError):
        return Finding(check, "bad", f"the system refused something: {said}", SYSTEM)
    if frames and Path(frames[-1].filename).is_relative_to(TORCH):
        return Finding(check, "bad", f"torch refused something, of your network or of trimtab: {said}",
                       f"see the network's layers; where nothing is wrong with them, {REPORT.partition(':')[0]}")
    return Finding(check, "bad", f"a fault of trimtab, not of your code: {said}", REPORT)


def _is_theirs(filename: str) -> bool:
    """Whether a file is neither trimtab's nor of Python and its libraries."""
    path = Path(filename)
    if filename.startswith("<") or path.is_relative_to(PACKAGE) or "site-packages" in path.parts:
        return False
    return not any(path.resolve().is_relative_to(one) for one in (*LIBRARIES, Path(sys.base_prefix, "lib").resolve()))
