# SPDX-License-Identifier: MIT
"""One file per result that `trimtab reproduce` makes."""
