# SPDX-License-Identifier: MIT
"""The solver again in torch, for exact gradients of our own solvers."""
