# SPDX-License-Identifier: MIT
"""What made a file: versions, and the git revision."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("trimtab", "torch", "numpy", "xarray", "netCDF4", "f90wrap")


def provenance() -> dict[str, Any]:
    """Package versions, the git revision trimtab runs from ("" when it is installed), and torch's threads."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    return {"versions": versions, "revision": _revision(), "threads": torch.get_num_threads()}


def _revision() -> str:
    here = Path(__file__)
    answer = ""
    # A package installed inside somebody's repository is not of that repository: it must hold this very file.
    for command in ("ls-files --error-unmatch " + here.name, "describe --always --dirty --abbrev=40 --match="):
        try:
            done = subprocess.run(["git", "-C", str(here.parent), *command.split()], capture_output=True, text=True,
                                  timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return ""
        answer = done.stdout.strip()
    return answer
