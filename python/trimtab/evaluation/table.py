# SPDX-License-Identifier: MIT
"""The score table: one row a closure, one column a score, a value for each member behind every mean."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.errors import ConfigError, DataError

LABELS = {"truth": "truth vs truth", "none": "no closure", "smagorinsky": "Smagorinsky", "offline": "offline",
          "online": "online"}
OPTIONAL_ROWS = ("truth",)
TIE = 1e-6  # share of a score within which two are equal: a network in float32 rounds no better


@dataclass(frozen=True)
class Column:
    """One score.

    Args:
        key: name in files.
        label: name for people, short.
        unit: "1" for none.
        better: "low" or "high".
        meaning: its definition, one sentence.
        most: the largest value there can be, as a time at which the run ends; None for none.
    """

    key: str
    label: str
    unit: str
    better: str
    meaning: str
    most: float | None = None


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one run, or of several runs together.

    Args:
        experiment: its name.
        columns: the scores.
        rows: closure -> column key -> values, one a member (a start, a long run, or a run when several are put
            together). A column may be missing in a row. NaN means that the member blew up.
        spread_over: what the values are of, in words.
        notes: sentences that belong under the table.
        settings: what the scores depend on.
        member: what a value of a forecast's score is of, "start" or "run".
    """

    experiment: str
    columns: tuple[Column, ...]
    rows: Mapping[str, Mapping[str, np.ndarray]]
    spread_over: str = "held-out starts"
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    member: str = "start"

    def mean(self, row: str, key: str) -> float | None:
        """Mean over the values; None where the row has no such score, NaN when a member blew up."""
        values = self.rows[row].get(key)
        return None if values is None else float(np.mean(values))

    def spread(self, row: str, key: str) -> float | None:
        """Standard deviation of the values (n - 1 in the denominator); None for fewer than two."""
        values = self.rows[row].get(key)
        return None if values is None or len(values) < 2 else float(np.std(values, ddof=1))

    def best(self, column: Column) -> str | None:
        """Closure with the best mean in a column; None when there is none, or several are equal up to rounding (`TIE`)."""
        means = {row: self.mean(row, column.key) for row in self.rows if row not in OPTIONAL_ROWS}
        finite = {row: value for row, value in means.items() if value is not None and np.isfinite(value)}
        if len(finite) < 2:
            return None
        best = (min if column.better == "low" else max)(finite, key=finite.__getitem__)
        return best if sum(bool(_equal(value, finite[best])) for value in finite.values()) == 1 else None

    def wins(self, row: str, other: str, column: Column) -> tuple[int, int, int]:
        """In how many of the members one closure beats another: closures meet on the same starts, so this tells a small
        difference from chance where the spread over starts does not.

        Args:
            row, other: closures.
            column: a score that both have.

        Returns:
            (members in which `row` is better by more than rounding, members in which the two are equal up to rounding (`TIE`),
            members). A blow-up is never better; two are equal.
        """
        one, two = self.rows[row][column.key], self.rows[other][column.key]
        better, equal = one < two if column.better == "low" else one > two, _equal(one, two)
        return int(np.sum((better | (np.isfinite(one) & ~np.isfinite(two))) & ~equal)), int(np.sum(equal)), len(one)

    def comparison(self) -> str:
        """The last closure against the others, member by member at the longest lead, as a sentence; empty for one row."""
        *others, last = (row for row in self.rows if row not in OPTIONAL_ROWS)
        column = next((one for one in reversed(self.columns) if one.key.startswith("rmse_")), None)
        if not others or column is None:
            return ""
        counts = [(LABELS.get(other, other), *self.wins(last, other, column)) for other in others]
        told = ", ".join(f"than {label} at {wins} of {members}{f' ({ties} equal)' if ties else ''}"
                         for label, wins, ties, members in counts)
        return f"{column.label}, {self.member} by {self.member}: {LABELS.get(last, last)} is better {told}."

    def cell(self, row: str, key: str) -> str:
        """Mean and spread as text: three digits of the mean or two of the spread, whichever are more; four decimals."""
        mean, spread = self.mean(row, key), self.spread(row, key)
        if mean is None:
            return "–"
        most = next(one.most for one in self.columns if one.key == key)
        if most is not None and np.all(self.rows[row][key] >= most):
            return f"≥ {most:.3g}"
        if not np.isfinite(mean):
            failed = int(np.sum(~np.isfinite(self.rows[row][key])))
            return f"blew up {failed}/{len(self.rows[row][key])}"
        digits = [wanted - int(np.floor(np.log10(abs(value)))) for wanted, value in ((2, mean), (1, spread)) if value]
        style = f".{min(max([0, *digits]), 4)}f" if not digits or digits[0] <= 5 else ".1e"
        return f"{mean:{style}}" + ("" if spread is None else f" ± {spread:{style}}")

    def to_csv(self) -> str:
        """One line a closure: for each score its mean and `_spread`; empty cells where there is none."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["closure", *(name for one in self.columns for name in (one.key, f"{one.key}_spread"))])
        for row in self.rows:
            cells = [value for one in self.columns for value in (self.mean(row, one.key), self.spread(row, one.key))]
            writer.writerow([row, *("" if _number(value) is None else f"{value:.8g}" for value in cells)])
        return text.getvalue()

    def to_json(self) -> str:
        """Everything, with the value of each member; null where a member blew up."""
        rows = {row: {key: {"mean": _number(self.mean(row, key)), "spread": _number(self.spread(row, key)),
                            "values": [_number(value) for value in values]} for key, values in scores.items()}
                for row, scores in self.rows.items()}
        tree = {"experiment": self.experiment, "spread_over": self.spread_over, "member": self.member,
                "notes": list(self.notes), "settings": dict(self.settings),
                "columns": [asdict(one) for one in self.columns], "rows": rows}
        return json.dumps(tree, indent=1, allow_nan=False) + "\n"


def read_table(path: Path) -> ScoreTable:
    """The table of a scores.json.

    Args:
        path: the file.

    Returns:
        The table.

    Raises:
        DataError: no such file, or not a score table.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        rows = {row: {key: np.array([np.nan if value is None else value for value in one["values"]], dtype=float)
                      for key, one in scores.items()} for row, scores in tree["rows"].items()}
        return ScoreTable(tree["experiment"], tuple(Column(**one) for one in tree["columns"]), rows,
                          tree["spread_over"], tuple(tree["notes"]), tree["settings"], tree["member"])
    except FileNotFoundError as error:
        raise DataError(f"There is no {path}; make it with `trimtab score {path.parent}`.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a score table ({error!r}); make it again with `trimtab score {path.parent}`.") \
            from error


def combine(tables: Sequence[ScoreTable]) -> ScoreTable:
    """One table of several runs of one experiment (seeds): each run's mean becomes one value.

    Args:
        tables: at least one.

    Returns:
        The table; its spread is over runs.

    Raises:
        ConfigError: the runs have different scores or closures, or were judged against another truth.
    """
    first = tables[0]
    for other in tables[1:]:
        if other.columns != first.columns or list(other.rows) != list(first.rows):
            raise ConfigError(f"The runs {first.experiment} and {other.experiment} have different scores or closures "
                              "(section [score]): score only runs of one experiment together.")
        if other.settings.get("reference") != first.settings.get("reference"):
            raise ConfigError(f"The runs {first.experiment} and {other.experiment} were judged against different "
                              "reference runs: score only runs of one experiment together.")
    rows = {row: {key: np.array([table.mean(row, key) for table in tables], dtype=float) for key in scores}
            for row, scores in first.rows.items()}
    settings = {key: value for key, value in first.settings.items() if key not in ("seed", "stamp")}
    return ScoreTable(first.experiment, first.columns, rows, f"{len(tables)} runs (seeds)", first.notes, settings, "run")


def _equal(one: Any, two: Any) -> Any:
    """Whether scores are equal up to rounding, element by element; two that blew up are."""
    return np.isclose(one, two, rtol=TIE, atol=0.0, equal_nan=True)


def _number(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None
