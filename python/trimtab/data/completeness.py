# SPDX-License-Identifier: MIT
"""Was all of a data file ever written? What a library makes up for the rest (zeros, a type's fill value) is no truth.

netCDF-3: the header says how long the file has to be. netCDF-4: the HDF5 library refuses a file cut short, and what was never
written holds the type's default fill value. Zarr: a chunk is a file, there or not.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import netCDF4
import numpy as np
import xarray as xr

from trimtab.core.errors import DataError

_BYTES = (0, 1, 1, 2, 4, 4, 8, 1, 2, 4, 8, 8)  # of the types of a netCDF-3 header, by their number
_STREAMED = (2**32 - 1, 2**64 - 1)  # number of records of a file whose length tells it


def open_data(path: Path, **options: Any) -> xr.Dataset:
    """A netCDF file or Zarr store, opened lazily; what was never written is NaN, also where the file names no fill value.

    Args:
        path: of the file or store.
        options: of `xarray.open_dataset`.

    Returns:
        The data, times as numbers.

    Raises:
        DataError: missing, neither of the two, or a netCDF-3 file cut short.
    """
    zarr = path.is_dir()
    kind = "a Zarr store" if zarr else "a netCDF file"
    if zarr:
        options |= {"engine": "zarr", "consolidated": False}
    try:
        if not zarr:
            _check_length(path)
        file = xr.open_dataset(path, decode_cf=False, **options)
        for variable in file.variables.values() if not zarr else ():
            default = netCDF4.default_fillvals.get(variable.dtype.str[1:])
            # A byte has no fill value by default: all its values count.
            if default is not None and variable.dtype.kind in "fiu" and variable.dtype.itemsize > 1 and \
                    not {"_FillValue", "missing_value"} & set(variable.attrs):
                variable.attrs["_FillValue"] = variable.dtype.type(default)
        return xr.decode_cf(file, decode_times=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be opened as {kind}, it may be cut short: {_first_line(error)}") from error
    except ImportError as error:
        raise DataError(f"{path} is a Zarr store, and zarr is not installed: pip install zarr.") from error


def check_chunks(path: Path, names: Iterable[str]) -> None:
    """Refuse variables of a Zarr store with chunks that were never written; any other file passes.

    Args:
        path: of the store.
        names: of the variables.

    Raises:
        DataError: which, and how many.
    """
    if not path.is_dir():
        return
    import zarr  # here, because only those who read a store need it installed

    group = zarr.open_group(path, mode="r")
    for name in names:
        array: Any = group[name]
        missing = array.nchunks - array.nchunks_initialized
        if missing > 0:
            raise DataError(f"The variable {name!r} of {path} was not written to its end: {missing} of its {array.nchunks} "
                            f"chunks are missing, and would be read as {array.fill_value}. Finish the store; or, if these are "
                            "the values, write it with write_empty_chunks=True.")


def stored_spacing(variable: xr.DataArray) -> float:
    """Distance between two neighbouring numbers of a variable's stored type, at its largest value; 0 for integers."""
    stored = np.dtype(variable.encoding.get("dtype", variable.dtype))
    if stored.kind != "f" or not variable.size:
        return 0.0
    return float(np.spacing(np.abs(variable.to_numpy()).max().astype(stored)))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_length(path: Path) -> None:
    """Compare a netCDF-3 file's length with its header."""
    with open(path, "rb") as file:
        magic = file.read(4)
        if magic[:3] != b"CDF" or magic[3:] not in (b"\1", b"\2", b"\5"):
            return
        try:
            needed = _Header(file, magic[3]).length()
        except (struct.error, IndexError) as error:
            raise DataError(f"{path} is cut short within its header: write it again.") from error
    size = path.stat().st_size
    if size < needed:
        raise DataError(f"{path} is cut short: it has {size} bytes, and its header speaks of {needed}; the rest would be read as "
                        "zeros. Write or copy it again.")


class _Header:
    """The header of a netCDF-3 file, see the classic format specification of Unidata.

    Args:
        file: open behind the magic number.
        version: 1, 2 (64-bit offsets) or 5 (64-bit data).
    """

    def __init__(self, file: BinaryIO, version: int):
        self.file, self.wide = file, version == 5
        self.offset = ">i" if version == 1 else ">q"

    def length(self) -> int:
        """Bytes that the file needs for all its data."""
        records = self._count()
        lengths = []
        for _ in range(self._list()):
            self._name()
            lengths.append(self._count())
        self._skip_attributes()
        ends, per_record, recorded = [0], [], []
        for _ in range(self._list()):
            self._name()
            dims = [self._count() for _ in range(self._count())]
            self._skip_attributes()
            width = _BYTES[self._number(">I")]
            self._count()  # its size, which overflows for a large one
            begin = self._number(self.offset)
            along_records = bool(dims) and lengths[dims[0]] == 0
            size = width * math.prod(lengths[one] for one in dims[along_records:])
            if along_records:
                per_record.append(size)
                recorded.append(begin)
            else:
                ends.append(begin + size)
        if recorded and records and records not in _STREAMED:
            # Records follow one another; a single variable's are not padded.
            stride = per_record[0] if len(per_record) == 1 else sum(-(-size // 4) * 4 for size in per_record)
            ends += [begin + (records - 1) * stride + size for begin, size in zip(recorded, per_record, strict=True)]
        return max(ends)

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self.file.read(struct.calcsize(form)))[0])

    def _count(self) -> int:
        return self._number(">Q" if self.wide else ">I")

    def _list(self) -> int:
        self._number(">I")  # its kind
        return self._count()

    def _name(self) -> None:
        self._skip(self._count())

    def _skip(self, size: int) -> None:
        size = -(-size // 4) * 4
        if len(self.file.read(size)) < size:
            raise struct.error("the header ends here")

    def _skip_attributes(self) -> None:
        for _ in range(self._list()):
            self._name()
            width = _BYTES[self._number(">I")]
            self._skip(width * self._count())
