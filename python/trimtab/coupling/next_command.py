# SPDX-License-Identifier: MIT
"""What to type after `trimtab couple check`."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from trimtab.bridge.adapter_mpi import mpi_libraries
from trimtab.config.experiment import Experiment, load_experiment
from trimtab.coupling.checks.truth import is_said
from trimtab.coupling.finding import Finding
from trimtab.coupling.report import find_toml
from trimtab.coupling.settings import is_chosen
from trimtab.parallel.launcher import launch_words

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
    check = f"trimtab couple check {shlex.quote(str(source))}"
    again = f"{launch_words(1, 1, ranks)}{check}"
    bad = list(dict.fromkeys(one.check for one in findings if one.state == "bad"))
    if bad:
        return f"Next: put right what is bad ({', '.join(bad)}), then\n  {again}"
    experiment = load_experiment(path)
    if not is_said(experiment.reference):
        return f"Next: say in [reference] of {path.name} what the truth is, then\n  {again}"
    domain, members = experiment.parallel.domain, experiment.parallel.members
    if ranks > 1 and not is_chosen(path.read_text(encoding="utf-8")):
        return f"Next: on one rank, which compares truth and solver and chooses the training\n  {check}"
    if ranks == 1 and (domain > 1 or _calls_mpi(path, experiment)):
        return f"Next: on several ranks, which are compared with one\n  {launch_words(max(domain, 2))}{check}"
    divides = ["--set", f"parallel.domain={ranks}"] if ranks > 1 and domain == 1 else []  # as it was checked
    launcher = launch_words(ranks if divides else domain, members, ranks)
    folder = path.parent
    out = next(name for number in itertools.count(1) if not (folder / (name := f"run{number if number > 1 else ''}")).exists())
    there = "" if folder.resolve() == Path(os.getcwd()) else f"cd {shlex.quote(str(folder))} && "
    takes = next((found[1] for one in findings if (found := TAKES.search(one.found))), "")
    return f"Next{takes and f' (about {takes})'}:\n  " \
           f"{there}{launcher}{shlex.join(['trimtab', 'train', path.name, *divides, '--out', out])}"


def _calls_mpi(path: Path, experiment: Experiment) -> bool:
    """Whether the code's library was linked with MPI."""
    library = path.parent / str(experiment.solver.options.get("library", ""))
    return library.is_file() and bool(mpi_libraries(library))
