# SPDX-License-Identifier: MIT
"""Tables of the commands, on standard output."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from trimtab.cli.terminal import output_console
from trimtab.coupling.finding import Finding
from trimtab.coupling.report import LOG_WIDTH
from trimtab.gradient.gradcheck.table import CheckTable

COLOURS = {"ok": "green", "note": "yellow", "bad": "bold red"}


def print_findings(findings: list[Finding]) -> None:
    """The table and its sum, on standard output."""
    table = Table(box=box.SIMPLE_HEAD, title="Coupling", title_justify="left", show_lines=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", ratio=3)
    table.add_column("remedy", ratio=2)
    for one in findings:
        table.add_row(one.check, Text(one.state, COLOURS[one.state]), Text(one.found), Text(one.remedy))
    console = output_console(width=LOG_WIDTH)
    console.print(table, highlight=False)
    count = {state: sum(one.state == state for one in findings) for state in COLOURS}
    console.print(f"{count['ok']} ok, {count['note']} to note, {count['bad']} bad", highlight=False)


def print_gradcheck(table: CheckTable) -> None:
    """The table and its sentence, on standard output."""
    shown = Table(box=box.SIMPLE_HEAD, title="Gradients against finite differences of forward runs", title_justify="left")
    twin = any(row.cosine_exact == row.cosine_exact for row in table.rows)
    for title in ("window", *([table.time_name] if table.time_name else []), "gradient", "cosine",
                  *(["by the twin"] if twin else []), "error", "error along", "efficiency", "±", "solver steps",
                  "network states", "seconds"):
        shown.add_column(title, justify="left" if title == "gradient" else "right")
    for row in table.rows:
        shown.add_row(
            str(row.steps), *([f"{row.scaled_time:.2g}"] if table.time_name else []), row.gradient, f"{row.cosine:.4f}",
            *([f"{row.cosine_exact:.4f}"] if twin else []), f"{row.error:.2g}", f"{row.error_along:.2g}",
            f"{row.efficiency:.3g}", f"{row.uncertainty:.0e}", str(row.solver_steps), str(row.network_states),
            f"{row.seconds:.2g}", end_section=row is table.rows[-1] or row.gradient == table.rows[-1].gradient)
    console = output_console()
    console.print(shown)
    console.print(table.recommendation(), highlight=False)
