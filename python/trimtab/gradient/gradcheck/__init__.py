# SPDX-License-Identifier: MIT
"""Which gradient to trust at which window, from forward runs alone."""
