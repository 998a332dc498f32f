# SPDX-License-Identifier: MIT
"""Data files that are not complete are refused: what a library makes up for the rest is neither truth nor a start."""

from __future__ import annotations

import os

import netCDF4
import numpy as np
import pytest
import zarr

from trimtab.config.sections import ReferenceConfig
from trimtab.core.errors import DataError
from trimtab.core.spec import Field, SolverSpec
from trimtab.data.completeness import open_data
from trimtab.data.reference_reader import find_interval, open_file
from trimtab.data.windows import Targets
from trimtab.forecast.initial_conditions import file_starts

SPEC = SolverSpec("line", 0.1, 1, (Field("u", "wind", "m/s", ("x",), (5,)), Field("k", "steps", "1", ("x",), (5,), {}, True)))
SPLIT = ReferenceConfig(training_runs=1, validation_runs=0, test_runs=0, validation_windows=1)
CLASSIC = ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"]
SNAPSHOTS = 8


def write(path, form="NETCDF4", *, written=SNAPSHOTS, unlimited=True, kinds=("f8", "f8"), times="f8", first=0.0, **options):
    """A truth of one run of which so many snapshots are written; time stands before the fields."""
    with netCDF4.Dataset(path, "w", format=form) as file:
        file.createDimension("time", None if unlimited else SNAPSHOTS)
        file.createDimension("x", 5)
        file.createVariable("time", times, ("time",))[:SNAPSHOTS] = first + 0.05 * np.arange(SNAPSHOTS)
        for name, kind in zip(("u", "k"), kinds, strict=True):
            variable = file.createVariable(name, kind, ("time", "x"), **options)
            variable.title = "odd"
            variable[:written] = 1 + np.arange(5 * written).reshape(written, 5)
    return path


def targets(path):
    found = Targets(path, SPEC, SPLIT, 0.05)
    states = found.states(0, slice(None))
    found.close()
    return states


@pytest.mark.parametrize("form", CLASSIC)
@pytest.mark.parametrize("unlimited", [True, False])
def test_a_file_cut_short_is_no_truth_and_no_start(tmp_path, form, unlimited):
    path = write(tmp_path / "cut.nc", form, unlimited=unlimited)
    expected = np.tile(1 + np.arange(40.0).reshape(8, 5), (1, 2))
    assert np.array_equal(targets(path), expected) and np.array_equal(file_starts(path, SPEC)[0], expected[-1:])
    size = path.stat().st_size
    for length in (size - 4, size - 200, 40):
        os.truncate(path, length)
        for reading in (targets, lambda path: file_starts(path, SPEC)):
            with pytest.raises(DataError, match=f"cut short.* {length} bytes" if length > 40 else "cut short within its header"):
                reading(path)


@pytest.mark.parametrize("form", CLASSIC)
@pytest.mark.parametrize("kinds", ["i1", "i2", "f4", "f8", "c"])
@pytest.mark.parametrize("variables", [1, 3])
def test_the_header_says_how_long_a_file_is(tmp_path, form, kinds, variables):
    """Whatever types, records and padding: the whole file passes, and without its last byte of data it does not."""
    kinds = {"c": "S1"}.get(kinds, kinds)
    for records, unlimited in ((0, True), (1, True), (3, True), (3, False)):
        path = tmp_path / "one.nc"
        with netCDF4.Dataset(path, "w", format=form) as file:
            file.long_text = "five."
            file.createDimension("time", None if unlimited else 3)
            file.createDimension("x", 3)
            file.createVariable("fixed", "i2", ("x",))[:] = 1
            for number in range(variables):
                variable = file.createVariable(f"v{number}", kinds, ("time", "x"))
                variable[:records] = np.full((records, 3), b"a" if kinds == "S1" else 1)
        open_data(path).close()
        os.truncate(path, path.stat().st_size - 4)  # padding is at most 3
        with pytest.raises(DataError, match="cut short"):
            open_data(path)


@pytest.mark.parametrize(("form", "kind"), [*(("NETCDF4", kind) for kind in ("f4", "f8", "i2", "i4", "i8", "u2")),
                                            *(("NETCDF3_CLASSIC", kind) for kind in ("f4", "f8", "i2", "i4"))])
def test_what_was_never_written_is_missing(tmp_path, form, kind):
    """A variable without _FillValue holds its type's default one there."""
    path = write(tmp_path / "part.nc", form, written=6, kinds=("f8", kind), unlimited=False)
    with pytest.raises(DataError, match=r"NaN .*run 0, snapshot 6"):
        targets(path)
    with pytest.raises(DataError, match=r"'u' .* not written to its end"):
        file_starts(path, SPEC)
    assert targets(write(tmp_path / "whole.nc", form, kinds=("f8", kind), unlimited=False))[-1, -1] == 40


def test_a_time_that_was_never_written_is_missing(tmp_path):
    path = write(tmp_path / "part.nc", unlimited=False)
    with netCDF4.Dataset(path, "a") as file:
        file["time"][-1] = netCDF4.default_fillvals["f8"]
    with pytest.raises(DataError, match="one finite number a snapshot"):
        targets(path)
    with pytest.raises(DataError, match=r"last time .* never written"):
        file_starts(path, SPEC)


def test_a_byte_has_no_fill_value_of_its_own(tmp_path):
    path = write(tmp_path / "byte.nc", kinds=("f8", "i1"))
    with netCDF4.Dataset(path, "a") as file:
        file["k"][2] = -127
    assert (targets(path)[2, 5:] == -127).all()


def test_a_file_cut_short_in_the_format_of_hdf5(tmp_path):
    path = write(tmp_path / "cut.nc")
    os.truncate(path, path.stat().st_size - 100)
    for reading in (targets, lambda path: file_starts(path, SPEC)):
        with pytest.raises(DataError, match="cut short"):
            reading(path)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("fill", [0.0, float("nan")])
def test_a_store_with_missing_chunks(tmp_path, version, fill):
    def store(written):
        group = zarr.open_group(tmp_path / "truth.zarr", mode="w", zarr_format=version)
        for name, dims in (("time", ["time"]), ("u", ["time", "x"]), ("k", ["time", "x"])):
            shape = {"time": SNAPSHOTS, "x": 5}
            named = {"attributes": {"_ARRAY_DIMENSIONS": dims}} if version == 2 else {"dimension_names": dims}
            array = group.create_array(name, shape=tuple(shape[one] for one in dims), chunks=(2, 5)[: len(dims)], dtype="f8",
                                       fill_value=fill, config={"write_empty_chunks": True}, **named)
            values = 0.05 * np.arange(1, 9) if name == "time" else np.ones((8, 5))
            array[: written if name == "k" else 8] = values[: written if name == "k" else 8]
        return tmp_path / "truth.zarr"

    assert np.array_equal(targets(store(8)), np.ones((8, 10)))
    with pytest.raises(DataError, match=r"'k' .* 1 of its 4 chunks are missing.*write_empty_chunks"):
        targets(store(6))


@pytest.mark.parametrize(("first", "kind"), [(100.0, "f4"), (-100.0, "f4"), (1e4, "f4"), (1e9, "f8")])
def test_times_are_as_exact_as_their_type(tmp_path, first, kind):
    path = write(tmp_path / "late.nc", times=kind, first=first)
    file = open_file(path)
    interval = find_interval(file, path, "1")
    file.close()
    assert interval == pytest.approx(0.05, abs=2 * float(np.spacing(np.dtype(kind).type(abs(first) + 1))))
    assert len(targets(path)) == SNAPSHOTS


def test_a_gap_is_one_in_any_type(tmp_path):
    for kind, first in (("f4", 100.0), ("f8", 1e9), ("f4", 1e6)):
        path = write(tmp_path / "gap.nc", times=kind, first=first)
        with netCDF4.Dataset(path, "a") as file:
            file["time"][5:] = np.asarray(file["time"][5:]) + 0.05
        with pytest.raises(DataError, match=r"have a gap or do not rise|cannot be told"):
            targets(path)
