# SPDX-License-Identifier: MIT
"""The fixture of several files."""

from helpers.column import built

__all__ = ["built"]
