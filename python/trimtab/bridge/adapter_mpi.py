# SPDX-License-Identifier: MIT
"""MPI in somebody's code: started before it, one library with ours, and its constants at one address."""

from __future__ import annotations

import atexit
import ctypes
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.core.errors import ConfigError
from trimtab.parallel.launcher import launched, started_by_a_rank
from trimtab.parallel.mpi import get_world
from trimtab.parallel.world import World

_LIBRARIES = re.compile(rb"\0(libmpi[\w+.-]*\.so[.\d]*)(?=\0)")  # libmpi_mpifh.so.40, libmpifort.so.12, libmpi_gnu_123.so.12


def mpi_libraries(path: str | Path) -> list[str]:
    """Names of the MPI libraries that a shared library was linked with; none for a code that knows no MPI."""
    return sorted({one.decode() for one in _LIBRARIES.findall(Path(path).read_bytes())})


def solver_world(options: Mapping[str, Any], domain: int) -> World:
    """The ranks that share one solver where nothing is trained: all of the job where the solver can, else this one.

    Args:
        options: [solver]; a library that is linked with MPI can.
        domain: parallel.domain; above 1 says the same of a class.

    Returns:
        The ranks as one group.
    """
    library = Path(options.get("library", ""))
    if launched()[0] < 2 or not (domain > 1 or (library.is_file() and mpi_libraries(library))):
        return World()
    world = get_world()
    return world.place(world.size)


def start_mpi(path: str | Path, comm: Any) -> int | None:
    """Start MPI for a code, unless it knows none.

    MPI's Fortran constants (MPI_IN_PLACE, MPI_STATUS_IGNORE) are told by their addresses, so its libraries are made visible to
    all before the code is loaded; its own copies of them would be plain memory.

    Args:
        path: the code's shared library.
        comm: communicator (mpi4py) of the ranks that share it; None for this rank alone.

    Returns:
        What Fortran calls that communicator; None where the code's own, MPI_COMM_WORLD, is right: in a process that no launcher
        started, or without MPI.

    Raises:
        ConfigError: a communicator for a library without MPI, two MPI libraries, or a process of its own below a rank.
    """
    names = mpi_libraries(path)
    if not names:
        if comm is not None:
            raise ConfigError(f"{path} is linked with no MPI library, and {comm.size} ranks are to share it: build it with "
                              "FC = mpif90, or set parallel.domain = 1.")
        return None
    if started_by_a_rank():
        raise ConfigError(f"{path} calls MPI, and a process below a rank of mpirun cannot: set isolation = \"none\" in [solver].")
    under = launched()[0] > 0
    own = get_world().own if under else None
    for name in names:
        try:
            library = ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise ConfigError(f"{path} calls MPI, whose library {name} cannot be loaded ({error}): load the module it was built "
                              "with.") from error
    found = ctypes.c_int()
    library.MPI_Initialized(ctypes.byref(found))
    if under and not found.value:
        raise ConfigError(f"{path} calls another MPI library ({', '.join(names)}) than mpi4py: build it with the mpif90 that "
                          "belongs to the mpirun in use, and mpi4py as README.md says.")
    if not found.value:
        library.MPI_Init(None, None)
        atexit.register(_finish, library)
    shared = own if comm is None else comm
    return None if shared is None else int(shared.py2f())


def _finish(library: Any) -> None:
    over = ctypes.c_int()
    library.MPI_Finalized(ctypes.byref(over))
    if not over.value:
        library.MPI_Finalize()
