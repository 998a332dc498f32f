# SPDX-License-Identifier: MIT
"""A code on several ranks with all that such codes have: hidden fields of every sort, a point that two ranks hold, a file that
one rank writes and all read, and MPI_ABORT with the code 0."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import trimtab
from helpers.blocks import LIMIT, assert_same_training, build, changed, mpirun, needs_mpi
from trimtab.config.experiment import load_experiment
from trimtab.core.errors import ConfigError
from trimtab.core.spec import Field, SolverSpec
from trimtab.coupling.report import check_coupling
from trimtab.isolation.workdir.scratch import Scratch
from trimtab.parallel.decomposition import Division, check_blocks
from trimtab.training.trainer import Trainer

pytestmark = needs_mpi
SHORT = ("training.epochs=1", "training.steps_per_epoch=2", "training.microbatch=1", "training.window=2", "training.batch=2",
         "reference.snapshots=6", "parallel.timeout=60")
# Faces in y, rows + 1 of them on each rank: the last one here is the first one of the next rank, and both compute it.
CODE = {
    "  integer :: nsteps = 200\n": "  integer :: nsteps = 200, counter = 0, passed = 0, io\n  logical :: odd = .false.\n"
                                   "  real(8) :: means(2) = 0d0\n  real(8), allocatable :: v(:, :), t_old(:, :)\n",
    "    allocate (t(nx": "    if (rank == 0) then\n      open (newunit=io, file='tmp.nml', status='new')\n"
                         "      write (io, *) 7\n      close (io)\n    end if\n    call MPI_Barrier(comm, code)\n"
                         "    open (newunit=io, file='tmp.nml', status='old', action='read')\n"
                         "    read (io, *) passed\n    close (io)\n"
                         "    allocate (v(nx, rows + 1), t_old(nx, rows), source=0d0)\n    allocate (t(nx",
    "  subroutine step()\n": "  subroutine faces()       ! the last face here is the next rank's first\n    integer :: code\n"
                             "    if (rank < ranks - 1) &\n"
                             "      call MPI_Recv(v(1, rows + 1), nx, MPI_DOUBLE_PRECISION, rank + 1, 3, &\n"
                             "                    comm, MPI_STATUS_IGNORE, code)\n"
                             "    if (rank > 0) call MPI_Send(v(1, 1), nx, MPI_DOUBLE_PRECISION, rank - 1, 3, comm, code)\n"
                             "  end subroutine faces\n\n  subroutine step()\n",
    "    call halo(t)\n    call tendency(t)\n": "    call halo(t)\n    v = v + dt*(t(:, 1:rows + 1) - t(:, 0:rows))\n"
                                               "    call tendency(t)\n    dtdt = dtdt - v(:, 2:rows + 1) + v(:, 1:rows)\n"
                                               "    if (odd) dtdt = dtdt + 0.1d0*t_old\n"
                                               "    dtdt = dtdt + 1d-3*counter + means(1)\n    t_old = t(:, 1:rows)\n"
                                               "    counter = counter + 1\n    odd = .not. odd\n    means = means + 1d-3\n",
    "    call MPI_Abort(comm, 7, code)\n": "    call MPI_Abort(comm, 0, code)\n",
}
ADAPTER = {
    "dt, t, rows, first, ny": "dt, t, rows, first, ny, counter, odd, means, v, t_old, rank, ranks",
    "  call trimtab_slot('blocks')\n":
        "  call trimtab_block('edge', ny + 1, first)\n"
        "  call trimtab_field(v(:, 1:rows + merge(1, 0, rank == ranks - 1)), 'v', 'K', 'x edge')\n"
        "  call trimtab_hidden(counter, 'counter')\n  call trimtab_hidden(odd, 'odd')\n"
        "  call trimtab_hidden(means, 'means', 'which')\n  call trimtab_hidden(t_old, 't_old', 'x y')\n"
        "  call trimtab_slot('blocks')\n",
    "  use trimtab\n  implicit none\n  integer(c_int64_t), value :: n\n  real(c_double), intent(in) :: state(n)\n":
        "  use trimtab\n  use blocks_step, only: faces\n  implicit none\n  integer(c_int64_t), value :: n\n"
        "  real(c_double), intent(in) :: state(n)\n",
    "  ! What your code derives": "  call faces()\n  ! What your code derives",
}
JOB = """
import pathlib, sys, trimtab
from mpi4py import MPI
from trimtab.parallel.gathered_solver import Joined
from trimtab.config.experiment import load_experiment
from trimtab.training.trainer import Trainer
import numpy as np
world = MPI.COMM_WORLD
solver = Joined(trimtab.open_solver("blocks", library="./libblocks.so", files=["blocks.nml"], comm=world), world)
surroundings = solver.inner.surroundings
end = solver.advance(solver.initial_state(), 2, stride=3).states[:, 0]
again = solver.advance(end[1][None], 1, stride=3).states[-1, 0]
assert np.array_equal(again, end[2])
folders = world.allgather((str(surroundings.folder), str(surroundings.log)))
solver.close()
world.barrier()
if world.rank == 0:
    np.save("end.npy", end)
    assert len({one for one, _ in folders}) == 1 and len({log for _, log in folders}) == world.size, folders
    assert not [one for pair in folders for one in pair if pathlib.Path(one).exists()]
Trainer(load_experiment("blocks.toml", sys.argv[2:]), sys.argv[1]).fit()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = build(tmp_path_factory.mktemp("faces") / "blocks", blocks=CODE, adapter=ADAPTER)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield folder


def test_two_ranks_with_hidden_fields_and_shared_points_are_as_one(place):
    """Run, restart and training; what the first rank writes, the other finds; the folder is gone after both."""
    Trainer(load_experiment("blocks.toml", SHORT), "one").fit()
    with trimtab.open_solver("blocks", library="libblocks.so", files=["blocks.nml"]) as solver:
        end = solver.advance(solver.initial_state(), 2, stride=3).states[:, 0]
    code, output = mpirun(2, place, sys.executable, "-c", JOB, "two", *SHORT, "parallel.domain=2")
    assert code == 0, output
    assert np.allclose(np.load("end.npy"), end, rtol=1e-12, atol=1e-14)
    assert_same_training(place / "two", place / "one")


def test_the_doctor_on_two_ranks(place):
    code, output = mpirun(2, place, sys.executable, "-m", "trimtab", "couple", "check", "blocks.toml")
    said = re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m", "", output))
    assert code == 0 and "0 bad" in said and "(4 hidden fields)" in said, output


def test_abort_with_zero_is_no_success(place):
    """On two ranks mpirun ends with another code; on one the doctor says what it was."""
    script = ("import numpy as np, trimtab; from mpi4py import MPI; from trimtab.coupling.harness import Given\n"
              "solver = trimtab.open_solver('blocks', library='./libblocks.so', files=['blocks.nml'], comm=MPI.COMM_WORLD)\n"
              "push = Given(solver.spec, np.full(sum(one.size for one in solver.spec.slots[0].outputs), 1e7))\n"
              "solver.advance(solver.initial_state(), 5, correction=push)")
    code, output = mpirun(2, place, sys.executable, "-c", script)
    assert code not in (0, None) and re.search(r"by MPI_ABORT \(exit code 0\) on rank [01];", output), output
    found = next(one for one in check_coupling(place, write=False) if one.check == "blow-up")
    assert "MPI_ABORT with the code 0" in found.found and "STOP" not in found.found, found


def test_a_c_source_that_aborts_is_heard(tmp_path):
    """The same through C's binding, which knows no Fortran names."""
    (tmp_path / "stop.c").write_text("#include <mpi.h>\nvoid give_up(void) { MPI_Abort(MPI_COMM_WORLD, 0); }\n")
    subprocess.run(["mpicc", "-O2", "-fPIC", "-c", "stop.c", "-o", "stop.o"], cwd=tmp_path, check=True, timeout=LIMIT)
    folder = build(tmp_path / "blocks", blocks={"    call MPI_Abort(comm, 7, code)\n": "    call give_up()\n",
                                                "  subroutine check()\n": "  subroutine check()\n    interface\n"
                                                "      subroutine give_up() bind(c)\n      end subroutine give_up\n"
                                                "    end interface\n"}, made=False)
    make = (folder / "Makefile").read_text()
    (folder / "Makefile").write_text(changed(make, {"OBJECTS =\n": "OBJECTS = ../stop.o\n"}))
    subprocess.run(["make"], cwd=folder, check=True, capture_output=True, timeout=LIMIT)
    script = ("import numpy as np, trimtab; from trimtab.coupling.harness import Given; "
              "solver = trimtab.open_solver('blocks', library='libblocks.so', files=['blocks.nml']); "
              "solver.advance(solver.initial_state(), 5, correction=Given(solver.spec, np.full(800, 1e7)))")
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode != 0 and "by MPI_ABORT (exit code 0)" in done.stderr, done.stderr


def test_a_point_that_two_ranks_describe_is_refused_with_what_to_do():
    def described(rows: int, before: int) -> Division:
        return Division(SolverSpec("sea", 0.1, 1, (Field("v", "v", "m/s", ("edge",), (rows,)),)), {"edge": (6, before)})

    with pytest.raises(ConfigError, match=r"overlap.*described by one of them.*end of trimtab_set_state and after each"):
        check_blocks(described(4, 0), [described(4, 0).places, described(3, 3).places])
    check_blocks(described(3, 0), [described(3, 0).places, described(3, 3).places])


class Apart:
    """A communicator of two ranks, the other of which sees other folders."""

    size, rank = 2, 0

    def bcast(self, thing, root):
        return thing

    def allgather(self, thing):
        return [thing, False]


def test_ranks_that_see_no_folder_together_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"2 ranks that share sea see no folder together.*set TMPDIR"):
        Scratch("sea", Apart())
    assert not list(Path().iterdir())
