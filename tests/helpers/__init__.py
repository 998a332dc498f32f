# SPDX-License-Identifier: MIT
"""What several test files share, and no fixture is."""

from pathlib import Path

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
CODES = TESTS / "codes"
