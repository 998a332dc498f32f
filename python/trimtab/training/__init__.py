# SPDX-License-Identifier: MIT
"""The training loop, its phases, checkpoints and run folders."""
