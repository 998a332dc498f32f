# SPDX-License-Identifier: MIT
"""Scores: pure functions on arrays. A state is the last axis (or the last two on a grid); nothing here runs a solver.

A member that blew up holds NaN, and every score of it is NaN: it is never left out of a mean.
"""

from __future__ import annotations

import numpy as np

from trimtab.core.spec import SolverSpec

STABLE_FACTOR = 2.0
TAIL = 2.0
QUIET = 1e-6  # of a field's deviation: a component that varies less has none to measure by
PDF_BINS = 96


def rmse(states: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Root of the mean square difference, RMSE = sqrt(mean_i (u_i - v_i)^2).

    Args:
        states, truth: (..., N), same unit.

    Returns:
        (...), in the unit of the state.
    """
    return np.sqrt(np.mean(np.square(states - truth), axis=-1))


def pattern_correlation(states: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Correlation over the components (grid points) of a state, each field's own mean removed.

    r = sum u'v' / sqrt(sum u'^2 sum v'^2). Source: the anomaly correlation of Wilks, Statistical Methods in the
    Atmospheric Sciences (2011), section 8.6.4, with the field's own mean in place of a climatology.

    Args:
        states, truth: (..., N).

    Returns:
        (...), between -1 and 1; NaN where a field does not vary.
    """
    a = states - states.mean(axis=-1, keepdims=True)
    b = truth - truth.mean(axis=-1, keepdims=True)
    norm = np.sqrt(np.sum(a * a, axis=-1) * np.sum(b * b, axis=-1))
    return np.divide(np.sum(a * b, axis=-1), norm, out=np.full(norm.shape, np.nan), where=norm > 0)


def similarity(error: np.ndarray, error_none: np.ndarray) -> np.ndarray:
    """1 - RMSE(hybrid) / RMSE(no closure): 1 is the truth, 0 no better than no closure, negative is worse.

    Source: Frezat, Fablet, Balarac, Le Sommer, arXiv 2310.19385.

    Args:
        error, error_none: RMSE of the hybrid and of the solver alone, same shape and unit.

    Returns:
        The same shape; NaN where the solver alone makes no error.
    """
    error, error_none = np.broadcast_arrays(np.asarray(error, float), np.asarray(error_none, float))
    return 1 - np.divide(error, error_none, out=np.full(error.shape, np.nan), where=error_none > 0)


def spectra(q: np.ndarray, length: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energy and enstrophy by annuli of the doubly periodic plane.

    With q_hat the Fourier coefficients (divided by the number of points) and K the wavenumber vector,
    Z(k) = 1/2 sum_{k - 1/2 <= |K|/k_0 < k + 1/2} |q_hat|^2, and E(k) is the same sum of |q_hat|^2 / |K|^2, with
    k_0 = 2 pi / length: their sums over k are enstrophy 1/2 <q^2> and kinetic energy 1/2 <|grad psi|^2>, up to the
    corners of the square of wavenumbers.

    Args:
        q: (..., ny, nx) vorticity.
        length: of the plane in y and in x.

    Returns:
        (K,) annuli 1 ... n/2 as multiples of k_0 (of the longer side), (..., K) energy, (..., K) enstrophy.
    """
    ny, nx = q.shape[-2:]
    k0 = 2 * np.pi / max(length)
    ky = np.fft.fftfreq(ny, 1 / ny)[:, None] * (2 * np.pi / length[0])
    kx = np.fft.rfftfreq(nx, 1 / nx)[None, :] * (2 * np.pi / length[1])
    square = kx**2 + ky**2
    annulus = np.rint(np.sqrt(square) / k0).astype(int).ravel()
    count = min(ny, nx) // 2
    weight = np.full(kx.shape, 2.0)  # the half plane stands for both, but for its own axis
    weight[:, 0] = 1.0
    if nx % 2 == 0:
        weight[:, -1] = 1.0
    power = 0.5 * weight * np.abs(np.fft.rfft2(q) / (ny * nx)) ** 2
    inverse = np.divide(1.0, square, out=np.zeros_like(square), where=square > 0)
    membership = (annulus[:, None] == np.arange(1, count + 1)).astype(float)
    flat = power.reshape(*power.shape[:-2], -1)
    return np.arange(1, count + 1), (flat * inverse.ravel()) @ membership, flat @ membership


def log_spectrum_error(spectrum: np.ndarray, truth: np.ndarray, max_wavenumber: int) -> np.ndarray:
    """Mean of |ln(E(k) / E_truth(k))| over the annuli 1 ... max_wavenumber; 0.1 is about 10 % a wavenumber.

    Args:
        spectrum: (..., K).
        truth: (K,).
        max_wavenumber: last annulus counted.

    Returns:
        (...), without unit.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs(np.log(spectrum[..., :max_wavenumber] / truth[:max_wavenumber])).mean(axis=-1)


def wasserstein(samples: np.ndarray, truth: np.ndarray) -> float:
    """Wasserstein-1 distance of two distributions on the line, the integral of |F - G| over all values.

    Source: Vallender, Theory Probab. Appl. 18, 784 (1974), doi:10.1137/1118101.

    Args:
        samples, truth: (M,), (M',) values of one quantity.

    Returns:
        The distance in the unit of the values; NaN when a sample is NaN.
    """
    if not (np.isfinite(samples).all() and np.isfinite(truth).all()):
        return float("nan")
    a, b = np.sort(samples), np.sort(truth)
    values = np.concatenate((a, b))
    values.sort(kind="mergesort")
    left = values[:-1]
    gap = np.searchsorted(a, left, "right") / a.size - np.searchsorted(b, left, "right") / b.size
    return float(np.sum(np.abs(gap) * np.diff(values)))


def varying(spec: SolverSpec, truth: np.ndarray) -> np.ndarray:
    """Which components vary in the truth, so that a distance may be measured in their standard deviations.

    Args:
        spec: the solver's.
        truth: (M, N) states.

    Returns:
        (N,) bool: false where the standard deviation is rounding of the value, or below `QUIET` of the root mean square of those
        of the field: a wall, a spectral coefficient that stays 0.
    """
    deviation, largest, parts = truth.std(axis=0), np.abs(truth).max(axis=0), []
    for field, own, values in zip(spec.fields, spec.split(deviation).values(), spec.split(largest).values(), strict=True):
        parts.append(((own > field.rounding * values) & (own > QUIET * np.sqrt(np.square(own).mean()))).ravel())
    return np.concatenate(parts)


def marginal_distance(samples: np.ndarray, truth: np.ndarray, limit: int = 400_000) -> float:
    """Mean over the components of the Wasserstein-1 distance of their marginals, in standard deviations of the truth.

    Args:
        samples: (M, C) values; on a grid one column, all points being alike.
        truth: (M', C).
        limit: at most about this many values a component, taken at even spacing, to bound the time.

    Returns:
        The distance; 0 for the same distribution, 1 for one shifted by a standard deviation. A component that does not vary in
        the truth, a wall for instance, has no standard deviation and is left out.
    """
    distances = []
    for a, b in zip(samples.T, truth.T, strict=True):
        scale = b.std()
        if scale == 0:
            continue
        distances.append(wasserstein(a[:: max(1, a.size // limit)], b[:: max(1, b.size // limit)]) / scale)
    return float(np.mean(distances)) if distances else float("nan")


def pdf_edges(truth: np.ndarray, scale: float) -> np.ndarray:
    """Edges of the bins of a PDF of values in standard deviations: symmetric, a quarter wider than the truth.

    Args:
        truth: values of any shape.
        scale: their standard deviation.

    Returns:
        (PDF_BINS + 1,) edges.
    """
    reach = 1.25 * float(np.abs(truth).max()) / scale
    return np.linspace(-reach, reach, PDF_BINS + 1)


def pdf(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Density of values in the bins; its integral is the share of the values inside the edges.

    Args:
        values: any shape.
        edges: (M+1,) edges of equal bins.

    Returns:
        (M,) density; NaN when a value is NaN.
    """
    if not np.isfinite(values).all():
        return np.full(edges.size - 1, np.nan)
    return np.histogram(values, edges)[0] / (values.size * np.diff(edges))


def tail_error(density: np.ndarray, truth: np.ndarray, edges: np.ndarray, floor: float) -> np.ndarray:
    """Mean of |ln(p / p_truth)| over the bins beyond two standard deviations where the truth is above the floor.

    Args:
        density: (..., M) densities of values in standard deviations of the truth.
        truth: (M,).
        edges: (M+1,).
        floor: smallest density told apart from none, about ten counts; an emptier bin counts as the floor.

    Returns:
        (...), without unit.
    """
    centres = 0.5 * (edges[1:] + edges[:-1])
    bins = (np.abs(centres) > TAIL) & (truth > floor)
    return np.abs(np.log(np.maximum(density[..., bins], floor) / truth[bins])).mean(axis=-1)


def stable_band(mean_square: np.ndarray) -> tuple[float, float]:
    """Band of the state's mean square (on a grid twice the enstrophy) that counts as stable: [min / 2, 2 max].

    Args:
        mean_square: (...,) of the truth.

    Returns:
        (low, high).
    """
    return float(np.min(mean_square)) / STABLE_FACTOR, float(np.max(mean_square)) * STABLE_FACTOR


def stable_until(mean_square: np.ndarray, times: np.ndarray, band: tuple[float, float]) -> np.ndarray:
    """Time at which each member first leaves the band or blows up; the length of the run for one that never does.

    Args:
        mean_square: (K, B) of a long run, NaN after a blow-up.
        times: (K,) since the start of the run.
        band: see `stable_band`.

    Returns:
        (B,), in the unit of time.
    """
    left = ~((mean_square >= band[0]) & (mean_square <= band[1]))
    first = np.where(left.any(axis=0), left.argmax(axis=0), len(times) - 1)
    return np.asarray(times, float)[first]


def valid_time(error: np.ndarray, times: np.ndarray, threshold: float) -> np.ndarray:
    """Time up to which a forecast stays below an error; the length of the forecast for one that always does.

    Source: the valid prediction time of Vlachas et al., Neural Networks 126, 191 (2020),
    doi:10.1016/j.neunet.2020.02.016.

    Args:
        error: (K, B), NaN after a blow-up.
        times: (K,) lead times.
        threshold: the largest error that is still valid, in its unit; usually a share of the climatological standard deviation.

    Returns:
        (B,), in the unit of time.
    """
    return stable_until(error, times, (-np.inf, threshold))
