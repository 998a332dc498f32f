# SPDX-License-Identifier: MIT
"""Memory that two processes share: an open file without a name, so that nothing is left behind whatever dies."""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import tempfile
import weakref
from typing import Any

import numpy as np

_ALIGN = 64
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def anonymous_file(size: int) -> int:
    """Descriptor of a file in memory that has no name, of the given size in bytes; the caller closes it."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("trimtab", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as named:
            file = os.dup(named.fileno())
    os.ftruncate(file, max(1, size))
    return file


def mapped(file: int, size: int) -> memoryview:
    """The first bytes of such a file, shared with every process that maps it; lives as long as what refers to it.

    By the C library, because Python's mmap keeps a descriptor open for each mapping, and a process may have 1024.

    Raises:
        MemoryError: the system has no room for it.
    """
    size = max(1, size)
    address = _LIBC.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise MemoryError(f"{size} bytes of shared memory cannot be mapped: {os.strerror(ctypes.get_errno())}.")
    held = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(held, _LIBC.munmap, address, size).atexit = False
    return memoryview(held).cast("B")


def aligned(size: int) -> int:
    """The next multiple of a cache line."""
    return -(-size // _ALIGN) * _ALIGN


class WindowMemory:
    """A window in shared memory: states, times, failed steps, progress; behind them what the network saw, if recorded.

    Args:
        shape: (K+1, B, N).

    Attributes:
        size: bytes without inputs.
    """

    def __init__(self, shape: tuple[int, int, int]):
        self.shape = shape
        records, members, _ = shape
        sizes = (8 * records * members * shape[2], 8 * records, 8 * members, 8 * members)
        self._offsets = [0]
        for one in sizes:
            self._offsets.append(self._offsets[-1] + aligned(one))
        self.size = self._offsets[-1]

    def views(self, memory: memoryview) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """States (K+1, B, N), times (K+1,), failed steps (B,) and outer steps done (B,)."""
        records, members, _ = self.shape
        return (self._view(memory, 0, np.float64, self.shape), self._view(memory, 1, np.float64, (records,)),
                self._view(memory, 2, np.int64, (members,)), self._view(memory, 3, np.int64, (members,)))

    def size_with_inputs(self, width: int) -> int:
        """Bytes with inputs of `width` numbers."""
        return self.size + 8 * (self.shape[0] - 1) * self.shape[1] * width

    def inputs(self, memory: memoryview, width: int) -> np.ndarray:
        """Inputs (K, B, width)."""
        return self._view(memory, 4, np.float64, (self.shape[0] - 1, self.shape[1], width))

    def _view(self, memory: memoryview, part: int, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        return np.frombuffer(memory, dtype, int(np.prod(shape)), self._offsets[part]).reshape(shape)


def grow(file: int, size: int) -> None:
    """Make a shared file at least so large; several processes may ask for the same at once."""
    if os.fstat(file).st_size < size:
        os.ftruncate(file, size)


def pack(value: Any, file: int, start: int) -> tuple[bytes, list[tuple[int, int]]]:
    """Write a value into a shared file: its arrays there, byte for byte, the rest into what is returned.

    Args:
        value: anything that can be pickled.
        file: descriptor; it grows.
        start: where its free part begins, in bytes.

    Returns:
        What `unpack` takes.
    """
    buffers: list[pickle.PickleBuffer] = []
    skeleton = pickle.dumps(value, 5, buffer_callback=buffers.append)
    raws = [one.raw() for one in buffers]
    places, stop = [], aligned(start)
    for raw in raws:
        places.append((stop, raw.nbytes))
        stop = aligned(stop + raw.nbytes)
    if places:
        grow(file, stop)
        memory = mapped(file, stop)
        for (offset, size), raw in zip(places, raws, strict=True):
            memory[offset : offset + size] = raw
    return skeleton, places


def unpack(packed: tuple[bytes, list[tuple[int, int]]], file: int) -> Any:
    """The value that `pack` wrote; its arrays are the receiver's own."""
    skeleton, places = packed
    buffers = []
    if places:
        memory = mapped(file, places[-1][0] + places[-1][1])
        buffers = [bytearray(memory[offset : offset + size]) for offset, size in places]
    return pickle.loads(skeleton, buffers=buffers)
