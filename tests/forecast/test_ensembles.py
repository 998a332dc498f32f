# SPDX-License-Identifier: MIT
"""Ensembles (many runs, not the gradient of that name): what members start from, files that do not depend on ranks or kills."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import trimtab
from trimtab.__main__ import main
from trimtab.core.errors import BlowUpError, ConfigError, DataError, OutputError
from trimtab.forecast import ensemble as ensembles
from trimtab.forecast import ensemble_netcdf as ensemble_file
from trimtab.forecast.initial_conditions import Starts, draw, vary

SYSTEM = {"dt": 0.01}
QG = {"n": 32, "dt": 2e-3, "viscosity": 1e-3, "drag": 0.1}


def opener(name: str = "lorenz63", **options: Any) -> Any:
    return lambda **changes: trimtab.open_solver(name, **{**options, **changes})


def network(seed: int = 0, layers: int = 1) -> Any:
    """A correction whose bits depend on the size of the batch as much as a torch network's do."""
    def build(spec: Any) -> trimtab.Correction:
        torch.manual_seed(seed)
        return trimtab.Correction(trimtab.networks.MLP((3, *[32] * layers, 3)), spec, input_scale=20.0).eval()

    return build


def by_start(ensemble: trimtab.Ensemble) -> np.ndarray:
    """(S, M, K+1, N) states."""
    found = trajectories(ensemble)
    starts, members = range(len(ensemble.starts.states)), range(ensemble.members)
    return np.array([[found[start, member] for member in members] for start in starts])


STARTS = np.array([[1.0, 2.0, 20.0], [8.0, 0.0, 30.0]])


def small(**options: Any) -> trimtab.Ensemble:
    given: dict[str, Any] = {"members": 7, "steps": 40, "every": 4, "corrections": [network(0), network(1)], "group": 3}
    return trimtab.Ensemble(opener(**SYSTEM), STARTS, **{**given, **options})


def trajectories(ensemble: trimtab.Ensemble) -> dict[tuple[int, int], np.ndarray]:
    return {(member.start, member.number): member.states for member in ensemble}


def test_a_member_is_what_its_number_says() -> None:
    """Its network, its start, its perturbation: as if it were run by hand."""
    found = {(one.start, one.number): one for one in small(group=1)}
    assert sorted(found) == [(start, member) for start in (0, 1) for member in range(7)]
    one = found[1, 4]
    assert one.network == 0 and one.states.shape == (11, 3) and one.failed_step == 0
    np.testing.assert_allclose(one.times, 0.04 * np.arange(11))
    with trimtab.open_solver("lorenz63", **SYSTEM) as solver:
        correction = network(0)(solver.spec)
        expected = solver.advance(one.states[:1], 10, correction=correction, stride=4).states[:, 0]
        assert np.array_equal(one.states, expected)
        noise = draw(trimtab.Perturbation(), solver.spec, Starts(STARTS, np.zeros(2)), 1, 4, 0)
    assert np.array_equal(one.states[0], STARTS[1] + noise)


def test_bits_depend_neither_on_ranks_nor_on_the_number_of_members() -> None:
    class World:
        rank, size = 0, 1

    whole, more = trajectories(small()), trajectories(small(members=19))
    assert all(np.array_equal(states, more[key]) for key, states in whole.items())
    shared: dict[tuple[int, int], np.ndarray] = {}
    for rank in range(4):
        world: Any = World()
        world.rank, world.size = rank, 4
        mine = trajectories(small(world=world))
        assert not shared.keys() & mine.keys()
        shared |= mine
    assert shared.keys() == whole.keys() and all(np.array_equal(shared[key], whole[key]) for key in whole)


def test_members_are_lazy() -> None:
    """Nothing is run before it is asked for, and then one group."""
    calls = []

    class Counts:
        def __init__(self, **changes: Any):
            self.inner = trimtab.open_solver("lorenz63", **SYSTEM, **changes)
            self.spec, self.close = self.inner.spec, self.inner.close

        def advance(self, u0: Any, steps: int, **options: Any) -> Any:
            calls.append(len(u0))
            return self.inner.advance(u0, steps, **options)

    ensemble = trimtab.Ensemble(Counts, STARTS, 7, steps=40, every=4, group=3)
    members = iter(ensemble)
    assert not calls
    next(members)
    assert calls == [3] * 10
    assert len(list(members)) == 13 and calls == [3] * 60  # three groups a start, the last filled up
    ensemble.close()


@pytest.mark.parametrize("kind", ["spectral", "climatology"])
def test_the_amplitude_is_what_it_says(kind: str) -> None:
    generator = np.random.default_rng(3)
    climate = generator.standard_normal((50, 32 * 32)) * 7.0 + 3.0
    with trimtab.open_solver("qg", **QG) as solver:
        spec = solver.spec
    starts = Starts(climate[:1], np.zeros(1), climate)
    rows = np.stack([draw(trimtab.Perturbation(kind, 0.1, 1.5), spec, starts, 0, member, 0) for member in range(200)])
    assert np.sqrt(np.mean(rows**2)) == pytest.approx(0.7, rel=0.05)
    assert len({row.tobytes() for row in rows}) > 180  # two members may meet the same pair of the climatology
    again = draw(trimtab.Perturbation(kind, 0.1, 1.5), spec, starts, 0, 7, 0)
    assert np.array_equal(again, rows[7])
    assert not np.array_equal(again, draw(trimtab.Perturbation(kind, 0.1, 1.5), spec, starts, 0, 7, 1))
    if kind == "spectral":
        assert np.abs(rows.mean(axis=1)).max() < 1e-12
        waves = np.abs(np.fft.fft2(rows.reshape(-1, 32, 32))).mean(0)
        k = np.arange(1, 12)
        slope = np.polyfit(np.log(1 + k), np.log(waves[0, k]), 1)[0]
        assert slope == pytest.approx(-1.5, abs=0.1)


def test_bred_vectors_fall_into_the_direction_that_grows(runs: Path) -> None:
    """Lorenz 63 has one: whatever the breeding began with, at its end all members lie on one line. And they keep their size."""
    shares = {}
    for kind in ("spectral", "bred"):
        ensemble = trimtab.Ensemble.from_runs([runs / "exp.toml"], 24, steps=1, starts=4, checkpoint=None,
                                              perturbation=trimtab.Perturbation(kind, 1e-4, cycles=150))
        rows = by_start(ensemble)[:, :, 0] - ensemble.starts.states[:, None]
        shares[kind] = [(np.linalg.svd(row, compute_uv=False) ** 2 / np.sum(row**2))[0] for row in rows]
        scales = ensembles.perturbation_scales(ensemble.spec, rows[0, 0], ensemble.starts.climate)
        assert np.sqrt(np.mean((rows / scales) ** 2)) == pytest.approx(1e-4, rel=0.25)
    assert min(shares["bred"]) > 0.9 > 0.8 > max(shares["spectral"])


def test_parameters_are_a_members_own() -> None:
    ensemble = small(corrections=(), varied={"rho": 0.05, "sigma": 0.1}, perturbation=trimtab.Perturbation("none"))
    members = [one for one in ensemble if one.start == 0]
    assert len({one.parameters["rho"] for one in members}) == 7
    for one in members[:2]:
        with trimtab.open_solver("lorenz63", **SYSTEM, **one.parameters) as solver:
            assert np.array_equal(solver.advance(STARTS[:1], 10, stride=4).states[:, 0], one.states)
    spread = np.std([np.log(vary({"rho": 0.05}, ensemble.spec, one, 0)["rho"] / 28.0) for one in range(400)])
    assert spread == pytest.approx(0.05, rel=0.1)


def test_the_file_holds_what_the_iteration_gives(tmp_path: Path) -> None:
    out = trimtab.write_ensemble(small(varied={"rho": 0.01}), tmp_path / "e.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["e.nc"]
    with xr.open_dataset(out) as file:
        assert dict(file.sizes) == {"start": 2, "member": 7, "time": 11, "component": 3}
        assert file.network.values.tolist() == [0, 1, 0, 1, 0, 1, 0] and (file.failed_step == 0).all()
        for one in small(varied={"rho": 0.01}):
            assert np.array_equal(file.u.values[one.start, one.number], one.states)
            assert file.parameter_rho.values[one.number] == one.parameters["rho"]


class Stop(torch.nn.Module):
    """A correction that interrupts the run at its k-th call."""

    dtype = torch.float64

    def __init__(self, at: int):
        super().__init__()
        self.left = at

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return 0.1 * torch.sin(u)


@pytest.mark.parametrize("damage", ["none", "torn", "flipped", "empty"])
def test_a_killed_ensemble_goes_on_with_the_same_bytes(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensembles, "PIECES", 5)
    whole, cut = tmp_path / "whole.nc", tmp_path / "cut.nc"
    trimtab.write_ensemble(small(corrections=[lambda spec: Stop(0)]), whole)
    with pytest.raises(KeyboardInterrupt):
        trimtab.write_ensemble(small(corrections=[lambda spec: Stop(260)]), cut)
    parts = tmp_path / "cut.nc.parts"
    found = sorted(parts.glob("*.part"))
    assert not cut.exists() and len(found) == 2 and found[1].stat().st_size < found[0].stat().st_size
    if damage == "torn":
        found[1].write_bytes(found[1].read_bytes()[:-11])
    elif damage == "flipped":
        content = bytearray(found[0].read_bytes())
        content[len(content) // 2] ^= 1
        found[0].write_bytes(content)
    elif damage == "empty":
        found[0].write_bytes(b"")
    calls = Stop(0)
    trimtab.write_ensemble(small(corrections=[lambda spec: calls]), cut)
    assert cut.read_bytes() == whole.read_bytes() and not parts.exists()
    assert -calls.left < 6 * 160  # of the calls that all six groups take: what was there is not done again


def test_what_is_there_is_not_lost(tmp_path: Path) -> None:
    out = tmp_path / "e.nc"
    with pytest.raises(KeyboardInterrupt):
        trimtab.write_ensemble(small(corrections=[lambda spec: Stop(250)]), out)
    with pytest.raises(ConfigError, match="unfinished ensemble of other settings"):
        trimtab.write_ensemble(small(corrections=[lambda spec: Stop(0)], seed=1), out)
    trimtab.write_ensemble(small(corrections=[lambda spec: Stop(0)], seed=1), out, overwrite=True)
    before = out.read_bytes()
    with pytest.raises(ConfigError, match="already there"):
        trimtab.write_ensemble(small(), out)
    with pytest.raises(ConfigError, match="no folder"):
        trimtab.write_ensemble(small(), tmp_path / "no" / "e.nc")
    assert out.read_bytes() == before


def test_a_full_disk_is_said_before_and_while_it_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(ensemble_file.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ConfigError, match="more room"):
        trimtab.write_ensemble(small(), tmp_path / "e.nc")
    monkeypatch.undo()

    def full(*_: Any) -> Any:
        raise RuntimeError("NetCDF: HDF error")

    monkeypatch.setattr(ensemble_file, "_define", full)
    with pytest.raises(OutputError, match=r"e\.nc cannot be written .* is kept"):
        trimtab.write_ensemble(small(), tmp_path / "e.nc")
    monkeypatch.undo()
    assert not (tmp_path / "e.nc").exists()
    trimtab.write_ensemble(small(), tmp_path / "e.nc")


class Explode(torch.nn.Module):
    """Leaves the finite numbers where the first component is above 3."""

    dtype = torch.float64

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return torch.where(u[:, :1] > 3.0, 1e30, 0.0).to(u.dtype).expand(u.shape).contiguous() ** 3


def test_a_blow_up_takes_no_other_member_with_it(tmp_path: Path) -> None:
    starts = np.array([[-8.0, -8.0, 27.0]])
    wide = trimtab.Perturbation("spectral", 0.6)
    given: dict[str, Any] = {"members": 9, "steps": 60, "every": 4, "group": 3, "perturbation": wide}
    with pytest.raises(BlowUpError, match=r"of 9 runs blew up, the first at step \d+ \(start 0, member \d+\)"):
        trimtab.write_ensemble(trimtab.Ensemble(opener(**SYSTEM), starts, corrections=[lambda spec: Explode()], **given),
                               tmp_path / "e.nc")
    free = trajectories(trimtab.Ensemble(opener(**SYSTEM), starts, **given))
    with xr.open_dataset(tmp_path / "e.nc") as file:
        failed = file.failed_step.values[0]
        assert 0 < (failed > 0).sum() < 9
        for member, step in enumerate(failed):
            states, until = file.u.values[0, member], -(-int(step) // 4) if step else 16
            assert np.array_equal(states[:until], free[0, member][:until]) or step
            assert np.isnan(states[until:]).all() and np.isfinite(states[:until]).all()


def test_a_displaced_analysis_is_as_far_off_as_the_members_are(runs: Path) -> None:
    distances = {}
    for displaced in (False, True):
        ensemble = trimtab.Ensemble.from_runs([runs / "exp.toml"], 10, steps=1, starts=60, checkpoint=None,
                                              perturbation=trimtab.Perturbation(displaced=displaced))
        states = by_start(ensemble)[:, :, 0]
        off = np.sqrt(np.mean((states.mean(1) - ensemble.starts.states) ** 2))
        distances[displaced] = off / states.std(axis=1, ddof=1).mean()
    assert distances[False] < 0.5 < 0.8 < distances[True] < 1.4


@pytest.mark.parametrize(("options", "sentence"), [
    ({"members": 0}, "members = 0 must be a whole number above 0"), ({"group": 2.5}, "group = 2.5 must be"),
    ({"every": 0}, "every = 0"), ({"steps": -4}, "steps = -4"), ({"steps": 7}, "multiple"), ({"seed": -1}, "seed"),
    ({"varied": {"viscosity": 0.1}}, "those that can are sigma, rho, beta"), ({"varied": {"rho": -1.0}}, "spread -1"),
    ({"perturbation": trimtab.Perturbation("bred")}, "states before the start"),
])
def test_mistakes_are_refused_before_anything_runs(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        small(**options)


def test_perturbations_out_of_range_are_refused(runs: Path) -> None:
    for arguments, sentence in ((("smooth",), "not one of"), (("bred", 0.0), "amplitude"), (("bred", 1.0, 1.0, 0), "cycles")):
        with pytest.raises(ConfigError, match=sentence):
            trimtab.Perturbation(*arguments)
    with pytest.raises(ConfigError, match="need one"):
        next(iter(small(perturbation=trimtab.Perturbation("climatology"))))
    with pytest.raises(ConfigError, match="such places"):
        trimtab.Ensemble.from_runs([runs / "run0"], 2, steps=10, starts=5000)


def test_from_a_file_and_with_the_solver_alone(runs: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.nc", tmp_path / "second.nc"
    assert main(["run", str(runs / "run0"), "--solver-only", "--steps", "10", "--out", str(first)]) == 0
    assert main(["ensemble", str(runs / "run0"), "--solver-only", "--members", "3", "--steps", "10", "--start", str(first),
                 "--perturb", "none", "--out", str(second)]) == 0
    with xr.open_dataset(first) as one, xr.open_dataset(second) as two:
        assert np.array_equal(two.u.values[0, 2, 0], one.u.values[-1, 0]) and two.attrs["correction"] == "none"
        assert two.start_time.values == pytest.approx([0.1])
    with pytest.raises(DataError, match="no truth to score"):
        from trimtab.evaluation.score_ensemble import score_ensemble

        score_ensemble(runs / "run0", second)


def test_starts_have_truth_ahead(runs: Path) -> None:
    ensemble = trimtab.Ensemble.from_runs([runs / "run0"], 2, steps=100, starts=6)
    places = ensemble.starts.places
    assert places[:, 0].tolist() == [0, 1] * 3 and places[:, 1].max() + 100 < 400
    with xr.open_dataset(next((runs / "cache").glob("*.nc"))) as file:
        for number, (run, snapshot) in enumerate(places):
            assert np.array_equal(ensemble.starts.states[number], file.u.values[3 + run, snapshot])  # runs 0 to 2 train, validate
