# SPDX-License-Identifier: MIT
"""The reference run: the truth's solver run forward, filtered to the solver's grid, kept in one netCDF file.

The file is named after its parameters and kept in a cache. Finished runs survive a kill; the file is whole or absent.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import queue
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np

from trimtab import __version__
from trimtab.bridge.opener import open_solver as opener_by_name
from trimtab.config.experiment import Experiment
from trimtab.config.input_files import file_digests
from trimtab.core import errors
from trimtab.core.atomic_files import only_writer, replacing
from trimtab.core.errors import BlowUpError, ConfigError, DataError, OutputError, SolverError
from trimtab.core.log import log
from trimtab.core.progress import Progress, silent
from trimtab.core.spec import SolverSpec
from trimtab.data.cache_folder import HERE, find_cached
from trimtab.data.field_names import define_fields, variable_names
from trimtab.data.reference_reader import known_fields
from trimtab.data.reference_run import Opener, Recipe, make_run, part_path, whole_steps
from trimtab.parallel.gathered_solver import open_joined
from trimtab.parallel.launcher import launched
from trimtab.parallel.world import World

FORMAT = 2  # part of the key: raise it when the same parameters no longer give the same file
SMALL_WORK = 3e7  # inner steps times grid points, about two seconds: not worth starting processes for


def recipe_of(experiment: Experiment, spec: SolverSpec) -> Recipe:
    """The recipe of an experiment's reference run.

    Args:
        experiment: whose sections [solver], [reference] and [training] count.
        spec: what the experiment's solver says of itself.

    Returns:
        The recipe.

    Raises:
        ConfigError: a time that is not a whole number of steps of the truth's solver.
    """
    reference = experiment.reference
    changes, coarse = dict(reference.solver), dict(reference.coarse)
    own = {} if "name" in changes else {"name": experiment.solver.name, **experiment.solver.options}
    own.pop("weight", None)  # of the gradient, not of a run
    truth = {**own, **changes}
    coarse_spin_up = coarse.pop("spin_up", 0.0)
    outside = "library" in truth or ":" in truth["name"]  # such a solver says its step itself, and a run looks at it
    if "dt" not in truth and not outside:
        raise ConfigError("The truth's solver needs its time step: give dt in reference.solver.")
    recipe = Recipe(
        truth=dict(sorted(truth.items())),  # keywords: their order is nobody's
        coarse=dict(sorted({**truth, **coarse}.items())) if coarse_spin_up else {},
        coarse_spin_up=coarse_spin_up,
        spin_up=reference.spin_up,
        interval=reference.interval or experiment.training.stride * spec.dt,
        snapshots=reference.snapshots,
        runs=reference.training_runs + reference.validation_runs + reference.test_runs,
        initial=reference.initial,
        perturbation=reference.perturbation,
        seed=reference.seed,
        filter=reference.filter,
        filter_width=reference.filter_width,
        fields=tuple((one.name, one.shape) for one in known_fields(spec, reference.hidden).fields),
    )
    if not outside:
        whole_steps(recipe.interval, truth["dt"], "reference.interval (or the outer step)")
        whole_steps(recipe.spin_up, truth["dt"], "reference.spin_up")
    if recipe.coarse and not outside:
        whole_steps(coarse_spin_up, recipe.coarse["dt"], "reference.coarse.spin_up")
    return recipe


def reference_path(experiment: Experiment, spec: SolverSpec) -> Path:
    """The file of an experiment's reference run, there or not: the user's own, or the one in the cache.

    The cache is the folder that TRIMTAB_CACHE names, `.trimtab-cache` in the current one by default, and one of the user's where
    that cannot be written; see `trimtab.data.cache_folder`.
    """
    if experiment.reference.file:
        return Path(experiment.reference.file)
    recipe = recipe_of(experiment, spec)
    text = f"{FORMAT} {recipe.to_json()}{_contents(recipe)}"
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    return find_cached(f"reference-{key}.nc")


def make_reference(experiment: Experiment, spec: SolverSpec, *, open_solver: Opener | None = None,
                   progress: Progress = silent, workers: int = 0, world: World | None = None) -> Path:
    """The reference run of an experiment, computed unless it is there.

    Args:
        experiment: see `recipe_of`; a file of the user's own is returned as it is.
        spec: what the experiment's solver says of itself.
        open_solver: opens the truth's solver by name and keywords; None for `trimtab.open_solver`, and only then can
            processes of our own share the runs.
        progress: told how far it is.
        workers: processes; 0 for one a core, or this one alone when the work is small. The bits do not depend on it.
        world: ranks that share the runs instead; all of them call this. Those of a domain compute each run together.

    Returns:
        The netCDF file: one variable a field of the solver, (run, time, ...), float64, in the field's unit.

    Raises:
        ConfigError: parameters that do not fit the solver.
        BlowUpError: the truth left the finite numbers.
        SolverError: a process that computed runs was ended from outside.
    """
    world = world or World()
    path = world.broadcast(reference_path(experiment, spec))
    progress = world.telling(progress)
    if experiment.reference.file or world.broadcast(path.is_file()):
        return path
    recipe, opener = recipe_of(experiment, spec), open_solver or opener_by_name
    parts = path.with_suffix(".parts")
    with world.working("the reference run"), contextlib.ExitStack() as stack:
        missing: list[int] | None = None
        if world.rank == 0:
            missing = _take(path, parts, recipe, stack, progress)
        missing = world.broadcast(missing)
        if missing is None:
            return path  # made while rank 0 waited
        # The ranks that share the solver share the truth as well, where it is the same solver.
        shared = world.domain if recipe.truth["name"] == experiment.solver.name else None
        if shared is not None:
            opener = functools.partial(open_joined, opener, shared)
        mine = missing[world.rank :: world.size] if shared is None else missing[world.team :: world.teams]
        below = launched()[0] > 0 and "library" in recipe.truth  # a code that calls MPI can in no process below a rank
        alone = world.size > 1 or below or open_solver is not None or not sys.executable or len(missing) <= 1
        workers = 1 if alone else min(workers or _workers(recipe), len(missing))
        if workers > 1:
            _share(recipe, missing, parts, workers, progress)
        else:
            for run in mine:
                for fraction in make_run(recipe, run, parts, opener, writes=shared is None or world.block == 0):
                    done = recipe.runs - len(missing) + (mine.index(run) + fraction) * len(missing) / len(mine)
                    progress(done / recipe.runs, f"reference: run {run + 1} of {recipe.runs}")
        world.sign("the reference run")
        world.wait()
        if world.rank == 0:
            _write(path, recipe, known_fields(spec, experiment.reference.hidden), parts)
            shutil.rmtree(parts)
        world.wait()
    return path


def _contents(recipe: Recipe) -> str:
    """What the files of a code say, whose change changes its runs; "" for a solver that is no file."""
    if "library" not in recipe.truth:
        return ""
    named = (recipe.truth["library"], *recipe.truth.get("files", ()), recipe.truth.get("stdin", ""))
    return " ".join(["", *(digest for one in named for digest in file_digests([one]).values())])


def _take(path: Path, parts: Path, recipe: Recipe, stack: contextlib.ExitStack, progress: Progress) -> list[int] | None:
    """Hold the folder; which runs are missing, None when all are there after all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The cache {path.parent} cannot be made ({error.strerror}): name a folder that can be written with "
                          "TRIMTAB_CACHE.") from error
    if not os.environ.get("TRIMTAB_CACHE") and path.parent != HERE:
        log.warning("%s cannot be written: the reference run is kept in %s; TRIMTAB_CACHE names another folder.", HERE.absolute(),
                    path.parent)
    try:
        stack.enter_context(only_writer(path.parent))
    except DataError:
        text = f"reference: waiting for another process that computes into {path.parent}"
        stack.enter_context(only_writer(path.parent, wait=True, waiting=lambda: progress(0.0, text)))
    if path.is_file():
        return None
    parts.mkdir(exist_ok=True)
    return [run for run in range(recipe.runs) if not part_path(parts, run).is_file()]


def _workers(recipe: Recipe) -> int:
    size = max(int(recipe.truth.get("n", 1)) ** max(len(shape) for _, shape in recipe.fields),
               sum(math.prod(shape) for _, shape in recipe.fields))
    step = recipe.truth.get("dt") or recipe.interval  # of a code that says its own, a guess from below
    steps = (recipe.spin_up + recipe.interval * recipe.snapshots) / step
    if recipe.runs * steps * size < SMALL_WORK:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _share(recipe: Recipe, runs: list[int], parts: Path, workers: int, progress: Progress) -> None:
    """Interpreters of their own, which need no `if __name__ == "__main__"` in a user's script, as a pool's would."""
    command = [sys.executable, "-P", "-c", "from trimtab.data.reference_run import work; work()"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
    processes: list[subprocess.Popen[str]] = []

    def listen(process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            messages.put(json.loads(line))
        messages.put(None)

    try:
        for i in range(workers):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                       env=environment)
            processes.append(process)
            task = {"recipe": json.loads(recipe.to_json()), "runs": runs[i::workers], "folder": str(parts.resolve())}
            if process.stdin:
                process.stdin.write(json.dumps(task))
                process.stdin.close()
            threading.Thread(target=listen, args=(process,), daemon=True).start()
        fractions, listening = dict.fromkeys(range(recipe.runs), 1.0) | dict.fromkeys(runs, 0.0), workers
        while listening:
            message = messages.get()
            if message is None:
                listening -= 1
            elif "error" in message:
                kind = getattr(errors, message["error"])
                raise kind(message["text"], None) if issubclass(kind, BlowUpError) else kind(message["text"])
            else:
                fractions[message["run"]] = message["fraction"]
                done = sum(fraction == 1 for fraction in fractions.values())
                progress(sum(fractions.values()) / recipe.runs, f"reference: {done} of {recipe.runs} runs done")
        for process in processes:
            if process.wait() != 0:
                raise SolverError(f"A process that computed reference runs ended with code {process.returncode}"
                                  " (-9 is most often too little memory); start again, finished runs are kept.")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _write(path: Path, recipe: Recipe, spec: SolverSpec, parts: Path) -> None:
    """The parts as one netCDF file, run by run."""
    try:
        with replacing(path) as partial:
            _fill(partial, recipe, spec, parts)
    except RuntimeError as error:  # of the netCDF library, which keeps for itself what the system said
        raise OutputError(f"{path} cannot be written ({error}): make room, or name another folder with TRIMTAB_CACHE; the runs "
                          "are kept.") from error


def _fill(path: Path, recipe: Recipe, spec: SolverSpec, parts: Path) -> None:
    with netCDF4.Dataset(path, "w") as file:
        file.title = f"reference run of {spec.solver}: {recipe.truth['name']}, filter {recipe.filter}"
        file.source = f"trimtab {__version__}"
        file.recipe = recipe.to_json()
        file.seed = recipe.seed
        file.createDimension("run", recipe.runs)
        file.createDimension("time", recipe.snapshots)
        _coordinate(file, "run", np.arange(recipe.runs), "number of the run", "1")
        _coordinate(file, "time", recipe.interval * np.arange(recipe.snapshots), "time since the end of the spin-up",
                    spec.time_units)
        define_fields(file, spec, ("run", "time"), fill_value=False)
        names = variable_names(spec)
        for run in range(recipe.runs):
            records = np.load(part_path(parts, run), mmap_mode="r")
            for field in spec.fields:
                file[names[field.name]][run] = records[field.name]


def _coordinate(file: netCDF4.Dataset, name: str, values: np.ndarray, long_name: str, units: str) -> None:
    variable = file.createVariable(name, values.dtype, (name,), fill_value=False)
    variable[:] = values
    variable.long_name, variable.units = long_name, units
