# SPDX-License-Identifier: MIT
"""The folder in which a code runs: its files, standard input, namelists and log."""
