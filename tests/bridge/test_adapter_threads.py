# SPDX-License-Identifier: MIT
"""A slot that is called inside of an OpenMP region: a sentence where Python cannot be asked, never a hang or a crash."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import trimtab
from helpers import ROOT
from trimtab.bridge.aot_function import installed
from trimtab.config.experiment import dump_experiment, parse_experiment
from trimtab.core.provenance import provenance
from trimtab.corrections.factory import build_correction
from trimtab.coupling.templates import lay_down
from trimtab.training.checkpoint import load_correction, save_checkpoint, slots_of, state_of

LIMIT = 120
CODE = """
module ring
  implicit none
  integer, parameter :: n = 8
  real(8) :: x(n) = 1d0, dxdt(n), dt = 0.1d0
  integer :: way = 0
contains
  subroutine step()
    use omp_lib
    integer :: i
    dxdt = -x
    select case (way)
    case (0)
      call ring_correct()
    case (1)                               ! as `!$omp single` may: from whichever thread comes first
      !$omp parallel num_threads(4)
      if (omp_get_thread_num() == 2) call ring_correct()
      !$omp end parallel
    case (2)                               ! from every thread
      !$omp parallel do num_threads(4) schedule(static, 1)
      do i = 1, 200
        call ring_correct()
      end do
    case (3)
      !$omp parallel num_threads(4)
      !$omp master
      call ring_correct()
      !$omp end master
      !$omp end parallel
    end select
    x = x + dt*dxdt
  end subroutine step
end module ring

subroutine ring_correct()
  use trimtab
  use ring, only: x, dxdt
  implicit none
  if (.not. trimtab_filled('ring')) return
  call trimtab_give(x, 'x')
  call trimtab_ask()
  call trimtab_add(dxdt, 'x')
end subroutine ring_correct
"""
ADAPTER = """
subroutine trimtab_initialise() bind(c)
  use trimtab
  use ring, only: way
  implicit none
  call trimtab_option(way, 'way')
end subroutine trimtab_initialise

subroutine trimtab_describe() bind(c)
  use trimtab
  use ring
  implicit none
  call trimtab_clock(dt, 's')
  call trimtab_field(x, 'x', 'm', 'i')
  call trimtab_slot('ring')
  call trimtab_input(x, 'x', 'm', 'i')
  call trimtab_output(x, 'x')
end subroutine trimtab_describe

subroutine trimtab_advance(n) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t
  use trimtab
  use ring, only: step
  implicit none
  integer(c_int64_t), value :: n
  integer(c_int64_t) :: i
  do i = 1, n
    call step()
    if (.not. trimtab_go_on()) return
  end do
end subroutine trimtab_advance
"""
# A program of its own, which the slot's own C functions fill with minus the inputs after a while.
PROGRAM = """
program main
  use, intrinsic :: iso_c_binding
  use ring
  implicit none
  interface
    function fill(name, function, context, bytes) bind(c, name='trimtab_slot_fill') result(status)
      import
      character(c_char), intent(in) :: name(*)
      type(c_funptr), value :: function
      type(c_ptr), value :: context
      integer(c_int64_t), value :: bytes
      integer(c_int64_t) :: status
    end function fill
    function declare(name, layout) bind(c, name='trimtab_slot_declare') result(status)
      import
      character(c_char), intent(in) :: name(*), layout(*)
      integer(c_int64_t) :: status
    end function declare
    function calls(name) bind(c, name='trimtab_slot_calls') result(count)
      import
      character(c_char), intent(in) :: name(*)
      integer(c_int64_t) :: count
    end function calls
    function status_of(text, length) bind(c, name='trimtab_slot_status') result(status)
      import
      character(c_char) :: text(*)
      integer(c_int64_t), value :: length
      integer(c_int64_t) :: status
    end function status_of
  end interface
  character(1) :: text(1)
  character(8) :: word
  integer(c_int64_t) :: status
  call get_command_argument(1, word)
  read (word, *) way
  status = declare('ring'//c_null_char, 'input 8 x;output 8 x;'//c_null_char)
  status = fill('ring'//c_null_char, c_funloc(minus), c_null_ptr, 8_c_int64_t)
  call step()
  print '(a, i0, a, i0, a, f9.6)', 'status ', status_of(text, 1_c_int64_t), ' calls ', calls('ring'//c_null_char), ' x ', x(1)
contains
  function minus(context, inputs, n, members, weight) bind(c) result(outputs)
    type(c_ptr), value :: context, inputs
    integer(c_int64_t), value :: n, members
    real(c_double), value :: weight
    type(c_ptr) :: outputs
    real(c_double), pointer :: seen(:)
    real(c_double), save, target :: answer(8)
    integer :: k
    call c_f_pointer(inputs, seen, [n*members])
    do k = 1, 200000
      answer = -seen + weight*k*0
    end do
    outputs = c_loc(answer)
  end function minus
end program main
"""
# The same with a correction that Python runs.
EMBEDDED = """
program main
  use ring
  use trimtab_production
  implicit none
  character(:), allocatable :: message
  character(8) :: word
  integer :: bad, k
  call get_command_argument(1, word)
  read (word, *) way
  call trimtab_load_correction('ring', 'RUN', bad, message)
  if (bad /= 0) error stop message
  do k = 1, 3
    call step()
    call trimtab_check_correction(bad, message)
    if (bad /= 0) exit
  end do
  print '(a, i0, a, 8z17.16)', 'bad ', bad, ' x', transfer(x, [0_8])
  if (bad /= 0) print '(a)', message
end program main
"""
DRIVE = """
import sys, numpy as np, torch, trimtab
class Minus(torch.nn.Module):
    dtype = torch.float64
    def forward(self, seen):
        return -seen.double()
solver = trimtab.open_solver("ring", library=sys.argv[2], isolation="none", way=int(sys.argv[1]))
try:
    for _ in range(3):
        states = solver.advance(solver.initial_state(), 5, correction=Minus()).states
except trimtab.errors.TrimtabError as error:
    print(type(error).__name__, error)
else:
    print("end", abs(states[-1, 0, 0] - 0.8**5) < 1e-12)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ring") / "ring"
    lay_down(folder, "ring")
    adapter = (folder / "adapter.f90").read_text()
    (folder / "ring.f90").write_text(CODE)
    (folder / "adapter.f90").write_text(ADAPTER + adapter[adapter.index("!> The state, as it comes and goes"):])
    (folder / "main.f90").write_text(PROGRAM)
    make = re.sub(r"^FFLAGS =.*", "FFLAGS = -O1 -fopenmp", (folder / "Makefile").read_text(), flags=re.MULTILINE)
    (folder / "Makefile").write_text(re.sub(r"^SOURCES =.*", "SOURCES = ring.f90", make, flags=re.MULTILINE))
    subprocess.run(["make"], cwd=folder, check=True, capture_output=True)
    subprocess.run(["gfortran", "-O1", "-fopenmp", "-J", "build", "trimtab.f90", "ring.f90", "adapter.f90", "main.f90",
                    "build/trimtab_slot.o", "-o", "main"], cwd=folder, check=True, capture_output=True)
    return folder


def ended(*command: object, cwd: Path | None = None, **options: str) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=LIMIT, cwd=cwd,
                          env={**os.environ, "OMP_NUM_THREADS": "4", "TRIMTAB_THREADS": "1", **options})
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("way, words", [
    (0, "end True"), (1, "ConfigError .*another thread than the one that runs the code"),
    (2, "ConfigError .*thread.*OpenMP"), (3, "end True")])
def test_python_drives(folder, way, words):
    assert re.search(words, ended(sys.executable, "-c", DRIVE, way, folder / "libring.so"))


def test_the_program_drives(folder):
    """Any one thread may call; all at once may not, and the step is not finished with mixed numbers in silence."""
    for way in (0, 1, 3):
        assert "status 0 calls 1 x  0.800000" in ended(folder / "main", way)
    said = ended(folder / "main", 2)
    assert "status 1" in said and "several threads at once" in said and said.count("trimtab:") == 1


@pytest.fixture(scope="module")
def embedded(folder):
    """A program whose correction Python runs, and the state after three steps as Python drives them."""
    if installed("libtrimtab_embed") is None:
        pytest.skip("this Python has no shared library")
    bridge, objects = ROOT / "bridge" / "production", ["build/trimtab_slot.o"]
    (folder / "embedded.f90").write_text(EMBEDDED)
    for name in ("aoti_runtime", "aoti_export", "open"):
        objects.append(f"build/{name}.o")
        subprocess.run(["gcc", "-O1", "-c", str(bridge / f"{name}.c"), "-o", objects[-1]], cwd=folder, check=True)
    subprocess.run(["gfortran", "-O1", "-fopenmp", "-J", "build", "trimtab.f90", "ring.f90", "adapter.f90",
                    str(bridge / "production.f90"), "embedded.f90", *objects, "-ldl", "-lm", "-o", "embedded"], cwd=folder,
                   check=True)
    experiment = parse_experiment(f"""
[solver]
name = "ring"
library = "{folder}/libring.so"
isolation = "none"
[network]
name = "MLP"
sizes = [8, 64, 8]
""", "test")
    with trimtab.open_solver("ring", **experiment.solver.options) as solver:
        text = dump_experiment(experiment)
        (folder / "RUN").mkdir()
        (folder / "RUN" / "experiment.toml").write_text(text)
        save_checkpoint(folder / "RUN" / "best.pt", {
            "experiment": text, "state": state_of(solver.spec), "slots": slots_of(solver.spec), "best": None, "optimiser": None,
            "random": None, "progress": {}, "history": [], "folder": str(folder), **provenance(),
            "correction": build_correction(experiment, solver.spec).state_dict()})
        correction = load_correction(folder / "RUN" / "best.pt", solver.spec)
        end = solver.advance(solver.initial_state(), 3, correction=correction).states[-1, 0]
        assert not np.array_equal(end, solver.advance(solver.initial_state(), 3).states[-1, 0])
    return folder, end


@pytest.mark.parametrize("way", [0, 1, 2, 3])
def test_the_program_drives_and_python_answers(embedded, way):
    folder, end = embedded
    said = ended(folder / "embedded", way, cwd=folder, TRIMTAB_PYTHON=sys.executable,
                 TRIMTAB_EMBED=str(installed("libtrimtab_embed")))
    if way == 2:
        assert "bad 1" in said and "several threads at once" in said, said
    else:
        numbers = re.search(r"bad 0 x((?: [0-9A-F]{16}){8})", said)
        assert numbers and [int(one, 16) for one in numbers[1].split()] == end.view(np.uint64).tolist(), said
