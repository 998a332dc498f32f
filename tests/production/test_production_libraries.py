# SPDX-License-Identifier: MIT
"""Corrections in programs that link what climate codes link: netCDF, HDF5, FFTW, MPI, OpenMP; Python brings none of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from helpers import CODES, ROOT, TESTS
from helpers.column import PYTHON, trained
from helpers.lorenz import LORENZ
from helpers.lorenz import trained as trained_lorenz
from trimtab.bridge.aot_function import installed
from trimtab.production import export
from trimtab.training.run_folder import load_run

COLUMN = CODES / "column"
SOURCES = TESTS / "production"
PACKAGES = "apt install libnetcdff-dev libhdf5-dev (`make test` does it as root), or what its Makefile says for dnf, conda, brew"
# What comes with torch and numpy, and what the bridge wraps with; no library that a program may have linked itself.
ALLOWED = {"trimtab", "torch", "torchgen", "functorch", "numpy", "typing_extensions", "f90wrap", "f90nml", "sympy", "mpmath",
           "networkx", "jinja2", "markupsafe", "fsspec", "filelock", "setuptools", "pkg_resources", "_distutils_hack"}
pytestmark = pytest.mark.usefixtures("compiled_cache")


LOADED = """
import ctypes, importlib.metadata, json, sys
from trimtab.production.embedded import open_correction
function, context, _, _, _, keeper = open_correction(sys.argv[1], "", "")
state = (ctypes.c_float * 3)(1, 2, 3)
call = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_double)
assert call(function)(context, ctypes.addressof(state), 3, 1, 1.0)
packages = {name.split(".")[0] for name in sys.modules} & set(importlib.metadata.packages_distributions())
files = sorted({line.split()[-1].rsplit("/", 1)[-1] for line in open("/proc/self/maps") if ".so" in line})
print(json.dumps([sorted(packages), files]))
"""


def test_a_checkpoint_imports_what_a_forward_pass_needs(tmp_path, open_solver):
    """A package with a netCDF, HDF5 or MPI library of its own would call the functions of the program's, of another version."""
    trained_lorenz(tmp_path / "RUN", LORENZ.replace("DTYPE", "float32").replace("SLOT", "false"), open_solver)
    done = subprocess.run([sys.executable, "-c", LOADED, str(tmp_path / "RUN")], capture_output=True, text=True, check=True,
                          env={**os.environ, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"})
    packages, files = json.loads(done.stdout)
    assert {"torch", "numpy", "trimtab"} <= set(packages) <= ALLOWED
    assert not [one for one in files if one.startswith(("libnetcdf", "libhdf5", "libmpi", "libz-"))]


@pytest.fixture(scope="module")
def linked(tmp_path_factory):
    """The column's sources with a main that uses all these libraries."""
    tools = [name for name in ("nf-config", "mpif90", "mpicc") if shutil.which(name) is None]
    if tools or subprocess.run(["pkg-config", "--exists", "hdf5", "fftw3"], check=False).returncode:
        pytest.fail(f"this test links netCDF-Fortran, HDF5, FFTW and MPI: {PACKAGES}")
    folder = tmp_path_factory.mktemp("linked")

    def said(*command):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    bridge = ROOT / "bridge"
    sources = [bridge / "adapter" / "trimtab_slot.c", SOURCES / "libraries.c",
               *(bridge / "production" / f"{one}.c" for one in ("aoti_runtime", "aoti_export", "open"))]
    for source in sources:
        subprocess.run(["mpicc", "-O2", "-c", str(source), *said("pkg-config", "--cflags", "hdf5", "fftw3"),
                        "-o", str(folder / f"{source.stem}.o")], check=True)
    subprocess.run(["mpif90", "-O2", "-fopenmp", "-ffp-contract=off", "-J", str(folder), *said("nf-config", "--fflags"),
                    *(str(one) for one in (ROOT / "bridge" / "adapter" / "trimtab.f90", COLUMN / "column.f90",
                                           ROOT / "bridge" / "production" / "production.f90", SOURCES / "libraries.f90")),
                    *(str(folder / f"{one.stem}.o") for one in sources), *said("nf-config", "--flibs"),
                    *said("pkg-config", "--libs", "hdf5", "fftw3"), "-ldl", "-lm", "-o", str(folder / "column")], check=True)
    return folder


def start(linked, path, before=()):
    return subprocess.run([*before, str(linked / "column"), str(path)], capture_output=True, text=True, timeout=300,
                          cwd=path.parent, env={**os.environ, **PYTHON, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
                                                "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"})


def test_a_network_that_brings_another_netcdf_is_a_sentence(linked, built, tmp_path, monkeypatch):
    """A module that reads data, too: its import would end the program with SIGSEGV."""
    (tmp_path / "reading_net.py").write_text("import netCDF4, torch\nclass Network(torch.nn.Linear):\n    def __init__(self):\n"
                                             "        super().__init__(8, 8)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    trained(tmp_path / "RUN", built, False, 'name = "reading_net:Network"')[0].close()
    done = start(linked, tmp_path / "RUN")
    assert done.returncode == 1, done.stderr
    assert "this program links the library of nc_open itself, and netCDF4 brings another: import netCDF4 in none" in done.stderr


@pytest.mark.parametrize("form", ["checkpoint", "exported"])
def test_a_program_keeps_its_libraries(form, linked, built, tmp_path):
    """Its netCDF, HDF5, FFTW, MPI and OpenMP answer before, between and after calls of the correction; on two ranks."""
    if form == "checkpoint" and installed("libtrimtab_embed") is None:
        pytest.skip("this Python has no shared library")
    solver, correction = trained(tmp_path / "RUN", built, form == "exported")
    expected = solver.advance(solver.initial_state(), 20, correction=correction).states[-1, 0, -8:]
    solver.close()
    path = tmp_path / "RUN"
    if form == "exported":
        export.export_run(load_run(path), tmp_path / "out")
        path = tmp_path / "out"
    done = start(linked, path, ("mpirun", "-n", "2", "--oversubscribe"))
    assert done.returncode == 0, done.stdout + done.stderr
    numbers = np.array([int(one, 16) for one in done.stdout.split()], dtype=np.uint32).view(np.float32).reshape(2, 8)
    assert np.array_equal(numbers, [expected, expected])
