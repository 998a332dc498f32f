# SPDX-License-Identifier: MIT
"""`trimtab couple check` on a small sound code with the habits of large ones: a last step, much to print, slow steps, three
fields of one number each. A sound code is not called bad, and one that ends is told where and why."""

from __future__ import annotations

import contextlib
import re
import subprocess
from pathlib import Path

import pytest

from trimtab.config.experiment import parse_experiment
from trimtab.coupling import harness as bench
from trimtab.coupling.checks import basic as checks
from trimtab.coupling.checks.restart import check_long_restart, check_restart
from trimtab.coupling.finding import Finding
from trimtab.coupling.report import check_coupling
from trimtab.coupling.templates import lay_down

CODE = """
module three
  implicit none
  real(8) :: x = 1d0, y = 2d0, z = 20d0, dx, dy, dz, dt = 0.005d0
  real(8) :: rho = 28d0
  integer :: counter = 0, last = 1000000, nap = 0, talk = 0, described = 1, late = 0
contains
  subroutine step()
    interface
      subroutine usleep(microseconds) bind(c)
        use, intrinsic :: iso_c_binding, only: c_int
        integer(c_int), value :: microseconds
      end subroutine usleep
    end interface
    dx = 10*(y - x)
    dy = rho*x - y - x*z
    dz = x*y - 8*z/3
    if (late == 0) call three_correct()
    x = x + dt*dx
    y = y + dt*dy
    z = z + dt*dz
    if (late == 1) call three_correct()
    counter = counter + 1
    if (talk > 0) write (*, '(a)') repeat('so it goes. ', talk)
    if (nap > 0) call usleep(nap)
    if (counter == last) stop 'THREE: NORMAL END'
  end subroutine step
end module three

subroutine trimtab_initialise() bind(c)
  use trimtab
  use three
  implicit none
  call trimtab_option(rho, 'rho')
  call trimtab_option(last, 'last')
  call trimtab_option(nap, 'nap')
  call trimtab_option(talk, 'talk')
  call trimtab_option(described, 'described')
  call trimtab_option(late, 'late')
end subroutine trimtab_initialise

subroutine trimtab_describe() bind(c)
  use trimtab
  use three
  implicit none
  call trimtab_clock(dt, '1')
  call trimtab_field(x, 'x', '1', '')
  call trimtab_field(y, 'y', '1', '')
  call trimtab_field(z, 'z', '1', '')
  if (described == 1) call trimtab_hidden(counter, 'counter')
  call trimtab_slot('three')
  call trimtab_input(x, 'x', '1', '')
  call trimtab_input(y, 'y', '1', '')
  call trimtab_output(y, 'y')
end subroutine trimtab_describe

subroutine trimtab_advance(n) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t
  use trimtab
  use three, only: step
  implicit none
  integer(c_int64_t), value :: n
  integer(c_int64_t) :: i
  do i = 1, n
    call step()
    if (.not. trimtab_go_on()) return
  end do
end subroutine trimtab_advance

subroutine three_correct()
  use trimtab
  use three
  implicit none
  if (.not. trimtab_filled('three')) return
  call trimtab_give(x, 'x')
  call trimtab_give(y, 'y')
  call trimtab_ask()
  call trimtab_add(dy, 'y')
end subroutine three_correct
"""
# A butterfly needs longer than a unit of time; nothing is said of a truth.
ALIKE = {"runs": "note", "truth": "note", "training": "note"}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    lay_down(folder, "three")
    adapter = (folder / "adapter.f90").read_text()
    (folder / "adapter.f90").write_text(CODE + adapter[adapter.index("!> The state, as it comes and goes"):])
    subprocess.run(["make"], cwd=folder, check=True, capture_output=True)
    text = (folder / "three.toml").read_text()
    (folder / "three.toml").write_text(re.sub(r'^name = "three_network.*', r"\g<0>" + "\ninputs = 2", text, flags=re.MULTILINE))
    return folder


def check(folder: Path, **options: int) -> dict[str, list[Finding]]:
    """Check name -> findings, with options in the TOML."""
    text = (folder / "three.toml").read_text()
    lines = "".join(f"{name} = {value}\n" for name, value in options.items())
    path = folder / "case.toml"
    path.write_text(text.replace('library = "./libthree.so"\n', f'library = "./libthree.so"\n{lines}'))
    try:
        found: dict[str, list[Finding]] = {}
        for one in check_coupling(path):
            found.setdefault(one.check, []).append(one)
        return found
    finally:
        path.unlink()


def states(found: dict[str, list[Finding]]) -> dict[str, str]:
    return {name: ", ".join(one.state for one in several) for name, several in found.items()}


def test_fields_of_one_number_are_all_green(three):
    found = check(three)
    assert states(found) == dict.fromkeys(found, "ok") | ALIKE, found
    assert "x real64, y real64, z real64" in found["description"][0].found


def test_a_last_step_is_seen_and_the_checks_go_on_before_it(three):
    found = check(three, last=40, talk=100)
    assert states(found) == dict.fromkeys(found, "ok") | ALIKE | {"restart": "ok, note", "restart, long": "note",
                                                                        "files, size": "note"}
    assert "n = 1, 3 (1 hidden fields), perturbed, too; runs of more than 8 steps were left out" in found["restart"][0].found
    assert "a run of 66 steps from a restored state, the slot empty" in found["restart"][1].found
    assert "THREE: NORMAL END" in found["restart"][1].found and "describe its counter" in found["restart"][1].remedy
    assert "prints 29 lines" in found["files"][0].found and "1.2 GB in a million steps" in found["files, size"][0].found


def test_a_counter_that_nobody_restores_is_bad(three):
    found = check(three, last=3000, described=0)
    (ended,) = found["cost"]
    expected = {"restart, memory": "note, ok", "restart, long": "note", "cost": "bad"}
    assert states(found) == dict.fromkeys(found, "ok") | ALIKE | expected
    assert "counter (module three)" in found["restart, memory"][0].found
    assert re.search(r"steps after the code was opened.*THREE: NORMAL END", ended.found) and "trimtab_hidden" in ended.remedy


def test_a_call_after_the_tendency_was_used_has_one_bad_row(three):
    """What adds to an array that nobody reads any more: the gradient of nothing is not a second finding."""
    found = check(three, late=1)
    (weight,) = found["weight of y"]
    assert weight.state == "bad" and "the output does not arrive" in weight.remedy and "nobody reads" in weight.remedy
    rows = [one for name, several in found.items() if name.startswith("gradient") for one in several]
    assert len(rows) == 2 and all(one.found == "not checked, see weight" for one in rows)
    assert [name for name, state in states(found).items() if "bad" in state] == ["weight of y"]


def test_slow_steps_bound_the_runs(three, monkeypatch):
    monkeypatch.chdir(three)
    monkeypatch.syspath_prepend(str(three))
    monkeypatch.setattr(bench, "A_RUN", 0.2)
    monkeypatch.setattr(checks, "A_CHECK", 1e-3)
    text = (three / "three.toml").read_text().replace('library = "./libthree.so"', 'library = "./libthree.so"\nnap = 20000')
    with contextlib.closing(bench.Bench(parse_experiment(text, "three"))) as slow:
        assert 2 <= slow.most <= 10
        restart = check_restart(slow)[0]
        assert restart.state == "ok" and "left out, as a step takes 0.0" in restart.found and "n = 1, 3 (" in restart.found
        (long,) = check_long_restart(slow)
        assert long.state == "note" and long.found.endswith("what is done once in many steps is not seen")
        assert all(one.found.startswith("left out") for one in checks.check_gradient(slow, {}))
        (cost,) = checks.check_cost(slow)
        assert cost.state == "ok" and re.match(r"a step 2\d(\.\d)? ms with an empty slot", cost.found)
