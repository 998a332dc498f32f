# SPDX-License-Identifier: MIT
"""The check that a user runs: its finite differences against the twin, its verdicts, its files."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import trimtab
from trimtab.__main__ import main
from trimtab.core.errors import ConfigError, InputError, SolverError
from trimtab.core.spec import Field
from trimtab.evaluation import gradcheck_report as gradient_report
from trimtab.evaluation.gradcheck_report import check_gradients
from trimtab.gradient.gradcheck.check import gradcheck

EXPERIMENT = """
name = "small"
[solver]
name = "lorenz63"
dt = 0.01
beta = 0.0
[network]
name = "MLP"
sizes = [3, 4, 3]
[reference]
solver = { beta = 2.6666666666666665 }
initial = [8.0, 0.0, 30.0]
perturbation = 1.0
spin_up = 2.0
snapshots = 80
training_runs = 1
validation_runs = 1
test_runs = 1
[training]
window = 4
batch = 16
epochs = 1
steps_per_epoch = 2
[score]
lyapunov_time = 1.1
"""


class BlackBox:
    """A solver that shows nothing but the protocol: no adjoint, and no name that a twin goes by."""

    def __init__(self, solver):
        self._solver, self.spec = solver, dataclasses.replace(solver.spec, solver="theirs")

    def advance(self, u0, steps, **options):
        return self._solver.advance(u0, steps, **options)

    def close(self):
        pass


def problem(solver, random_states, steps, members=2, dtype=torch.float64):
    """A correction, starts, and the truth of a solver whose correction is another."""
    torch.manual_seed(0)
    if len(solver.spec.grid) == 2:
        networks = [trimtab.networks.PeriodicCNN(channels=(1, 3, 1), kernel=3, activation="tanh") for _ in range(2)]
    else:
        networks = [trimtab.networks.MLP((solver.spec.size, 6, solver.spec.size)) for _ in range(2)]
    mine, other = (trimtab.Correction(one.to(dtype), solver.spec, input_scale=10.0, output_scale=3.0) for one in networks)
    u0 = random_states(solver, members)
    return mine, u0, solver.advance(u0, steps, correction=other).states[1:]


@pytest.mark.parametrize(("name", "dtype"), [("lorenz63", torch.float64), ("lorenz63", torch.float32),
                                             ("lorenz96", torch.float64), ("qg", torch.float64)])
def test_finite_differences_are_the_twins_gradient(name, dtype, open_solver, random_states):
    """Also for a float32 network: the differences are taken with its float64 copy, the exact gradient has its rounding."""
    solver = open_solver(name)
    correction, u0, truth = problem(solver, random_states, 8, dtype=dtype)
    table = gradcheck(solver, correction, u0, truth, [3, 8], gradients=["static"], directions=4)
    tolerance = 1e-5 if dtype == torch.float64 else 1e-4
    for steps, row in zip((3, 8), table.of("exact"), strict=True):
        measured, _, exact = table.derivatives[steps].T
        np.testing.assert_allclose(measured, exact, rtol=tolerance, atol=tolerance * np.abs(exact).max())
        assert row.error_along < tolerance and row.error < 10 * tolerance and abs(row.efficiency - 1) < tolerance
        assert row.cosine == pytest.approx(1.0, abs=1e-6) == row.cosine_exact
    for row in table.of("static"):
        assert row.cosine == pytest.approx(row.cosine_exact, abs=1e-5)
        assert row.uncertainty < 1e-3


def test_a_black_box_is_enough(open_solver, random_states):
    """With a direction for every parameter the estimate is exact; with few it is near."""
    solver = open_solver("lorenz63")
    correction, u0, truth = problem(solver, random_states, 30)
    number = sum(one.numel() for one in correction.parameters())
    known = {row.gradient: row.cosine_exact for row in gradcheck(solver, correction, u0, truth, [30]).rows}
    for directions, tolerance in ((number, 1e-6), (8, 0.05)):
        table = gradcheck(BlackBox(solver), correction, u0, truth, [30], directions=directions)
        assert [row.gradient for row in table.rows] == ["static", "ensemble"]
        for row in table.rows:
            assert np.isnan(row.cosine_exact)
            assert row.cosine == pytest.approx(known[row.gradient], abs=tolerance)


def test_the_sentence_where_static_is_right_and_where_it_is_wrong(open_solver):
    """Lorenz 63 without its damping: a few steps need no Jacobian, 0.7 Lyapunov times do."""
    solver, complete = open_solver("lorenz63"), open_solver("lorenz63", beta=8 / 3)
    u0 = complete.advance(np.array([[8.0, 0.0, 30.0]]), 6000).states[500::1000, 0]
    truth = complete.advance(u0, 80).states[1:]
    torch.manual_seed(0)
    network = trimtab.networks.MLP((3, 16, 3)).double()
    correction = trimtab.Correction(network, solver.spec, input_mean=(0.0, 0.0, 25.0), input_scale=15.0, output_scale=50.0)
    table = gradcheck(solver, correction, u0, truth, [2, 4], time_scale=1.1, time_name="Lyapunov times", directions=2)
    assert table.recommendation() == ("static keeps 95% of the steepest descent up to n = 4 (0.036 Lyapunov times), the longest "
                                      "window checked: use it.")
    table = gradcheck(solver, correction, u0, truth, [80, 20, 2], directions=2)
    assert [row.steps for row in table.of("static")] == [2, 20, 80]
    assert table.recommendation() == ("static keeps 95% of the steepest descent up to n = 2; beyond, use ensemble, which does "
                                      "up to n = 80, at 4 times the cost.")
    assert gradcheck(solver, correction, u0, truth, [2, 20], gradients=["static"], directions=2).recommendation() == (
        "static keeps 95% of the steepest descent up to n = 2; beyond, no variant checked does: stay below, or check "
        "ensemble, too.")
    table = gradcheck(solver, correction, u0, truth, [20], gradients=["static"], directions=2)
    assert table.recommendation().startswith("No variant keeps 95% of the steepest descent even at n = 20; the best, static,")
    rounded = dataclasses.replace(table, rows=tuple(dataclasses.replace(row, uncertainty=0.3) for row in table.rows))
    assert rounded.recommendation().startswith("Rounding hides the gradient here: at n = 20 the finite differences that it is "
                                               "held against are uncertain by 30% themselves")
    # Of two at one price that which reaches further is named, though the other comes first.
    table = gradcheck(solver, correction, u0, truth, [2, 20], gradients=["none", "static"], directions=2)
    further = [dataclasses.replace(row, cosine=0.5 if (row.gradient, row.steps) == ("none", 20) else 1.0) for row in table.rows]
    assert dataclasses.replace(table, rows=tuple(further)).recommendation().startswith("static keeps 95% of the steepest descent "
                                                                                       "up to n = 20, the longest")
    damped = [dataclasses.replace(row, cosine=1.0, efficiency=1 / 15) for row in table.rows]
    assert dataclasses.replace(table, rows=tuple(damped)).recommendation() == (
        "none keeps 95% of the steepest descent up to n = 20 (there 15 times too long, which Adam and clipping forgive, a plain "
        "descent does not), the longest window checked: use it.")
    unsure = [dataclasses.replace(row, uncertainty=0.3 if row.steps == 20 else 0.0, cosine=1.0) for row in table.rows]
    assert dataclasses.replace(table, rows=tuple(unsure)).recommendation() == (
        "none keeps 95% of the steepest descent up to n = 2; beyond, the finite differences are uncertain themselves, and "
        "nothing is said.")


def test_a_loss_that_does_not_move_says_so(open_solver):
    solver = open_solver("lorenz63")
    correction = trimtab.Correction(trimtab.networks.MLP((3, 4, 3)).double(), solver.spec, output_scale=1e-40)
    u0 = np.array([[1.0, 2.0, 20.0]])
    sentence = gradcheck(solver, correction, u0, np.zeros((2, 1, 3)), [2]).recommendation()
    assert sentence.startswith("Rounding hides the gradient here: at n = 2 the loss does not move with the parameters, so that")


def test_costs_are_counted(open_solver, random_states):
    solver = open_solver("lorenz63")
    correction, u0, truth = problem(solver, random_states, 6, members=4)
    gradients = ["static", trimtab.EnsembleEGA(2, aim=0), trimtab.EnsembleEGA(3)]
    rows = gradcheck(solver, correction, u0, truth, [6], gradients=gradients, directions=1, stride=1).rows
    assert [row.gradient for row in rows] == ["static", "ensemble", "ensemble 2", "exact"]
    run = 4 * 6  # members times steps; RK4 calls the network four times, the vector-Jacobian product once
    assert [row.solver_steps for row in rows[:3]] == [run, 3 * run, 4 * run]
    assert [row.network_states for row in rows[:3]] == [5 * run, 13 * run, 17 * run]


def test_sparse_targets_and_members_that_blow_up(open_solver, random_states):
    solver = open_solver("lorenz63")
    correction, u0, truth = problem(solver, random_states, 9, members=3)
    whole = gradcheck(solver, correction, u0, truth[2::3], [3, 7], leads=[3, 6, 9], directions=2)
    bad = np.concatenate([u0, [[1e90, 1e90, 1e90]]])
    sparse = np.concatenate([truth[2::3], np.ones((3, 1, 3))], axis=1)
    left = gradcheck(solver, correction, bad, sparse, [3, 7], leads=[3, 6, 9], directions=2)
    assert [row.cosine for row in left.rows] == pytest.approx([row.cosine for row in whole.rows], rel=1e-9)
    with pytest.raises(SolverError, match="Every member blew up within 3 outer steps"):
        gradcheck(solver, correction, bad[3:], sparse[:, 3:], [3], leads=[3, 6, 9])


def test_the_network_is_left_as_it_was(open_solver, random_states):
    solver = open_solver("lorenz63")
    correction, u0, truth = problem(solver, random_states, 4, dtype=torch.float32)
    before = {name: values.clone() for name, values in correction.state_dict().items()}
    gradcheck(solver, correction, u0, truth, [4], directions=1)
    after = correction.state_dict()
    assert all(torch.equal(after[name], values) and after[name].dtype == values.dtype for name, values in before.items())
    assert all(one.grad is None for one in correction.parameters())


@pytest.mark.parametrize(("changes", "error", "sentence"), [
    ({"windows": []}, ConfigError, "must lie between"),
    ({"windows": [5]}, ConfigError, "must lie between the first and the last lead time of the targets, 1 and 4"),
    ({"directions": 0}, ConfigError, "at least one direction"),
    ({"tolerance": 1.0}, ConfigError, "a tolerance between 0 and 1"),
    ({"gradients": ["statik"]}, ConfigError, "Unknown gradient 'statik'"),
    ({"leads": [1, 2]}, InputError, "The targets have shape"),
    ({"leads": [4, 3, 2, 1]}, ConfigError, "must rise from 0 or more"),
    ({"windows": 4}, ConfigError, "The windows must be a list of whole numbers"),
    ({"windows": [2.5]}, ConfigError, "The windows must be a list of whole numbers"),
    ({"gradients": []}, ConfigError, "a list of one variant or more"),
    ({"gradients": "static"}, ConfigError, "a list of one variant or more"),
    ({"directions": 2.5}, ConfigError, "at least one direction"),
    ({"time_scale": float("nan")}, ConfigError, "a number of at least 0"),
    ({"targets": np.full((4, 2, 3), np.nan)}, InputError, "The targets must be finite"),
    ({"targets": None}, InputError, "The targets must be an array of numbers, not NoneType"),
    ({"components": [3]}, InputError, "whole numbers of 0 to 2"),
    ({"correction": lambda u: u}, ConfigError, "must be a torch module, not function"),
])
def test_refusals(changes, error, sentence, open_solver, random_states):
    solver = open_solver("lorenz63")
    correction, u0, truth = problem(solver, random_states, 4)
    arguments = {"correction": correction, "targets": truth, "windows": [4], **changes}
    with pytest.raises(error, match=sentence):
        gradcheck(solver, starts=u0, **arguments)
    with pytest.raises(ConfigError, match="no trainable parameter"):
        gradcheck(solver, correction.requires_grad_(False), u0, truth, [4])


def test_the_command_on_an_experiment_and_on_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "small.toml").write_text(EXPERIMENT)
    command = ["gradcheck", "small.toml", "--windows", "2,6", "--gradients", "static,ensemble", "--directions", "2"]
    assert main([*command, "--out", "checked"]) == 0
    printed = capsys.readouterr().out
    assert "static keeps 95% of the steepest descent" in printed and "Lyapunov times" in printed
    assert "The network is untrained" in printed
    with open("checked/gradcheck.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["steps"], row["gradient"]) for row in rows] == [
        (n, name) for n in ("2", "6") for name in ("static", "ensemble", "exact")]
    assert float(rows[0]["scaled_time"]) == pytest.approx(0.02 / 1.1)
    assert (tmp_path / "checked" / "gradcheck.txt").read_text().strip() in " ".join(printed.split())
    assert (tmp_path / "checked" / "gradcheck.png").read_bytes().startswith(b"\x89PNG")

    trimtab.Trainer("small.toml", "run").fit()
    assert main(["gradcheck", "run", "--directions", "1"]) == 0
    with open("run/gradcheck.csv", newline="") as file:
        assert [row["steps"] for row in csv.DictReader(file)][::3] == ["2", "4", "8", "16"]
    assert "The network is untrained" not in capsys.readouterr().out
    assert main(["gradcheck", "run", "--set", "training.window=3"]) == 2
    assert "its experiment and network cannot be changed" in capsys.readouterr().err
    (tmp_path / "run" / "best.pt").unlink()
    assert main(["gradcheck", "run"]) == 2
    assert "has no best.pt yet" in capsys.readouterr().err
    assert main(["gradcheck", "small.toml", "--starts", "0"]) == 2
    assert main([*command, "--fit", "40", "--out", "fitted"]) == 0
    assert (tmp_path / "fitted" / "gradcheck.csv").read_text() != (tmp_path / "checked" / "gradcheck.csv").read_text()
    assert main(["gradcheck", "small.toml", "--windows", "500"]) == 2
    assert "too few" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["gradcheck", "small.toml", "--windows", "0,5"])


class InUnits:
    """Lorenz 63 as a temperature and a wind of two components, in other units than its own."""

    def __init__(self, pascal=1e5, **options):
        self._solver = trimtab.open_solver("lorenz63", dt=0.01, **{"beta": 0.0, **options})
        self.factors = np.array([1.0, pascal, pascal])
        fields = (Field("t", "temperature", "K", ("a",), (1,)), Field("p", "pressures", "Pa", ("b",), (2,)))
        self.spec = dataclasses.replace(self._solver.spec, solver="theirs", fields=fields)

    def advance(self, u0, steps, *, correction=None, **options):
        factors = torch.from_numpy(self.factors)
        own = None if correction is None else InOther(correction, factors)
        window = self._solver.advance(np.asarray(u0) / self.factors, steps, correction=own, **options)
        return dataclasses.replace(window, states=window.states * self.factors)

    def close(self):
        self._solver.close()


class InOther(torch.nn.Module):
    """A correction of states in other units."""

    def __init__(self, correction, factors):
        super().__init__()
        self.correction, self.factors = correction, factors

    def forward(self, u):
        return self.correction(u * self.factors) / self.factors


def test_the_answer_does_not_depend_on_the_unit():
    """Kelvin and pascal, or kelvin and gigapascal: each field counts in its own standard deviation; divided by 1, one is all."""
    torch.manual_seed(0)
    own = trimtab.Correction(trimtab.networks.MLP((3, 6, 3)).double(), trimtab.open_solver("lorenz63", dt=0.01).spec,
                             input_mean=(0.0, 0.0, 25.0), input_scale=15.0, output_scale=50.0)
    u0 = trimtab.open_solver("lorenz63", dt=0.01).advance(np.array([[8.0, 0.0, 30.0]]), 3000).states[500::1000, 0]
    found = {}
    for pascal in (1e5, 1e-4):
        solver, complete = InUnits(pascal), InUnits(pascal, beta=8 / 3)
        correction, starts = InOther(own, torch.from_numpy(1 / solver.factors)), u0 * solver.factors
        truth = complete.advance(starts, 30).states[1:]
        for name, scale in (("own", None), ("none", torch.ones(3, dtype=torch.float64))):
            found[pascal, name] = gradcheck(solver, correction, starts, truth, [30], directions=2, scale=scale).of("static")[0]
    assert found[1e5, "own"].cosine == pytest.approx(found[1e-4, "own"].cosine, rel=1e-6)
    assert abs(found[1e5, "none"].cosine - found[1e-4, "none"].cosine) > 1e-3
    for bad in (torch.ones(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)):
        with pytest.raises(InputError, match="a positive number for each of the 3 numbers"):
            gradcheck(solver, correction, starts, truth, [30], scale=bad)


def test_the_command_divides_as_the_training_does(tmp_path, monkeypatch):
    """Field by field, by the deviation over the training runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    text = EXPERIMENT.replace('name = "lorenz63"\ndt = 0.01\nbeta = 0.0', f'name = "{__name__.split(".")[-1]}:InUnits"')
    (tmp_path / "units.toml").write_text(text.replace("{ beta =", "{ pascal = 1e5, beta =").replace(
        "initial = [8.0, 0.0, 30.0]", "initial = [8.0, 0.0, 3e6]"))
    given = []
    monkeypatch.setattr(gradient_report, "gradcheck", lambda *args, **options: (
        given.append(options["scale"]), gradcheck(*args, **options))[1])
    check_gradients("units.toml", "out", windows=[4], gradients=["static"], directions=1)
    trainer = trimtab.Trainer("units.toml", "run")
    trainer.fit()
    torch.testing.assert_close(given[0], trainer._online().scale, rtol=0, atol=0)
    assert given[0][1] == given[0][2] > 1e4 * given[0][0]
