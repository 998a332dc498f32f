# SPDX-License-Identifier: MIT
"""A correction in two processes: its structure travels when it changes, its numbers stand in shared memory.

The structure is the module's pickle with every tensor taken out. It is made anew before each rollout (a fifth of a
millisecond for a small network) and compared byte for byte, so that whatever was changed in the module is noticed: a
replaced parameter, another layer, a switched flag. The numbers are copied into the shared memory once a rollout; the
worker's tensors are views on it.
"""

from __future__ import annotations

import io
import os
import pickle
from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn

from trimtab.core.errors import ConfigError
from trimtab.isolation.shared_window import aligned, anonymous_file, mapped

Settings = tuple[Any, ...]


class Mirror:
    """The parent's side.

    Attributes:
        version: changes with the structure.
        structure: what a worker builds the module from.
        file, size: the numbers, shared.
    """

    def __init__(self) -> None:
        self.version, self.structure, self.size = 0, b"", 0
        self.file: int | None = None
        self._memory: memoryview | None = None

    def update(self, correction: nn.Module) -> None:
        """Make structure and numbers those of a correction.

        Raises:
            ConfigError: the correction cannot be sent to another process.
        """
        pickler = _Pickler()
        try:
            pickler.dump(correction)
        except Exception as error:
            raise ConfigError(f"The correction cannot be sent to the solver's process ({type(error).__name__}: {error}): build "
                              "it of modules that can be pickled, or set isolation = \"none\".") from error
        structure = pickler.written.getvalue()
        if structure != self.structure:
            self.close()
            self.structure, self.size = structure, pickler.size
            self.file = anonymous_file(self.size)
            self._memory = mapped(self.file, self.size)
            self.version += 1
        assert self._memory is not None
        with torch.no_grad():
            for place, tensor in pickler.tensors:
                _tensor(self._memory, place).copy_(tensor)

    def close(self) -> None:
        """Give back the shared memory."""
        if self.file is not None:
            os.close(self.file)
        self.file, self._memory, self.structure = None, None, b""


def attach(structure: bytes, file: int, size: int) -> nn.Module:
    """The worker's side: the module, its tensors on the shared memory.

    Args:
        structure: of a `Mirror`.
        file: its descriptor, closed here.
        size: in bytes.
    """
    memory = mapped(file, size)
    os.close(file)
    module: nn.Module = _Unpickler(structure, memory).load()
    return module


# Where a tensor stands: (offset, dtype, shape, strides, parameter, requires_grad).
Place = tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...], bool, bool]


class _Pickler(cloudpickle.Pickler):  # so that a network may be defined in the user's script
    def __init__(self) -> None:
        self.written = io.BytesIO()
        super().__init__(self.written, pickle.HIGHEST_PROTOCOL)
        self.size = 0
        self.tensors: list[tuple[Place, Tensor]] = []
        self._places: dict[int, Place] = {}

    def persistent_id(self, value: Any) -> Place | None:
        if type(value) not in (Tensor, nn.Parameter) or not _is_plain(value):
            return None  # it travels by value, as part of the structure
        known = self._places.get(id(value))
        if known is None:
            known = (self.size, value.dtype, tuple(value.shape), value.stride(), type(value) is nn.Parameter,
                     value.requires_grad)
            self._places[id(value)] = known
            self.tensors.append((known, value.detach()))
            self.size = aligned(self.size + max(1, value.numel()) * value.element_size())
        return known


class _Unpickler(pickle.Unpickler):
    def __init__(self, structure: bytes, memory: memoryview):
        super().__init__(io.BytesIO(structure))
        self._memory = memory
        self._made: dict[Place, Tensor] = {}

    def persistent_load(self, place: Place) -> Tensor:
        if place not in self._made:
            tensor = _tensor(self._memory, place)
            self._made[place] = nn.Parameter(tensor, place[5]) if place[4] else tensor.requires_grad_(place[5])
        return self._made[place]


def _is_plain(tensor: Tensor) -> bool:
    """Dense numbers in main memory, each once: what a view on shared memory can stand for."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    if tensor.is_conj() or tensor.is_neg() or (tensor.requires_grad and not tensor.is_leaf):
        return False
    expected = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1 and stride != expected:
            return False
        expected *= max(1, length)
    return True


def _tensor(memory: memoryview, place: Place) -> Tensor:
    offset, dtype, shape, strides, *_ = place
    count = 1
    for length in shape:
        count *= length
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).as_strided(shape, strides)


def torch_settings() -> Settings:
    """What of torch's global state decides the bits of a network, as plain words and numbers."""
    return (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
            str(torch.get_default_dtype()).removeprefix("torch."), torch.get_float32_matmul_precision(),
            torch.backends.mkldnn.enabled)


def apply_settings(wanted: Settings) -> None:
    """Put such settings in force."""
    if wanted != torch_settings():
        deterministic, warn_only, filled, dtype, precision, mkldnn = wanted
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.set_default_dtype(getattr(torch, dtype))
        torch.set_float32_matmul_precision(precision)
        torch.backends.mkldnn.enabled = mkldnn
