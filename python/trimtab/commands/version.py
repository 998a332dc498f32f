# SPDX-License-Identifier: MIT
"""`trimtab version`."""

from __future__ import annotations

import argparse

import trimtab

TEXT = "print versions, and the threads and allocator settings in force"


def arguments(parser: argparse.ArgumentParser) -> None:
    """See `trimtab.commands`."""


def run(options: argparse.Namespace) -> int:
    """Run the command; see `trimtab.commands`."""
    import importlib.metadata as metadata
    import platform

    from trimtab.bridge.runtime import configure_runtime

    packages = ("torch", "numpy", "xarray", "netCDF4", "matplotlib", "f90wrap")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    print(f"trimtab {trimtab.__version__} (Python {platform.python_version()}, {versions})\nThis process: {configure_runtime()}.")
    return 0
