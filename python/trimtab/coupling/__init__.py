# SPDX-License-Identifier: MIT
"""The doctor of coupled codes: `trimtab couple check`."""
