# SPDX-License-Identifier: MIT
"""What `trimtab couple check` looks at, one file per topic."""
