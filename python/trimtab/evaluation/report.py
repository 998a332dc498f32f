# SPDX-License-Identifier: MIT
"""One page a run: scores, figures, settings, in a single file that needs no network and nothing beside it."""

from __future__ import annotations

import base64
import csv
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from trimtab import __version__
from trimtab.config.experiment import dump_experiment
from trimtab.core.atomic_files import replacing
from trimtab.core.errors import DataError
from trimtab.evaluation import figures
from trimtab.evaluation.climatology import Curves
from trimtab.evaluation.ensemble_figures import draw_ensembles
from trimtab.evaluation.ensemble_metrics import MEANINGS, picked_leads
from trimtab.evaluation.score_ensemble import FOLDER, read_ensembles
from trimtab.evaluation.score_run import read_curves
from trimtab.evaluation.table import LABELS, Column, ScoreTable, read_table
from trimtab.training.run_folder import Run, load_run

CAPTIONS = {
    "snapshots": ("Side by side", "Vorticity of one held-out forecast at two lead times, truth and closures from the "
                  "same initial state; below each what it misses."),
    "trajectory": ("Side by side", "One held-out forecast, truth and closures from the same initial state."),
    "forecast": ("Forecasts", "Error by lead time from all held-out starts."),
    "spectra": ("Spectra", "Energy and enstrophy by annuli in long runs, and their ratio to the truth; a band is "
                "the range over the held-out runs."),
    "pdf": ("Vorticity", "Probability density in long runs; the logarithmic scale shows the tails."),
    "enstrophy": ("Stability", "Enstrophy of the long runs in time, and the band inside which a run counts as stable."),
    "attractor": ("Attractor", "States of the long runs, first against last component."),
    "ensemble_error": ("Ensembles", "Each ensemble's mean error and spread, which should be equal, and its CRPS, by lead "
                       "time."),
    "ensemble_ranks": ("Ranks", "How often the truth has each rank among the members: a valley is an ensemble that is too "
                       "sure, a hill one that is not sure enough, a slope a bias."),
    "ensemble_reliability": ("Reliability", "How often what was forecast with a probability came true, and how large the "
                             "error is where the spread is small or large."),
    "loss": ("Training", "Loss by optimiser step; the weights of the best validation are kept."),
}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>trimtab: {title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
STYLE = """
:root { color-scheme: light; --ink: #1c1c1e; --soft: #6a6a70; --line: #dcdce0; --mark: #d55e00; }
body { margin: 0 auto; max-width: 66rem; padding: 2.2rem 1.4rem 4rem; background: #fff; color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; }
p.lead { font-size: 1.1rem; max-width: 48rem; } .soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; padding-top: .5rem; }
th, td { padding: .32rem 0 .32rem 1.1rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; } thead th { border-bottom: 2px solid var(--ink); }
td.best { font-weight: 700; color: var(--mark); } tr.group td { border-top: 1px solid #9a9aa0; }
figure { margin: 0 0 1rem; } figure img { max-width: 100%; height: auto; }
dl { font-size: .9rem; } dt { font-weight: 600; } dd { margin: 0 0 .4rem 1.2rem; color: var(--soft); }
pre { background: #f5f5f7; padding: .9rem 1rem; overflow-x: auto; font-size: .85rem; border-radius: 4px; }
summary { cursor: pointer; }
"""


def write_report(folder: Path) -> Path:
    """Draw the figures of a run and write its report.html.

    Args:
        folder: a run folder; one that is not scored yet gets a report of its training alone.

    Returns:
        The page.

    Raises:
        CheckpointError: not a run folder.
        DataError: damaged scores or metrics.
    """
    run = load_run(folder)
    table, drawn = None, []
    if (folder / "scores.json").is_file():
        table = read_table(folder / "scores.json")
        drawn = figures.draw_scores(read_curves(folder), folder / "figures")
    metrics = read_metrics(folder / "metrics.csv")
    ensembles = read_ensembles(folder)
    drawn += draw_ensembles(ensembles, folder / "figures")
    loss = figures.draw_losses(metrics, folder / "figures")
    page = folder / "report.html"
    with replacing(page) as partial:
        partial.write_text(_page(run, table, [*drawn, *([loss] if loss else [])], metrics, ensembles), encoding="utf-8")
    return page


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """The columns of a metrics.csv.

    Args:
        path: the file.

    Returns:
        Column name -> (rows,) array; "phase" is text, the others are float64, NaN for an empty cell. No row when there
        is no file.

    Raises:
        DataError: a file without the columns that a training writes.
    """
    rows = []
    if path.is_file():
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    try:
        columns = {"phase": np.array([row["phase"] for row in rows], dtype=str)}
        for name in ("epoch", "step", "loss", "validation", "dropped", "seconds"):
            columns[name] = np.array([float(row[name] or "nan") for row in rows])
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} is not a metrics.csv of a training ({error!r}).") from error
    return columns


def headline(table: ScoreTable) -> str:
    """The result in one sentence: the last closure's error at the longest lead against the others'.

    Args:
        table: the scores.

    Returns:
        A sentence; empty when there is nothing to compare.
    """
    leads = [one for one in table.columns if one.key.startswith("rmse_")]
    trained = next((one for one in ("online", "offline") if one in table.rows), None)
    if not leads or trained is None:
        return ""
    key, label = leads[-1].key, leads[-1].label.removeprefix("RMSE, ")
    own = table.mean(trained, key)
    parts = []
    others = {"none": "no closure", "smagorinsky": "Smagorinsky", "offline": "the offline-trained one"}
    for other, words in others.items():
        if other in table.rows and other != trained:
            error = table.mean(other, key)
            if own is not None and error is not None and np.isfinite(own) and np.isfinite(error) and error > 0:
                change = 100 * (1 - own / error)
                parts.append(f"{abs(change):.0f} % {'lower' if change >= 0 else 'higher'} than with {words}")
    if not parts:
        return ""
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return f"At {label} the error of the {trained}-trained hybrid on held-out runs is {listed}."


def _page(run: Run, table: ScoreTable | None, drawn: list[Path], metrics: Mapping[str, np.ndarray],
          ensembles: Mapping[str, Curves]) -> str:
    experiment = run.experiment
    title = escape(experiment.name or run.folder.name)
    parts = [f"<h1>{title}</h1>", f"<p class=\"soft\">{escape(experiment.description)}</p>"]
    if table is None:
        parts.append("<p class=\"lead\">This run is not scored yet.</p>")
    else:
        parts += [f"<p class=\"lead\">{escape(headline(table))}</p>", "<h2>Scores on held-out runs</h2>", _table(table)]
    for path in drawn:
        heading, caption = CAPTIONS[path.stem]
        image = base64.b64encode(path.read_bytes()).decode("ascii")
        parts.append(f"<h2>{heading}</h2>\n<figure><img alt=\"{escape(caption)}\" "
                     f"src=\"data:image/png;base64,{image}\"><figcaption>{escape(caption)}</figcaption></figure>")
        if path.stem == "ensemble_error":
            parts += [_ensemble_table(name, curves) for name, curves in ensembles.items()]
    parts += ["<h2>How it was trained</h2>", _training(run, metrics)]
    if table is not None:
        parts += ["<h2>What the scores mean</h2>", _meanings(table)]
    parts += ["<h2>Settings</h2>", "<details><summary>experiment.toml, complete</summary><pre>"
              f"{escape(dump_experiment(experiment))}</pre></details>",
              f"<p class=\"soft\">Written by trimtab {escape(__version__)}.</p>"]
    body = "\n".join(parts)
    return PAGE.format(title=title, style=STYLE, body=body)


def _table(table: ScoreTable) -> str:
    head = "".join(f"<th>{escape(LABELS.get(row, row))}</th>" for row in table.rows)
    lines, group = [], ""
    for column in table.columns:
        if not any(column.key in scores for scores in table.rows.values()):
            continue
        best = table.best(column)
        cells = "".join(f"<td{' class=best' if row == best else ''}>{escape(table.cell(row, column.key))}</td>"
                        for row in table.rows)
        unit = "" if column.unit == "1" else f" ({column.unit})"
        name = f"{column.label}{unit} {'↓' if column.better == 'low' else '↑'}"
        lines.append(f"<tr{' class=group' if _family(column) != group else ''}><td>{escape(name)}</td>{cells}</tr>")
        group = _family(column)
    caption = f"Mean ± standard deviation over {table.spread_over}. ↓ lower is better, ↑ higher is better; bold: best."
    sentences = filter(None, (*table.notes, table.comparison()))
    notes = "".join(f"<p class=\"soft\">{escape(note)}</p>" for note in sentences)
    return (f"<div class=\"scroll\"><table><caption>{escape(caption)}</caption><thead><tr><th>score</th>{head}</tr>"
            f"</thead><tbody>{''.join(lines)}</tbody></table></div>{notes}")


def _ensemble_table(name: str, curves: Curves) -> str:
    """Some lead times of one ensemble's scores."""
    picked = picked_leads(len(curves["lead_time"]))
    head = "".join(f"<th>{curves['lead_time'][one]:.4g}</th>" for one in picked)
    rows = "".join(f"<tr><td>{escape(key.replace('_', ' '))}</td>{''.join(f'<td>{curves[key][one]:.4g}</td>' for one in picked)}"
                   "</tr>" for key in MEANINGS)
    caption = (f"{name}: {int(curves['members'])} members, {int(curves['starts'])} starts, {curves['perturbation']}; "
               f"{int(curves['blown_up'][-1])} runs blew up. All lead times are in {FOLDER}/{name}.csv.")
    meanings = "".join(f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(text)}.</dd>" for key, text in MEANINGS.items())
    return (f"<div class=\"scroll\"><table><caption>{escape(caption)}</caption><thead><tr><th>lead time</th>{head}</tr></thead>"
            f"<tbody>{rows}</tbody></table></div><details><summary>What they mean</summary><dl>{meanings}</dl></details>")


def _family(column: Column) -> str:
    """The score without its lead time."""
    return column.label.split(",")[0]


def _meanings(table: ScoreTable) -> str:
    families = {_family(one): one.meaning for one in table.columns}
    items = "".join(f"<dt>{escape(family)}</dt><dd>{escape(meaning)}</dd>" for family, meaning in families.items())
    truth = ("<dt>truth vs truth</dt><dd>Each held-out run of the truth against the others: how far apart two samples of "
             "one climate are. Differences between closures that are small against this mean little.</dd>")
    return f"<dl>{items}{truth if 'truth' in table.rows else ''}</dl>"


def _training(run: Run, metrics: Mapping[str, np.ndarray]) -> str:
    rows = []
    for phase in ("offline", "online"):
        here = metrics["phase"] == phase
        if here.sum() < 2:
            continue
        validation = metrics["validation"][here]
        best = int(np.nanargmin(validation)) if np.isfinite(validation).any() else 0
        epochs, steps = metrics["epoch"][here], metrics["step"][here]
        cells = (phase, f"{epochs[-1]:.0f}", f"{steps[-1]:.0f}", f"{validation[0]:.4g}",
                 f"{validation[best]:.4g} (epoch {epochs[best]:.0f})", f"{metrics['dropped'][here].sum():.0f}",
                 f"{np.nansum(metrics['seconds'][here]):.0f}")
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    if not rows:
        return "<p>No epoch is finished yet.</p>"
    config = run.experiment.training
    words = (f"Online: gradient “{config.gradient}”, windows of {config.window} outer steps ({config.stride} inner "
             f"each), batches of {config.batch}, seed {config.seed}.")
    heads = ("phase", "epochs", "steps", "validation at the start", "best validation", "windows that blew up",
             "seconds")
    return (f"<p>{escape(words)}</p><div class=\"scroll\"><table><thead><tr>"
            f"{''.join(f'<th>{one}</th>' for one in heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>")
