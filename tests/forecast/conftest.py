# SPDX-License-Identifier: MIT
"""The fixture of several files."""

from helpers.ensembles import runs

__all__ = ["runs"]
