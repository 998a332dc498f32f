# SPDX-License-Identifier: MIT
"""An experiment's TOML as frozen dataclasses."""
