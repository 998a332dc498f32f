# SPDX-License-Identifier: MIT
"""Scores of ensembles: against closed forms, another library, and ensembles that are right or wrong by construction."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from math import erf, exp, pi, sqrt
from pathlib import Path
from statistics import NormalDist

import numpy as np
import properscoring
import pytest
import xarray as xr

from helpers.ensembles import EXPERIMENT
from trimtab.__main__ import main
from trimtab.core.errors import ConfigError, DataError
from trimtab.evaluation.ensemble_metrics import LeadScores, crps, picked_leads, ranks
from trimtab.evaluation.score_ensemble import read_ensembles, score_ensemble


def gaussian_crps(y: float) -> float:
    """Gneiting and Raftery (2007), eq. 20, for a standard normal forecast."""
    return y * erf(y / sqrt(2)) + 2 * exp(-y * y / 2) / sqrt(2 * pi) - 1 / sqrt(pi)


def test_the_crps_of_a_gaussian() -> None:
    members = np.array([NormalDist().inv_cdf((i + 0.5) / 4000) for i in range(4000)])
    for y in (-2.0, 0.0, 0.3, 4.0):
        assert crps(members[:, None], np.array([y]))[0] == pytest.approx(gaussian_crps(y), abs=2e-4)


def test_the_crps_is_the_librarys_and_the_double_sum() -> None:
    generator = np.random.default_rng(1)
    members, truth = generator.standard_normal((9, 40)), generator.standard_normal(40)
    found = crps(members, truth)
    np.testing.assert_allclose(found, properscoring.crps_ensemble(truth, members.T), rtol=1e-12)
    pairs = np.abs(members[:, None] - members[None]).sum((0, 1)) / 2
    distance = np.abs(members - truth).mean(0)
    np.testing.assert_allclose(found, distance - pairs / 81, rtol=1e-12)
    np.testing.assert_allclose(crps(members, truth, fair=True), distance - pairs / 72, rtol=1e-12)
    np.testing.assert_allclose(crps(members[:1], truth), np.abs(members[0] - truth))


def test_the_fair_crps_does_not_depend_on_the_size() -> None:
    generator = np.random.default_rng(2)
    truth = np.full(200_000, 0.7)
    for members in (2, 5):
        draws = generator.standard_normal((members, truth.size))
        assert crps(draws, truth, fair=True).mean() == pytest.approx(gaussian_crps(0.7), abs=5e-3)
        assert crps(draws, truth).mean() > gaussian_crps(0.7) + 0.05


def test_equal_ranks_are_drawn() -> None:
    generator = np.random.default_rng(0)
    found = ranks(np.zeros((4, 5000)), np.zeros(5000), generator)
    assert np.bincount(found, minlength=5) == pytest.approx(1000, rel=0.12)
    assert ranks(np.array([[1.0], [2.0], [3.0]]), np.array([2.5]), generator)[0] == 2


@pytest.mark.parametrize(("width", "shift"), [(1.0, 0.0), (0.5, 0.0), (2.0, 0.0), (1.0, 1.0)])
def test_what_is_wrong_with_an_ensemble_is_seen(width: float, shift: float) -> None:
    """Truth and members around a signal that is known; only the first is drawn as the truth is."""
    generator, members, count = np.random.default_rng(5), 19, 20_000
    sums = LeadScores(members)
    signal, climate = generator.standard_normal(count), generator.standard_normal((50, count)) * sqrt(2)
    truth = signal + generator.standard_normal(count)
    sums.add(signal + shift + width * generator.standard_normal((members, count)), truth, climate, np.full(count, 0.6), generator)
    found = sums.scores()
    right = width == 1.0 and shift == 0.0
    assert found["rmse"] == pytest.approx(sqrt(1 + shift**2 + width**2 / members), rel=0.02)
    assert found["spread"] == pytest.approx(width * sqrt((members + 1) / members), rel=0.02)
    assert (abs(found["spread_skill"] - 1) < 0.02) == right
    assert (abs(found["outliers"] - 2 / (members + 1)) < 0.02) == right
    assert (found["rank_deviation"] < 0.1) == right and (found["reliability"] < 2e-3) == right
    if right:
        assert found["crps_fair"] == pytest.approx(1 / sqrt(pi), rel=0.02) and found["crps"] < found["crps_climate"]
        spread, error = sums.spread_skill_bins()
        assert error == pytest.approx(1.0, abs=0.15) and (np.diff(spread) > 0).all()
    forecast, frequency = sums.diagram()
    assert (np.nanmax(np.abs(forecast - frequency)) < 0.08) == right  # few members: probabilities of 0 and 1 are not quite so


def test_a_lost_member_is_in_every_score() -> None:
    sums, generator = LeadScores(3), np.random.default_rng(0)
    members = generator.standard_normal((3, 50))
    sums.add(members, np.zeros(50), members, np.zeros(50), generator)
    members[1, 7] = np.nan
    sums.add(members, np.zeros(50), np.zeros((2, 50)), np.zeros(50), generator)
    found = sums.scores()
    assert found.pop("crps_climate") >= 0 and all(np.isnan(value) for value in found.values())
    assert np.isnan(sums.spread_skill_bins()).all()


def test_leads_to_show() -> None:
    assert picked_leads(1) == [0] and picked_leads(3) == [1, 2] and picked_leads(41)[-1] == 40 and len(picked_leads(41)) == 7


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run folder of a perfect solver, and the ensemble perfect.nc around displaced analyses."""
    folder = tmp_path_factory.mktemp("scores")
    (folder / "exp.toml").write_text(EXPERIMENT)
    before = os.environ.get("TRIMTAB_CACHE")
    os.environ["TRIMTAB_CACHE"] = str(folder / "cache")
    assert main(["train", str(folder / "exp.toml"), "--out", str(folder / "run"), "--set", "reference.snapshots=3000"]) == 0
    assert main(["ensemble", str(folder / "run"), "--solver-only", "--displaced", "--members", "15", "--starts", "150", "--steps",
                 "60", "--every", "15", "--amplitude", "0.02", "--out", str(folder / "perfect.nc")]) == 0
    yield folder
    if before is None:
        del os.environ["TRIMTAB_CACHE"]
    else:
        os.environ["TRIMTAB_CACHE"] = before


def test_a_perfect_solver_makes_a_reliable_ensemble(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = scored / "run"
    assert main(["score", str(run), "--ensemble", str(scored / "perfect.nc")]) == 0
    assert "spread skill" in capsys.readouterr().out
    with open(run / "ensembles" / "perfect.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["lead_time"]) for row in rows] == pytest.approx([0.0, 0.15, 0.3, 0.45, 0.6])
    for row in rows:
        assert float(row["spread_skill"]) == pytest.approx(1.0, abs=0.2), row
        assert float(row["outliers"]) == pytest.approx(2 / 16, abs=0.06) and float(row["blown_up"]) == 0
        assert 0 < float(row["crps_fair"]) < float(row["crps"]) < float(row["crps_climate"])
    assert {"ensemble_error.png", "ensemble_ranks.png", "ensemble_reliability.png"} <= {
        path.name for path in (run / "figures").iterdir()}
    page = (run / "report.html").read_text()
    assert "perfect: 15 members, 150 starts" in page and page.count("<h2>Ranks</h2>") == 1


def test_the_error_of_the_mean_is_what_it_says(scored: Path) -> None:
    found = score_ensemble(scored / "run", scored / "perfect.nc")
    with xr.open_dataset(scored / "perfect.nc") as file, xr.open_dataset(next((scored / "cache").glob("*.nc"))) as truth:
        errors = [file.u.values[start, :, 4].mean(0) - truth.u.values[-2 + int(run), int(snapshot) + 60]
                  for start, (run, snapshot) in enumerate(zip(file.start_run, file.start_snapshot, strict=True))]
    assert found.rows[4]["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-12)
    assert found.curves["rank_counts"].sum(1) == pytest.approx(150 * 3)
    assert read_ensembles(scored / "run").keys() == {"perfect"}


def test_files_that_cannot_be_scored_are_refused(scored: Path, tmp_path: Path) -> None:
    run, ensemble = scored / "run", scored / "perfect.nc"
    with pytest.raises(DataError, match="There is no file"):
        score_ensemble(run, tmp_path / "none.nc")
    (tmp_path / "cut.nc").write_bytes(ensemble.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cut\.nc .*cut short"):
        score_ensemble(run, tmp_path / "cut.nc")
    with xr.open_dataset(ensemble) as file:
        file.isel(member=[0]).to_netcdf(tmp_path / "one.nc")
        file.drop_vars("u").to_netcdf(tmp_path / "empty.nc")
        file.isel(component=[0, 1]).to_netcdf(tmp_path / "grid.nc")
        file.assign_coords(time=file.time + 0.003).to_netcdf(tmp_path / "between.nc")
    for name, kind, sentence in (("one", ConfigError, "spread needs two"), ("empty", DataError, "no variable 'u'"),
                                 ("grid", DataError, "has .start, member, time."), ("between", DataError, "meets a snapshot")):
        with pytest.raises(kind, match=sentence):
            score_ensemble(run, tmp_path / f"{name}.nc")
    (run / "ensembles" / "bad.npz").write_bytes(b"no")
    try:
        with pytest.raises(DataError, match="damaged"):
            read_ensembles(run)
    finally:
        (run / "ensembles" / "bad.npz").unlink()
