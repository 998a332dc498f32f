# SPDX-License-Identifier: MIT
"""What a result hands over: a table of what was measured, and checks of it against what was expected."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trimtab.core.errors import DataError


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        key: name in files and in the rows.
        label: name for people.
        unit: "1" for none.
    """

    key: str
    label: str
    unit: str = "1"

    @property
    def title(self) -> str:
        """Label, and unit when there is one."""
        return self.label if self.unit == "1" else f"{self.label} [{self.unit}]"


@dataclass(frozen=True)
class Check:
    """One figure against what is expected of it.

    Args:
        what: which figure.
        measured: its value here.
        expected: the value of the source.
        rule: "within": |measured / expected - 1| <= tolerance; "at most": measured <= expected (1 + tolerance);
            "at least": measured >= expected (1 - tolerance).
        tolerance: relative.
        source: where the expected value comes from.
        unit: "1" for none.
    """

    what: str
    measured: float
    expected: float
    rule: Literal["within", "at most", "at least"] = "within"
    tolerance: float = 0.1
    source: str = ""
    unit: str = "1"

    @property
    def holds(self) -> bool:
        """Whether it is as expected; a NaN is not."""
        measured, expected, tolerance = self.measured, self.expected, self.tolerance
        if self.rule == "within":
            return abs(measured - expected) <= tolerance * abs(expected)
        if self.rule == "at most":
            return measured <= expected + tolerance * abs(expected)
        return measured >= expected - tolerance * abs(expected)

    @property
    def allowed(self) -> str:
        """What is expected, in words."""
        value, unit = f"{self.expected:.4g}", "" if self.unit == "1" else f" {self.unit}"
        if self.rule == "within":
            return f"{value}{unit} ± {self.tolerance:.0%}"
        return f"{self.rule} {value}{unit}" + (f" ({self.tolerance:.0%})" if self.tolerance else "")


@dataclass(frozen=True)
class Table:
    """A result.

    Args:
        name: of the result.
        title: one line.
        columns: of the rows.
        rows: column key -> number, text or truth value; a missing key or None is an empty cell.
        checks: what was expected.
        figures: names of the files in the result's folder.
        notes: sentences for under the table.
        quick: made in seconds to see that it runs; its checks are not judged.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: Sequence[Mapping[str, Any]]
    checks: tuple[Check, ...] = ()
    figures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    quick: bool = False

    @property
    def heading(self) -> str:
        """Name and title, and whether the numbers are those of a quick run."""
        return f"{self.name}{' (quick: to see that it runs, the numbers mean nothing)' if self.quick else ''}: {self.title}"

    def verdict(self, check: Check) -> str:
        """"within" or "outside"; "quick, not judged" in a quick run."""
        return "quick, not judged" if self.quick else "within" if check.holds else "outside"

    def cells(self) -> list[list[str]]:
        """The rows as text."""
        return [[shown(row.get(column.key)) for column in self.columns] for row in self.rows]

    def check_cells(self) -> list[list[str]]:
        """The checks as text: what, measured, expected, verdict, source."""
        return [[one.what, shown(one.measured), one.allowed, self.verdict(one), one.source] for one in self.checks]

    def to_csv(self) -> str:
        """One line a row, numbers in full."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.key for column in self.columns])
        for row in self.rows:
            writer.writerow(["" if row.get(column.key) is None else row[column.key] for column in self.columns])
        return text.getvalue()

    def to_json(self) -> str:
        """Everything; a number that is not finite as text."""
        return json.dumps(_finite(asdict(self)), indent=1, allow_nan=False) + "\n"


CHECK_TITLES = ("figure", "measured", "expected", "verdict", "source")


def read_table(path: Path) -> Table:
    """The table of a table.json.

    Raises:
        DataError: no such file, or not a result's table.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        checks = tuple(Check(**{**one, "measured": float(one["measured"]), "expected": float(one["expected"])})
                       for one in tree.pop("checks"))
        columns = tuple(Column(**one) for one in tree.pop("columns"))
        figures, notes = tuple(tree.pop("figures")), tuple(tree.pop("notes"))
        return Table(columns=columns, checks=checks, figures=figures, notes=notes, **tree)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the table of a result ({error}): reproduce it again.") from error


def shown(value: Any) -> str:
    """A cell as text: three digits of a number; "–" for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _finite(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return str(tree) if isinstance(tree, float) and not math.isfinite(tree) else tree
