# SPDX-License-Identifier: MIT
"""Random fields with a given spectrum, on a line and on a plane."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np


def field_parts(shapes: tuple[tuple[int, ...], ...]) -> Iterator[tuple[slice, tuple[int, ...]]]:
    """Where each field lies in a flat state, with its shape."""
    first = 0
    for shape in shapes:
        size = math.prod(shape)
        yield slice(first, first + size), shape
        first += size


def climate_scales(anomalies: np.ndarray, shapes: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Root mean square of each field's anomalies (T, N), at every place of the state, (N,); 1 for a field that is zero."""
    scales = np.ones(anomalies.shape[1])
    for part, _ in field_parts(shapes):
        size = np.sqrt(np.mean(anomalies[:, part] ** 2))
        scales[part] = size or 1.0
    return scales


def coloured(rows: np.ndarray, shape: tuple[int, ...], slope: float) -> np.ndarray:
    """White noise given the amplitude spectrum (1 + k)^-slope.

    Args:
        rows: (M, n) white noise.
        shape: of the field, n points.
        slope: of the amplitudes.

    Returns:
        (M, n), its variance that of the noise times `coloured_variance`.
    """
    axes = tuple(range(1, len(shape) + 1))
    waves = np.fft.fftn(rows.reshape(-1, *shape), axes=axes) * _amplitudes(shape, slope)
    return np.fft.ifftn(waves, axes=axes).real.reshape(rows.shape)


def coloured_variance(shape: tuple[int, ...], slope: float) -> float:
    """Variance that `coloured` leaves of white noise of variance 1."""
    return float(np.mean(np.square(_amplitudes(shape, slope))))


def _amplitudes(shape: tuple[int, ...], slope: float) -> np.ndarray:
    squares = sum(np.square(one) for one in np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in shape), indexing="ij"))
    answer: np.ndarray = (1 + np.sqrt(squares)) ** -slope
    return answer


def random_vorticity(shape: tuple[int, int], generator: np.random.Generator, *, peak: float = 4.0,
                     rms: float = 4.0) -> np.ndarray:
    """A random vorticity field of large eddies, without mean, to start a spin-up from.

    Its Fourier amplitudes are k exp(-(k/peak)^2), with uniform random phases; k is in waves a domain.

    Args:
        shape: (ny, nx) of the grid.
        generator: numpy's; the only source of chance.
        peak: wavenumber around which the spectrum has its weight.
        rms: root mean square of the field.

    Returns:
        (ny, nx) float64.
    """
    ny, nx = shape
    ky = np.fft.fftfreq(ny, 1 / ny)[:, None]
    kx = np.fft.rfftfreq(nx, 1 / nx)
    k = np.hypot(kx, ky)
    amplitude = k * np.exp(-((k / peak) ** 2)) * ((np.abs(ky) < ny / 2) & (kx < nx / 2))
    field = np.fft.irfft2(amplitude * np.exp(2j * np.pi * generator.random(k.shape)), s=shape)
    answer: np.ndarray = field * (rms / np.sqrt(np.mean(field**2)))
    return answer


def random_line(n: int, generator: np.random.Generator, *, peak: float = 3.0, rms: float = 1.0) -> np.ndarray:
    """A random field of long waves on a ring, without mean.

    Its Fourier amplitudes are k exp(-(k/peak)^2), with uniform random phases; k is in waves a ring.

    Args:
        n: number of points.
        generator: numpy's; the only source of chance.
        peak: wavenumber around which the spectrum has its weight.
        rms: root mean square of the field.

    Returns:
        (n,) float64.
    """
    k = np.fft.rfftfreq(n, 1 / n)
    amplitude = k * np.exp(-((k / peak) ** 2)) * (k < n / 2)
    field = np.fft.irfft(amplitude * np.exp(2j * np.pi * generator.random(k.shape)), n=n)
    answer: np.ndarray = field * (rms / np.sqrt(np.mean(field**2)))
    return answer


def smooth_waves(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """A random smooth field of variance about 1: long cosine waves with even edges.

    Args:
        shape: of the field.
        generator: where the amplitudes come from.

    Returns:
        Array of that shape, without unit.
    """
    waves = np.ones(())
    for length in shape:
        along = (np.arange(length) + 0.5) / length
        wave = sum(generator.standard_normal() * np.cos(np.pi * k * along) for k in range(4)) / np.sqrt(2.5)
        waves = waves[..., None] * wave
    return waves if shape else np.asarray(generator.standard_normal())
