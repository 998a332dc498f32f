# SPDX-License-Identifier: MIT
"""Scores, climatology, figures and reports."""
