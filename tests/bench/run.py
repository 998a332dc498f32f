# SPDX-License-Identifier: MIT
"""`make bench`: every benchmark, or those named, as tables on the terminal and as build/bench.json.

    python tests/bench/run.py [bridge] [solver] [training] [isolation] [parallel]
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

BENCHES = ("bridge", "solver", "training", "isolation", "parallel")


def show(title: str, text: str, rows: list[dict[str, object]]) -> None:
    """One table."""
    print(f"\n{title}: {text.strip().splitlines()[0]}")
    for columns in dict.fromkeys(tuple(row) for row in rows):
        group = [row for row in rows if tuple(row) == columns]
        cells = [list(columns)] + [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in group]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        for line in cells:
            print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def main(names: list[str]) -> None:
    """Run the benchmarks named, all without a name."""
    results = {}
    for name in names or BENCHES:
        if name not in BENCHES:
            sys.exit(f"There is no benchmark {name!r}; there are {', '.join(BENCHES)}.")
        module = importlib.import_module(f"bench_{name}")
        results[name] = module.measure()
        show(name, module.__doc__ or "", results[name])
    out = Path("build/bench.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=1))
    print(f"\nwritten to {out}")


if __name__ == "__main__":
    main(sys.argv[1:])
