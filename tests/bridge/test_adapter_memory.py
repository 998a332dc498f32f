# SPDX-License-Identifier: MIT
"""Where the fields of a coupled code lie: a circular time index, an index set too late, copies that the compiler makes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import trimtab
from trimtab.core.errors import ConfigError
from trimtab.core.spec import Field, SolverSpec
from trimtab.coupling.checks.response import measure_responses
from trimtab.coupling.templates import lay_down

N = 6
CODE = """
module levels
  implicit none
  integer, parameter :: n = 6
  real(8) :: x(n, 3) = 0d0, dxdt(n), strided(2, n) = 1d0, dt = 0.1d0
  real(8), allocatable :: big(:, :)
  integer :: ln = 1, late = 0, copy = 0, twice = 0, hidden_index = 1
contains
  subroutine step()                    ! leapfrog over a circular index: the first step is Euler's
    integer :: old, new
    old = modulo(ln - 2, 3) + 1
    new = modulo(ln, 3) + 1
    dxdt = -0.5d0*x(:, ln) + cshift(x(:, ln), 1)
    call levels_correct()
    x(:, new) = x(:, old) + 2*dt*dxdt
    ln = new
  end subroutine step
  subroutine describe_by_helper(a, m)
    use trimtab
    integer, intent(in) :: m
    real(8), intent(inout) :: a(m)
    call trimtab_hidden(a, 'strided')
  end subroutine describe_by_helper
end module levels

subroutine trimtab_initialise() bind(c)
  use trimtab
  use levels
  implicit none
  integer :: i
  call trimtab_option(late, 'late')
  call trimtab_option(copy, 'copy')
  call trimtab_option(twice, 'twice')
  call trimtab_option(hidden_index, 'hidden_index')
  x(:, 1) = [(1d0 + 0.1d0*i, i = 1, n)]
  x(:, 3) = x(:, 1)
  allocate (big(2, 40000), source=1d0)
end subroutine trimtab_initialise

subroutine trimtab_describe() bind(c)
  use trimtab
  use levels
  implicit none
  real(8) :: mine(n)
  call trimtab_clock(dt, 's')
  call trimtab_field(x(:, ln), 'x', 'm', 'i')
  call trimtab_hidden(x(:, modulo(ln - 2, 3) + 1), 'x_old')
  if (hidden_index == 1) call trimtab_hidden(ln, 'ln')
  if (copy == 1) call describe_by_helper(strided(1, :), n)        ! a copy: the actual argument has gaps
  if (copy == 2) call describe_by_helper(big(1, :), size(big, 2))
  if (copy == 3) then
    mine = strided(1, :)
    call trimtab_hidden(mine, 'mine')
    strided(1, :) = mine
  end if
  if (copy == 4) call describe_by_helper(x(:, 2), n)              ! no copy: the argument has none
  call trimtab_slot('levels')
  call trimtab_input(x(:, ln), 'x', 'm', 'i')
  call trimtab_output(x(:, ln), 'x')
end subroutine trimtab_describe

subroutine trimtab_advance(n) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t
  use trimtab
  use levels, only: step
  implicit none
  integer(c_int64_t), value :: n
  integer(c_int64_t) :: i
  do i = 1, n
    call step()
    if (.not. trimtab_go_on()) return
  end do
end subroutine trimtab_advance

subroutine levels_correct()
  use trimtab
  use levels, only: x, dxdt, ln
  implicit none
  if (.not. trimtab_filled('levels')) return
  call trimtab_give(x(:, ln), 'x')
  call trimtab_ask()
  call trimtab_add(dxdt, 'x')
end subroutine levels_correct

subroutine trimtab_get_state(n, state) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t, c_double
  use trimtab
  implicit none
  integer(c_int64_t), value :: n
  real(c_double), intent(inout) :: state(n)
  call trimtab_from_fields(state)
end subroutine trimtab_get_state

subroutine trimtab_set_state(n, state) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t, c_double
  use trimtab
  use levels, only: ln, late, twice
  implicit none
  integer(c_int64_t), value :: n
  real(c_double), intent(in) :: state(n)
  call trimtab_to_fields(state)
  if (late > 0) ln = late                                         ! after the fields were put where it said
  if (twice == 1) call trimtab_to_fields(state)
end subroutine trimtab_set_state
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("levels") / "levels"
    lay_down(folder, "levels")
    (folder / "adapter.f90").write_text(CODE)
    make = (folder / "Makefile").read_text()
    (folder / "Makefile").write_text(re.sub(r"^FFLAGS =.*", "FFLAGS = -O2 -fcheck=bounds -g", make, flags=re.MULTILINE))
    subprocess.run(["make"], cwd=folder, check=True, capture_output=True)
    return str(folder / "liblevels.so")


@pytest.fixture
def opening(library) -> Iterator[Callable[..., Any]]:
    opened = []

    def build(**options: Any) -> Any:
        opened.append(trimtab.open_solver("levels", library=library, isolation="none", **options))
        return opened[-1]

    yield build
    for one in opened:
        one.close()


def start() -> np.ndarray:
    x = 1 + 0.1 * np.arange(1, N + 1)
    return np.concatenate([x, x, [1.0]])


@pytest.mark.parametrize("twice", [0, 1])
def test_a_circular_index_is_set_before_what_lies_where_it_says(opening, twice):
    """After runs of any length the same state leads to the same bits, whatever level the code stands at."""
    solver = opening(twice=twice)
    assert np.array_equal(solver.initial_state()[0], start())
    whole = solver.advance(solver.initial_state(), 12).states[:, 0]
    assert sorted(set(whole[:, -1])) == [1, 2, 3]
    for before in (1, 2, 3, 4):
        for at in (0, 1, 2, 5):
            solver.advance(solver.initial_state(), before)
            assert np.array_equal(solver.advance(whole[at : at + 1], 6).states[:, 0], whole[at : at + 7]), (before, at)


def test_a_gradient_passes_through_a_circular_index(opening):
    solver = opening()
    network = trimtab.SlotCorrection(torch.nn.Linear(N, N), solver.spec, output_scale=1.0).double()
    trimtab.rollout(solver, network, solver.initial_state(), 4, gradient="none")[-1, 0, :N].sum().backward()
    assert torch.isfinite(network.network.bias.grad).all() and network.network.bias.grad.abs().min() > 0


def test_an_index_that_is_set_after_the_fields_is_refused(opening):
    solver = opening(late=2, hidden_index=0)  # the handshake leaves the code at the level 2, and the next state goes there
    state = solver.initial_state()
    assert np.array_equal(state[0], start()[:-1])
    solver.advance(state, 1)
    with pytest.raises(ConfigError, match=r"put the field x_old where it does not lie any more .* trimtab_hidden"):
        solver.advance(state + 1, 1)


@pytest.mark.parametrize("copy, field, words", [
    (1, "strided", "explicit shape"), (2, "strided", "explicit shape"), (3, "mine", "only while it runs: a local variable")])
def test_a_copy_that_the_compiler_makes_is_refused_by_name(opening, copy, field, words):
    """What is written there would be lost, and corrupt the heap or the stack."""
    with pytest.raises(ConfigError) as refusal:
        opening(copy=copy)
    assert f"the field {field} " in str(refusal.value) and words in str(refusal.value)


def test_a_helper_that_makes_no_copy_is_fine(opening):
    solver = opening(copy=4)
    assert np.array_equal(solver.advance(solver.initial_state(), 3).states[:, 0, :N],
                          opening().advance(start()[None], 3).states[:, 0, :N])


def test_an_output_on_a_large_grid_is_refused_with_what_helps():
    """As of a spectral code with a grid of 192 by 192 points, which takes a matrix of 36,864 columns."""
    class Spectral:
        spec = SolverSpec("waves", 0.1, 1, (Field("c", "c", "1", ("n", "part"), (2000, 2)),))
        stride, seconds = 1, 1e-3

    grid = Field("heat", "heat", "1", ("y", "x"), (192, 192))
    (finding,), steady, responses = measure_responses(Spectral(), {"heat": (slice(0, grid.size), grid)}, grid.size)
    assert (finding.state, steady, responses) == ("bad", {}, None) and "36864 steps" in finding.found
    for help in ("let the network end in the transform", "describe that field on this grid", "trimtab_set_state"):
        assert help in finding.remedy
