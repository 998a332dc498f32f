# SPDX-License-Identifier: MIT
"""What the doctor's rows say: names, sizes, remedies that fit the code, and what they leave alone."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import trimtab
from trimtab.cli import terminal
from trimtab.cli.tables import print_findings
from trimtab.config.experiment import load_experiment, parse_experiment
from trimtab.core.errors import ConfigError
from trimtab.corrections.slot_weights import SlotWeight, write_components
from trimtab.coupling import report as doctor
from trimtab.coupling.checks import basic as checks
from trimtab.coupling.checks.restart import check_long_restart, check_restart
from trimtab.coupling.checks.weight import check_weight
from trimtab.coupling.finding import START, Finding
from trimtab.coupling.harness import Bench
from trimtab.coupling.weight_line import by_hand, compare_weight, write_weight
from trimtab.data.reference import make_reference
from trimtab.data.windows import Targets
from trimtab.training.offline import fit_normalisation


@pytest.fixture
def table(faulty, monkeypatch):
    """Chosen rows of the whole doctor, by name, and the TOML that he leaves."""

    def run(names: tuple[str, ...], *one: str, **more: str) -> tuple[dict[str, Finding], str]:
        monkeypatch.setattr(doctor, "CHECKS", names)
        path = faulty.folder / "case.toml"
        path.write_text(faulty.toml(*one, **more))
        try:
            return {row.check: row for row in doctor.check_coupling(path)}, path.read_text()
        finally:
            path.unlink()

    return run


def test_components_that_never_answer_are_left_out_and_counted(sick):
    (row,), weight = check_weight(sick("cut"))
    assert weight == {} and "moves u by 1 c h" in row.found and "16 of 24 components do not answer" in row.found


def test_weights_by_component_are_measured_and_used(sick):
    bench = sick("uneven")
    (row,), weight = check_weight(bench)
    assert "from 1 to 2 c h" in row.found and weight["components"] == "faulty-weight.npz"
    of = SlotWeight(bench.spec, weight).of("u", 1, True)["u"]
    assert torch.equal(torch.as_tensor(of), torch.tensor([2.0] * 8 + [1.0] * 16, dtype=torch.float64))
    one_step, _ = checks.check_gradient(bench, weight)
    assert one_step.state == "ok" and float(re.search(r"error ([\d.e-]+)", one_step.found)[1]) < 1e-6
    plain = {key: value for key, value in weight.items() if key != "components"}
    assert float(re.search(r"error ([\d.e-]+)", checks.check_gradient(bench, plain)[0].found)[1]) > 0.1
    wanted = SlotWeight(bench.spec, weight).outputs(np.ones((1, bench.spec.size)), 1)
    assert np.array_equal(wanted[0], [0.5] * 8 + [1.0] * 16)


def test_weights_by_component_that_do_not_fit_are_refused(sick, tmp_path):
    spec, path = sick().spec, tmp_path / "weight.npz"
    for arrays in ({"q/steady": np.ones(24)}, {"u/steady": np.ones(23)}, {"u/step/q": np.ones(24)},
                   {"u/steady": np.full(24, np.nan)}, {"u/other": np.ones(24)}):
        write_components(path, arrays)
        with pytest.raises(ConfigError, match="measure them anew"):
            SlotWeight(spec, {"stride": 1, "components": str(path)})
    with pytest.raises(ConfigError, match="cannot be read"):
        SlotWeight(spec, {"components": str(tmp_path / "nowhere.npz")})
    with pytest.raises(ConfigError, match=r"steady \(output = number\)"):
        SlotWeight(spec, {"steady": {"u": "much"}})


BY_HAND = "weight = {stride = 1, steady = {u = 1.0}, step = {u = {u = 1.0}}}  # mine"


def test_a_weight_by_hand_is_used_compared_and_kept(table, faulty):
    rows, left = table((START, "weight", "gradient"), "twice", BY_HAND)
    assert left == faulty.toml("twice", BY_HAND)
    row = rows["weight in TOML"]
    assert row.state == "note" and "steady of u is 1, measured 2; step of u in u is 1, measured 2" in row.found
    assert rows["gradient, one step"].state == "note" and "error 0.5" in rows["gradient, one step"].found
    measured = {"stride": 1, "steady": {"u": 2.0}, "step": {"u": {"u": 2.0}}}
    (row,) = compare_weight(faulty.folder / "case.toml", measured, {**measured, "stride": 2}, True, hand=True)
    assert row == Finding("weight in TOML", "ok", "written by hand, and kept: as measured")
    (row,) = compare_weight(faulty.folder / "case.toml", measured, {}, True, hand=True, untold=["u"])
    assert row.state == "note" and "not compared, as it cannot be told: u" in row.found


def test_a_measured_weight_is_replaced_and_read_back(table):
    old = "weight = {stride = 1, steady = {u = 7.0}, step = {u = {u = 7.0}}}  # measured by trimtab couple check"
    rows, left = table((START, "weight"), "twice", old)
    assert "written" in rows["weight in TOML"].found
    assert tomllib.loads(left)["solver"]["weight"] == {"stride": 1, "steady": {"u": 2.0}, "step": {"u": {"u": 2.0}}}


def test_no_weight_is_written_of_an_output_that_does_not_arrive(sick, tmp_path):
    found, weight = check_weight(sick("unread"))
    seen = doctor.Seen("weight", findings=found, answer={"weight": weight})
    (row,) = doctor.judge_weight(tmp_path / "nowhere.toml", {"steady": {"u": 7.0}}, seen, True, False)
    assert row == Finding("weight in TOML", "note", "not checked, see weight of u")


@pytest.mark.parametrize("lines", [BY_HAND, "weight.steady.u = 2.0", "[solver.weight]\nsteady = {u = 2.0}"])
def test_whose_a_weight_is(tmp_path, lines):
    path = tmp_path / "case.toml"
    path.write_text(f"[solver]\nname = \"faulty\"\n library = 'libfaulty.so'\n{lines}\n")
    believed = tomllib.loads(path.read_text())["solver"]["weight"]
    before = path.read_text()
    assert by_hand(path, believed) and not by_hand(path, {})
    compare_weight(path, believed, {"stride": 1, "steady": {"u": 3.0}, "step": {}}, True, hand=True)
    assert path.read_text() == before


def test_a_weight_that_cannot_be_written_is_said(tmp_path):
    """A TOML that says [solver] as dotted keys: nothing is written there, and that is bad."""
    path, weight = tmp_path / "case.toml", {"stride": 1, "steady": {"u": 2.0}, "step": {"u": {"u": 2.0}}}
    path.write_text("solver.name = \"faulty\"\nsolver.library = \"libfaulty.so\"\n")
    assert not write_weight(path, weight)
    (row,) = compare_weight(path, {}, weight, True)
    assert row.state == "bad" and "write under [solver]: weight = {stride = 1" in row.remedy
    path.write_text("[solver]\nname = \"faulty\"\n\n[score]\nleads = [1]\n")  # no line of a library to stand behind
    assert write_weight(path, weight) and load_experiment(path).solver.options["weight"] == weight


def test_a_restart_says_how_much_which_and_the_guilty_first(sick):
    (row,) = check_restart(sick("forgets"))
    assert re.search(r"differs?: u by [\d.e-]+ \(values up to 1\.\d+\)", row.found)
    assert "not put back are: old (module faulty) (and without effect on these steps: " in row.found
    assert row.found.endswith("and 7 more, 12 in all)") and "isolation = \"fork\"" in row.remedy


def test_a_restart_from_the_codes_own_start_is_tried_after_other_runs(sick, faulty):
    (row,) = check_restart(sick("levels"))
    assert "from the code's own start (n = 0)" in row.found and "level (module faulty)" in row.found
    options = {"library": str(faulty.folder / "libfaulty.so"), "isolation": "none", "fault": faulty.faults["levels"]}
    with trimtab.open_solver("faulty", **options) as solver:  # the row is right: this is what a training would meet
        start = solver.initial_state()
        first = solver.advance(start, 6).states
        solver.advance(first[4], 1)
        assert not np.array_equal(solver.advance(start, 6).states, first)


def test_remedies_fit_a_code_on_ranks(sick, monkeypatch):
    monkeypatch.setattr(Bench, "calls_mpi", True)
    monkeypatch.setattr(Bench, "divided", True)
    (row,) = check_restart(sick("forgets"))
    assert row.remedy.startswith("first see the halo") and "end of trimtab_set_state" in row.remedy
    assert "fork" not in row.remedy and "work arrays among them are harmless" in row.found
    (memory,) = checks.check_memory(sick("leaks"))
    assert memory.state == "note" and "isolation" not in memory.remedy


def test_what_a_restart_spoils_is_not_measured(sick):
    bench = sick("forgets")
    (row,), weight = check_weight(bench)
    assert weight == {} and "cannot be told: two runs" in row.found and row.remedy == "see restart and random numbers"
    assert all(one.found.startswith("cannot be told") for one in checks.check_gradient(bench, {}))


def test_the_long_restart_left_out_is_a_note(sick):
    bench = sick()
    bench.longest = 8
    (row,) = check_long_restart(bench)
    assert row.state == "note" and "left out" in row.found


def test_signed_zeros_are_no_difference(sick):
    bench = sick("signed")
    (row,) = checks.check_empty_slot(bench)
    assert row.state == "ok" and "the same numbers after 3 steps but for the sign of zeros in v" in row.found
    zeros, empty = (bench.run(bench.state, 1, noop=noop)[-1] for noop in (True, False))
    assert bench.differing(zeros, empty) == ["v"] and bench.unequal(zeros, empty) == []
    (row,) = checks.check_empty_slot(sick("sets"))
    assert re.search(r"changes in 3 steps u by [\d.e-]+ \(values up to", row.found)


def test_the_remedy_of_a_wrong_gradient_fits_its_calls(sick):
    bench = sick("stages")
    row, _ = checks.check_gradient(bench, {})
    assert row.remedy.startswith("2 calls a step")
    row, _ = checks.check_gradient(sick("twice"), {})  # without the weight
    assert row.state == "note" and row.remedy.startswith("one call a step is made")
    assert "error 0.5 of the gradient's length" in row.found


def test_real64_is_not_told_to_take_real64(sick, monkeypatch):
    monkeypatch.setattr(checks, "SURE", 1e-30)
    rows = checks.check_gradient(sick(), {})
    assert all(row.state == "note" and "real64" not in row.remedy and "limiter" in row.remedy for row in rows)


def test_a_push_that_the_code_takes_back_is_told_as_that(sick):
    (row,), _ = check_weight(sick("clamps"))
    assert "moves it no further in 16 steps (the code damps, clamps or sets the field)" in row.found
    assert not re.search(r"\(-?0 and -?0 c", row.found)


def test_a_blow_up_is_pushed_with_noise(table):
    """This code takes the mean out of its tendency: a push alike everywhere it does not feel."""
    rows, _ = table((START, "blow-up"), "spectral")
    assert rows["blow-up"].state == "ok" and "FAULTY: the flow is too fast" in rows["blow-up"].found


def test_a_cost_is_no_zero(sick):
    (row,) = checks.check_cost(sick())
    assert not re.search(r"(?<![\d.])0 µs", row.found)
    assert re.match(r"a step (less than )?[\d.]+ µs with an empty slot", row.found)
    assert checks._told(-1.0, 0.03) == "less than 0.03 µs" and checks._told(0.3, 0.03) == "0.3 µs"


@pytest.mark.parametrize("launcher", [False, True])
def test_the_table_is_plain_and_wide_in_a_file_and_under_a_launcher(capsys, monkeypatch, launcher):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    if launcher:
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
        monkeypatch.setattr(terminal.sys.stdout, "isatty", lambda: True)
    print_findings([Finding("restart", "bad", "found " * 30, "remedy " * 20)])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and max(map(len, printed.splitlines())) == 150


def reference(faulty, tmp_path: Path, monkeypatch, solver: str, truth: str):
    """The experiment, its open solver, and the targets of its reference run."""
    monkeypatch.chdir(faulty.folder)
    monkeypatch.syspath_prepend(str(faulty.folder))
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    text = faulty.toml("late", f'isolation = "none"\n{solver}', reference=f"solver = {{{truth}}}\nsnapshots = 30")
    experiment = parse_experiment(text, "late")
    opened = trimtab.open_solver(experiment.solver.name, **experiment.solver.options)
    path = make_reference(experiment, opened.spec)
    return experiment, opened, Targets(path, opened.spec, experiment.reference, opened.spec.dt)


def test_a_difference_that_comes_a_step_late_is_seen(faulty, tmp_path, monkeypatch, caplog):
    experiment, solver, targets = reference(faulty, tmp_path, monkeypatch, "drag = 0.0", "drag = 1.0")
    correction = trimtab.SlotCorrection(nn.Linear(24, 24), solver.spec)
    with solver, caplog.at_level("WARNING"):
        fit_normalisation(correction, solver, targets, experiment.training)
    assert "the two part after 2 outer steps, in u" in caplog.text and "training.stride of 2" in caplog.text
    targets.close()


def test_the_truth_itself_is_refused_after_a_whole_window(faulty, tmp_path, monkeypatch):
    experiment, solver, targets = reference(faulty, tmp_path, monkeypatch, "drag = 1.0", "drag = 1.0")
    with solver, pytest.raises(ConfigError, match="bit for bit, over 5 outer steps from 16 states and in all fields, the "):
        fit_normalisation(trimtab.SlotCorrection(nn.Linear(24, 24), solver.spec), solver, targets, experiment.training)
    targets.close()
