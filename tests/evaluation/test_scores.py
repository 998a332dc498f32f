# SPDX-License-Identifier: MIT
"""Scores against closed forms, the Smagorinsky closure against its formula, an evaluation that must rank closures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.config.experiment import ScoreConfig
from trimtab.core.errors import ConfigError, DataError
from trimtab.core.loss import field_scale
from trimtab.core.spec import Field, SolverSpec, resolved_wavenumber
from trimtab.core.window import Window
from trimtab.corrections.smagorinsky import Smagorinsky
from trimtab.data.lead_times import match_times
from trimtab.evaluation import metrics as scores
from trimtab.evaluation.climatology import Climate, lively_components
from trimtab.evaluation.evaluate import evaluate, long_run
from trimtab.evaluation.smagorinsky_search import best_smagorinsky
from trimtab.evaluation.table import Column, ScoreTable, combine, read_table

LENGTH = (2 * np.pi, 2 * np.pi)


def plane(n: int, dealiasing: str = "3/2") -> SolverSpec:
    x = 2 * np.pi / n * np.arange(n)
    field = Field("q", "vorticity", "1", ("y", "x"), (n, n), {"y": x, "x": x})
    return SolverSpec("qg", 0.01, 4, (field,), parameters={"dealiasing": dealiasing})


def wave(n: int, kx: int, ky: int, amplitude: float = 1.0) -> np.ndarray:
    x = 2 * np.pi / n * np.arange(n)
    return amplitude * np.cos(kx * x[None, :] + ky * x[:, None])


class Part(torch.nn.Module):
    """The missing term of the Lorenz core, a share of it."""

    dtype = torch.float64

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        tendency = torch.zeros_like(u)
        tendency[:, 2] = -self.share * (8 / 3) * u[:, 2]
        return tendency


class Explode(torch.nn.Module):
    """A tendency that leaves the finite numbers wherever u_1 is not 0."""

    dtype = torch.float64

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return 1e3 * u**3


# ---- pure functions --------------------------------------------------------------------------------------------------


def test_rmse_and_correlation_of_known_fields() -> None:
    a = np.stack([wave(16, 1, 0).ravel(), wave(16, 1, 0, 3.0).ravel() + 5.0])
    b = np.stack([wave(16, 0, 1).ravel(), wave(16, 1, 0).ravel()])
    assert scores.rmse(a, b)[0] == pytest.approx(1.0)
    assert scores.pattern_correlation(a, b) == pytest.approx([0.0, 1.0], abs=1e-12)
    assert np.isnan(scores.pattern_correlation(np.zeros(4), np.arange(4.0)))


def test_similarity() -> None:
    assert scores.similarity(np.array([1.0, 2.0, 0.0]), np.array([2.0, 2.0, 1.0])) == pytest.approx([0.5, 0.0, 1.0])
    assert np.isnan(scores.similarity(np.array([1.0]), np.array([0.0]))[0])


@pytest.mark.parametrize(("kx", "ky", "annulus"), [(3, 0, 3), (0, 5, 5), (3, 4, 5), (1, 1, 1), (8, 0, 8)])
def test_spectra_put_a_wave_in_its_annulus(kx: int, ky: int, annulus: int) -> None:
    q = wave(16, kx, ky, 2.0)
    waves, energy, enstrophy = scores.spectra(q, LENGTH)
    assert enstrophy.sum() == pytest.approx(0.5 * np.mean(q**2))
    assert enstrophy[annulus - 1] == pytest.approx(enstrophy.sum())
    assert energy[annulus - 1] == pytest.approx(enstrophy.sum() / (kx**2 + ky**2))
    assert waves[annulus - 1] == annulus


def test_spectra_sum_to_energy_and_enstrophy_on_unequal_sides() -> None:
    q = np.random.default_rng(0).standard_normal((3, 12, 20))
    spectrum = np.fft.fft2(q)
    ky, kx = np.meshgrid(np.fft.fftfreq(12, 1 / 12), np.fft.fftfreq(20, 1 / 20), indexing="ij")
    inside = np.rint(np.hypot(kx, ky)) <= 6
    inside[0, 0] = False
    _, energy, enstrophy = scores.spectra(q, LENGTH)
    power = 0.5 * np.abs(spectrum / q[0].size) ** 2
    assert enstrophy.shape == (3, 6)
    assert enstrophy.sum(1) == pytest.approx((power * inside).sum((1, 2)))
    assert energy.sum(1) == pytest.approx((power * inside / np.maximum(kx**2 + ky**2, 1)).sum((1, 2)))


def test_log_spectrum_error_counts_only_the_scored_annuli() -> None:
    truth = np.array([1.0, 2.0, 4.0])
    assert scores.log_spectrum_error(np.array([np.e, 2.0, 99.0]), truth, 2) == pytest.approx(0.5)
    assert np.isnan(scores.log_spectrum_error(np.full(3, np.nan), truth, 3))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30), st.lists(st.floats(-50, 50), min_size=1, max_size=30))
def test_wasserstein_is_the_distance_of_sorted_samples(a: list[float], b: list[float]) -> None:
    # Between samples of one size it is the mean distance of the sorted values; repeating a sample changes nothing.
    expected = np.mean(np.abs(np.sort(np.repeat(a, len(b))) - np.sort(np.repeat(b, len(a)))))
    assert scores.wasserstein(np.array(a), np.array(b)) == pytest.approx(expected, abs=1e-9)


def test_marginal_distance_of_a_shift_is_the_shift_in_deviations() -> None:
    truth = np.random.default_rng(1).normal(0.0, [1.0, 5.0], (20_000, 2))
    assert scores.marginal_distance(truth + np.array([0.3, 1.5]), truth) == pytest.approx(0.3, rel=0.02)
    assert scores.marginal_distance(truth, truth) == 0.0
    assert np.isnan(scores.marginal_distance(np.full((5, 2), np.nan), truth))


def test_components_that_stand_still_are_left_out() -> None:
    """A wall that flickers in the last bit, a coefficient that is 0 up to rounding: neither has a deviation to measure by."""
    fields = (Field("psi", "psi", "1", ("mode",), (3,)), Field("t", "t", "1", ("x",), (2,), dtype="real32"))
    spec, generator = SolverSpec("modes", 0.1, 1, fields), np.random.default_rng(3)
    deviation = np.array([2.0, 1e-11, 0.5, 3e-8, 0.1])
    test = np.array([0.0, 0.0, 7.0, 0.3, 5.0]) + deviation * generator.standard_normal((2, 400, 5))
    assert scores.varying(spec, test.reshape(-1, 5)).tolist() == [True, False, True, False, True]
    climate = Climate(spec, ScoreConfig(), test, lively_components(spec, test))
    moved = climate.judge(np.stack([test[0] + 0.5] * 2, 1), np.arange(400.0), "moved")["attractor_distance"]
    expected = np.mean(0.5 / deviation[[0, 2, 4]])
    assert moved == pytest.approx([expected, expected], rel=0.2)


def test_a_field_that_is_constant_up_to_rounding_is_not_divided_by_it() -> None:
    fields = (Field("h", "h", "m", ("x",), (50,)), Field("t", "t", "K", ("x",), (50,)))
    states = np.concatenate([np.full((40, 50), 0.1), np.random.default_rng(4).normal(3.0, 2.0, (40, 50))], 1)
    assert states[:, :50].std() > 0  # of the mean's rounding
    scale = field_scale(SolverSpec("sea", 0.1, 1, fields), states)
    assert scale[0] == pytest.approx(0.1, rel=1e-12) and scale[-1] == pytest.approx(2.0, rel=0.1)


def test_pdf_integrates_to_one_and_its_tail_error_sees_a_missing_tail() -> None:
    values = np.random.default_rng(2).standard_normal(200_000)
    edges = scores.pdf_edges(values, values.std())
    density = scores.pdf(values, edges)
    assert density.sum() * (edges[1] - edges[0]) == pytest.approx(1.0)
    floor = 10 / (values.size * (edges[1] - edges[0]))
    assert scores.tail_error(density, density, edges, floor) == 0.0
    clipped = scores.pdf(np.clip(values, -2.5, 2.5), edges)
    assert scores.tail_error(clipped, density, edges, floor) > 1.0


def test_stable_until_is_the_first_exit_or_the_end() -> None:
    times = np.array([0.0, 1.0, 2.0, 3.0])
    mean_square = np.array([[1, 1, 1, 1], [1, 9, 1, 0.1], [1, 1, np.nan, 1], [1, 9, np.nan, 1.0]])
    assert scores.stable_until(mean_square, times, (0.5, 4.0)).tolist() == [3.0, 1.0, 2.0, 1.0]
    assert scores.stable_band(np.array([1.0, 3.0])) == (0.5, 6.0)


def test_valid_time_ends_where_the_error_exceeds_the_threshold() -> None:
    error = np.array([[0.0, 0.0, 0.0], [0.1, 0.5, 0.1], [0.5, 0.1, np.nan]])
    assert scores.valid_time(error, np.array([0.0, 0.1, 0.2]), 0.4) == pytest.approx([0.2, 0.1, 0.2])


def test_resolved_wavenumber_follows_the_dealiasing_rule() -> None:
    assert resolved_wavenumber(plane(32)) == 15
    assert resolved_wavenumber(plane(32, "2/3")) == 10


# ---- the Smagorinsky closure -----------------------------------------------------------------------------------------


def test_smagorinsky_of_a_plane_wave_matches_the_formula() -> None:
    # q = cos(k x) means psi_xx = q: |S| = |cos(k x)|, and M = d/dx(nu_e dq/dx) is i K times the flux's coefficients.
    n, k, constant = 64, 3, 0.2
    q = wave(n, k, 0)
    tendency = Smagorinsky(plane(n), constant)(torch.from_numpy(q.reshape(1, -1))).numpy().reshape(n, n)
    phase = k * 2 * np.pi / n * np.arange(n)
    flux = -((constant * 2 * np.pi / n) ** 2) * np.abs(np.cos(phase)) * k * np.sin(phase)
    expected = 1j * np.arange(n // 2) * np.fft.rfft(flux)[: n // 2]
    assert np.allclose(np.fft.rfft(tendency[5])[: n // 2], expected, atol=1e-12)
    assert np.abs(expected).max() > 1e-3


def test_smagorinsky_keeps_the_mean_and_takes_enstrophy_out() -> None:
    q = torch.from_numpy(np.random.default_rng(3).standard_normal((4, 256)))
    closure = Smagorinsky(plane(16), 0.17)
    tendency = closure(q)
    assert tendency.dtype == torch.float64 and tendency.shape == q.shape
    assert tendency.mean(1).abs().max() < 1e-12
    assert ((q * tendency).mean(1) < 0).all()
    torch.testing.assert_close(closure(q.float()), tendency.float(), rtol=1e-3, atol=1e-3)
    assert Smagorinsky(plane(16), 0.0)(q).abs().max() == 0.0


def test_smagorinsky_refuses_what_has_no_vorticity() -> None:
    field = Field("u", "state", "1", ("component",), (3,))
    with pytest.raises(ConfigError, match="vorticity"):
        Smagorinsky(SolverSpec("lorenz63", 0.01, 4, (field,)), 0.1)
    with pytest.raises(ConfigError, match="negative"):
        Smagorinsky(plane(8), -0.1)


def test_best_smagorinsky_finds_the_constant_that_made_the_truth(
    open_solver: Callable[..., Any], random_states: Callable[..., np.ndarray]
) -> None:
    solver = open_solver("qg")
    starts = random_states(solver)
    truth = solver.advance(starts, 1, correction=Smagorinsky(solver.spec, 0.4), stride=20).states[-1]
    closure, errors = best_smagorinsky(solver, starts, truth, (0.2, 0.4, 0.6), steps=10, stride=2)
    assert closure.constant == 0.4 and errors[0.4] < 1e-12 < errors[0.2]
    with pytest.raises(ConfigError, match=r"score\.smagorinsky is empty"):
        best_smagorinsky(solver, starts, truth, (), steps=10)


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_match_times_of_dense_sparse_and_wrong_snapshots() -> None:
    dense = match_times(0.01, 2, 0.01, (1, 5))
    assert (dense.every, dense.skip, dense.leads) == (2, 2, (1, 5))
    sparse = match_times(0.01, 1, 0.1, (10, 30))
    assert (sparse.every, sparse.skip, sparse.leads) == (10, 1, (1, 3))
    with pytest.raises(ConfigError, match="multiples of 10 outer steps"):
        match_times(0.01, 1, 0.1, (5,))
    with pytest.raises(ConfigError, match="no multiple of the solver's step"):
        match_times(0.01, 1, 0.015, (1,))


@pytest.fixture
def lorenz(open_solver: Callable[..., Any]) -> tuple[Any, np.ndarray]:
    """The core without -beta u_3, and three runs of the truth."""
    truth = open_solver("lorenz63", beta=8 / 3)
    starts = truth.advance(np.array([[8.0, 0, 30], [3, 5, 20], [-5, 3, 22]]), 1, stride=500).states[-1]
    return open_solver("lorenz63"), truth.advance(starts, 1500).states.transpose(1, 0, 2)


def test_evaluation_of_a_small_system_ranks_the_closures(lorenz: tuple[Any, np.ndarray]) -> None:
    solver, test = lorenz
    config = ScoreConfig(leads=(5, 20), starts=3, long_steps=1500, lyapunov_time=1.1)
    told: list[float] = []
    result = evaluate(solver, {"none": None, "offline": Part(0.9), "online": Part(1.0)}, test, config, interval=0.01,
                      stride=1, progress=lambda share, text: told.append(share))
    table = result.table
    assert table.mean("online", "rmse_20") < 1e-9 < table.mean("offline", "rmse_20") < table.mean("none", "rmse_20")
    assert table.mean("online", "attractor_distance") < table.mean("offline", "attractor_distance")
    assert table.mean("online", "valid_time") == pytest.approx(result.curves["lead_times"][-1] / 1.1)
    assert table.cell("online", "valid_time").startswith("≥")
    assert len(table.rows["online"]["rmse_5"]) == 9 and len(table.rows["online"]["stable_until"]) == 3
    assert table.mean("online", "similarity_20") == pytest.approx(1.0)
    assert "similarity_20" not in table.rows["none"] and list(table.rows["truth"]) == ["attractor_distance"]
    assert table.best(table.columns[0]) == "online"
    assert told == sorted(told) and told[-1] == 1.0


def test_a_blow_up_is_never_left_out_of_a_mean(lorenz: tuple[Any, np.ndarray]) -> None:
    solver, test = lorenz
    config = ScoreConfig(leads=(5,), starts=2, long_steps=200)
    table = evaluate(solver, {"none": None, "online": Explode()}, test, config, interval=0.01, stride=1).table
    assert np.isnan(table.mean("online", "rmse_5")) and table.cell("online", "rmse_5") == "blew up 6/6"
    assert table.mean("online", "stable_until") < 0.1
    assert table.best(table.columns[0]) is None
    assert '"mean": null' in table.to_json() and "NaN" not in table.to_json()


def test_long_run_goes_on_without_the_member_that_blew_up(open_solver: Callable[..., Any]) -> None:
    solver = open_solver("lorenz63")
    first = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    states, times = long_run(solver, Explode(), first, 300, 2, lambda share: None)
    assert states.shape == (301, 2, 3) and times[-1] == pytest.approx(6.0)
    assert np.isnan(states[-1, 1]).all() and (states[:, 0] == 0).all()


def test_evaluation_refuses_runs_shorter_than_the_leads(lorenz: tuple[Any, np.ndarray]) -> None:
    solver, test = lorenz
    with pytest.raises(DataError, match="held-out runs of 10 snapshots"):
        evaluate(solver, {"none": None}, test[:, :10], ScoreConfig(leads=(50,)), interval=0.01, stride=1)
    with pytest.raises(ConfigError, match=r"score\.closures is empty"):
        evaluate(solver, {}, test, ScoreConfig(), interval=0.01, stride=1)


def test_figures_show_points_that_vary() -> None:
    """Of each field the liveliest, never a wall; of a single field three of those that move."""
    fields = (Field("u", "", "m/s", ("y", "x"), (3, 4)), Field("level", "", "m", ("x",), (4,)), Field("t", "", "1", (), ()))
    states = np.zeros((50, 17))
    states[:, 6], states[:, 13] = np.sin(np.arange(50)), 100 + 3 * np.cos(np.arange(50))
    found = lively_components(SolverSpec("walls", 0.1, 2, fields), states, np.full(17, 2.0))
    assert found.places.tolist() == [6, 13] and found.labels == ("u(3, 2) (m/s)", "level(2) (m)")
    assert np.array_equal(found.of(states[1]), 2 * states[1, [6, 13]])
    line = SolverSpec("line", 0.1, 2, (Field("u", "", "1", ("x",), (6,)),))
    moving = np.random.default_rng(0).standard_normal((9, 6)) * [0, 1, 1, 1, 1, 0]
    assert lively_components(line, moving).labels == ("$u_{2}$", "$u_{3}$", "$u_{5}$")
    assert lively_components(line, 0 * moving).places.tolist() == [0]


def test_errors_of_fields_of_several_units_are_in_their_deviations() -> None:
    class Still:
        spec = SolverSpec("still", 0.1, 2, (Field("u", "", "m/s", ("x",), (2,)), Field("p", "", "Pa", ("x",), (2,)),
                                            Field("p_old", "", "Pa", ("x",), (2,), hidden=True)))

        def advance(self, u0, steps, *, correction=None, stride=1, time=0.0, on_blow_up="raise"):
            return Window(np.repeat(u0[None], steps + 1, 0), np.arange(steps + 1.0), 0.1, np.zeros(len(u0), int))

    test = np.random.default_rng(0).standard_normal((2, 40, 6)) * [1, 1, 1e5, 1e5, 1e5, 1e5] + [0, 0, 1e6, 1e6, 0, 0]
    found = evaluate(Still(), {"none": None}, test, ScoreConfig(leads=(1, 5), starts=10, long_steps=20), interval=0.1, stride=1)
    assert [one.unit for one in found.table.columns[:2]] == ["σ", "σ"]
    assert np.mean(found.table.rows["none"]["rmse_1"]) == pytest.approx(np.sqrt(2), rel=0.15)
    assert list(found.curves["labels"])[1].startswith("$p_{") and found.curves["truth/trajectory"][:, 1].mean() > 9e5


def test_the_truth_has_no_distance_from_itself() -> None:
    states = np.random.default_rng(4).standard_normal((2, 60, 256))
    climate = Climate(plane(16), ScoreConfig(), states, lively_components(plane(16), states))
    judged = climate.judge(states.transpose(1, 0, 2), np.arange(60.0), "online")
    assert judged["stable_until"].tolist() == [59.0, 59.0]
    assert judged["enstrophy_error"].max() < 0.1 and judged["pdf_distance"].max() < 0.02
    assert set(climate.truth_row) == {"energy_error", "enstrophy_error", "pdf_distance", "pdf_tail_error"}


# ---- the table -------------------------------------------------------------------------------------------------------


def small_table(values: list[float], seed: int = 0, reference: str = "a") -> ScoreTable:
    columns = (Column("rmse_5", "RMSE, lead 5", "1", "low", "Error."),)
    rows = {"none": {"rmse_5": np.array([2.0, 4.0])}, "online": {"rmse_5": np.array(values)}}
    return ScoreTable("toy", columns, rows, settings={"seed": seed, "reference": reference})


def test_table_survives_its_file_and_combines_over_seeds(tmp_path: Any) -> None:
    table = small_table([1.0, 2.0])
    (tmp_path / "scores.json").write_text(table.to_json())
    again = read_table(tmp_path / "scores.json")
    assert again.to_json() == table.to_json() and again.cell("online", "rmse_5") == "1.50 ± 0.71"
    assert table.to_csv() == "closure,rmse_5,rmse_5_spread\nnone,3,1.4142136\nonline,1.5,0.70710678\n"
    both = combine([table, small_table([2.0, 3.0], seed=1)])
    assert both.comparison() == "RMSE, lead 5, run by run: online is better than no closure at 2 of 2."
    assert small_table([5.0, np.nan]).comparison().endswith("at 0 of 2.")
    assert both.mean("online", "rmse_5") == 2.0 and both.rows["online"]["rmse_5"].tolist() == [1.5, 2.5]
    with pytest.raises(ConfigError, match="different reference runs"):
        combine([table, small_table([1.0], reference="b")])
    (tmp_path / "scores.json").write_text('{"rows": 3}')
    with pytest.raises(DataError, match="not a score table"):
        read_table(tmp_path / "scores.json")
    with pytest.raises(DataError, match="trimtab score"):
        read_table(tmp_path / "none" / "scores.json")


class TwoUnits:
    """Depth in m and temperature in K, both decay; `wrong` is how much faster the temperature does."""

    def __init__(self, wrong: float = 0.0):
        fields = (Field("h", "depth", "m", ("i",), (3,)), Field("t", "temperature", "K", ("j",), (2,)),
                  Field("old", "old", "1", ("old_1",), (1,), {}, hidden=True))
        self.spec = SolverSpec("two", 0.1, 1, fields)
        self.rates = np.array([1.0, 1.0, 1.0, 1.0 + wrong, 1.0 + wrong, 0.0])

    def advance(self, u0: Any, steps: int, *, stride: int = 1, time: float = 0.0, **_: Any) -> Window:
        steps_made = stride * 0.1 * np.arange(steps + 1)
        states = np.asarray(u0) * np.exp(-self.rates * steps_made[:, None, None])
        return Window(states, time + steps_made, stride * 0.1, np.zeros(len(u0), np.int64))

    def close(self) -> None: ...


def test_fields_of_several_units_count_alike_and_have_rows_of_their_own() -> None:
    """A field in large numbers does not hide the others, and each field's error stands in its own unit."""
    start = np.array([[[1.0, 2.0, 3.0, 3000.0, 1000.0, 7.0]]])
    truth = np.concatenate([start * np.append(np.full(5, np.exp(-0.1 * k)), 1.0) for k in range(21)], axis=1)
    config = ScoreConfig(leads=(1, 5), starts=1, long_steps=5, closures=("none",))
    result = evaluate(TwoUnits(wrong=0.1), {"none": None}, truth, config, interval=0.1, stride=1)
    table, units = result.table, {one.key: one.unit for one in result.table.columns}
    error = np.sqrt(np.mean(np.square(start[0, 0, 3:5] * (np.exp(-0.55) - np.exp(-0.5)))))
    assert table.mean("none", "field_t_5") == pytest.approx(error) and units["field_t_5"] == "K"
    assert table.mean("none", "field_h_5") == 0 and units["field_h_1"] == "m" and units["rmse_5"] == "σ"
    deviation = truth[0, : len(result.curves["lead_times"]), 3:5].std(axis=0)
    deviation = np.sqrt(np.square(deviation).mean())  # of anomalies: its two components have other means
    assert table.mean("none", "rmse_5") == pytest.approx(np.sqrt(2 / 5) * error / deviation)
    assert "field_old_1" not in units and table.comparison() == ""
