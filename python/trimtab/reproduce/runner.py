# SPDX-License-Identifier: MIT
"""Reproduces results into folders, and writes the one table of all that is there: summary.md, summary.csv, index.html."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import trimtab
from trimtab.core.atomic_files import only_writer, replacing
from trimtab.core.progress import silent
from trimtab.data.reference import Progress
from trimtab.evaluation.report import PAGE, STYLE
from trimtab.reproduce import RESULTS, result
from trimtab.reproduce.table import CHECK_TITLES, Table, read_table


def reproduce(names: Sequence[str], out: Path, *, quick: bool = False, progress: Progress = silent,
              announce: Callable[[str], None] = lambda line: None) -> list[Table]:
    """Reproduce results, one after the other, each into its folder; what is there already is used.

    Args:
        names: of `RESULTS`; empty for all.
        out: the folder; made when missing.
        quick: all of the same in seconds.
        progress: told how far the present result is.
        announce: given a line before each result: what it is and what it costs.

    Returns:
        The tables.

    Raises:
        ConfigError: no such result.
        DataError: another process reproduces the same result there.
        Stopped: a signal; all that is finished is kept.
    """
    tables = []
    for name, module in [(one, result(one)) for one in names or RESULTS]:
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        announce(f"{name}: {module.TEXT}; {'quick: seconds' if quick else cost(module.MINUTES)}")
        with only_writer(folder):
            table = module.run(folder, quick, progress)
            _write(folder / "table.json", table.to_json())
            _write(folder / "table.csv", table.to_csv())
            _write(folder / "table.md", markdown(table))
        tables.append(table)
        with only_writer(out, wait=True):  # other results may be reproduced at the same time
            summarise(out)
    return tables


def summarise(out: Path) -> Path:
    """One table of all results in a folder.

    Args:
        out: the folder.

    Returns:
        index.html; summary.md and summary.csv lie beside it.

    Raises:
        DataError: a damaged table.
    """
    tables = [read_table(out / name / "table.json") for name in RESULTS if (out / name / "table.json").is_file()]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["result", *CHECK_TITLES])
    lines = ["# The paper, reproduced", "", *_pipes(["result", *CHECK_TITLES])]
    for table in tables:
        for cells in table.check_cells():
            writer.writerow([table.name, *cells])
            lines.append(_pipe([table.name, *cells]))
    lines += ["", *(markdown(table, folder=f"{table.name}/") for table in tables)]
    _write(out / "summary.csv", text.getvalue())
    _write(out / "summary.md", "\n".join(lines) + "\n")
    _write(out / "index.html", _page(out, tables))
    return out / "index.html"


def markdown(table: Table, folder: str = "") -> str:
    """A result as markdown.

    Args:
        table: the result.
        folder: before the names of the figures.

    Returns:
        Title, rows, checks, notes and figures.
    """
    lines = [f"## {table.heading}", "", *_pipes([one.title for one in table.columns])]
    lines += [_pipe(cells) for cells in table.cells()]
    if table.checks:
        lines += ["", *_pipes(CHECK_TITLES), *(_pipe(cells) for cells in table.check_cells())]
    lines += ["", *(f"{note}\n" for note in table.notes), *(f"![{name}]({folder}{name})\n" for name in table.figures)]
    return "\n".join(lines)


def cost(minutes: float) -> str:
    """What a result costs, in words; minutes of one core."""
    return f"about {minutes / 60:.1f} hours of one core" if minutes > 90 else f"about {minutes:.0f} minutes of one core"


def _page(out: Path, tables: Sequence[Table]) -> str:
    parts = ["<h1>The paper, reproduced</h1>", _html(["result", *CHECK_TITLES], [
        [table.name, *cells] for table in tables for cells in table.check_cells()])]
    for table in tables:
        parts += [f"<h2>{escape(table.heading)}</h2>",
                  _html([one.title for one in table.columns], table.cells()),
                  *(f"<p class=\"soft\">{escape(note)}</p>" for note in table.notes)]
        for name in table.figures:
            image = base64.b64encode((out / table.name / name).read_bytes()).decode("ascii")
            parts.append(f"<figure><img alt=\"{escape(name)}\" src=\"data:image/png;base64,{image}\"></figure>")
    parts.append(f"<p class=\"soft\">Written by trimtab {escape(trimtab.__version__)}.</p>")
    return PAGE.format(title="reproduced", style=STYLE, body="\n".join(parts))


def _html(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in titles)
    body = "".join("<tr>" + "".join(f"<td{' class=best' if one == 'outside' else ''}>{escape(one)}</td>" for one in row)
                   + "</tr>" for row in rows)
    return f"<div class=\"scroll\"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _pipes(titles: Sequence[str]) -> list[str]:
    return [_pipe(titles), "|" + "---|" * len(titles)]


def _pipe(cells: Sequence[str]) -> str:
    return "| " + " | ".join(one.replace("|", "\\|") for one in cells) + " |"


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
