# SPDX-License-Identifier: MIT
"""The truth: reference runs, target windows, observations, filters."""
