# SPDX-License-Identifier: MIT
"""Every result runs from end to end in its quick form, goes on after a kill, and says what it found."""

from __future__ import annotations

import dataclasses
import math
import os
import signal

import numpy as np
import pytest
import torch

import trimtab
from trimtab.__main__ import main
from trimtab.config.experiment import load_experiment
from trimtab.core.errors import ConfigError, DataError
from trimtab.core.progress import silent
from trimtab.reproduce import RESULTS, result
from trimtab.reproduce.cache import Pieces, Stopped
from trimtab.reproduce.lyapunov import lyapunov_exponents
from trimtab.reproduce.runner import markdown, reproduce
from trimtab.reproduce.table import Check, Column, Table, read_table


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    said = []
    (table,) = reproduce([name], tmp_path, quick=True, announce=said.append)
    assert said == [f"{name}: {result(name).TEXT}; quick: seconds"] and result(name).MINUTES > 0
    assert table.name == name and table.quick and table.rows and table.checks
    assert all(table.verdict(check) == "quick, not judged" for check in table.checks)
    assert all((tmp_path / name / figure).read_bytes().startswith(b"\x89PNG") for figure in table.figures) and table.figures
    keys = [column.key for column in table.columns]
    assert all(set(row) <= set(keys) for row in table.rows)
    page = (tmp_path / "index.html").read_text()
    heading = f"{name} (quick: to see that it runs, the numbers mean nothing): "
    assert heading in page
    assert all(heading in (tmp_path / one).read_text() for one in ("summary.md", f"{name}/table.md"))
    assert name in page and page.count("data:image/png;base64,") == len(table.figures)
    # Again: from the pieces, and nothing is computed or trained anew.
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / name).glob("*.json") if path.name != "table.json"}
    (again,) = reproduce([name], tmp_path, quick=True)
    assert kept and kept == {path: path.stat().st_mtime_ns for path in kept}
    assert again.to_json() == table.to_json()


def test_checks():
    def check(measured, rule="within", tolerance=0.1):
        return Check("it", measured, 2.0, rule, tolerance)

    assert check(2.19).holds and check(1.81).holds and not check(2.21).holds and not check(math.nan).holds
    assert check(2.1, "at most").holds and not check(2.3, "at most").holds and not check(math.nan, "at most").holds
    assert check(1.9, "at least").holds and not check(1.7, "at least").holds and not check(math.nan, "at least").holds
    assert not check(2.1, "at most", 0.0).holds
    assert [check(0.0, rule).allowed for rule in ("within", "at most")] == ["2 ± 10%", "at most 2 (10%)"]


def test_a_table_is_read_as_it_was_written(tmp_path):
    table = Table("one", "a title", (Column("a", "A", "s"), Column("b", "B")), ({"a": 1.5, "b": "x|y"}, {"a": 2}),
                  (Check("it", math.nan, 1.0, "at most"), Check("that", 1.0, 1.0)), ("a.png",), ("A note.",))
    (tmp_path / "table.json").write_text(table.to_json())
    again = read_table(tmp_path / "table.json")
    assert again.to_json() == table.to_json()
    assert [again.verdict(one) for one in again.checks] == ["outside", "within"]
    assert again.to_csv() == "a,b\n1.5,x|y\n2,\n" and "| 1.5 | x\\|y |" in markdown(again) and "| 2 | – |" in markdown(again)
    quick = dataclasses.replace(again, quick=True)
    assert quick.verdict(quick.checks[0]) == "quick, not judged"
    (tmp_path / "table.json").write_text(table.to_json()[:-30])
    with pytest.raises(DataError, match=r"table\.json is not the table of a result"):
        read_table(tmp_path / "table.json")


def test_pieces_are_computed_once_for_the_same_settings(tmp_path):
    calls, told = [], []

    def compute(value):
        return lambda: calls.append(value) or {"value": value, "pair": (1, math.inf)}

    def ask(value, **settings):
        return Pieces(tmp_path, lambda *told_of: told.append(told_of), 2, "it").get("one", settings, compute(value))

    assert ask(1, n=1) == ask(2, n=1) == {"value": 1, "pair": [1, math.inf]}
    assert ask(3, n=2)["value"] == 3
    (tmp_path / "one.json").write_text("{")
    assert ask(4, n=2)["value"] == 4
    assert calls == [1, 3, 4] and told[0] == (0.0, "it: one")
    with pytest.raises(ZeroDivisionError):
        Pieces(tmp_path, lambda *_: None, 1, "it").get("two", {}, lambda: 1 / 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json"]


PAPER = ("solver.n=16", "reference.solver={n = 32, dt = 4e-4}", "reference.coarse={n = 16, dt = 4e-4, spin_up = 4e-3}",
         "reference.spin_up=4e-3", "reference.snapshots=30", "reference.training_runs=2", "offline.steps=4", "offline.batch=2",
         f"network.channels={[2, *[3] * 10, 1]}", "training.window=3", "training.batch=2", "training.steps_per_epoch=3",
         "training.checkpoint_every=2", "training.validate_windows=4")


@pytest.mark.parametrize(("name", "changes", "phase"), [
    ("lorenz63", ("training.epochs=3", "training.steps_per_epoch=4", "reference.snapshots=1200"), "online"),
    ("qg-paper", PAPER, "offline"), ("qg-paper", PAPER, "online"),
])
def test_a_training_that_is_stopped_goes_on(name, changes, phase, tmp_path, monkeypatch):
    """SIGTERM in the middle: saved, the exit code of the signal, and afterwards the same numbers as without."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("trimtab.training.trainer.PROGRESS_SECONDS", 0.0)
    experiment = load_experiment(name, changes)

    def train(folder, progress):
        folder.mkdir(exist_ok=True)
        return Pieces(folder, progress, 1, "it").train("a", experiment, lambda trainer, result: {
            "sum": sum(one.sum().item() for one in trainer.correction.parameters())})

    def stop(share, text):
        if f"{phase}: epoch 1 of" in text:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "cut", stop)
    assert stopped.value.exit_code == 143 and not list((tmp_path / "cut").glob("*.json"))
    cut, whole = (train(tmp_path / name, silent) for name in ("cut", "whole"))
    assert cut["sum"] == whole["sum"] and cut["best_validation"] == whole["best_validation"] and cut["online_seconds"] > 0


class Scaled(torch.nn.Module):
    """A correction a u^p."""

    def __init__(self, a, p=1):
        super().__init__()
        self.a, self.p = a, p

    def forward(self, u):
        return self.a * u**self.p


def test_lyapunov_exponents_of_known_flows():
    """Lorenz 63: their sum is the divergence, -(sigma + 1 + beta), the second is 0; an oscillator has none; a blow-up is NaN."""
    solver = trimtab.open_solver("lorenz63", dt=0.01, beta=8 / 3)
    starts = solver.advance(np.array([[8.0, 0.0, 30.0]]), 20, stride=100).states[5:, 0]
    found = lyapunov_exponents(solver, None, starts, steps=200, renew=10, discard=30)
    assert found.sum() == pytest.approx(-41 / 3, rel=1e-3)
    assert found[0] == pytest.approx(0.9056, abs=0.05) and found[1] == pytest.approx(0.0, abs=0.02)
    again = lyapunov_exponents(solver, Scaled(-1.0), starts, steps=20, renew=10, discard=5)
    assert again.sum() == pytest.approx(-41 / 3 - 3, rel=1e-3)
    circle = trimtab.open_solver("oscillator", dt=0.01)
    assert np.abs(lyapunov_exponents(circle, None, np.array([[5.0, 0.0]]), steps=100, renew=10, discard=5)).max() < 1e-2
    assert np.isnan(lyapunov_exponents(solver, Scaled(1e3, 2), starts, steps=5, renew=50, discard=0)).all()
    with pytest.raises(ConfigError, match="at least one renewal"):
        lyapunov_exponents(solver, None, starts, steps=0, renew=10, discard=0)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    assert main(["reproduce", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed and result(name).TEXT[:20] in listed for name in RESULTS) and "of one core" in listed
    assert main(["reproduce", "lorenz96", "--quick", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "lorenz96: two-scale" in said.err and "not judged" in said.out and "index.html" in said.out
    assert main(["reproduce", "nothing"]) == 2
    assert "There is no result 'nothing' to reproduce; there are convergence" in capsys.readouterr().err
