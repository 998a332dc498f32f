# SPDX-License-Identifier: MIT
"""Not every number of a network is real: complex parameters as pairs of real ones, and tensors of any kind as bytes.

Whatever puts numbers of a network in a row (gradients over the ranks, directions of a check, members of an inversion) goes
through here. Torch's gradient by a complex number is dL/d Re + i dL/d Im, so that the pairs are the gradient by the pairs.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn


def pairs(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in a row: a complex one is two, real and imaginary part.

    Args:
        tensor: of any shape.

    Returns:
        (P,) in the real precision of the tensor.
    """
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return real.reshape(-1)


def length(tensor: Tensor) -> int:
    """How many real numbers a tensor holds."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def shaped(row: Tensor, like: Tensor) -> Tensor:
    """The reverse of `pairs`.

    Args:
        row: (P,) real.
        like: whose shape, precision and device the answer has.

    Returns:
        A tensor.
    """
    if not like.is_complex():
        return row.reshape(like.shape).to(like.device, like.dtype)
    numbers = row.reshape(*like.shape, 2).to(like.device, like.dtype.to_real())
    return torch.view_as_complex(numbers.contiguous())


def to_vector(tensors: Iterable[Tensor]) -> Tensor:
    """The numbers of several tensors in one row.

    Args:
        tensors: of any shapes.

    Returns:
        (P,) float64, on the CPU, without a graph.
    """
    rows = [pairs(one.detach()).to("cpu", torch.float64) for one in tensors]
    return torch.cat(rows) if rows else torch.empty(0, dtype=torch.float64)


@torch.no_grad()
def set_from_vector(vector: Tensor, tensors: Sequence[Tensor]) -> None:
    """Put a row that `to_vector` could have made into tensors.

    Args:
        vector: (P,).
        tensors: are changed.
    """
    for one, row in zip(tensors, vector.split([length(one) for one in tensors]), strict=True):
        one.copy_(shaped(row, one))


def content(value: Any) -> bytes:
    """What a digest is made of: the bytes of a tensor of any dtype and layout, or of what a module keeps besides.

    Args:
        value: one of a state_dict.

    Returns:
        Its bytes.
    """
    if not isinstance(value, Tensor):
        return pickle.dumps(value, 4)
    if value.layout is not torch.strided or value.is_quantized:
        value = value.to_dense() if value.layout is not torch.strided else value.dequantize()
    plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def in_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a module; what is complex stays complex, of the same precision.

    Args:
        module: is changed.
        dtype: torch.float32 or torch.float64.

    Returns:
        The module.
    """
    def converted(one: Tensor) -> Tensor:
        if one.is_complex():
            return one.to(dtype.to_complex())
        return one.to(dtype) if one.is_floating_point() else one

    return module._apply(converted)


class Precise(nn.Module):
    """A module whose conversions keep complex numbers complex: torch's own drop the imaginary parts, or leave the precision."""

    def double(self) -> Self:
        """To float64, complex128."""
        in_precision(self, torch.float64)
        return self

    def float(self) -> Self:
        """To float32, complex64."""
        in_precision(self, torch.float32)
        return self

    def to(self, *args: Any, **options: Any) -> Self:
        """As of any module of torch."""
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **options)
        if dtype not in (torch.float32, torch.float64):
            return super().to(*args, **options)
        in_precision(self, dtype)
        return super().to(*([] if device is None else [device]), non_blocking=non_blocking, memory_format=layout)  # type: ignore
