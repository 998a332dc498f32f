# SPDX-License-Identifier: MIT
"""One mistake, one bad row: what stands behind it is not judged; whose fault an error is; on how many cores a time holds."""

from __future__ import annotations

import os
import re
import sys

import pytest
import torch

from helpers.blocks import build, mpirun, needs_mpi
from trimtab.core.errors import ConfigError
from trimtab.core.random_fields import smooth_waves
from trimtab.coupling import report as doctor
from trimtab.coupling.blame import finding_of
from trimtab.coupling.checks.start import check_again, check_runs
from trimtab.coupling.checks.times import check_times
from trimtab.coupling.checks.truth import OPENING
from trimtab.coupling.checks.weight import check_weight
from trimtab.coupling.finding import START, Finding, in_unit
from trimtab.coupling.harness import Bench
from trimtab.coupling.report import check_coupling, spoken_lines

QUICK = ("description", OPENING, "times", START, "random numbers", "restart", "truth", "runs", "training", "cost")
DIFFERENT = "solver = {drag = 2.0}"


@pytest.fixture
def table(faulty, monkeypatch):
    """Chosen rows of the whole doctor, by name."""

    def run(fault: str, options: str = "", names: tuple[str, ...] = QUICK, debug: bool = False, **sections: str,
            ) -> dict[str, Finding]:
        monkeypatch.setattr(doctor, "CHECKS", names)
        path = faulty.folder / "case.toml"
        path.write_text(faulty.toml(fault, options, **sections))
        try:
            return {row.check: row for row in check_coupling(path, debug=debug)}
        finally:
            path.unlink()

    return run


def bad(rows: dict[str, Finding]) -> list[str]:
    return [name for name, row in rows.items() if row.state == "bad"]


@pytest.mark.parametrize(("fault", "cause"), [("forgets", "restart"), ("draws", "random numbers")])
def test_what_stands_behind_a_bad_restart_is_not_judged(table, fault, cause):
    rows = table(fault, reference=DIFFERENT)
    assert bad(rows) == [cause], rows
    for name in ("truth", "truth, reach", "runs", "training", "training, gradient"):
        assert rows[name] == Finding(name, "note", f"not checked, see {cause}")
    assert f"what a training takes: not checked, see {cause}" in rows["cost"].found


def test_without_a_bad_restart_all_of_them_are_judged(table):
    rows = table("none", reference=DIFFERENT)
    assert not bad(rows) and not [row for row in rows.values() if "not checked" in row.found], rows
    assert re.search(r"the training of this TOML about [\d.]+ (s|min)", rows["cost"].found)


def test_a_code_whose_rollouts_begin_alike_is_judged_all_the_same(table):
    rows = table("forgets", 'isolation = "fork"', names=("restart", "truth"), reference=DIFFERENT)
    assert rows["restart"].state == "note" and "not checked" not in rows["truth"].found, rows


@pytest.mark.parametrize(("truth", "said"), [
    ("drga = 0.2", "drga"),  # an option that the adapter does not know
    ("fault = 28", "Cannot match namelist object name drga"),
])
def test_a_truth_that_cannot_be_opened_is_one_bad_row(table, truth, said):
    rows = table("none", reference=f"solver = {{{truth}}}")
    assert bad(rows) == ["truth"] and said in rows["truth"].found, rows
    assert rows["truth"].remedy == "see [reference] solver"
    for name in ("times", "runs", "training", "training, gradient"):
        assert rows[name] == Finding(name, "note", "not checked, see truth")
    assert rows["restart"].state == "ok" and "not checked, see truth" in rows["cost"].found


def test_a_truth_that_ends_is_opened_in_a_process_of_its_own(table):
    """Also where the solver itself is asked to run in this process."""
    rows = table("none", 'isolation = "none"', names=(OPENING, START), reference="solver = {fault = 28}")
    assert bad(rows) == ["truth"] and "Cannot match namelist object name drga" in rows["truth"].found
    assert rows[START].state == "ok"


def test_times_that_do_not_fit_are_one_bad_row(table):
    rows = table("none", names=(OPENING, "times", "truth", "training"), reference=f"{DIFFERENT}\ninterval = 0.0123")
    assert bad(rows) == ["times"] and rows["truth"].found == rows["training"].found == "not checked, see times", rows


@pytest.mark.parametrize(("variables", "said"), [({}, "on one core"), ({"TRIMTAB_THREADS": "2"}, "on 2 threads"),
                                                 ({"OMP_NUM_THREADS": "2"}, "on 2 threads")])
def test_a_time_is_of_one_thread_unless_others_are_asked_for(table, monkeypatch, variables, said):
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core")
    for name in ("TRIMTAB_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = table("none", names=(START, "cost"))["cost"].found
    assert f"with the network {said};" in found and found.count(said) == 2, found


def raised(call, *arguments) -> Exception:
    """What a call raises, its traceback from there on."""
    try:
        call(*arguments)
    except Exception as error:
        return error.with_traceback(error.__traceback__.tb_next if error.__traceback__ else None)
    raise AssertionError("it raised nothing")


def test_a_fault_of_trimtab_is_called_one():
    row = finding_of("weight", raised(smooth_waves, "shape", None))
    assert row.state == "bad" and row.found.startswith("a fault of trimtab, not of your code: "), row
    assert re.search(r"Error: .*random_fields\.py, line \d+\)$", row.found) and "--debug" in row.remedy
    assert finding_of("weight", ConfigError("Say it.")) == Finding("weight", "bad", "Say it.", "mend that, then check again")
    row = finding_of("files", raised(os.listdir, "/nowhere/at all"))
    assert row.found.startswith("the system refused something: FileNotFoundError"), row
    row = finding_of("cost", raised(torch.nn.Linear(2, 2), torch.zeros(3)))
    assert row.found.startswith("torch refused something, of your network or of trimtab: RuntimeError"), row


def test_an_error_in_a_network_is_its_authors_and_debug_shows_where(table, faulty, capfd):
    text = (faulty.folder / "faulty_network.py").read_text()
    name = re.search(r"def forward\(self, (\w+).*\n", text)
    broken = text.replace(name[0], f"{name[0]}        if {name[1]}.any():\n            raise ValueError('no such law')\n")
    (faulty.folder / "broken_network.py").write_text(broken)
    toml = faulty.toml("none")
    network = re.search(r'^name = "(faulty_network[^"]*)', toml, re.MULTILINE)[1]
    path = faulty.folder / "broken.toml"
    path.write_text(toml.replace(network, network.replace("faulty_", "broken_")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "CHECKS", (START, "gradient"))
        rows = {row.check: row for row in check_coupling(path, debug=True)}
    row = rows["gradient"]
    assert row.state == "bad" and row.found.startswith("an error in Python code of yours: ValueError: no such law (/"), rows
    assert "broken_network.py, line " in row.found
    printed = capfd.readouterr().err
    assert "Traceback (most recent call last)" in printed and "ValueError: no such law" in printed


def test_one_factor_before_every_output_is_first_the_clocks(sick):
    (row,), _ = check_weight(sick("twice"))
    assert row.remedy.startswith("first see the clock: what trimtab_clock was given is not the length of a step, where a step is "
                                 "2 times as long as that; else it acts 2 times"), row
    for other in ("uneven", "cut", "none"):  # by component, and weights of 1
        assert all("clock" not in one.remedy for one in check_weight(sick(other))[0])


def test_words(sick, monkeypatch):
    assert in_unit(0.1, "1") == "0.1" and in_unit(0.1, "s") == "0.1 s"
    (row,) = check_times(sick())
    assert row.found.startswith("dt = 0.01 s (")
    (row,) = check_runs(sick("none", reference="perturbation = 0.5\nspin_up = 0.5"))
    assert "with spin_up = 0.5 s; they count as different from 0.1 on" in row.found, row
    monkeypatch.setattr(Bench, "calls_mpi", True)
    (row,) = check_again(sick())
    assert row.state == "note" and "cmp" in row.remedy


ABORT = """ the flow is too fast
--------------------------------------------------------------------------
MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD
with errorcode 7.

NOTE: invoking MPI_ABORT causes Open MPI to kill all MPI processes.
You may or may not see output from other processes, depending on
exactly when Open MPI kills them.
--------------------------------------------------------------------------
"""


def test_what_open_mpi_says_is_no_last_word():
    assert spoken_lines(ABORT) == ["the flow is too fast", "MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD",
                                   "with errorcode 7."]


@needs_mpi
def test_a_forgotten_halo_is_one_bad_row_on_two_ranks(tmp_path):
    """The code leaves its halo filled for the next step, and nobody fills it after a restart."""
    folder = build(tmp_path / "blocks", blocks={"    call halo(t)\n    call tendency(t)\n": "    call tendency(t)\n",
                                                "    call check()\n": "    call check()\n    call halo(t)\n",
                                                "  end subroutine setup": "    call halo(t)\n  end subroutine setup"})
    code, output = mpirun(2, folder, sys.executable, "-m", "trimtab", "couple", "check", "blocks.toml", "--keep")
    said = re.sub(r"\s+", " ", output)
    assert code == 1 and "1 bad" in said and "restart bad" in said, output
    for name in ("one rank", "network", "gradient", "cost"):
        assert f"{name} note not checked, see restart" in said, output
