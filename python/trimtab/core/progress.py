# SPDX-License-Identifier: MIT
"""Who is told how far a computation is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What wants to know how far a long task is."""

    def __call__(self, fraction: float, text: str) -> None:
        """Take note.

        Args:
            fraction: done part of the present stage, 0 to 1.
            text: the stage ("reference", "offline", "online"), a colon, and what it is doing.
        """
        ...


def silent(fraction: float, text: str) -> None:
    """The progress of somebody who does not want to know."""
