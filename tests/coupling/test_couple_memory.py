# SPDX-License-Identifier: MIT
"""The doctor on what a code remembers and nobody described: zero by symmetry, refreshed seldom, allocated, drawn at random; and
on codes that begin badly. One small code, each mistake an option."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trimtab
from trimtab.config.experiment import parse_experiment
from trimtab.core.errors import BlowUpError, ConfigError
from trimtab.coupling.checks.basic import check_cost, check_files, check_gradient
from trimtab.coupling.checks.cost import duration
from trimtab.coupling.checks.restart import check_long_restart, check_restart
from trimtab.coupling.checks.start import check_again, check_random, check_runs, check_start
from trimtab.coupling.checks.weight import check_weight
from trimtab.coupling.finding import MEND, Finding, once
from trimtab.coupling.harness import Bench
from trimtab.coupling.report import check_coupling
from trimtab.coupling.templates import lay_down

CODE = """
module box
  implicit none
  real(8) :: h(8) = [1d0, 2d0, 3d0, 4d0, 4d0, 3d0, 2d0, 1d0], dh(8), v = 0d0, held = 0d0, dt = 0.01d0, rough = 0d0
  real(8), allocatable :: old(:)
  integer, allocatable :: seeds(:)
  integer :: counter = 0
  integer :: odd = 0, refresh = 0, draw = 0, ragged = 0, grow = 0, write_at = 0, open_at = 0
  integer :: no_v = 0, no_counter = 0, no_held = 0, no_old = 0, no_seeds = 0, seeded = 1, heun = 0
contains
  subroutine step()
    real(8) :: r, first(8), second(8)
    if (heun > 0) then                ! a rotation by half a radian, by two stages
      first = h
      dh = 50d0*[-h(5:8), h(1:4)]
      if (heun == 1) call box_correct()
      h = first + dt*dh
      second = 50d0*[-h(5:8), h(1:4)]
      first = first + dt/2*dh
      dh = second
      if (heun == 1) call box_correct()
      h = first + dt/2*dh
      if (heun == 2) call box_correct()
      return
    end if
    v = v + dt*(h(1) - h(8))          ! zero by symmetry, until somebody disturbs h
    dh = 0.1d0*(2.5d0 - h) + 0.5d0*old
    dh(1) = dh(1) - v
    dh(8) = dh(8) + v
    if (draw == 1) then
      call random_number(r)
      dh = dh + r
    end if
    if (refresh > 0) then
      if (mod(counter, refresh) == refresh - 1) held = sum(h)
      dh = dh - 0.01d0*held
    end if
    if (grow == 1) dh = 1d200*h
    call box_correct()
    old = dh/3d0
    h = h + dt*dh
    counter = counter + 1
    if (ragged == 1) dt = merge(0.015d0, 0.01d0, mod(counter, 2) == 1)
    if (counter == write_at) write (31, *) h
    if (counter == open_at) open (33, file='nowhere/box.txt')
    if (write_at > 0 .and. counter == 1) print *, 'the first line'
  end subroutine step
end module box

subroutine trimtab_initialise() bind(c)
  use trimtab
  use box
  implicit none
  integer :: n
  logical :: there
  call trimtab_option(refresh, 'refresh')
  call trimtab_option(draw, 'draw')
  call trimtab_option(ragged, 'ragged')
  call trimtab_option(grow, 'grow')
  call trimtab_option(write_at, 'write_at')
  call trimtab_option(open_at, 'open_at')
  call trimtab_option(rough, 'rough')
  call trimtab_option(no_v, 'no_v')
  call trimtab_option(no_counter, 'no_counter')
  call trimtab_option(no_held, 'no_held')
  call trimtab_option(no_old, 'no_old')
  call trimtab_option(no_seeds, 'no_seeds')
  call trimtab_option(seeded, 'seeded')
  call trimtab_option(heun, 'heun')
  allocate (old(8), source=0d0)
  call random_seed(size=n)
  allocate (seeds(n), source=7)
  if (seeded == 1) call random_seed(put=seeds)
  if (rough > 0) then
    call random_number(h)
    h = rough*h
  end if
  inquire (file='box.txt', exist=there)
  if (there) then
    open (32, file='box.txt')
    write (32, *) 'mine now'
  end if
end subroutine trimtab_initialise

subroutine trimtab_describe() bind(c)
  use trimtab
  use box
  implicit none
  call trimtab_clock(dt, 's')
  call trimtab_field(h, 'h', 'm', 'x')
  if (no_v == 0) call trimtab_hidden(v, 'v')
  if (no_counter == 0) call trimtab_hidden(counter, 'counter')
  if (no_held == 0) call trimtab_hidden(held, 'held')
  if (no_old == 0) call trimtab_hidden(old, 'old')
  if (no_old == 2) call trimtab_hidden(old(2:), 'old')
  if (no_seeds == 0) then
    call random_seed(get=seeds)
    call trimtab_hidden(seeds, 'seeds')
  end if
  call trimtab_slot('box')
  call trimtab_input(h, 'h', 'm', 'x')
  call trimtab_output(h, 'h')
end subroutine trimtab_describe

subroutine trimtab_advance(n) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t
  use trimtab
  use box, only: step
  implicit none
  integer(c_int64_t), value :: n
  integer(c_int64_t) :: i
  do i = 1, n
    call step()
    if (.not. trimtab_go_on()) return
  end do
end subroutine trimtab_advance

subroutine box_correct()
  use trimtab
  use box, only: h, dh, heun, dt
  implicit none
  if (.not. trimtab_filled('box')) return
  call trimtab_give(h, 'h')
  call trimtab_ask()
  if (heun == 2) then
    call trimtab_add(h, 'h', dt)      ! once, after the step
  else
    call trimtab_add(dh, 'h')
  end if
end subroutine box_correct
"""
Opens = Callable[..., Bench]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("box")
    lay_down(folder, "box")
    adapter = (folder / "adapter.f90").read_text()
    adapter = CODE + adapter[adapter.index("!> The state, as it comes and goes"):]
    recipe = "  call trimtab_to_fields(state)\n"
    assert adapter.count(recipe) == 1
    adapter = adapter.replace(recipe, recipe + "  if (no_seeds == 0) call random_seed(put=seeds)\n")
    adapter = adapter.replace("subroutine trimtab_set_state(n, state) bind(c)\n",
                              "subroutine trimtab_set_state(n, state) bind(c)\n  use box, only: seeds, no_seeds\n")
    (folder / "adapter.f90").write_text(adapter)
    (folder / "box.txt").write_text("yours\n")
    subprocess.run(["make"], cwd=folder, check=True, capture_output=True)
    return folder


def toml(box: Path, options: dict[str, Any]) -> str:
    lines = "".join(f"{name} = {value}\n" for name, value in {"library": '"./libbox.so"', **options}.items())
    return (box / "box.toml").read_text().replace('library = "./libbox.so"\n', lines)


@pytest.fixture
def opens(box: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opens]:
    """Opens the code on a bench, with options."""
    monkeypatch.chdir(box)
    monkeypatch.syspath_prepend(str(box))
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(contextlib.closing(Bench(parse_experiment(toml(box, options), "box"))))


def states(findings: list[Finding]) -> dict[str, str]:
    return {one.check: one.state for one in findings}


def test_a_complete_adapter_is_sound(opens):
    bench = opens(refresh=200, draw=1)
    findings = [*check_start(bench), *check_random(bench), *check_restart(bench), *check_long_restart(bench)]
    assert states(findings) == {"own start": "ok", "random numbers": "ok", "restart": "ok", "restart, memory": "ok",
                                "restart, long": "ok"}
    assert "the generator is put back with the state" in findings[1].found  # the recipe
    assert "n = 999" in findings[-1].found and "dh (module box)" in findings[-2].found


def test_what_symmetry_keeps_at_zero_is_found(opens):
    bench = opens(no_v=1)
    (restart,) = check_restart(bench)
    assert np.array_equal(bench.state[0, :4], bench.state[0, 7:3:-1])  # nothing of v is seen from the code's own start
    assert restart.state == "bad" and "not put back are: v (module box)" in restart.found


def test_what_is_refreshed_seldom_is_found(opens):
    bench = opens(refresh=900, no_counter=1)
    (restart, memory, _) = check_restart(bench)
    assert restart.state == "ok" and memory.state == "note" and "in 33 steps: counter (module box)" in memory.found
    (long,) = check_long_restart(bench)
    assert long.check == "restart, long" and long.state == "bad" and "counter (module box)" in long.found


def test_an_allocated_array_is_found(opens):
    (restart,) = check_restart(opens(no_old=1))
    assert restart.state == "bad" and "not put back are: old (module box)" in restart.found
    subprocess.run(["strip", "-o", "libbare.so", "libbox.so"], check=True)
    (restart,) = check_restart(opens(library='"./libbare.so"', no_old=1))
    assert restart.state == "bad" and restart.remedy.endswith("a library with a symbol table would tell: build it without "
                                                              "-s, and do not strip it")
    assert [one.state for one in check_restart(opens(library='"./libbare.so"'))] == ["ok", "note"]


def test_what_lies_around_a_described_section_is_found(opens):
    (restart,) = check_restart(opens(no_old=2))
    assert restart.state == "bad" and "old (module box), of which only a section is described" in restart.found
    assert "a halo, is filled at the end of trimtab_set_state" in restart.remedy


def test_a_file_that_cannot_be_opened_ends_the_process_and_does_not_hang_it(box):
    """gfortran ends the program with the unit's lock held, and whoever flushes that unit waits for it."""
    done = subprocess.run([sys.executable, "-c", "import trimtab; one = trimtab.open_solver('box', library='./libbox.so', "
                           "isolation='none', open_at=3); one.advance(one.initial_state(), 5)"], cwd=box, timeout=60, text=True,
                          capture_output=True, check=False)
    assert done.returncode == 2 and "trimtab: the code ended this process" in done.stderr
    assert "Cannot open file 'nowhere/box.txt'" in done.stderr


def test_random_numbers_are_found_in_the_steps_and_at_the_start(opens):
    bench = opens(draw=1, no_seeds=1)
    (finding,) = check_random(bench)
    assert finding.state == "bad" and "random_seed(get=seeds)" in finding.remedy
    assert check_restart(bench)[0].state == "bad"
    assert [one.found for one in check_random(opens(no_seeds=1))] == ["it can draw some, and draws none in 8 steps"]
    assert check_again(opens(rough=1.0))[0].state == "ok"
    (again,) = check_again(opens(rough=1.0, seeded=0))
    assert again.state == "note" and "another h" in again.found and "random_seed()` without" in again.remedy


def test_a_time_step_that_changes_is_refused(opens, box):
    with pytest.raises(ConfigError, match=r"By inner step 1 of a run: .* changed its time step from 0.01 to 0.015"):
        check_start(opens(ragged=1))
    with trimtab.open_solver("box", library=str(box / "libbox.so"), isolation="process", ragged=1) as solver, \
            pytest.raises(ConfigError, match=r"changed its time step from 0.01 to 0.015: trimtab needs a fixed one"):
        solver.advance(solver.initial_state(), 4)


def test_files_are_looked_at_after_a_flush(opens):
    (files,) = check_files(opens(write_at=10, files='["box.txt"]'))
    assert files.state == "note" and "writes fort.31, prints 1 line; it changes its copy of box.txt" in files.found
    bench = opens(write_at=10, grow=0)
    state = np.full_like(bench.state, 1e300)
    with pytest.raises(BlowUpError, match=r"the slot is empty, so that it is the code's own doing.*printed last: the first line"):
        bench.run(state, 1)


def test_runs_that_stay_alike_are_told(opens, box):
    bench = opens()
    (alike,) = check_runs(bench)
    assert alike.state == "note" and re.search(r"differ by 0\.0\d+ of what h varies after 198 steps", alike.found)


def test_a_call_in_each_stage_is_told_and_one_after_the_step_is_exact(opens):
    found = {}
    for heun in (1, 2):
        bench = opens(heun=heun)
        found[heun] = check_gradient(bench, check_weight(bench)[1])[0]
    assert found[1].state == "note" and "call it once, after the step" in found[1].remedy
    assert found[2].state == "ok" and re.search(r"cosine 1\.0000, error (0|[\d.]+e-\d+) ", found[2].found)


def test_the_cost_of_the_training_is_told(opens):
    (cost,) = check_cost(opens())
    assert re.search(r"; the training of this TOML about [\d.]+ (s|min|h) on one core \(compiled = true saves up to [\d.]+ "
                     r"(s|min|h) of it\), and its reference [\d.]+(e-\d+)? s$", cost.found)
    assert [duration(one) for one in (0.123, 45.6, 150, 7000, 86400 * 12.3)] == [
        "0.12 s", "46 s", "2.5 min", "117 min", "12 days"]


def test_one_mistake_is_one_row(box):
    """NaN from its own start: one bad row, and all others not checked."""
    path = box / "case.toml"
    path.write_text(toml(box, {"grow": 1}))
    found = check_coupling(path)
    path.unlink()
    bad = [one for one in found if one.state == "bad"]
    assert [one.check for one in bad] == ["own start"] and "leaves the finite numbers from its own start" in bad[0].found
    assert "in step 1" in bad[0].found and "-fno-automatic" in bad[0].remedy
    assert {one.found for one in found if one.state == "note"} == {"not checked, see own start"}
    ragged = [Finding("own start", "bad", "By inner step 1 of a run: dt from 1e-05 to 0.02", MEND),
              Finding("restart", "bad", "dt from 0.01 to 0.02", MEND)]
    assert [one.found for one in once(ragged)][1] == "not checked, see own start"
    again = [Finding("weight", "bad", "no input psi in step 3", MEND), Finding("cost", "bad", "no input psi in step 21", MEND),
             Finding("memory", "bad", "grows", "free it")]
    assert [(one.state, one.found) for one in once(again)] == [("bad", "no input psi in step 3"),
                                                               ("note", "not checked, see weight"), ("bad", "grows")]


def test_random_numbers_are_one_row(box):
    path = box / "case.toml"
    path.write_text(toml(box, {"draw": 1, "no_seeds": 1}))
    before, found = path.read_text(), {one.check: one for one in check_coupling(path)}
    assert [one.check for one in found.values() if one.state == "bad"] == ["random numbers"]
    assert {found[one].found for one in ("restart", "restart, long", "weight in TOML")} == {"not checked, see random numbers"}
    assert path.read_text() == before
    path.unlink()


def test_no_weight_is_written_while_a_restart_differs(box):
    path = box / "case.toml"
    path.write_text(toml(box, {"no_old": 1}))
    before = path.read_text()
    found = {one.check: one for one in check_coupling(path)}
    assert found["restart"].state == "bad" and found["weight in TOML"].found == "not checked, see restart"
    assert path.read_text() == before
    path.unlink()
