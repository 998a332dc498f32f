# SPDX-License-Identifier: MIT
"""Networks, corrections and the slots they fill."""
