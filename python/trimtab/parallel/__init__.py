# SPDX-License-Identifier: MIT
"""MPI ranks, the division of a domain among them, and starting them."""
