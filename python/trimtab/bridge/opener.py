# SPDX-License-Identifier: MIT
"""The one door to solvers: trimtab's own, a code with an adapter, a Python class."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.bridge.adapter_mpi import mpi_libraries
from trimtab.bridge.adapter_solver import CoupledSolver, IsolatedCode
from trimtab.bridge.fortran_solver import FortranSolver
from trimtab.config.import_path import import_named
from trimtab.core.errors import ConfigError
from trimtab.core.solver import Solver
from trimtab.isolation import open_isolated

WORKERS = ("isolation", "snapshot", "instances", "group", "timeout", "files", "stdin")  # of a class: unless it takes them itself


def open_solver(name: str, **options: Any) -> Any:
    """Open a solver by name.

    Args:
        name: "lorenz63", "lorenz96", "lorenz96_two_scale", "oscillator", "vanderpol" (stiff), "burgers" or "qg"; any name
            together with `library`, for a code with an adapter; or "package.module:Class", for a class of yours with `spec`,
            `advance` and `close`.
        options: of trimtab's own, `dt` (required); `integrator`: explicit "euler", "rk2", "rk3", "rk4" (or `order`, 1 to 4);
            adaptive "dopri5", which takes steps of its own within each dt, with tolerances `rtol` (1e-6) and `atol` (1e-9, in
            the state's unit); implicit "ars222", "ars443" (L-stable, order 2 and 3, the correction explicit), for stiff solvers
            of up to 64 variables; `correction_at` ("stage" or "step"); and the solver's own parameters, see `spec.parameters`
            and README. With `library`, see `open_code`; of a class, its arguments, and `isolation`, `snapshot`, `instances`,
            `group`, `timeout`, `files`, `stdin` of `trimtab.isolation`: a code whose parameters live in its process (module
            variables, f2py, f90wrap) needs a process for each solver, or truth and solver are one.

    Returns:
        The solver; several may be open at once.

    Raises:
        ConfigError: an unknown solver or parameter, or a value out of range, with the solver's own sentence.
    """
    if ":" in name:
        return _open_class(name, options)
    if "library" in options:
        return open_code(name, **options)
    return FortranSolver(name, **options)


def open_code(name: str, *, library: str, isolation: str = "", snapshot: str = "none", instances: int = 1,
              timeout: float = 0.0, files: Any = (), stdin: str = "", namelist: Mapping[str, Any] | None = None,
              weight: Mapping[str, Any] | None = None, comm: Any = None, **options: Any) -> Any:
    """Open a code with an adapter.

    Args:
        name: its name.
        library: the shared library of its sources and the adapter.
        isolation: "process" (the code runs in a process of its own, which a STOP ends and nothing else), "fork" (each rollout
            in a copy of a prepared process, so that nothing the code remembers goes from one to the next) or "none" (in this
            process: fastest to open, ended by a STOP); see `trimtab.isolation`. Default: "process", and "none" for a library that
            is linked with MPI, which runs in the ranks themselves.
        snapshot: "image": before each rollout the code's static memory is put back as it was when opened.
        instances, timeout: see `trimtab.isolation.IsolatedSolver`.
        files: files and folders that are copied into the folder in which the code runs.
        stdin: the file that it reads as standard input.
        namelist: file -> group -> variable -> value, changed in the copies.
        weight: how the slots' outputs enter the state; `trimtab couple check` writes it.
        comm: communicator (mpi4py) of the ranks that share the code, see `trimtab.core.solver`; None for this rank alone.
        options: what the adapter takes with trimtab_option.

    Raises:
        ConfigError: a missing file, an unknown option, or the adapter's own sentence.
        SolverStopped: the code stopped while it was set up.
    """
    given: dict[str, Any] = {
        "library": str(Path(library).absolute()),
        "files": tuple(str(Path(one).absolute()) for one in files),
        "stdin": str(Path(stdin).absolute()) if stdin else "",
        "namelist": dict(namelist or {}),
    }
    speaks_mpi = bool(mpi_libraries(library)) if Path(library).is_file() else comm is not None
    isolation = isolation or ("none" if speaks_mpi else "process")
    if speaks_mpi and isolation != "none":
        raise ConfigError(f"{library} is linked with MPI, and a code that talks to other ranks runs in them: solver.isolation = "
                          f"{isolation!r} must be \"none\", or be left out.")
    if isolation == "none":
        if instances != 1 or timeout or snapshot != "none":
            raise ConfigError("solver.instances, timeout and snapshot need isolation = \"process\" or \"fork\".")
        return CoupledSolver(name, weight=weight, comm=comm, **given, **options)
    if comm is not None:
        raise ConfigError(f"{library} is linked with no MPI library, and {comm.size} ranks are to share it: build it with FC = "
                          "mpif90, or set parallel.domain = 1.")
    named: dict[str, Any] = {"isolation": isolation, "snapshot": snapshot, "instances": instances, "timeout": timeout}
    if snapshot != "none":
        named["libraries"] = (Path(library).name,)
    inner = open_isolated("trimtab.bridge.adapter_solver:CoupledSolver",
                          {"name": name, **given, **options, "alone": True}, **named)
    return IsolatedCode(inner, weight or {})


def _open_class(name: str, options: dict[str, Any]) -> Solver:
    module, _, attribute = name.partition(":")
    try:
        kind: Any = import_named(module, attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"The solver {name!r} cannot be imported: {error}.") from error
    own = inspect.signature(kind)
    workers = {key: options[key] for key in WORKERS if key in options and key not in own.parameters}
    options = {key: value for key, value in options.items() if key not in workers}
    try:
        own.bind(**options)
    except TypeError as error:
        raise ConfigError(f"The solver {name} does not take these arguments: {error}.") from error
    if workers.get("stdin"):
        workers["stdin"] = str(Path(workers["stdin"]).absolute())
    if "files" in workers:
        workers["files"] = tuple(str(Path(one).absolute()) for one in workers["files"])
    solver: Solver = open_isolated(name, options, **{"isolation": "none", **workers}) if workers else kind(**options)
    if not isinstance(solver, Solver):
        raise ConfigError(f"{name!r} gave a {type(solver).__name__}; a solver has `spec`, `advance` and `close`, see "
                          "trimtab.core.solver.")
    return solver
