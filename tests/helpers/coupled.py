# SPDX-License-Identifier: MIT
"""A ring in Fortran, coupled."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from helpers import CODES
from trimtab.coupling.templates import lay_down

LEGACY = CODES


MODULE = """
subroutine trimtab_initialise() bind(c)
  use trimtab
  use spin
  implicit none
  call setup
  call trimtab_option(decay, 'decay')
end subroutine trimtab_initialise

subroutine trimtab_describe() bind(c)
  use trimtab
  use spin
  implicit none
  call trimtab_clock(dt, 's')
  call trimtab_field(c(1:n), 'c', 'g/kg', 'x')
  HIDDEN
  call trimtab_slot('spin')
  call trimtab_input(c(1:n), 'c', 'g/kg', 'x')
  call trimtab_output(c(1:n), 'c')
end subroutine trimtab_describe

subroutine trimtab_advance(n) bind(c)
  use, intrinsic :: iso_c_binding, only: c_int64_t
  use trimtab
  use spin, only: step
  implicit none
  integer(c_int64_t), value :: n
  integer(c_int64_t) :: i
  do i = 1, n
    call step
    if (.not. trimtab_go_on()) return
  end do
end subroutine trimtab_advance

subroutine spin_correct
  use trimtab
  use spin, only: c, dcdt, n
  implicit none
  if (.not. trimtab_filled('spin')) return
  call trimtab_give(c(1:n), 'c')
  call trimtab_ask()
  call trimtab_add(dcdt, 'c', FACTOR)
end subroutine spin_correct
"""


def as_module(text: str) -> str:
    """The main program as the module that README.md describes: 8 lines."""
    for old, new in (("program spin\n", "module spin\n"), ("  open (11, file='spin.nml'", "contains\n  subroutine setup\n"
                     "  open (11, file='spin.nml'"), ("  do it = 1, steps\n", "  end subroutine setup\n  subroutine step\n"),
                     ("  end do\ncontains\n", "  end subroutine step\n"), ("end program spin", "end module spin"),
                     ("    c(1:n) = c(1:n) + dt*dcdt\n", "    call spin_correct\n    c(1:n) = c(1:n) + dt*dcdt\n")):
        assert text.count(old) == 1 or old == "program spin\n"
        text = text.replace(old, new, 1)
    return text


def build(folder: Path, hidden: str = "call trimtab_hidden(backwards, 'backwards')", factor: str = "0.5",
          flags: str = "-O2 -fdefault-real-8", source: str = "spin.f90", after: bool = False) -> Path:
    """The ring's library and TOML in a folder; `after`: the network's call stands after the step, not in its sweeps."""
    lay_down(folder, "spin")
    module, call = as_module((LEGACY / "spin" / "spin.f90").read_text()), "    call spin_correct\n"
    if after:
        turn = "    backwards = .not. backwards\n"
        module = module.replace(call, "", 1).replace(turn, call + turn, 1)
    (folder / source).write_text(module)
    (folder / "spin.nml").write_text("&control dt=0.005 /\n")
    adapter = (folder / "adapter.f90").read_text()
    state = adapter[adapter.index("!> The state, as it comes and goes"):]
    adapter = MODULE.replace("HIDDEN", hidden).replace("FACTOR", factor).replace("c, dcdt, n", "c, dcdt, n, dt")
    if after:
        adapter = adapter.replace("trimtab_add(dcdt,", "trimtab_add(c(1:n),")
    (folder / "adapter.f90").write_text(adapter + state)
    make = (folder / "Makefile").read_text()
    make = re.sub(r"^SOURCES =.*", f"SOURCES = {source}", make, flags=re.MULTILINE)
    (folder / "Makefile").write_text(re.sub(r"^FFLAGS =.*", f"FFLAGS = {flags}", make, flags=re.MULTILINE))
    toml = (folder / "spin.toml").read_text().replace("# files = [\"input.nml\"]", "files = [\"spin.nml\"] #")
    (folder / "spin.toml").write_text(toml)
    subprocess.run(["make"], cwd=folder, check=True, capture_output=True)
    return folder
