# SPDX-License-Identifier: MIT
"""What is installed, what is in force, and whether it works: on every rank of a job."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

import trimtab
from trimtab.bridge.threads import configure_runtime
from trimtab.core.errors import ConfigError, SolverError
from trimtab.parallel.launcher import launched
from trimtab.parallel.mpi import get_world, mpi_library
from trimtab.parallel.world import World

PACKAGES = ("torch", "numpy", "xarray", "netCDF4", "matplotlib", "f90wrap", "mpi4py")
COMPILERS = {"gfortran": "solvers are built with it", "gcc": "the bridge is built with it",
             "g++": "torch compiles networks with it"}
VENDORS = {"open mpi": "Open MPI", "openrte": "Open MPI", "intel": "Intel MPI", "mpich": "MPICH", "hydra": "MPICH",
           "mvapich": "MVAPICH"}
LOW_BYTES = 2**30     # of memory or disk, below which a warning is due
TEST_SECONDS = 2.0    # the self-test should take no longer on an idle core
Level = Literal["well", "warning", "broken"]


class Finding(NamedTuple):
    """One line of the examination.

    Attributes:
        level: "well", "warning", or "broken": something does not work.
        what: in a word or two.
        text: one sentence; for what is not well, with the remedy.
    """

    level: Level
    what: str
    text: str


def examine(folder: str | Path = ".") -> list[Finding]:
    """Examine this process and, under mpirun, all ranks; every rank has to call it.

    Args:
        folder: where runs are to go; its disk is looked at.

    Returns:
        What was found, the same on every rank.
    """
    found = [*_versions(), *_compilers()]
    world, finding = _ranks()
    found += [finding, *_mpi(), *_threads(world), *_room(Path(folder), world)]
    return [*found, *_self_test(world)]


def healthy(found: list[Finding]) -> bool:
    """Whether nothing is broken."""
    return all(one.level != "broken" for one in found)


def _versions() -> Iterator[Finding]:
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    listed = ", ".join([f"trimtab {trimtab.__version__}", f"Python {platform.python_version()}", *versions])
    yield Finding("well", "versions", f"{listed}; {platform.system()} {platform.machine()}.")


def _compilers() -> Iterator[Finding]:
    for name, purpose in COMPILERS.items():
        line = _first_line(name, "--version")
        if line:
            yield Finding("well", name, f"{line}.")
        else:
            yield Finding("warning", name, f"No {name} on the PATH; {purpose}: install it before you build or compile anything.")


def _ranks() -> tuple[World, Finding]:
    """The ranks, and what is wrong with the launcher when there are none."""
    size, _ = launched()
    try:
        world = get_world()
    except ConfigError as error:  # several processes that do not see each other, or no mpi4py under a launcher
        return World(), Finding("broken", "ranks", str(error))
    how = "" if size else " (no launcher: `mpirun -n 4 trimtab doctor` examines a job)"
    return world, Finding("well", "ranks", f"{world.placement()}{how}.")


def _mpi() -> Iterator[Finding]:
    launcher = _first_line("mpirun", "--version")
    try:
        library = mpi_library()
    except (ImportError, RuntimeError) as error:
        yield Finding("warning", "MPI", f"mpi4py cannot be used ({str(error).splitlines()[0]}): fine for one process; for more "
                                        "install an MPI library and trimtab[mpi].")
        return
    yield mpi_finding(library, launcher)


def mpi_finding(library: str, launcher: str) -> Finding:
    """Whether mpi4py's library and the mpirun on the PATH belong together.

    Args:
        library: what the library says of itself.
        launcher: the first line of `mpirun --version`; empty when there is none.

    Returns:
        The finding; a warning when they are of different makers, or of different major versions.
    """
    if not launcher:
        return Finding("warning", "MPI", f"{library}, and no mpirun on the PATH: load the MPI module, or start with srun.")
    makers = [next((maker for word, maker in VENDORS.items() if word in text.lower()), "") for text in (library, launcher)]
    versions = [re.search(r"\d+", re.sub(r"\((R|TM)\)", "", text)) for text in (library, launcher)]
    same_version = makers[0] != "Open MPI" or not all(versions) or len({one[0] for one in versions if one}) == 1
    if all(makers) and (makers[0] != makers[1] or not same_version):
        return Finding("warning", "MPI", f"mpi4py calls {library}, mpirun is {launcher}: two MPI libraries are mixed, so that N "
                                         "processes may each believe to be alone; use the mpirun of that library, or install "
                                         "mpi4py again with the module loaded.")
    return Finding("well", "MPI", f"{library}; mpirun: {launcher}.")


def _threads(world: World) -> Iterator[Finding]:
    runtime = configure_runtime()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    told = ", ".join(f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "TRIMTAB_THREADS") if name in os.environ)
    yield Finding("well", "threads", f"{runtime} in this process, which may use {len(cores)} cores"
                                     f"{'; ' + told if told else ''}.")
    hosts: dict[str, list[tuple[int, list[int]]]] = {}
    for host, threads, usable in world.share((socket.gethostname(), runtime.threads, cores)):
        hosts.setdefault(host, []).append((threads, usable))
    for host, ranks in hosts.items():
        yield from thread_findings(host, [threads for threads, _ in ranks], {core for _, usable in ranks for core in usable})


def thread_findings(host: str, threads: list[int], cores: set[int]) -> Iterator[Finding]:
    """A warning where the threads of a host's ranks are more than its cores.

    Args:
        host: its name.
        threads: of each rank.
        cores: that the ranks may use between them.

    Yields:
        One finding, or none.
    """
    if sum(threads) > len(cores):
        fewer = "" if len(threads) <= len(cores) else f" and start at most {len(cores)} ranks there"
        yield Finding("warning", "threads", f"{len(threads)} ranks with {sum(threads)} threads share {len(cores)} cores of "
                                            f"{host}, they will wait for one another: set "
                                            f"OMP_NUM_THREADS={max(1, len(cores) // len(threads))}{fewer}.")


def _room(folder: Path, world: World) -> Iterator[Finding]:
    memory = _available_memory()
    rows = world.share((socket.gethostname(), memory, *_disk(folder)))
    least = min((row for row in rows if row[1] is not None), key=lambda row: row[1], default=None)
    if least is not None:
        text = f"{least[1] / 2**30:.1f} GiB available on {least[0]}"
        low = least[1] < LOW_BYTES * sum(row[0] == least[0] for row in rows)
        yield Finding("warning" if low else "well", "memory", f"{text}, below 1 GiB a rank: start fewer ranks there." if low
                      else f"{text}.")
    for number, (host, _, free, sentence) in enumerate(rows):
        if sentence:
            yield Finding("broken", "disk", f"{sentence} (rank {number} on {host}).")
            return
        if free < LOW_BYTES:
            yield Finding("warning", "disk", f"{folder} has {free / 2**30:.2f} GiB left: checkpoints and ensembles may not fit; "
                                             "make room, or run elsewhere.")
            return
    yield Finding("well", "disk", f"{folder} can be written and has {min(row[2] for row in rows) / 2**30:.1f} GiB left.")


def _disk(folder: Path) -> tuple[int, str]:
    """Bytes left, and a sentence when the folder cannot be written."""
    probe = folder / f".trimtab-doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        probe.write_bytes(b"trimtab")
        probe.unlink()
        return shutil.disk_usage(folder).free, ""
    except OSError as error:
        return 0, f"{folder} cannot be written ({error.strerror}): give a folder that can"


def _available_memory() -> int | None:
    """Bytes, of this host or of the control group this process is in; None where nobody says."""
    found = []
    for path, pattern in (("/proc/meminfo", r"MemAvailable:\s+(\d+) kB"), ("/sys/fs/cgroup/memory.max", r"^(\d+)$")):
        try:
            match = re.search(pattern, Path(path).read_text())
        except OSError:
            continue
        if match:
            found.append(int(match[1]) * (1024 if "meminfo" in path else 1))
    return min(found, default=None)


def _self_test(world: World) -> Iterator[Finding]:
    """Solver, slot and gradient on every rank, and whether all have the same bits and can be summed."""
    began, sentence, digest = time.monotonic(), "", ""
    try:
        digest = self_test()
    except Exception as error:  # whatever it is, it is what the patient has, and the other ranks wait
        sentence = f"{type(error).__name__}: {error}"
    rows = world.share((sentence, digest, time.monotonic() - began))
    for rank, (text, _, _) in enumerate(rows):
        if text:
            yield Finding("broken", "self-test", f"Rank {rank}: {text}")
    if any(text for text, _, _ in rows):
        return
    total = world.sum(np.ones((1, 3)), range(world.size), [1.0] * world.size)
    if not np.array_equal(total, np.full(3, float(world.size))):
        yield Finding("broken", "self-test", f"The ranks' sum of ones is {total[0]:g} and not {world.size}: the MPI library is "
                                             "broken or mixed with another.")
        return
    if len({digest for _, digest, _ in rows}) > 1:
        yield Finding("warning", "self-test", "Works, but the ranks do not compute the same bits: their processors or libraries "
                                              "differ, and runs will depend on where they run.")
        return
    seconds = max(row[2] for row in rows)
    slow = f"; over {TEST_SECONDS:g} s, the machine is busy" if seconds > TEST_SECONDS else ""
    where = "on 1 rank" if world.size == 1 else f"on {world.size} ranks, with the same bits"
    yield Finding("well", "self-test", f"Solver, slot and gradient work {where} ({seconds:.1f} s{slow}).")


def self_test() -> str:
    """Run a solver, a correction in its slot, and a gradient against differences.

    Returns:
        A digest of the numbers.

    Raises:
        SolverError: something is not what it has to be.
    """
    start = np.array([[8.0, 0.0, 30.0], [1.0, 2.0, 20.0]])
    digest = hashlib.sha256()
    with trimtab.open_solver("lorenz63", dt=0.01) as solver:
        free = solver.advance(start, 50).states
        _expect(np.isfinite(free).all() and float(np.abs(free).max()) < 100, "Lorenz 63 left its attractor")
        _expect(np.array_equal(free, solver.advance(start, 50, correction=_Scaled(0.0)).states),
                "a correction of zero changed the bits of a run")
        correction = _Scaled(0.3)
        states = trimtab.rollout(solver, correction, start, 10, gradient="discrete")
        states[-1].square().sum().backward()
        gradient, step = float(correction.factor.grad), 1e-5  # type: ignore[arg-type]
        ends = [float(np.square(solver.advance(start, 10, correction=_Scaled(0.3 + sign * step)).states[-1]).sum())
                for sign in (1, -1)]
        difference = (ends[0] - ends[1]) / (2 * step)
        _expect(abs(gradient - difference) < 1e-5 * abs(difference),
                f"the gradient is {gradient} and differences give {difference}")
        digest.update(states.detach().numpy().tobytes())
    with trimtab.open_solver("qg", n=32, dt=2e-3, viscosity=1e-3) as solver:
        x = 2 * np.pi * np.arange(32) / 32
        wave = (4 * np.cos(3 * x)[:, None] * np.cos(4 * x)).reshape(1, -1)
        torch.manual_seed(0)
        network = trimtab.Correction(trimtab.networks.PeriodicCNN(channels=(1, 4, 1), kernel=3), solver.spec).eval()
        # Waves of one wavelength do not advect one another: without correction the field only decays, as exp(-nu k^2 t).
        decayed = solver.advance(wave, 20).states[-1]
        _expect(float(np.abs(decayed - wave * np.exp(-1e-3 * 25 * 0.04)).max()) < 1e-10, "a QG wave does not decay as it must")
        digest.update(solver.advance(wave, 20, correction=network).states.tobytes())
    return digest.hexdigest()


class _Scaled(torch.nn.Module):
    """A correction with one parameter."""

    dtype = torch.float64

    def __init__(self, factor: float):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return self.factor * torch.sin(u)


def _expect(holds: bool, sentence: str) -> None:
    if not holds:
        raise SolverError(f"{sentence[0].upper()}{sentence[1:]}: install trimtab again from its source, and run `make test`.")


def _first_line(*command: str) -> str:
    """Of what a program says of itself; "" when it is not there or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout.strip().splitlines() or [""])[0] if done.returncode == 0 else ""
