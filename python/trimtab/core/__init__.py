# SPDX-License-Identifier: MIT
"""What everything stands on: errors, state, solver protocol, window, loss, files and logs; it knows no solver by name."""
