# SPDX-License-Identifier: MIT
"""Ensemble-EGA: the Jacobian of a step from forward runs."""
