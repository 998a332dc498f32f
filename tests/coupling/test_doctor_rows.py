# SPDX-License-Identifier: MIT
"""Every row of the doctor's table on a code in which it must be bad (or a note), and on one whose mistake is a neighbour's: one
small code, tests/codes/faulty, one build, each mistake an option."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trimtab.core.errors import TrimtabError
from trimtab.coupling.checks import basic as checks
from trimtab.coupling.checks.cold_start import check_cold
from trimtab.coupling.checks.restart import check_long_restart, check_restart
from trimtab.coupling.checks.start import check_again, check_random, check_runs, check_start
from trimtab.coupling.checks.truth import OPENING
from trimtab.coupling.checks.weight import check_weight
from trimtab.coupling.finding import START, Finding
from trimtab.coupling.harness import Bench
from trimtab.coupling.report import CHECKS


def weight(bench: Bench) -> list[Finding]:
    return check_weight(bench)[0]


def gradient(bench: Bench) -> list[Finding]:
    return checks.check_gradient(bench, check_weight(bench)[1])


ROWS = [  # check, row, what is found in which code (with what in its TOML), and the code that must not have it
    (checks.check_description, "slot", "bad", "no_slot", {}, "uncalled", {}),
    (check_start, START, "bad", "starts_badly", {}, "ends", {}),
    (check_again, "opened twice", "note", "unseeded", {}, "draws", {}),
    (checks.check_files, "files", "note", "opens", {}, "talks", {}),
    (checks.check_files, "files, size", "note", "talks", {}, "opens", {}),
    (check_random, "random numbers", "bad", "draws", {}, "unseeded", {}),
    (checks.check_empty_slot, "empty slot", "bad", "sets", {}, "signed", {}),
    (checks.check_empty_slot, "empty slot", "note", "forgets", {}, "twice", {}),
    (check_restart, "restart", "bad", "forgets", {}, "seldom", {}),
    (check_restart, "restart", "bad", "halo", {}, "cut", {}),
    (check_restart, "restart", "bad", "levels", {}, "stages", {}),
    (check_restart, "restart, memory", "note", "seldom", {}, "none", {}),
    (check_long_restart, "restart, long", "bad", "seldom", {}, "opens", {}),
    (check_cold, "cold start", "note", "late", {"options": "drag = 2.0", "reference": "hidden = {pending=0, given=0, counter=0}"},
     "cut", {"reference": "hidden = {pending=0, given=0, counter=0}"}),
    (weight, "weight", "bad", "uncalled", {}, "unread", {}),
    (weight, "weight of u", "bad", "unread", {}, "sets", {}),
    (weight, "weight of u", "note", "cut", {}, "signed", {}),
    (weight, "weight of u", "note", "uneven", {}, "levels", {}),
    (weight, "weight of u", "note", "twice", {}, "leaks", {}),
    (weight, "weight of u", "note", "clamps", {}, "opens", {}),
    (weight, "weight of u", "note", "limits", {}, "talks", {}),
    (weight, "weight of u", "note", "forgets", {}, "seldom", {}),
    (gradient, "gradient, one step", "note", "stages", {}, "twice", {}),
    (gradient, "gradient, one step", "note", "forgets", {}, "uneven", {}),
    (gradient, "gradient static, 5 steps", "note", "turns", {}, "uneven", {}),
    (gradient, "gradient static, 5 steps", "note", "clamps", {}, "cut", {}),
    (checks.check_memory, "memory", "note", "leaks", {}, "opens", {}),
    (check_runs, "runs", "note", "cut", {}, "none", {"reference": "perturbation = 0.5"}),
    (checks.check_stop, "blow-up", "note", "limits", {}, "twice", {}),
]


def found(check: Callable[[Bench], list[Finding]], bench: Bench) -> dict[str, list[Finding]]:
    rows: dict[str, list[Finding]] = {}
    for one in check(bench):
        rows.setdefault(one.check, []).append(one)
    return rows


@pytest.mark.parametrize(("check", "row", "state", "fault", "lines", "neighbour", "its_lines"),
                         [pytest.param(*one, id=f"{one[1]}: {one[3]}, {one[5]}") for one in ROWS])
def test_a_row_is_bad_for_its_own_fault_alone(sick, check, row, state, fault, lines, neighbour, its_lines):
    rows = found(check, sick(fault, **lines))
    assert state in {one.state for one in rows[row]}, rows
    assert all(one.remedy for one in rows[row] if one.state != "ok"), rows
    others = found(check, sick(neighbour, **its_lines)).get(row, [])
    assert all(one.state == "ok" for one in others), others


def test_every_check_has_a_row_here():
    rows = {one[1] for one in ROWS}
    tried = {name for name in CHECKS if any(one == name or one.startswith((f"{name} ", f"{name},")) for one in rows)}
    # Refused or ended by the code itself, see below; others in test_couple_doctor.py, test_couple_truth.py,
    # test_doctor_causes.py and test_names_and_times.py.
    assert set(CHECKS) - tried == {OPENING, "description", "cost", "truth", "training", "times"}


def test_a_time_step_that_changes_is_refused(sick):
    with pytest.raises(TrimtabError, match=r"changed its time step from 0\.01 to 0\.015"):
        check_start(sick("ragged"))


@pytest.mark.parametrize("fault", ["none", "cut", "uneven", "twice", "forgets", "sets"])
def test_no_verdict_depends_on_the_unit(sick, fault):
    """The same code with its fields in another unit: the same table."""
    tried = [check_start, checks.check_empty_slot, check_restart, weight, gradient, check_runs, checks.check_stop]
    found = []
    for power in (-9, 0, 9):
        bench = sick(fault, f"unit = 1e{power:+d}")
        found.append({one.check: one.state for check in tried for one in check(bench)})
    assert found[0] == found[1] == found[2] and len(found[0]) > len(tried)
