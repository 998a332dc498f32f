# SPDX-License-Identifier: MIT
"""The correction: network + normalisation + what the state is -> an additive tendency, or a coefficient, in physical units.

Features that follow from the state are computed here, in torch, so that autograd sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.errors import ConfigError, InputError
from trimtab.core.spec import SolverSpec
from trimtab.corrections.networks import network_dtype
from trimtab.corrections.real_numbers import Precise

FEATURES = ("q", "psi", "u", "v", "strain")
STILL = 1e-30  # added to the square of the strain: where nothing is strained its root has a derivative


class Correction(Precise):
    """M_theta: a network in normalised units, as a tendency of the solver's state, or P_theta: as a coefficient of it.

    On a grid (one field of two dimensions) the network sees (B, C, y, x), one channel a feature, and returns
    (B, 1, y, x); on a line (one field of one dimension, named in `features`) it sees and returns (B, 1, x); otherwise it
    sees and returns (B, N). Where the solver's slot takes a coefficient (`SolverSpec.coefficient`), it returns (B, 1, y, x) for
    one on the solver's grid, else (B, M). The network works in its own precision (float32 is the normal case); states come and
    tendencies go in the precision of the caller.

    Args:
        network: any torch module.
        spec: the solver's.
        features: channels, of "q" (the state), "psi" (its stream function), "u", "v" (velocity), "strain" (its rate
            |S| = sqrt(4 psi_xy^2 + (psi_xx - psi_yy)^2), what Smagorinsky's eddy viscosity is proportional to); for a grid
            of vorticity only. Empty for ("q",) on a grid. The name of the state's one field, as in ("u",) for Burgers, for a
            line; empty there, the network sees the components.
        input_mean, input_scale: one number a channel (or component), or one for all; the network sees
            (input - mean) / scale.
        output_scale: one number a component, or one for all; the tendency is scale * output, in the state's unit per
            unit of time, or the coefficient in its own.
        compiled: have AOTInductor compile it, once a structure, so that a Fortran solver calls it without Python; the same
            numbers up to rounding (`bridge/aot_function.py`). Gradients differentiate this module in either case, at the same
            parameters.

    Raises:
        ConfigError: an unknown feature, features without a grid, a normalisation of another length or a scale of 0.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: SolverSpec,
        *,
        features: Sequence[str] = (),
        input_mean: Sequence[float] | float = 0.0,
        input_scale: Sequence[float] | float = 1.0,
        output_scale: Sequence[float] | float = 1.0,
        compiled: bool = False,
    ):
        super().__init__()
        self.compiled = compiled
        self.network = network
        line = tuple(features) == (spec.fields[0].name,) and len(spec.fields) == len(spec.fields[0].shape) == 1
        self.grid = spec.grid if line or len(spec.grid) == 2 else None
        self.size, self.rounding = spec.size, max(one.rounding for one in spec.fields)
        self.features = tuple(features) or (("q",) if self.grid else ())
        unknown = [name for name in self.features if name not in FEATURES]
        if unknown and not line:
            raise ConfigError(f"Unknown feature {unknown[0]!r}; a correction can see {', '.join(FEATURES)}.")
        if self.features and not self.grid:
            raise ConfigError(f"The solver {spec.solver} has no grid: leave features empty, the network sees the state.")
        channels = len(self.features) if self.grid else self.size
        self.outputs = spec.outputs
        self.one_map = bool(self.grid) and (spec.coefficient is None or spec.coefficient.shape == self.grid)
        outputs = 1 if self.one_map else self.outputs
        dtype = network_dtype(network)
        self.register_buffer("input_mean", as_numbers("input_mean", input_mean, channels, dtype))
        self.register_buffer("input_scale", as_numbers("input_scale", input_scale, channels, dtype))
        self.register_buffer("output_scale", as_numbers("output_scale", output_scale, outputs, dtype))
        self.input_mean: Tensor
        self.input_scale: Tensor
        self.output_scale: Tensor
        if self.grid and not line:
            self._prepare_derivatives(spec)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of network and normalisation; convert the correction as a whole, as in `correction.double()`."""
        return self.input_scale.dtype

    def forward(self, u: Tensor) -> Tensor:
        """Tendency of given states.

        Args:
            u: (B, N) states, float32 or float64.

        Returns:
            (B, N) tendency, or (B, M) coefficient, in physical units, dtype of u.

        Raises:
            InputError: the network's output is no tensor of real numbers, or has another shape.
        """
        output = real_tensor(self.network(self.inputs(u)), "The network")
        expected = (u.shape[0], 1, *self.grid) if self.grid and self.one_map else (u.shape[0], self.outputs)
        if output.shape != expected:
            raise InputError(f"The network returned shape {tuple(output.shape)}; "
                             f"the correction needs {tuple(expected)}: mend the network's last layer.")
        return (output.reshape(u.shape[0], self.outputs) * self.output_scale).to(u.dtype)

    def inputs(self, u: Tensor) -> Tensor:
        """What the network sees: features of the states, normalised.

        Args:
            u: (B, N) states.

        Returns:
            (B, C, y, x) on a grid, (B, 1, x) on a line, else (B, N), in the network's precision.
        """
        u = u.to(self.dtype)
        if not self.grid:
            return (u - self.input_mean) / self.input_scale
        shape = (1, -1, *[1] * len(self.grid))
        return (self._features(u) - self.input_mean.view(shape)) / self.input_scale.view(shape)

    def scale_of_outputs(self) -> Tensor:
        """The output scale, one number a component or one for all."""
        return self.output_scale

    @torch.no_grad()
    def fit_normalisation(self, states: Any, tendencies: Any = None) -> None:
        """Set mean and scale of the inputs from states, and the scale of the output from tendencies.

        Args:
            states: (M, N) float64, numpy or torch.
            tendencies: (M, N) in the state's unit per unit of time, NaN for components whose tendency nobody knows; None leaves
                the output scale as it is.

        Raises:
            InputError: no component of the state varies, or no tendency, so that no scale can be found; or a NaN.
        """
        u = torch.as_tensor(states).to(self.input_mean.device, torch.float64)
        values = self._features(u).transpose(0, 1).flatten(1) if self.grid else u.T
        deviations, least = values.std(1), self.rounding * values.abs().amax(1)
        deviations = torch.where(deviations <= least, 0.0, deviations)  # NaN stays, and is refused
        # A component that is the same always loses its mean, and is divided by its size, as long as some other varies.
        if self.grid or not (deviations > 0).any():
            varying("input", deviations)
        self.input_mean.copy_(values.mean(1))
        scales = varying("input", deviations.where(deviations != 0, deviations.max()))
        self.input_scale.copy_(scales_of(scales, deviations, values))
        if tendencies is not None:
            t = torch.as_tensor(tendencies).to(self.input_mean.device, torch.float64)
            spread = t.square().nanmean().sqrt().reshape(1) if self.grid else t.square().nanmean(0).sqrt().nan_to_num(0.0)
            # A component without a tendency, or with one that needs no correction, gets the largest scale: nothing divides by 0.
            self.output_scale.copy_(torch.where(spread > 0, spread, varying("tendency", spread.max())))

    def _features(self, u: Tensor) -> Tensor:
        q = u.view(-1, *self.grid)  # type: ignore[misc]
        if self.features == ("q",) or len(self.grid) == 1:  # type: ignore[arg-type]
            return q.unsqueeze(1)
        spectral = torch.fft.rfft2(q)
        psi = spectral * self.inverse_laplacian
        maps = {
            "q": lambda: q,
            "psi": lambda: torch.fft.irfft2(psi, s=self.grid),
            "u": lambda: torch.fft.irfft2(-1j * self.ky * psi, s=self.grid),
            "v": lambda: torch.fft.irfft2(1j * self.kx * psi, s=self.grid),
            "strain": lambda: self._strain(psi),
        }
        return torch.stack([maps[name]() for name in self.features], dim=1)

    def _strain(self, psi: Tensor) -> Tensor:
        shear = torch.fft.irfft2(2 * self.kx * self.ky * psi, s=self.grid)
        stretching = torch.fft.irfft2((self.kx**2 - self.ky**2) * psi, s=self.grid)
        return (shear**2 + stretching**2 + STILL).sqrt()

    def _prepare_derivatives(self, spec: SolverSpec) -> None:
        ny, nx = spec.grid
        length = float(spec.parameters.get("length", 2 * torch.pi))
        unit = 2 * torch.pi / length
        kx = torch.fft.rfftfreq(nx, 1 / nx, dtype=torch.float64) * unit
        ky = (torch.fft.fftfreq(ny, 1 / ny, dtype=torch.float64) * unit)[:, None]
        # The Nyquist wave of an even grid has no derivative on the grid, and the solver drops it.
        kx[nx // 2 + nx % 2 :], ky[ny // 2 : ny // 2 + 1 - ny % 2] = 0.0, 0.0
        square = kx**2 + ky**2
        inverse = torch.where(square > 0, -1 / square, 0.0)
        inverse[:, nx // 2 + nx % 2 :], inverse[ny // 2 : ny // 2 + 1 - ny % 2] = 0.0, 0.0
        dtype = self.dtype
        for name, values in (("inverse_laplacian", inverse), ("kx", kx), ("ky", ky)):
            self.register_buffer(name, values.to(dtype), persistent=False)
        self.inverse_laplacian: Tensor
        self.kx: Tensor
        self.ky: Tensor


def real_tensor(output: Any, what: str) -> Tensor:
    """What a network returned, if it is a tensor of real numbers.

    Args:
        output: what it returned.
        what: the network, at the beginning of a sentence.

    Returns:
        The same.

    Raises:
        InputError: it is anything else.
    """
    if not isinstance(output, Tensor):
        raise InputError(f"{what} returned a {type(output).__name__}; it must return a tensor.")
    if not output.dtype.is_floating_point:
        remedy = ": return its real part, or the inverse transform to real numbers (irfft)" if output.is_complex() else ""
        raise InputError(f"{what} returned {output.dtype}; it must return real numbers, torch.float32 or torch.float64{remedy}.")
    return output


def as_numbers(name: str, values: Sequence[float] | float, length: int, dtype: torch.dtype) -> Tensor:
    """One number, or one a channel, as a tensor of one a channel.

    Raises:
        ConfigError: another length, or a scale that is 0 or not finite.
    """
    numbers = torch.as_tensor(values, dtype=dtype).flatten()
    if numbers.numel() == 1:
        numbers = numbers.repeat(length)
    if numbers.numel() != length:
        raise ConfigError(f"{name} holds {numbers.numel()} numbers; give one, or one for each of the {length} channels.")
    if "scale" in name and not (numbers.isfinite() & (numbers != 0)).all():
        raise ConfigError(f"{name} = {numbers.tolist()} must hold finite numbers other than 0.")
    return numbers.clone()


def scales_of(scales: Tensor, deviations: Tensor, values: Sequence[Tensor] | Tensor) -> Tensor:
    """Scales of inputs, some of which do not vary: those have their own size, or if they are zero the largest deviation, so that
    what the network sees does not depend on units.

    Args:
        scales: (C,) positive.
        deviations: (C,) standard deviations, 0 for an input that does not vary.
        values: C tensors, the inputs.

    Returns:
        (C,), positive.
    """
    sizes = torch.stack([one.square().mean().sqrt() for one in values])
    return torch.where((deviations == 0) & (sizes > 0), sizes, scales)


def varying(what: str, values: Tensor) -> Tensor:
    """The standard deviations given.

    Raises:
        InputError: one of them is 0, or not finite.
    """
    if not values.isfinite().all():
        raise InputError(f"The {what} is not finite over the training data (standard deviation {values.tolist()}): the solver "
                         "blew up where it was computed; look at the truth's states, and shorten the time step.")
    if not (values.isfinite() & (values > 0)).all():
        raise InputError(f"The {what} does not vary over the training data (standard deviation {values.tolist()}): "
                         "set input_mean, input_scale and output_scale by hand in [correction]. A tendency of 0: truth and "
                         "solver make the same steps; where a code's parameters live in its process, [solver] needs "
                         "isolation = \"process\".")
    return values
