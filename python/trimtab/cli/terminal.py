# SPDX-License-Identifier: MIT
"""What a person sees in a terminal: progress bars with the time left, and tables; in a file, a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from trimtab.evaluation.table import LABELS, ScoreTable
from trimtab.parallel.launcher import launched

QUIET_SECONDS = 30.0  # between two lines when nobody watches
WIDE = 10_000         # of a table in a file or a pipe: it is as wide as it is


class Watch:
    """A progress callback: one bar a stage on a terminal; elsewhere a line at its start, its end, and now and then.

    Args:
        stream: where to; standard error by default.

    It is called with the share done, 0 to 1, and "stage: what it is doing".
    """

    def __init__(self, stream: IO[str] | None = None):
        self.console = output_console(stream or sys.stderr)
        self.bars: Progress | None = None
        self.stage, self.task = "", TaskID(0)
        self.began = self.told = 0.0

    def __call__(self, fraction: float, text: str) -> None:
        """Take note; see `trimtab.data.reference.Progress`."""
        stage, _, detail = text.partition(": ")
        if stage != self.stage:
            self._end_stage()
            self._begin_stage(stage)
        if self.bars is not None:
            self.bars.update(self.task, completed=fraction, detail=detail)
        elif (now := time.monotonic()) - self.told > QUIET_SECONDS:
            self.told = now
            left = (now - self.began) * (1 - fraction) / fraction if fraction > 0 else float("nan")
            self.console.print(f"{stage}: {fraction:.0%}, {_duration(left)} left ({detail})", highlight=False)

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """Show bars as long as the block runs."""
        if self.console.is_terminal:
            self.bars = Progress(
                TextColumn("[bold]{task.description:<9}"), BarColumn(28), TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[detail]}"),
                console=self.console, speed_estimate_period=120,
            )
            self.bars.start()
        try:
            yield self
            self._end_stage()
        finally:
            if self.bars is not None:
                self.bars.stop()
                self.bars = None
            self.stage = ""

    def say(self, line: str) -> None:
        """A line above the bars."""
        self.console.print(line, highlight=False, soft_wrap=True)

    def leave(self, text: str) -> None:
        """The present stage ends before it is done, for the reason given."""
        if self.bars is not None and self.stage:
            self.bars.update(self.task, detail=text)
        elif self.stage:
            self.console.print(f"{self.stage}: {text}", highlight=False)
        self.stage = ""

    def _begin_stage(self, stage: str) -> None:
        self.stage, self.began = stage, time.monotonic()
        self.told = self.began
        if self.bars is not None:
            self.task = self.bars.add_task(stage, total=1.0, detail="")
        else:
            self.console.print(f"{stage}: begins", highlight=False)

    def _end_stage(self) -> None:
        if not self.stage:
            return
        if self.bars is not None:
            self.bars.update(self.task, completed=1.0, detail="done")
        else:
            self.console.print(f"{self.stage}: done in {_duration(time.monotonic() - self.began)}", highlight=False)


def output_console(stream: IO[str] | None = None, width: int = WIDE) -> Console:
    """Where tables and lines go: on a terminal with colours and folded to its width; in a file or a pipe plain and wide.

    Args:
        stream: standard output by default.
        width: columns in a file or a pipe, from which on prose is folded.
    """
    stream = stream or sys.stdout
    if _is_seen(stream):
        return Console(file=stream)
    return Console(file=stream, width=width, force_terminal=False, force_jupyter=False, color_system=None, no_color=True)


def _is_seen(stream: IO[str]) -> bool:
    """Whether it is a terminal. Under a launcher it is none: mpirun gives ranks one whatever their output goes to."""
    if launched()[0]:
        return False
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):  # no file of the system, or closed
        return False


def print_scores(table: ScoreTable) -> None:
    """The score table on standard output: a row a score, a column a closure, the best in bold, in plain output with a star."""
    console = output_console()
    plain = console.color_system is None
    told = f"; {'*' if plain else 'bold'}: the best closure" if any(map(table.best, table.columns)) else ""
    shown = Table(box=box.SIMPLE_HEAD, title=f"Scores of {table.experiment}" if table.experiment else "Scores",
                  caption=f"Mean ± standard deviation over {table.spread_over}{told}.",
                  title_justify="left", caption_justify="left")
    shown.add_column("score")
    for row in table.rows:
        shown.add_column(LABELS.get(row, row), justify="right")
    for column in table.columns:
        if not any(column.key in scores for scores in table.rows.values()):
            continue
        best = table.best(column)
        unit = "" if column.unit == "1" else f" ({column.unit})"
        arrow = "↓" if column.better == "low" else "↑"
        cells = [Text(f"{'* ' * (plain and row == best)}{table.cell(row, column.key)}", style="bold" if row == best else "")
                 for row in table.rows]
        shown.add_row(f"{column.label}{unit} {arrow}", *cells)
    console.print(shown)
    for note in filter(None, (*table.notes, table.comparison())):
        console.print(note, highlight=False)


def print_warning(text: str) -> None:
    """A line on standard output that is no success: yellow on a terminal."""
    Console().print(text, style="yellow", highlight=False, soft_wrap=True)


def print_checks(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Figures against what is expected of them, on standard output.

    Args:
        title: above the table.
        rows: what, measured, expected, verdict, source.
    """
    shown = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("figure", "measured", "expected", "verdict", "source"):
        shown.add_column(name, justify="right" if name == "measured" else "left")
    for row in rows:
        shown.add_row(*(Text(one, style="bold" if one == "outside" else "") for one in row))
    output_console().print(shown)


def print_leads(title: str, rows: Sequence[Mapping[str, float]]) -> None:
    """Scores by lead time on standard output: a row a score, a column a lead time."""
    shown = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    shown.add_column("lead time")
    for row in rows:
        shown.add_column(f"{row['lead_time']:.4g}", justify="right")
    for key in rows[0]:
        if key != "lead_time":
            shown.add_row(key.replace("_", " "), *(f"{row[key]:.4g}" for row in rows))
    output_console().print(shown)


def print_pairs(title: str, pairs: Iterable[tuple[str, str]]) -> None:
    """Names and what they are, on standard output."""
    shown = Table.grid(padding=(0, 3), expand=False)
    for name, text in pairs:
        shown.add_row(Text(name, style="bold"), Text(text))
    console = output_console()
    if title:
        console.print(title, highlight=False)
    console.print(shown)


def _duration(seconds: float) -> str:
    if seconds != seconds:
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
