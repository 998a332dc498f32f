# SPDX-License-Identifier: MIT
"""The files that an experiment names and a result depends on: libraries, input files, weights, truths; and their SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trimtab.config.experiment import Experiment
from trimtab.config.sections import Options
from trimtab.core.errors import ConfigError

Digests = dict[str, dict[str, str]]  # kind -> file -> SHA-256
PHYSICS = ("solver", "truth")       # kinds whose change changes a run, or the states that it starts from
JUDGED = (*PHYSICS, "reference")    # and those that scores depend on
KINDS = (*JUDGED, "weight")         # and those that a gradient depends on


def named_files(experiment: Experiment) -> dict[str, list[str]]:
    """Files and folders that an experiment names, by kind: "solver", "truth", "reference" and "weight".

    Args:
        experiment: the experiment; one whose solver could be opened.
    """
    own, reference = experiment.solver.options, experiment.reference
    weight = own.get("weight") or {}
    truth = [*_of_code(reference.solver), *_of_code(reference.coarse)]
    named: dict[str, list[Any]] = {"solver": _of_code(own), "truth": truth, "reference": [reference.file],
             "weight": [weight.get("response"), weight.get("components")]}
    return {kind: [one for one in dict.fromkeys(names) if isinstance(one, str) and one] for kind, names in named.items()}


def file_digests(names: Iterable[str], folder: str | Path = "") -> dict[str, str]:
    """SHA-256 of files, and of all that stands in folders.

    Args:
        names: files and folders, meant from the current folder.
        folder: where those are looked for that are not there.

    Returns:
        Name -> hexadecimal digest; a file in a folder as "FOLDER/FILE". A file that is nowhere is left out.

    Raises:
        ConfigError: a file that cannot be read.
    """
    found = {}
    for name in filter(None, names):
        path = Path(name) if Path(name).exists() else Path(folder, name)
        inside = [path] if path.is_file() else sorted(path.rglob("*"))
        for one in inside:
            if one.is_file():
                found[str(Path(name) / one.relative_to(path)) if one != path else name] = _digest(one)
    return found


def input_digests(experiment: Experiment, folder: str | Path = "", kinds: Sequence[str] = KINDS) -> Digests:
    """SHA-256 of each file that an experiment names, by kind; a kind without any is left out.

    Args:
        experiment, folder: see `named_files` and `file_digests`.
        kinds: that are looked at.

    Raises:
        ConfigError: a file that cannot be read.
    """
    return {kind: file_digests(names, folder) for kind, names in named_files(experiment).items() if names and kind in kinds}


def changed_files(before: Digests, now: Digests, kinds: Iterable[str] = KINDS) -> list[str]:
    """The files whose content differs, with what became of them, as "lake.nml" or "mask.dat (missing)".

    Args:
        before, now: see `input_digests`; a kind that `before` does not tell of is not compared.
        kinds: that are compared.
    """
    changed = {}
    for kind in kinds:
        if kind not in before:
            continue
        old, new = before[kind], now.get(kind, {})
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                changed[name] = f"{name} (missing)" if name not in new else f"{name} (new)" if name not in old else name
    return list(changed.values())


def _of_code(options: Options) -> list[Any]:
    return [options.get("library", ""), *options.get("files", ()), options.get("stdin", "")]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}), and what was computed with it cannot be told from what "
                          "was not: make it readable.") from error
