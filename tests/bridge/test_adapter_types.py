# SPDX-License-Identifier: MIT
"""The doctor on a code that keeps its state in components of derived types: named where the library was built with -g; and what
`make` compiles anew."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from trimtab.config.experiment import parse_experiment
from trimtab.coupling.checks.restart import check_restart
from trimtab.coupling.dwarf import derived
from trimtab.coupling.elf import Statics, spoken
from trimtab.coupling.harness import Bench
from trimtab.coupling.templates import lay_down

CODE = """
module sea
  implicit none
  type level_t
    real(8), allocatable :: t(:)
    integer :: flag = 0
  end type level_t
  type sea_t
    real(8) :: depth = 3d0
    real(8), allocatable :: h(:), old(:), spare(:, :)
    real(8), pointer :: view(:) => null()
    real(8), allocatable :: mean
    type(level_t) :: top
    type(level_t), allocatable :: levels(:)
    type(sea_t), pointer :: myself => null()
    class(level_t), allocatable :: any
  end type sea_t
  type(sea_t), target :: s
  type(sea_t), pointer :: p => null()
  integer :: forget = 0
  real(8) :: dt = 0.1d0
contains
  subroutine setup()
    allocate (s%h(5), source=[1d0, 2d0, 3d0, 2d0, 1d0])
    allocate (s%old(5), source=0d0)
    allocate (s%levels(3), s%any, s%mean)
    allocate (s%levels(2)%t(5), source=0d0)
    allocate (s%any%t(5), source=0d0)
    s%mean = 0d0
    s%view => s%levels(2)%t
    s%myself => s
    p => s
  end subroutine setup
  subroutine step()
    real(8) :: change(5)
    change = -0.2d0*s%h
    if (forget == 1) change = change + 0.5d0*s%old
    if (forget == 2) change = change + 0.5d0*s%levels(2)%t
    if (forget == 3) change = change + s%mean
    if (forget == 4) change = change + 0.5d0*s%any%t
    if (forget == 1) s%old = change
    if (forget == 2) s%levels(2)%t = change
    if (forget == 3) s%mean = change(1)/3
    if (forget == 4) s%any%t = change
    s%h = s%h + dt*change
  end subroutine step
end module sea

subroutine trimtab_initialise() bind(c)
  use trimtab
  use sea
  implicit none
  call trimtab_option(forget, 'forget')
  call setup()
end subroutine trimtab_initialise

subroutine trimtab_describe() bind(c)
  use trimtab
  use sea
  implicit none
  call trimtab_clock(dt, 's')
  call trimtab_field(s%h, 'h', 'm', 'x')
end subroutine trimtab_describe

subroutine trimtab_advance(n) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t
  use trimtab
  use sea, only: step
  implicit none
  integer(c_int64_t), value :: n
  integer(c_int64_t) :: i
  do i = 1, n
    call step()
    if (.not. trimtab_go_on()) return
  end do
end subroutine trimtab_advance
"""


def build(folder: Path, flags: str) -> Path:
    lay_down(folder, "sea")
    adapter = (folder / "adapter.f90").read_text()
    (folder / "sea.f90").write_text(CODE[: CODE.index("subroutine trimtab_initialise")])
    (folder / "adapter.f90").write_text(CODE[CODE.index("subroutine trimtab_initialise"):] +
                                        adapter[adapter.index("!> The state, as it comes and goes"):])
    make = re.sub(r"^FFLAGS =.*", f"FFLAGS = {flags}", (folder / "Makefile").read_text(), flags=re.MULTILINE)
    (folder / "Makefile").write_text(re.sub(r"^SOURCES =.*", "SOURCES = sea.f90", make, flags=re.MULTILINE))
    subprocess.run(["make"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def debugged(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("sea") / "sea", "-O2 -g")


def opened(folder: Path, forget: int = 0) -> Bench:
    return Bench(parse_experiment((folder / "sea.toml").read_text(), "sea", [
        f'solver.library="{folder / "libsea.so"}"', f"solver.forget={forget}"]))


def restart(folder: Path, forget: int):
    bench = opened(folder, forget)
    try:
        return check_restart(bench)[0]
    finally:
        bench.close()


@pytest.mark.parametrize("forget, named", [
    (1, "s%old (module sea)"), (2, "s%levels(2)%t (module sea)"), (3, "s%mean (module sea)"), (4, "s%any%t (module sea)")])
def test_a_component_that_is_not_put_back_is_named(debugged, forget, named):
    finding = restart(debugged, forget)
    assert finding.state == "bad" and finding.found.endswith(f"not put back are: {named}"), finding


def test_a_library_without_debug_information_says_what_would_name_it(tmp_path):
    finding = restart(build(tmp_path / "sea", "-O2"), 2)
    assert finding.state == "bad" and "not put back" not in finding.found and "-g to FFLAGS" in finding.remedy, finding


def test_every_component_is_seen_once(debugged):
    """A type that points to itself ends; what is not allocated is left out."""
    bench = opened(debugged)
    names = [spoken(one) for one in Statics(bench).look()]
    bench.close()
    inside = [one.removesuffix(" (module sea)") for one in names if one.startswith("s%")]
    assert {"s%depth", "s%h", "s%old", "s%mean", "s%top%flag", "s%levels(1)%flag", "s%levels(2)%t", "s%any%t"} <= set(inside)
    assert len(inside) == len(set(inside)) and not [one for one in inside if "spare" in one]
    assert derived(debugged / "libsea.so")


def test_the_adapter_alone_is_compiled_anew(debugged):
    """A code takes minutes, its adapter a second; and a change of a source compiles what may use its module."""
    def compiled(name: str) -> set[str]:
        (debugged / name).touch()
        done = subprocess.run(["make"], cwd=debugged, check=True, capture_output=True, text=True)
        return set(re.findall(r"-c (\S+)", done.stdout))

    assert compiled("adapter.f90") == {"adapter.f90"}
    assert compiled("sea.f90") == {"sea.f90", "adapter.f90"}
    assert compiled("trimtab_bind.list") == set()
    assert compiled("Makefile") == {"trimtab_slot.c", "trimtab.f90", "sea.f90", "adapter.f90"}
