# SPDX-License-Identifier: MIT
"""Corrections for programs that Fortran drives."""
