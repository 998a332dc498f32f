# SPDX-License-Identifier: MIT
"""How the figures of results look: one colour and mark a gradient variant, the same in every figure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from trimtab.core.atomic_files import replacing
from trimtab.evaluation.figures import RC

# Okabe and Ito, as in `trimtab.evaluation.figures`.
STYLE: dict[str, dict[str, Any]] = {
    "no closure": {"color": "#7f7f7f", "marker": "x", "linestyle": (0, (5, 2))},
    "offline": {"color": "#0072b2", "marker": "s", "linestyle": (0, (7, 2, 1.5, 2))},
    "none": {"color": "#999999", "marker": "v"},
    "static": {"color": "#d55e00", "marker": "o"},
    "euler": {"color": "#e69f00", "marker": "^"},
    "tangent": {"color": "#009e73", "marker": "s"},
    "tangent, trapezoid": {"color": "#009e73", "marker": "D", "linestyle": (0, (4, 2))},
    "tangent, gregory": {"color": "#009e73", "marker": "P", "linestyle": (0, (1, 1))},
    "ensemble": {"color": "#cc79a7", "marker": "X", "linestyle": (0, (3, 3))},
    "discrete": {"color": "#56b4e9", "marker": "d"},
    "exact": {"color": "#000000", "marker": "*"},
}


def style(name: str) -> dict[str, Any]:
    """How a variant or closure is drawn; black for one without a style of its own."""
    return {"markersize": 4.5, "linestyle": "-", **STYLE.get(name, {"color": "#000000", "marker": "."})}


@contextmanager
def drawn(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure to draw on, saved as PNG when the block ends.

    Args:
        path: the file.
        width, height: in inches.
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with replacing(path) as partial:
            figure.savefig(partial, format="png")
