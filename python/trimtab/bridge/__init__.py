# SPDX-License-Identifier: MIT
"""Where Python and Fortran meet; nothing else touches the compiled module."""
