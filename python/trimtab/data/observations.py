# SPDX-License-Identifier: MIT
"""The observation operator: what training sees of the truth, y = H u + e, and what it makes of y where it has to start.

H picks components of the flat state, e is normal noise. What is not observed is NaN in y, so that nothing can see it by accident:
a loss or a label that forgets H is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trimtab.config.sections import ObservationConfig
from trimtab.core.errors import ConfigError
from trimtab.core.spec import SolverSpec

LARGEST = 4096  # components of a state for which a dense covariance is held
FLOOR = 1e-3    # smallest error of an observation that an estimate believes in, in standard deviations of the climate


@dataclass(frozen=True)
class Observation:
    """y = H u + e.

    Args:
        size: length N of a state.
        components: (M,) int64, the observed components of the flat state, rising; None when all are: H then costs nothing.
        deviation: (N,) float64, standard deviation of e in the unit of the state; None without noise.
        seed: of e.
    """

    size: int
    components: np.ndarray | None = None
    deviation: np.ndarray | None = None
    seed: int = 0

    @property
    def whole(self) -> bool:
        """Whether y is the truth itself."""
        return self.components is None and self.deviation is None

    @property
    def seen(self) -> np.ndarray:
        """(N,) bool, True for observed components."""
        seen = np.full(self.size, self.components is None)
        seen[self.components if self.components is not None else slice(None)] = True
        return seen

    def noise(self, run: int, snapshot: int) -> np.ndarray:
        """e of one snapshot, the same whenever and wherever it is asked for.

        Args:
            run: number of the run in the file.
            snapshot: number of the snapshot in the run.

        Returns:
            (N,) float64, in the unit of the state; zeros without noise.
        """
        if self.deviation is None:
            return np.zeros(self.size)
        return self.deviation * np.random.default_rng((self.seed, run, snapshot)).standard_normal(self.size)

    def hide(self, states: np.ndarray) -> np.ndarray:
        """NaN in place of what is not observed.

        Args:
            states: (..., N) float64, written to.

        Returns:
            The same array.
        """
        if self.components is not None:
            states[..., ~self.seen] = np.nan
        return states


def observation_of(config: ObservationConfig, spec: SolverSpec, climate: Callable[[], np.ndarray]) -> Observation:
    """The observation operator of an experiment. What enters a loss is decided here and nowhere else.

    Args:
        config: [observation].
        spec: the solver's.
        climate: gives (S, N) float64 states of the training runs; called when the noise is given in units of the climate.

    Returns:
        The operator.

    Raises:
        ConfigError: an unknown field, a component that is not there, noise of another number of fields, nothing observed.
    """
    seen = _seen(config, spec)
    if not seen.any():
        raise ConfigError("[observation] leaves not one component of the state observed: mend its fields, components, every, "
                          "region and fraction.")
    return Observation(spec.size, None if seen.all() else np.flatnonzero(seen), _deviation(config, spec, climate), config.seed)


class Estimate:
    """The best linear estimate of a state from one observation of it and the climate.

        u = m + C H^T (H C H^T + R)^-1 (y - H m),   R = diag(deviation^2)

    m and C are mean and covariance of given states, here of the training runs: the climate is taken as known, as it is from a
    long record. On a plane (one field of two dimensions, taken as periodic) C is that of a homogeneous field, from the mean power
    spectrum; else the states' own. So a component that is correlated with none of the observed ones is estimated by its mean.

    Source: optimal interpolation, A. C. Lorenc, Q. J. R. Meteorol. Soc. 112, 1177 (1986), doi:10.1002/qj.49711247414, eq. 11.

    Args:
        observation: H and R.
        spec: the solver's.
        climate: (S, N) float64 states.

    Raises:
        ConfigError: a state too long for a dense covariance, or, without a plane, fewer states than twice its length.
    """

    def __init__(self, observation: Observation, spec: SolverSpec, climate: np.ndarray):
        if spec.size > LARGEST:
            raise ConfigError(f"observation.start = \"observed\" estimates states of up to {LARGEST} components, and those of "
                              f"{spec.solver} have {spec.size}: use start = \"truth\".")
        plane = len(spec.fields) == 1 and len(spec.fields[0].shape) == 2
        if not plane and len(climate) < 2 * spec.size:
            raise ConfigError(f"observation.start = \"observed\" needs the covariance of {spec.size} components, and takes "
                              f"it from {len(climate)} states: raise observation.climate_states to {2 * spec.size} or "
                              "more, and give training runs that hold as many.")
        self.seen = observation.seen
        self.mean = climate.mean(0)
        anomalies = climate - self.mean
        covariance = (_homogeneous(anomalies.reshape(-1, *spec.fields[0].shape)) if plane
                      else anomalies.T @ anomalies / (len(climate) - 1))
        error = FLOOR**2 * covariance.diagonal().mean() + np.zeros(spec.size)
        if observation.deviation is not None:
            error = np.maximum(error, observation.deviation**2)
        inner = covariance[np.ix_(self.seen, self.seen)] + np.diag(error[self.seen])
        self.gain = np.linalg.solve(inner, covariance[self.seen])  # (M, N), the transpose of the gain

    def __call__(self, observed: np.ndarray) -> np.ndarray:
        """Estimate states.

        Args:
            observed: (B, N) float64, y; what is not observed is not looked at.

        Returns:
            (B, N) float64.
        """
        return self.mean + (observed[:, self.seen] - self.mean[self.seen]) @ self.gain


def _seen(config: ObservationConfig, spec: SolverSpec) -> np.ndarray:
    names = [one.name for one in spec.fields]
    hidden = [one.name for one in spec.fields if one.hidden]
    for name in config.fields:
        if name not in names:
            raise ConfigError(f"observation.fields holds {name!r}; the solver {spec.solver} has {', '.join(names)}.")
    for component in config.components:
        if not 0 <= component < spec.size:
            raise ConfigError(f"observation.components holds {component}; the state of {spec.solver} has the components 0 to "
                              f"{spec.size - 1}.")
    seen = np.zeros(spec.size, dtype=bool)  # hidden fields, which no target has to know, stay out below
    for name, view in spec.split(seen).items():
        if (not config.fields or name in config.fields) and name not in hidden:
            part = np.zeros_like(view)
            part[tuple(slice(None, None, config.every) for _ in view.shape)] = True
            half = view.shape[-1] // 2 if view.ndim else 0  # a field of one number is of either half
            if config.region == "left" and view.ndim:
                part[..., half:] = False
            elif config.region == "right" and view.ndim:
                part[..., :half] = False
            view |= part
    if config.components:
        listed = np.zeros_like(seen)
        listed[list(config.components)] = True
        seen &= listed
    if config.fraction < 1:
        points = np.flatnonzero(seen)
        kept = np.random.default_rng(config.seed).permutation(points)[: round(config.fraction * len(points))]
        seen[:] = False
        seen[kept] = True
    return seen


def _deviation(config: ObservationConfig, spec: SolverSpec, climate: Callable[[], np.ndarray]) -> np.ndarray | None:
    if not any(config.noise):
        return None
    if len(config.noise) not in (1, len(spec.fields)):
        raise ConfigError(f"observation.noise holds {len(config.noise)} numbers; give one, or one for each of the "
                          f"{len(spec.fields)} fields of {spec.solver}.")
    deviation = np.empty(spec.size)
    states = climate() if config.noise_unit == "climate" else None
    spread = None if states is None else spec.split((states - states.mean(0)) ** 2)
    for i, (name, view) in enumerate(spec.split(deviation).items()):
        unit = 1.0 if spread is None else float(np.sqrt(spread[name].mean()))
        view[...] = config.noise[i if len(config.noise) > 1 else 0] * unit
    return deviation


def _homogeneous(anomalies: np.ndarray) -> np.ndarray:
    """Covariance (N, N) of a homogeneous periodic field with the mean power spectrum of (S, ny, nx) anomalies."""
    ny, nx = anomalies.shape[1:]
    power = np.square(np.abs(np.fft.fft2(anomalies))).mean(0) / (ny * nx)
    row = np.fft.ifft2(power).real  # covariance by distance
    y, x = np.divmod(np.arange(ny * nx), nx)
    return row[(y[:, None] - y) % ny, (x[:, None] - x) % nx]
