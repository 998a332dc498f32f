# SPDX-License-Identifier: MIT
"""Figures and the report: drawn from a real scoring of a small turbulence, self-contained, and honest about blow-ups."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import trimtab
from trimtab.config.experiment import Experiment, ScoreConfig, dump_experiment
from trimtab.config.sections import SolverConfig
from trimtab.core.errors import DataError
from trimtab.core.random_fields import random_vorticity
from trimtab.corrections.smagorinsky import Smagorinsky
from trimtab.data.filters import coarsen
from trimtab.evaluation import figures
from trimtab.evaluation.evaluate import Evaluation, evaluate
from trimtab.evaluation.report import headline, read_metrics, write_report
from trimtab.evaluation.score_run import read_curves, write_scores

PHYSICS = {"viscosity": 2e-3, "drag": 0.1, "beta": 0.0, "forcing_amplitude": 4.0, "forcing_wavenumber": 2}
CLOSURES = ("none", "smagorinsky", "online")
METRICS = """phase,epoch,step,window,rate,loss,validation,gradient_norm,dropped,skipped,validation_dropped,seconds
offline,0,0,1,0.001,,1.0,,0,0,0,0.1
offline,1,10,1,0.001,0.8,0.7,1.0,0,0,0,0.5
online,0,0,5,0.001,,0.5,,0,0,0,0.1
online,1,20,5,0.001,0.4,0.3,1.0,2,0,0,0.7
online,2,40,5,0.001,0.2,0.35,1.0,1,0,0,0.7
"""


class Explode(Smagorinsky):
    """The closure with the wrong sign, and strong."""

    def forward(self, u):
        return -50.0 * super().forward(u)


@pytest.fixture(scope="module")
def scored() -> Evaluation:
    """Three closures of a 16^2 solver against filtered 32^2 runs."""
    generator = np.random.default_rng(0)
    start = np.stack([random_vorticity((32, 32), generator) for _ in range(2)]).reshape(2, -1)
    with trimtab.open_solver("qg", n=32, dt=0.01, **PHYSICS) as truth:
        start = truth.advance(start, 1, stride=300).states[-1]
        states = truth.advance(start, 60, stride=2).states
    test = coarsen(states.reshape(-1, 2, 32, 32), (16, 16)).reshape(-1, 2, 256).transpose(1, 0, 2)
    config = ScoreConfig(leads=(5, 20), starts=2, long_steps=120, closures=CLOSURES, max_wavenumber=5)
    with trimtab.open_solver("qg", n=16, dt=0.02, **PHYSICS) as solver:
        closures = {"none": None, "smagorinsky": Smagorinsky(solver.spec, 0.1), "online": Explode(solver.spec, 0.5)}
        return evaluate(solver, closures, test, config, interval=0.02, stride=1, name="toy", notes=("A note & more.",))


@pytest.fixture
def run(tmp_path: Path, scored: Evaluation) -> Path:
    """A run folder without its checkpoints."""
    experiment = Experiment(name="toy", description="<b> & more", solver=SolverConfig("qg", {"n": 16, "dt": 0.02}))
    (tmp_path / "experiment.toml").write_text(dump_experiment(experiment))
    (tmp_path / "metrics.csv").write_text(METRICS)
    write_scores(scored, tmp_path)
    return tmp_path


class Page(HTMLParser):
    """Collects what a page refers to, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_is_one_self_contained_page(run: Path) -> None:
    source = write_report(run).read_text()
    page = Page()
    page.feed(source)
    assert page.open == [] and len(page.addresses) == 6
    assert all(one.startswith("data:image/png;base64,") for one in page.addresses)
    assert not re.search(r"https?:|<script|@import|url\(", source)
    for expected in ("no closure", "blew up", "A note & more.", "Spectra", "windows that blew up", "<b> & more", "n = 16"):
        assert expected in page.text
    names = {path.name for path in (run / "figures").iterdir()}
    assert names == {"snapshots.png", "forecast.png", "spectra.png", "pdf.png", "enstrophy.png", "loss.png"}


def test_report_of_a_run_without_scores_shows_its_training(run: Path) -> None:
    for name in ("scores.json", "curves.npz"):
        (run / name).unlink()
    source = write_report(run).read_text()
    assert "not scored yet" in source and source.count("<img") == 1
    (run / "metrics.csv").unlink()
    assert "No epoch is finished yet" in write_report(run).read_text()


def test_headline_compares_with_the_others_and_not_with_a_blow_up(scored: Evaluation) -> None:
    assert headline(scored.table) == ""  # the trained closure blew up
    rows = {"none": {"rmse_5": np.array([2.0])}, "smagorinsky": {"rmse_5": np.array([1.6])},
            "offline": {"rmse_5": np.array([0.8])}, "online": {"rmse_5": np.array([1.0])}}
    table = type(scored.table)("toy", scored.table.columns[:1], rows)
    sentence = headline(table)
    assert "50 % lower than with no closure" in sentence and "25 % higher than with the offline-trained one" in sentence


def test_metrics_are_read_and_wrong_ones_refused(run: Path) -> None:
    metrics = read_metrics(run / "metrics.csv")
    assert metrics["phase"].tolist() == ["offline"] * 2 + ["online"] * 3
    assert np.isnan(metrics["loss"][0]) and metrics["dropped"].sum() == 3
    (run / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"not a metrics\.csv"):
        read_metrics(run / "metrics.csv")


def test_damaged_or_missing_curves_are_refused(run: Path) -> None:
    (run / "curves.npz").write_bytes((run / "curves.npz").read_bytes()[:500])
    with pytest.raises(DataError, match="damaged"):
        read_curves(run)
    (run / "curves.npz").unlink()
    with pytest.raises(DataError, match="not scored yet"):
        read_curves(run)


def test_seeds_are_drawn_together(tmp_path: Path, scored: Evaluation) -> None:
    assert figures.draw_seeds([scored.curves, scored.curves], tmp_path / "both").stat().st_size > 10_000
