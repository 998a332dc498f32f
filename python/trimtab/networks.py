# SPDX-License-Identifier: MIT
"""Networks that come with trimtab, and the door for any other: torch modules in normalised units.

A network knows no solver. It maps (B, N) to (B, N), or on a grid (B, channels, y, x) to (B, 1, y, x).
"""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from trimtab.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class MLP(nn.Sequential):
    """Fully connected layers with a linear output; (B, sizes[0]) -> (B, sizes[-1]).

    Args:
        sizes: width of each layer, the input's first.
        activation: "tanh", "relu", "gelu" or "silu", after every layer but the last.

    Raises:
        ConfigError: fewer than two sizes, a size below 1, an unknown activation.
    """

    def __init__(self, sizes: Sequence[int] = (3, 32, 32, 3), activation: str = "tanh"):
        _check_widths("MLP: sizes", sizes)
        layers: list[nn.Module] = []
        for width, following in itertools.pairwise(sizes):
            layers += [nn.Linear(width, following), _activation(activation)]
        super().__init__(*layers[:-1])


class PeriodicCNN(nn.Sequential):
    """Convolutions on a doubly periodic grid with a linear output; (B, channels[0], y, x) -> (B, channels[-1], y, x).

    Args:
        channels: channels of each layer, the input's first.
        kernel: odd width of every square kernel, in grid points.
        activation: "relu", "tanh", "gelu" or "silu", after every layer but the last.

    Raises:
        ConfigError: fewer than two entries in channels, an even kernel, an unknown activation.

    Source:
        The architecture of Guan et al., arXiv 2201.07347, with circular padding (11 layers of 5x5, 64 channels there).
    """

    def __init__(self, channels: Sequence[int] = (2, 32, 32, 1), kernel: int = 5, activation: str = "relu"):
        _check_widths("PeriodicCNN: channels", channels)
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"PeriodicCNN: kernel = {kernel} must be odd, so that the output stays on the grid.")
        layers: list[nn.Module] = []
        for width, following in itertools.pairwise(channels):
            convolution = nn.Conv2d(width, following, kernel, padding=kernel // 2, padding_mode="circular")
            layers += [convolution, _activation(activation)]
        super().__init__(*layers[:-1])


NETWORKS: dict[str, type[nn.Module]] = {"MLP": MLP, "PeriodicCNN": PeriodicCNN}


def build_network(name: str, **options: Any) -> nn.Module:
    """A network by its shipped name or by import path.

    Args:
        name: a key of `NETWORKS`, or "package.module:Class" of a torch module.
        options: its arguments.

    Returns:
        The network, freshly initialised from torch's global generator.

    Raises:
        ConfigError: no such name, not importable, not a torch module, or arguments it does not take.
    """
    if name in NETWORKS:
        kind: Any = NETWORKS[name]
    else:
        module, colon, attribute = name.partition(":")
        if not colon:
            raise ConfigError(f"Unknown network {name!r}; give one of {', '.join(NETWORKS)} or \"package.module:Class\".")
        try:
            kind = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"The network {name!r} cannot be imported: {error}.") from error
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        raise ConfigError(f"The network {name} does not take these arguments: {error}.") from error
    network = kind(**options)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{name!r} gave a {type(network).__name__}; a network must be a torch.nn.Module.")
    return network


def network_dtype(module: nn.Module) -> torch.dtype:
    """Precision a module works in: its attribute `dtype`, else its first parameter's, else float64.

    Raises:
        ConfigError: no module of torch.
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(f"A network or correction must be a torch.nn.Module, not {type(module).__name__}: put what it computes "
                          "into the method `forward` of one.")
    declared = getattr(module, "dtype", None)
    if isinstance(declared, torch.dtype):
        return declared
    return next((one.dtype for one in module.parameters() if one.dtype.is_floating_point), torch.float64)


def _check_widths(what: str, widths: Sequence[int]) -> None:
    if len(widths) < 2 or any(width < 1 for width in widths):
        raise ConfigError(f"{what} = {list(widths)} must be at least two positive numbers, input and output.")


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise ConfigError(f"Unknown activation {name!r}; give one of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]()
