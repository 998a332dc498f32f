# SPDX-License-Identifier: MIT
"""From a fine doubly periodic grid to a coarse one and back, in Fourier space."""

from __future__ import annotations

import numpy as np

from trimtab.core.errors import ConfigError, InputError


def coarsen(fields: np.ndarray, shape: tuple[int, int], kind: str = "gaussian", width: float = 2.0) -> np.ndarray:
    """Filter fields and truncate them to a coarser grid; the Nyquist waves of the coarse grid are dropped.

    Args:
        fields: (..., ny, nx) float64, doubly periodic.
        shape: (ny, nx) of the coarse grid, even numbers.
        kind: "gaussian": exp(-k^2 D^2 / 24) in each direction, then truncation; "sharp": truncation alone; "none": the
            grids must be the same and nothing is done.
        width: D of the Gaussian filter, in grid lengths of the coarse grid.

    Returns:
        (..., *shape) float64, in the unit of `fields`.

    Raises:
        ConfigError: an unknown kind, "none" between two grids.
        InputError: the coarse grid is finer.

    Source:
        The Gaussian filter of width D: Pope, Turbulent Flows (2000), table 13.2.
    """
    if kind == "none":
        if fields.shape[-2:] != tuple(shape):
            raise ConfigError(f"The reference run has the grid {fields.shape[-2:]} and the solver {tuple(shape)}: set "
                              "reference.filter to \"gaussian\" or \"sharp\".")
        return fields
    spectrum = _resized(np.fft.rfft2(fields), fields.shape[-2:], shape, finer=False)
    if kind == "gaussian":
        spectrum *= _gaussian(shape[0], width)[:, None] * _gaussian(shape[1], width)[: shape[1] // 2 + 1]
    elif kind != "sharp":
        raise ConfigError(f"Unknown filter {kind!r}; give \"none\", \"gaussian\" or \"sharp\".")
    return np.fft.irfft2(spectrum, s=shape)


def refine(fields: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The same trigonometric polynomial on a finer grid; the Nyquist waves of the coarse grid are dropped.

    Args:
        fields: (..., ny, nx) float64, doubly periodic.
        shape: (ny, nx) of the fine grid, even numbers.

    Returns:
        (..., *shape) float64.

    Raises:
        InputError: the fine grid is coarser.
    """
    return np.fft.irfft2(_resized(np.fft.rfft2(fields), fields.shape[-2:], shape, finer=True), s=shape)


def _gaussian(n: int, width: float) -> np.ndarray:
    k = np.fft.fftfreq(n, 1 / n)
    return np.exp(-((2 * np.pi * k * width / n) ** 2) / 24)


def _resized(spectrum: np.ndarray, old: tuple[int, ...], new: tuple[int, int], *, finer: bool) -> np.ndarray:
    """Coefficients of rfft2 moved to another grid, scaled so that irfft2 gives the same amplitudes."""
    if min(*old, *new) < 4 or any((b < a) if finer else (b > a) for a, b in zip(old, new, strict=True)):
        raise InputError(f"A grid of {tuple(old)} cannot be {'refined' if finer else 'filtered'} to {tuple(new)}.")
    ny, nx = (min(a, b) for a, b in zip(old, new, strict=True))
    half_y, half_x = (ny - 1) // 2, (nx - 1) // 2  # the largest waves below the smaller grid's Nyquist
    moved = np.zeros((*spectrum.shape[:-2], new[0], new[1] // 2 + 1), dtype=complex)
    moved[..., : half_y + 1, : half_x + 1] = spectrum[..., : half_y + 1, : half_x + 1]
    moved[..., -half_y:, : half_x + 1] = spectrum[..., -half_y:, : half_x + 1]
    return moved * (new[0] * new[1] / (old[0] * old[1]))


