# SPDX-License-Identifier: MIT
"""A code that is divided among MPI ranks, coupled as README.md says: the same on 1 and 2 ranks, from training to production."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import netCDF4
import numpy as np
import pytest

import trimtab
from helpers import ROOT
from helpers.blocks import LEGACY, LIMIT, assert_same_training, build, changed, mpirun, needs_mpi
from trimtab.bridge.adapter_mpi import mpi_libraries
from trimtab.bridge.aot_function import installed
from trimtab.config.experiment import load_experiment
from trimtab.core.errors import ConfigError
from trimtab.core.spec import Field, Slot, SolverSpec
from trimtab.parallel.decomposition import Division, check_blocks
from trimtab.training.checkpoint import load_correction
from trimtab.training.trainer import Trainer

MAIN = {"  use blocks_step, only": "  use trimtab_production, only: trimtab_load_correction\n  use blocks_step, only",
        "  integer :: n, code, unit\n": "  integer :: n, code, unit, status\n  character(:), allocatable :: message\n",
        "  call setup()\n": "  call setup()\n  call trimtab_load_correction('blocks', ' ', status, message)\n"
                            "  if (status /= 0) print *, message\n"}
SHORT = ("training.epochs=1", "training.rate_end=0.5", "training.steps_per_epoch=4", "training.microbatch=1",
         "training.window=2", "reference.snapshots=12", "score.leads=[1,2]", "score.long_steps=8", "score.starts=1",
         "parallel.timeout=60")
TRAIN = """
import sys
from trimtab.config.experiment import load_experiment
from trimtab.training.trainer import Trainer
Trainer(load_experiment("blocks.toml", sys.argv[2:]), sys.argv[1]).fit()
"""
HEAT = """
from trimtab.training.microbatches import Crew
kept, steps = Crew._hand_out, 0
def heat(self, number):
    global steps
    steps += 1
    if steps > 4:
        self.correction.output_scale.mul_(1e9)
    return kept(self, number)
Crew._hand_out = heat
"""
COMMANDS = ("import sys; from trimtab.__main__ import main; "
            "sys.exit(main(sys.argv[1:4]) or main(sys.argv[4:7]) != 1 or main(sys.argv[7:]))")
pytestmark = needs_mpi


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of the coupled code, current and on the path."""
    folder = build(tmp_path_factory.mktemp("blocks") / "blocks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="module")
def one(place):
    """The short training on one rank, without MPI's launcher."""
    Trainer(load_experiment("blocks.toml", SHORT), "one").fit()
    return place / "one"


def test_few_lines(place):
    """Fewer than 10 changed lines in the code, fewer than 100 in the adapter."""
    before, after = ((folder / "blocks.f90").read_text().splitlines() for folder in (LEGACY, place))
    assert len(set(after) - set(before)) == 2 and len(after) == len(before) + 1
    lines = [line.strip() for line in (place / "adapter.f90").read_text().splitlines()]
    assert len([line for line in lines if line and line[0] != "!"]) < 70


def test_the_missing_term_is_recovered(place):
    """The solver lacks four fifths of the heat's diffusion; the law is found from short windows of the hybrid."""
    trainer = Trainer("blocks.toml", "recovered")
    trainer.fit()
    correction = trainer.correction
    law = correction.network.law.weight.detach().flatten() * correction.output_scale / correction.input_scale
    spacing = 2 * np.pi / np.array([32, 25])
    assert np.abs(10 * law[1:].numpy() * spacing**2 / 2e-2 - 1).max() < 0.005 and abs(float(law[0])) < 1e-3


def test_two_pairs_of_ranks_train_as_one(place, one):
    """Two solvers on two ranks each, of 13 and of 12 rows."""
    code, output = mpirun(4, place, sys.executable, "-c", TRAIN, "four", *SHORT, "parallel.domain=2")
    assert code == 0, output
    assert_same_training(place / "four", one)


def test_two_ranks_train_as_one_until_the_code_ends_the_job(place, one):
    """MPI_Abort at a blow-up, which the code sees through MPI_IN_PLACE; what was trained before is there."""
    code, output = mpirun(2, place, sys.executable, "-c", HEAT + TRAIN, "two", *SHORT, "training.epochs=2", "parallel.domain=2")
    assert code == 7 and "trimtab: the code ended this process, by MPI_ABORT (exit code 7)" in output, output
    assert "it printed last: blocks: too hot, T =" in output
    assert_same_training(place / "two", one)
    assert "into a trimtab.log of its own, here /" in (place / "two" / "log.txt").read_text()


def test_a_code_that_speaks_mpi_f08(place, one, tmp_path):
    """Its communicator is a type; MPI_IN_PLACE and MPI_STATUS_IGNORE of that module are MPI's own here, too."""
    folder = build(tmp_path / "f08", blocks={
        "module blocks_state\n  use mpi\n": "module blocks_state\n  use mpi_f08\n",
        "module blocks_step\n  use mpi\n": "module blocks_step\n  use mpi_f08\n",
        "integer :: comm = MPI_COMM_NULL, rank": "type(MPI_Comm) :: comm = MPI_COMM_NULL\n  integer :: rank",
    }, adapter={"  use mpi, only:": "  use mpi_f08, only:", "communicator(comm)": "communicator(comm%MPI_VAL)"})
    code, output = mpirun(2, folder, sys.executable, "-c", TRAIN, "f08", *SHORT, "parallel.domain=2")
    assert code == 0, output
    assert_same_training(folder / "f08", one)


def test_a_stop_ends_the_process_with_a_sentence(tmp_path):
    """Exit code and words, where the code's own would be 0 and unseen."""
    folder = build(tmp_path / "stop", blocks={"    call MPI_Abort(comm, 7, code)\n": "    stop 'too hot to go on'\n"})
    script = ("import numpy as np, trimtab; from trimtab.coupling.harness import Given; "
              "solver = trimtab.open_solver('blocks', library='libblocks.so', files=['blocks.nml']); "
              "solver.advance(solver.initial_state(), 5, correction=Given(solver.spec, np.full(800, 1e7)))")
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 1 and "STOP too hot to go on" in done.stderr
    assert done.stderr.startswith("trimtab: the code ended this process, most likely with a STOP (exit code 0)")


def test_the_doctor_then_python_and_fortran_on_two_ranks(place, one):
    """`couple check`, also of a network that makes a ring of each block; then `trimtab run` and the code's own program on two
    ranks: the same bits as here on one."""
    text = (place / "blocks_network.py").read_text()
    (place / "ring_network.py").write_text(changed(text, {"x[:, :, :-2]": "t.roll(1, 2)", "x[:, :, 2:]": "t.roll(-1, 2)"}))
    (place / "ring.toml").write_text(changed((place / "blocks.toml").read_text(), {"blocks_network": "ring_network"}))
    solver = trimtab.open_solver("blocks", library="libblocks.so", files=["blocks.nml"])
    start, correction = solver.initial_state(), load_correction(one / "best.pt", solver.spec)
    end = solver.advance(start, 2, stride=20, correction=correction).states[-1]
    assert not np.array_equal(end, solver.advance(start, 2, stride=20).states[-1])
    solver.close()
    with netCDF4.Dataset("start.nc", "w") as file:
        for name, length in (("y", 25), ("x", 32)):
            file.createDimension(name, length)
        file.createVariable("t", "f8", ("y", "x"))[:] = start.reshape(25, 32)
    forecast = ("run", one, "--steps", 40, "--every", 20, "--start", "start.nc", "--out", "two.nc")
    checks = ("couple", "check", "blocks.toml", "couple", "check", "ring.toml")
    code, output = mpirun(2, place, sys.executable, "-c", COMMANDS, *checks, *forecast)
    said = re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m", "", output))
    assert code == 0 and "two.nc: 3 records" in said, output
    with netCDF4.Dataset("two.nc") as file:
        assert file["t"][-1].data.tobytes() == end.tobytes()
    assert "network bad 8 steps differ" in said and said.count("0 bad") == said.count("1 bad") == 1, said
    for expected in ("2 ranks: 13 y from 0; 12 y from 13", "t[25, 32] real64", "n = 1, 3, 8, 33", "to the last bit", "0 bad"):
        assert expected in said, said
    if installed("libtrimtab_embed") is None:
        pytest.skip("this Python has no shared library")
    program(place)
    code, output = mpirun(2, place, "./blocks", TRIMTAB_CORRECTION=str(one), TRIMTAB_PYTHON=sys.executable,
                          TRIMTAB_EMBED=str(installed("libtrimtab_embed")))
    assert code == 0, output
    assert b"".join((place / f"blocks.{rank:03}").read_bytes() for rank in range(2)) == end.tobytes(), output
    (place / "wrong").mkdir()
    text = (place / "blocks_network.py").read_text()
    wrong = {"t = x[:, :, 1:-1]": "assert not x.any(), 'mine'; t = x[:, :, 1:-1]"}  # not on the zeros it is tried on
    (place / "wrong" / "blocks_network.py").write_text(changed(text, wrong))
    code, output = mpirun(1, place, "./blocks", TRIMTAB_CORRECTION=str(one), TRIMTAB_PYTHON=sys.executable,
                          TRIMTAB_EMBED=str(installed("libtrimtab_embed")), PYTHONPATH=str(place / "wrong"))
    assert re.search(r"trimtab: the correction in the slot blocks failed: .*mine.*; the run goes on without it", output), output


def program(place: Path) -> None:
    """His executable, with the lines of production in its main."""
    (place / "main.f90").write_text(changed((LEGACY / "blocks_main.f90").read_text(), MAIN))
    (place / "blocks.nml").write_text("&blocks nsteps = 40 /\n")
    bridge, objects = ROOT / "bridge" / "production", []
    for source in (place / "trimtab_slot.c", *(bridge / f"{one}.c" for one in ("aoti_runtime", "aoti_export", "open"))):
        objects.append(f"build/main-{source.stem}.o")
        subprocess.run(["gcc", "-O2", "-c", str(source), "-o", objects[-1]], cwd=place, check=True, timeout=LIMIT)
    subprocess.run(["mpif90", "-O2", "-fPIC", "-J", "build", "trimtab.f90", "blocks.f90", "adapter.f90",
                    str(bridge / "production.f90"), "main.f90", *objects, "-ldl", "-lm", "-o", "blocks"],
                   cwd=place, check=True, timeout=LIMIT)


def test_ranks_that_hang_together_in_a_code_end():
    """The code holds Python's lock, as one does that waits in MPI, and what it prints goes elsewhere."""
    script = ("import ctypes, os; from trimtab.parallel.world import World; world = World(); world.blocks, world.limit = 2, 0.1\n"
              "with world.computing():\n"
              "    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)\n"
              "    ctypes.PyDLL(None).sleep(60)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 1 and done.stderr.startswith("Timeout") and "line 4 in <module>" in done.stderr


def test_isolation_is_none_or_refused(place):
    assert mpi_libraries("libblocks.so")
    for isolation in ("process", "fork"):
        with pytest.raises(ConfigError, match=r'linked with MPI.* must be "none"'):
            trimtab.open_solver("blocks", library="libblocks.so", files=["blocks.nml"], isolation=isolation)
    with pytest.raises(ConfigError, match="linked with no MPI library, and 2 ranks"):
        trimtab.open_solver("slot", library=str(installed("libtrimtab_correction")), comm=Two())


class Two:
    """A communicator of two."""

    size, rank = 2, 0


def division(rows: int, before: int, points: int = 0, hidden: Field | None = None) -> Division:
    field = Field("t", "t", "K", ("y", "x"), (rows, 3))
    seen = Field("t", "t", "K", ("y", "x"), (points or rows + 2, 3))
    fields = (field,) if hidden is None else (field, hidden)
    return Division(SolverSpec("sea", 0.1, 1, fields, slots=(Slot("s", (seen,), (field,)),)), {"y": (5, before)})


def test_blocks_make_one_state():
    first, second = division(3, 0), division(2, 3)
    assert first.whole == second.whole and first.whole.size == 15 and first.whole.slots[0].inputs[0].shape == (5, 3)
    assert np.array_equal(np.concatenate([first.places, second.places]), np.arange(15))
    own, there = second.within(second.spec.slots[0].inputs[0])
    assert np.array_equal(own, np.arange(3, 9)) and np.array_equal(there, np.arange(9, 15))
    check_blocks(first, [first.places, second.places])


def test_two_divided_dimensions_and_a_counter():
    """Four blocks of a plane, a field on the plane, a hidden level of it and a counter that every rank holds."""
    whole, found = np.arange(5 * 7 * 2 + 1), np.full(5 * 7 * 2 + 1, -1)
    divisions = []
    for rows, above in ((3, 0), (2, 3)):
        for columns, left in ((4, 0), (3, 4)):
            plane = Field("t", "t", "K", ("y", "x"), (rows, columns))
            fields = (plane, Field("old", "old", "K", ("y", "x"), (rows, columns), hidden=True),
                      Field("step", "step", "1", (), (), hidden=True))
            seen = Field("t", "t", "K", ("y", "x"), (rows + 4, columns + 2))
            spec = SolverSpec("sea", 0.1, 1, fields, slots=(Slot("s", (seen,), (plane,)),))
            divisions.append(Division(spec, {"y": (5, above), "x": (7, left)}))
            t = whole[:35].reshape(5, 7)[above : above + rows, left : left + columns]
            assert np.array_equal(divisions[-1].places, np.concatenate([t.ravel(), 35 + t.ravel(), [70]]))
            own, there = divisions[-1].within(seen)
            inside = np.arange(seen.size).reshape(seen.shape)[2:-2, 1:-1]
            assert np.array_equal(inside.ravel(), own) and np.array_equal(there, t.ravel())
            found[divisions[-1].places] = divisions[-1].places
    assert np.array_equal(found, whole)
    check_blocks(divisions[0], [one.places for one in divisions])


@pytest.mark.parametrize("make, sentence", [
    (lambda: check_blocks(division(3, 0), [division(3, 0).places, division(3, 2).places]), "overlap"),
    (lambda: check_blocks(division(3, 0), [division(3, 0).places, division(1, 4).places]), "leave points out"),
    (lambda: division(3, 3), "3 of 5 points 'y' lie before this block of 3"),
    (lambda: division(3, 0, 4), "has 4 points along 'y', of which the block has 3"),
    (lambda: Division(division(3, 0).spec, {"z": (4, 0)}), "no field has: name one of trimtab_field .y, x."),
    (lambda: check_blocks(Division(division(3, 0).spec, {}), [np.arange(9)] * 2), "call trimtab_block"),
    (lambda: check_blocks(*_with(Field("old", "old", "K", ("old_1",), (9,), hidden=True))), "how the hidden array old is"),
    (lambda: check_blocks(*_with(Field("mean", "mean", "K", ("z",), (2,)))), "mean .* no divided dimension, and each of 2 ranks"),
])
def test_blocks_that_do_not_fit_are_refused(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()


def _with(field: Field) -> tuple[Division, list[np.ndarray]]:
    first, second = division(3, 0, hidden=field), division(2, 3, hidden=field)
    return first, [first.places, second.places]


def test_a_set_up_that_begins_and_ends_mpi_is_left_in_peace(tmp_path):
    """MPI runs already under Python: MPI_INIT and MPI_FINALIZE of the code do nothing, and Python's own job ends well."""
    folder = build(tmp_path / "own", adapter={
        "  use mpi, only: MPI_COMM_WORLD\n  use trimtab\n  use blocks_state, only: comm, kappa\n"
        "  use blocks_step, only: setup\n  implicit none\n":
        "  use mpi\n  use trimtab\n  use blocks_state, only: comm, kappa\n  use blocks_step, only: setup\n  implicit none\n"
        "  integer :: code, level\n  call MPI_Init(code)\n  call MPI_Init_thread(MPI_THREAD_FUNNELED, level, code)\n"
        "  call MPI_Finalize(code)\n"})
    script = ("import trimtab; from mpi4py import MPI; world = MPI.COMM_WORLD\n"
              "solver = trimtab.open_solver('blocks', library='./libblocks.so', files=['blocks.nml'], comm=world)\n"
              "end = solver.advance(solver.initial_state(), 2).states[-1].sum()\n"
              "total = world.allreduce(float(end))\n"
              "world.rank or print(f'sum {total} {world.size}', flush=True)")  # one rank: lines of two may meet in the pipe
    sums = []
    for ranks in (1, 2):
        code, output = mpirun(ranks, folder, sys.executable, "-c", script)
        assert code == 0, output
        found = re.search(rf"sum (\S+) {ranks}$", output, re.MULTILINE)
        assert found, output
        sums.append(float(found[1]))
    assert np.isclose(*sums, rtol=1e-12)
