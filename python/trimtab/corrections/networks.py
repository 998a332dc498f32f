# SPDX-License-Identifier: MIT
"""Networks that come with trimtab, and the door for any other: torch modules in normalised units.

A network knows no solver. It maps (B, N) to (B, N), or on a grid (B, channels, y, x) to (B, 1, y, x), on a line
(B, channels, x) to (B, 1, x); what answers a coefficient maps to its length. `output` keeps a coefficient positive.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.config.import_path import import_named
from trimtab.core.errors import ConfigError, NoModuleError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class Exp(nn.Module):
    """e^x."""

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of x."""
        return x.exp()


OUTPUTS: dict[str, tuple[Callable[[], nn.Module], ...]] = {"linear": (), "softplus": (nn.Softplus,), "exp": (Exp,)}


class MLP(nn.Sequential):
    """Fully connected layers; (B, sizes[0]) -> (B, sizes[-1]).

    Args:
        sizes: width of each layer, the input's first.
        activation: "tanh", "relu", "gelu" or "silu", after every layer but the last.
        output: after the last layer: "linear", or "softplus" or "exp", which are positive.

    Raises:
        ConfigError: fewer than two sizes, a size below 1, an unknown activation or output.
    """

    def __init__(self, sizes: Sequence[int] = (3, 32, 32, 3), activation: str = "tanh", output: str = "linear"):
        _check_widths("MLP: sizes", sizes)
        layers: list[nn.Module] = []
        for width, following in itertools.pairwise(sizes):
            layers += [nn.Linear(width, following), _activation(activation)]
        super().__init__(*layers[:-1], *_output(output))


class PeriodicCNN(nn.Sequential):
    """Convolutions on a periodic grid; (B, channels[0], y, x) -> (B, channels[-1], y, x).

    Args:
        channels: channels of each layer, the input's first.
        kernel: odd width of every (square) kernel, in grid points; or one a layer: [5, 1, 1] sees 5 points and no more.
        activation: "relu", "tanh", "gelu" or "silu", after every layer but the last.
        output: see `MLP`.
        dimensions: 2, or 1 for a line: (B, channels[0], x) -> (B, channels[-1], x).

    Raises:
        ConfigError: fewer than two entries in channels, an even kernel, kernels for another number of layers, an unknown
            activation or output, other dimensions.

    Source:
        The architecture of Guan et al., arXiv 2201.07347, with circular padding (11 layers of 5x5, 64 channels there).
    """

    def __init__(self, channels: Sequence[int] = (2, 32, 32, 1), kernel: int | Sequence[int] = 5, activation: str = "relu",
                 output: str = "linear", dimensions: int = 2):
        _check_widths("PeriodicCNN: channels", channels)
        if dimensions not in (1, 2):
            raise ConfigError(f"PeriodicCNN: dimensions = {dimensions} must be 1, a line, or 2, a plane.")
        kernels = [kernel] * (len(channels) - 1) if isinstance(kernel, int) else list(kernel)
        if len(kernels) != len(channels) - 1:
            raise ConfigError(f"PeriodicCNN: kernel = {kernels} must be one number, or one for each of the {len(channels) - 1} "
                              "layers.")
        if any(one < 1 or one % 2 == 0 for one in kernels):
            raise ConfigError(f"PeriodicCNN: kernel = {kernel} must be odd, so that the output stays on the grid.")
        layers: list[nn.Module] = []
        for (width, following), reach in zip(itertools.pairwise(channels), kernels, strict=True):
            kind: Any = nn.Conv2d if dimensions == 2 else nn.Conv1d
            convolution = kind(width, following, reach, padding=reach // 2, padding_mode="circular")
            layers += [convolution, _activation(activation)]
        super().__init__(*layers[:-1], *_output(output))


class Unknowns(nn.Module):
    """Parameters that do not depend on the state: an unknown number or field, to be found as it is; (B, ...) -> (B, *shape).

    Args:
        shape: of what it answers: [M], or [1, y, x] on a grid.
        initial: value of every parameter at the beginning, before `output`.
        uniform: one parameter for all of the shape, in place of one each.
        output: see `MLP`.

    Raises:
        ConfigError: a length below 1, an unknown output.
    """

    def __init__(self, shape: Sequence[int] = (1,), initial: float = 0.0, uniform: bool = False, output: str = "linear"):
        super().__init__()
        if len(shape) < 1 or any(length < 1 for length in shape):
            raise ConfigError(f"Unknowns: shape = {list(shape)} must be positive numbers.")
        self.shape, self.output = tuple(shape), nn.Sequential(*_output(output))
        self.values = nn.Parameter(torch.full((1,) * len(self.shape) if uniform else self.shape, float(initial)))

    def forward(self, inputs: Tensor) -> Tensor:
        """The same for every state, (B, *shape)."""
        return self.output(self.values).expand(inputs.shape[0], *self.shape)


NETWORKS: dict[str, type[nn.Module]] = {"MLP": MLP, "PeriodicCNN": PeriodicCNN, "Unknowns": Unknowns}


def network_class(name: str) -> Any:
    """The class of a network, by its shipped name or by import path; arguments and errors as of `build_network`."""
    if name in NETWORKS:
        return NETWORKS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"Unknown network {name!r}; give one of {', '.join(NETWORKS)} or \"package.module:Class\".")
    try:
        return import_named(module, attribute)
    except (ImportError, AttributeError) as error:
        sentence = f"The network {name!r} cannot be imported: {error}"
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise NoModuleError(f"{sentence}; call trimtab in the folder of {module.partition('.')[0]}, or set "
                                "PYTHONPATH to it.", sentence) from error
        raise ConfigError(f"{sentence}.") from error


def build_network(name: str, **options: Any) -> nn.Module:
    """A network by its shipped name or by import path.

    Args:
        name: a key of `NETWORKS`, or "package.module:Class" of a torch module.
        options: its arguments.

    Returns:
        The network, freshly initialised from torch's global generator.

    Raises:
        ConfigError: no such name, not importable, not a torch module, or arguments it does not take.
        NoModuleError: there is no module of that name where Python looks.
    """
    kind = network_class(name)
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        takes = ", ".join(inspect.signature(kind).parameters) or "none"
        raise ConfigError(f"The network {name} does not take these arguments: {error}; it takes {takes}.") from error
    network = kind(**options)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{name!r} gave a {type(network).__name__}; a network must be a torch.nn.Module.")
    return network


def network_dtype(module: nn.Module) -> torch.dtype:
    """Precision a module works in: its attribute `dtype`, else its first real parameter's, else that of its first
    complex one's parts, else float64.

    Raises:
        ConfigError: no module of torch.
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(f"A network or correction must be a torch.nn.Module, not {type(module).__name__}: put what it computes "
                          "into the method `forward` of one.")
    declared = getattr(module, "dtype", None)
    if isinstance(declared, torch.dtype):
        return declared
    real = next((one.dtype for one in module.parameters() if one.dtype.is_floating_point), None)
    return real or next((one.dtype.to_real() for one in module.parameters() if one.dtype.is_complex), torch.float64)


def _check_widths(what: str, widths: Sequence[int]) -> None:
    listed = isinstance(widths, Sequence) and all(isinstance(width, Integral) for width in widths)
    if not listed or len(widths) < 2 or any(width < 1 for width in widths):
        raise ConfigError(f"{what} = {list(widths) if listed else repr(widths)} must be a list of at least two "
                          "positive whole numbers, input and output.")


def _output(name: str) -> list[nn.Module]:
    if name not in OUTPUTS:
        raise ConfigError(f"Unknown output {name!r}; give one of {', '.join(OUTPUTS)}.")
    return [kind() for kind in OUTPUTS[name]]


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise ConfigError(f"Unknown activation {name!r}; give one of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]()
