# SPDX-License-Identifier: MIT
"""An ensemble as one netCDF file: each rank streams its groups to files of their own, rank 0 puts them together at the end.

Not parallel netCDF, which is seldom installed, and no gathering, so that ranks never wait for one another while they compute: a
rank holds one block of one group, whatever the ensemble's size, and a kill costs a block. The ranks must see one folder, and the
disk holds everything twice for a while. The file's bytes follow from the ensemble alone: no date is written into it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np

from trimtab import __version__
from trimtab.core.atomic_files import check_file, only_writer, replacing
from trimtab.core.errors import BlowUpError, ConfigError, OutputError, TrimtabError
from trimtab.core.progress import silent
from trimtab.data.field_names import define_fields, variable_names
from trimtab.data.reference import Progress
from trimtab.forecast.ensemble import CHUNK_BYTES, Block, Ensemble, Group

PLAN = "plan.json"
MARGIN = 2**20  # bytes of the file that are not states


def write_ensemble(ensemble: Ensemble, out: str | Path, *, overwrite: bool = False, progress: Progress = silent) -> Path:
    """Run an ensemble into one netCDF file; called by every rank. What a killed run left is gone on with.

    Dimensions are (start, member, time, ...). Besides the solver's fields the file holds the lead times, where each start
    comes from, each member's network and varied parameters, and `failed_step`; a member is NaN after its blow-up.

    Args:
        ensemble: the same on every rank.
        out: the file; beside it the folder `out`.parts holds what is done until the file is whole.
        overwrite: replace a file that is there, and drop what another ensemble left unfinished.
        progress: told how far this rank is.

    Returns:
        The file.

    Raises:
        ConfigError: a file that is there, an unfinished ensemble of other settings, or too little room on the disk.
        OutputError: the file system failed; what is done is kept.
        BlowUpError: members left the finite numbers; the file is complete but for them.
    """
    out, world = Path(out), ensemble.world
    rank, size = world.rank, world.size
    parts = out.with_name(f"{out.name}.parts")
    progress = world.telling(progress)
    with world.working("the ensemble"), contextlib.ExitStack() as stack:
        if rank == 0:
            _prepare(ensemble, out, parts, overwrite)
            stack.enter_context(only_writer(parts))
        world.wait()
        if _stored_plan(parts) != _plan_text(ensemble):
            raise ConfigError(f"Rank {rank} does not find its own ensemble in {parts}: all ranks must see one file system and "
                              "run one trimtab and torch.")
        mine = ensemble.groups()[rank::size]
        for number, group in enumerate(mine):
            for done in _run(ensemble, group, parts):
                progress((number + done) / len(mine), f"ensemble: group {number + 1} of {len(mine)}"
                         + (f" of rank {rank}" if size > 1 else ""))
        ensemble.close()
        world.sign("the ensemble")
        world.wait()
        if rank == 0:
            failed = _merge(ensemble, out, parts, progress)
            shutil.rmtree(parts)
            if failed.any():
                raise BlowUpError(_blow_up_sentence(failed, ensemble, out), failed)
    return out


def part_path(parts: Path, group: Group) -> Path:
    """The file of a group."""
    return parts / f"group-{group.number:06d}.part"


def _prepare(ensemble: Ensemble, out: Path, parts: Path, overwrite: bool) -> None:
    """The folder of the parts, made or found again."""
    check_file(out)
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} is already there: give another --out, or --overwrite.")
    if not out.parent.is_dir():
        raise ConfigError(f"There is no folder {out.parent} to write {out.name} to.")
    plan = _plan_text(ensemble)
    if parts.is_dir() and _stored_plan(parts) != plan:
        if not overwrite and any(parts.glob("group-*.part")):
            raise ConfigError(f"{parts} holds an unfinished ensemble of other settings or versions: give these again to go on "
                              "with it, or --overwrite to drop it, or another --out.")
        with only_writer(parts):
            shutil.rmtree(parts)
    with _file_system(parts):
        parts.mkdir(exist_ok=True)
        if not (parts / PLAN).is_file():
            with replacing(parts / PLAN) as partial:
                partial.write_text(plan, encoding="utf-8")
    states = len(ensemble.starts.states) * ensemble.members * (ensemble.records + 1)
    there = sum(path.stat().st_size for path in parts.glob("group-*.part"))
    needed, free = 2 * 8 * states * ensemble.spec.size + MARGIN - there, shutil.disk_usage(parts).free
    if needed > free:
        raise ConfigError(f"{out} and its parts need {needed / 2**30:.3g} GiB and {out.parent} has {free / 2**30:.3g}: raise "
                          "--every, or give a folder with more room.")


def _plan_text(ensemble: Ensemble) -> str:
    return json.dumps(ensemble.plan(), indent=1, sort_keys=True, default=str) + "\n"


def _stored_plan(parts: Path) -> str:
    try:
        return (parts / PLAN).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _layout(ensemble: Ensemble, group: Group) -> np.dtype[Any]:
    """One record of a group on disk, with a sum over what follows it, so that a torn write is seen."""
    members = len(group.members)
    return np.dtype([("sum", "<u8"), ("failed", "<i8", (members,)), ("states", "<f8", (members, ensemble.spec.size))])


def _run(ensemble: Ensemble, group: Group, parts: Path) -> Iterator[float]:
    """Compute what is missing of a group; yields the share done."""
    path, layout = part_path(parts, group), _layout(ensemble, group)
    members, total = len(group.members), ensemble.records + 1
    after = None
    with _file_system(path):
        check_file(path)
        kept = _whole_records(ensemble, path, layout) if path.is_file() else 0
        if kept:
            last = np.fromfile(path, layout, 1, offset=(kept - 1) * layout.itemsize)
            fill = [*range(members), *[0] * (ensemble.group - members)]
            after = Block(kept - 1, last["states"][:, fill], last["failed"][:, fill])
            os.truncate(path, kept * layout.itemsize)
    yield kept / total
    if kept == total:
        return
    for block in ensemble.blocks(group, after):
        records = np.zeros(len(block.states), layout)
        records["failed"], records["states"] = block.failed[:, :members], block.states[:, :members]
        records["sum"] = [_sum(record) for record in records]
        with _file_system(path), open(path, "ab" if block.first else "wb") as file:
            file.write(records.tobytes())
        yield (block.first + len(records)) / total


def _sum(record: Any) -> int:
    return zlib.crc32(record.tobytes()[8:])


def _whole_records(ensemble: Ensemble, path: Path, layout: np.dtype[Any]) -> int:
    """Records to go on from: sound ones, cut where an uninterrupted run begins a block."""
    count = min(path.stat().st_size // layout.itemsize, ensemble.records + 1)
    if count == 0:
        return 0
    records = np.memmap(path, layout, "r", shape=(count,))
    sound = next((number for number, record in enumerate(records) if int(record["sum"]) != _sum(record)), count)
    if sound == ensemble.records + 1 or sound == 0:
        return sound
    return 1 + (sound - 1) // ensemble.block * ensemble.block


def _merge(ensemble: Ensemble, out: Path, parts: Path, progress: Progress) -> np.ndarray:
    """All groups as one netCDF file; returns (S, M) steps of blow-ups."""
    spec, total = ensemble.spec, ensemble.records + 1
    starts, members, groups = len(ensemble.starts.states), ensemble.members, ensemble.groups()
    failed = np.zeros((starts, members), dtype=np.int64)
    piece, names = max(1, CHUNK_BYTES // (8 * spec.size)), variable_names(spec)
    with _file_system(out), replacing(out) as partial, contextlib.closing(netCDF4.Dataset(partial, "w")) as file:
        _define(file, ensemble)
        for number, group in enumerate(groups):
            records = np.memmap(part_path(parts, group), _layout(ensemble, group), "r", shape=(total,))
            failed[group.start, list(group.members)] = records["failed"][-1]
            for slot, member in enumerate(group.members):
                for first in range(0, total, piece):
                    states = np.array(records["states"][first : first + piece, slot])
                    for name, values in spec.split(states).items():
                        file[names[name]][group.start, member, first : first + len(states)] = values
            progress((number + 1) / len(groups), "file: putting the groups together")
        file["failed_step"][:] = failed
    return failed


def _define(file: netCDF4.Dataset, ensemble: Ensemble) -> None:
    spec, starts, networks = ensemble.spec, ensemble.starts, ensemble.identity.get("names", [])
    file.setncatts({
        "Conventions": "CF-1.11", "title": f"ensemble of {spec.solver}, run forward by trimtab",
        "source": f"trimtab {__version__}, solver {spec.solver}", "history": "trimtab ensemble", "solver": spec.solver,
        "dt": spec.dt, "parameters": ", ".join(f"{key} = {value}" for key, value in spec.parameters.items()),
        "correction": ", ".join(networks) or "none", "seed": ensemble.seed, "group": ensemble.group,
        "perturbation": ", ".join(f"{key} = {value}" for key, value in vars(ensemble.perturbation).items()),
        "varied": ", ".join(f"{key} by {value}" for key, value in ensemble.varied.items()) or "none",
    })
    for name, length in (("start", len(starts.states)), ("member", ensemble.members), ("time", ensemble.records + 1)):
        file.createDimension(name, length)
    times = np.arange(ensemble.records + 1) * ensemble.every * spec.dt
    numbers = np.arange(ensemble.members)
    _variable(file, "time", "f8", ("time",), times, long_name="lead time", units=spec.time_units, axis="T")
    _variable(file, "member", "i4", ("member",), numbers, long_name="member", standard_name="realization", units="1")
    _variable(file, "start_time", "f8", ("start",), starts.times, long_name="time of the start", units=spec.time_units)
    if len(starts.places):
        for name, what, column in (("start_run", "held-out run", 0), ("start_snapshot", "snapshot of that run", 1)):
            _variable(file, name, "i4", ("start",), starts.places[:, column], long_name=f"{what} of the start", units="1")
    _variable(file, "network", "i4", ("member",), numbers % max(1, len(ensemble.corrections)),
              long_name="number of the network, in the order of the attribute correction", units="1")
    for name in sorted(ensemble.varied):
        values = [own[name] for own in ensemble.parameters]
        _variable(file, f"parameter_{name}", "f8", ("member",), values, long_name=f"the solver's parameter {name}")
    _variable(file, "failed_step", "i4", ("start", "member"), 0, units="1",
              long_name="step at which the member blew up, 0 when it did not")
    # No fill values and fixed lengths: the states lie one after the other, whatever the order in which they are written.
    define_fields(file, spec, ("start", "member", "time"), fill_value=False)


def _variable(file: netCDF4.Dataset, name: str, kind: str, dims: tuple[str, ...], values: Any, **attributes: str) -> None:
    variable = file.createVariable(name, kind, dims, fill_value=False)
    variable.setncatts(attributes)
    variable[:] = values


@contextlib.contextmanager
def _file_system(path: Path) -> Iterator[None]:
    """A full disk or a folder that may not be written, in one sentence; an exception of trimtab's own passes."""
    try:
        yield
    except TrimtabError:
        raise
    except (OSError, RuntimeError) as error:  # netCDF4 raises RuntimeError for a full disk
        raise OutputError(f"{path} cannot be written or read ({getattr(error, 'strerror', None) or error}); what is done is "
                          "kept: mend that and give the same command again.") from error


def _blow_up_sentence(failed: np.ndarray, ensemble: Ensemble, out: Path) -> str:
    where = np.argwhere(failed > 0)
    start, member = where[np.argmin(failed[failed > 0])]
    step = int(failed[start, member])
    return (f"{len(where)} of {failed.size} runs blew up, the first at step {step} (start {start}, member {member}); {out} is "
            "complete, and holds NaN for them from then on: shorten dt, perturb less, or train the correction on longer windows.")
