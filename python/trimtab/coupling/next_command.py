# SPDX-License-Identifier: MIT
"""What to type after `trimtab couple check`."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from trimtab.config.experiment import load_experiment
from trimtab.coupling.checks.truth import is_said
from trimtab.coupling.finding import Finding
from trimtab.coupling.report import find_toml

TAKES = re.compile(r"training of this TOML about ([\d.e+]+ \w+ on one core)")


def next_step(source: str | Path, findings: Sequence[Finding], ranks: int = 1) -> str:
    """What comes next, and the command for it, to be pasted where `trimtab couple check` was typed.

    Args:
        source: the TOML, or the folder that holds one, as it was given to the check.
        findings: what the check found.
        ranks: MPI ranks that checked together.

    Returns:
        Two lines: a sentence, and the command, indented.

    Raises:
        ConfigError: see `doctor.find_toml`.
    """
    path = find_toml(source)
    launcher = f"mpirun -n {ranks} " if ranks > 1 else ""
    again = f"{launcher}trimtab couple check {shlex.quote(str(source))}"
    bad = list(dict.fromkeys(one.check for one in findings if one.state == "bad"))
    if bad:
        return f"Next: put right what is bad ({', '.join(bad)}), then\n  {again}"
    if not is_said(load_experiment(path).reference):
        return f"Next: say in [reference] of {path.name} what the truth is, then\n  {again}"
    folder = path.parent
    out = next(name for number in itertools.count(1) if not (folder / (name := f"run{number if number > 1 else ''}")).exists())
    there = "" if folder.resolve() == Path(os.getcwd()) else f"cd {shlex.quote(str(folder))} && "
    takes = next((found[1] for one in findings if (found := TAKES.search(one.found))), "")
    return f"Next{takes and f' (about {takes})'}:\n  {there}{launcher}trimtab train {shlex.quote(path.name)} --out {out}"
