# SPDX-License-Identifier: MIT
"""`trimtab couple check` where nothing can be written, and for an experiment that a training would refuse at once."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from helpers.coupled import build
from helpers.experiments import refusal
from trimtab.__main__ import main
from trimtab.config import sections
from trimtab.config.experiment import load_experiment
from trimtab.core.atomic_files import is_writable
from trimtab.coupling.checks.description import ROW, check_experiment
from trimtab.coupling.harness import Bench
from trimtab.coupling.settings import write_settings
from trimtab.coupling.weight_line import MARK, compare_weight
from trimtab.gradient import GRADIENTS


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("refusals") / "spin")


@pytest.fixture
def here(ring, monkeypatch) -> Path:
    monkeypatch.chdir(ring)
    monkeypatch.syspath_prepend(str(ring))
    return ring


@pytest.fixture
def unwritable(here):
    """A TOML that cannot be replaced, by root neither: a folder has the name that the new one is written under."""
    blocked = here / ".spin.toml.partial"
    own = (here / "spin.toml").read_text()
    line = "library = \"./libspin.so\"\n"
    stale = own.replace(line, f"{line}weight = {{stride = 1, steady = {{c = 3.0}}}}  {MARK}\n")
    (here / "spin.toml").write_text(stale)
    blocked.mkdir()
    yield here / "spin.toml"
    blocked.rmdir()
    assert (here / "spin.toml").read_text() == stale != own
    (here / "spin.toml").write_text(own)


def test_the_table_is_printed_where_the_toml_cannot_be_written(unwritable, capsys):
    assert main(["couple", "check", "spin.toml"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "weight in TOML note not written: " in out and "the same bits for n = 1, 3" in out and "0 bad" in out


def test_the_rows_of_what_was_not_written(unwritable):
    (row,) = write_settings(unwritable, {"training": {"window": 7, "clip": 2.5}}, True)
    assert row.state == "note" and row.remedy
    assert row.found.startswith("not written: ") and row.found.endswith("chosen: training.window = 7; training.clip = 2.5")
    (row,) = compare_weight(unwritable, {}, {"stride": 1, "steady": {"c": 1.5}}, True)
    assert row.state == "note" and row.found.startswith("not written: ") and "one is needed for the gradient" in row.found


def test_a_folder_is_tried(tmp_path):
    assert is_writable(tmp_path) and not list(tmp_path.iterdir())
    assert not is_writable(Path("/proc")) and not is_writable(tmp_path / "none")


@pytest.mark.parametrize("change, sentence", [
    ("training.gradient_options={memers=3}", "The gradient 'static' does not take these options"),
    ("network.name=MPL", "MPL"),
    ("network.sizs=[1,2]", "sizs"),
    ("training.gradient=exact", "no torch twin"),
    ("training.weights={depth=2.0}", "depth"),
    ("training.start_from=nowhere.pt", "There is no checkpoint nowhere.pt"),
])
def test_what_a_training_would_refuse_is_bad(here, change, sentence):
    with contextlib.closing(Bench(load_experiment("spin.toml", [change]))) as bench:
        (row,) = [one for one in check_experiment(bench) if one.state == "bad"]
    assert row.check == ROW and row.found.startswith("`trimtab train` refuses this TOML: ") and sentence in row.found, row


def test_what_a_training_takes_is_not(here):
    with contextlib.closing(Bench(load_experiment("spin.toml"))) as bench:
        assert {one.state for one in check_experiment(bench)} == {"ok"}


@pytest.mark.parametrize("key, value", [("gradient", "statik"), ("optimiser", "adm")])
def test_an_unknown_name_is_refused_when_the_experiment_is_read(here, capsys, key, value):
    name = Path("other.toml")
    lines = [line for line in Path("spin.toml").read_text().splitlines() if not line.startswith(f"{key} =")]
    name.write_text("\n".join(lines).replace("[training]", f"[training]\n{key} = \"{value}\"") + "\n")
    try:
        assert f"training.{key} = '{value}' must be one of " in refusal(capsys, "couple", "check", str(name))
    finally:
        name.unlink()


def test_the_names_that_are_read_are_those_that_there_are():
    assert tuple(GRADIENTS) == sections.GRADIENTS
