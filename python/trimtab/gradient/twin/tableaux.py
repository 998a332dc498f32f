# SPDX-License-Identifier: MIT
"""Tableaux, and the adaptive and implicit steps of torch twins, written from the formulas and not from the Fortran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

# (a, b) of explicit Runge-Kutta schemes: Euler, Heun, Kutta's third and fourth order, Dormand and Prince's fifth.
# Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (1993), II.1 and II.5.
TABLEAUX: dict[str, tuple[list[list[float]], list[float]]] = {
    "euler": ([[]], [1.0]),
    "rk2": ([[], [1.0]], [1 / 2, 1 / 2]),
    "rk3": ([[], [1 / 2], [-1.0, 2.0]], [1 / 6, 2 / 3, 1 / 6]),
    "rk4": ([[], [1 / 2], [0.0, 1 / 2], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
    "dopri5": (
        [
            [],
            [1 / 5],
            [3 / 40, 9 / 40],
            [44 / 45, -56 / 15, 32 / 9],
            [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
            [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
        ],
        [35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    ),
}
_FOURTH = [5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40]  # the embedded order 4

# (implicit, explicit) rows of stages 1 ... s: a_i1 ... a_ii for the physics, e_i0 ... e_i,i-1 for the correction.
# Ascher, Ruuth, Spiteri, Appl. Numer. Math. 25, 151 (1997), doi:10.1016/S0168-9274(97)00056-1, sections 2.6 and 2.8.
NEWTON = 10, 1e-9  # most iterations, and the change at which they end, over the state's size
HALVINGS = 20      # at most, of a step in which they do not
_GAMMA = 1 - 0.5**0.5
_DELTA = 1 - 1 / (2 * _GAMMA)
IMEX: dict[str, tuple[list[list[float]], list[list[float]]]] = {
    "ars222": ([[_GAMMA], [1 - _GAMMA, _GAMMA]], [[_GAMMA], [_DELTA, 1 - _DELTA]]),
    "ars443": (
        [[1 / 2], [1 / 6, 1 / 2], [-1 / 2, 1 / 2, 1 / 2], [3 / 2, -3 / 2, 1 / 2, 1 / 2]],
        [[1 / 2], [11 / 18, 1 / 18], [5 / 6, -5 / 6, 1 / 2], [1 / 4, 7 / 4, 3 / 4, -7 / 4]],
    ),
}


class OfMember(Protocol):
    """A tendency of one member's (N,) state."""

    def __call__(self, y: Tensor, member: int) -> Tensor:
        """(N,), for the member of that number."""
        ...


def adaptive(x: Tensor, dt: float, slope: OfMember, rtol: float, atol: float) -> Tensor:
    """One outer step of dopri5, with the graph through the accepted steps; their lengths count as constants.

    Args:
        x: (B, N) float64 states.
        dt: outer step.
        slope: tendency of a (N,) state of a member.
        rtol, atol: tolerances.

    Returns:
        (B, N) float64 states; NaN for a member that needs steps shorter than 1e-13 dt.

    Source:
        See fortran/adaptive.f90.
    """
    return torch.stack([_adaptive(state, dt, partial(slope, member=i), rtol, atol) for i, state in enumerate(x)])


def _adaptive(z: Tensor, dt: float, slope: Callable[[Tensor], Tensor], rtol: float, atol: float) -> Tensor:
    def norm(v: Tensor, other: Tensor) -> float:
        return (v / (atol + rtol * torch.maximum(z.abs(), other.abs()))).detach().square().mean().sqrt().item()

    a, b = TABLEAUX["dopri5"]
    difference = [one - other for one, other in zip([*b, 0.0], _FOURTH, strict=True)]
    k, time, last_error, rejected = [slope(z)], 0.0, 1e-4, False
    size, steep = norm(z, z), norm(k[0], z)
    small = min(0.01 * size / steep if size >= 1e-5 and steep >= 1e-5 else 1e-3 * dt, dt)
    bend = max(steep, norm(slope(z + small * k[0]) - k[0], z) / small)
    h = min(100 * small, (0.01 / bend) ** 0.2 if bend > 1e-15 else dt, dt)
    while time < dt:
        if h < 1e-13 * dt:
            return torch.full_like(z, torch.nan)
        last = 1.01 * h >= dt - time
        h = dt - time if last else h
        for row in a[1:]:
            k.append(slope(z + h * sum((w * one for w, one in zip(row, k, strict=True)), torch.zeros_like(z))))
        new = z + h * sum((w * one for w, one in zip(b, k, strict=True)), torch.zeros_like(z))
        k.append(slope(new))
        error = norm(h * sum((w * one for w, one in zip(difference, k, strict=True)), torch.zeros_like(z)), new)
        if not error <= 1:
            h, rejected, k = (h / min(5.0, error**0.17 / 0.9) if error < torch.inf else 0.1 * h), True, k[:1]
            continue
        time = dt if last else time + h
        longer = h / max(0.1, min(5.0, error**0.17 / last_error**0.04 / 0.9))
        h, last_error = min(h, longer) if rejected else longer, max(error, 1e-4)
        z, k, rejected = new, k[-1:], False
    return z


def imex(
    x: Tensor,
    dt: float,
    tendency: Callable[[Tensor], Tensor],
    drift: OfMember,
    tableau: tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]],
) -> Tensor:
    """One dt with the physics implicit and the correction explicit, with its graph; halved where Newton does not converge.

    Args:
        x: (B, N) float64 states.
        dt: step.
        tendency: of the physics, (N,) -> (N,).
        drift: of the correction, for a (N,) state of a member.
        tableau: of `IMEX`.

    Returns:
        (B, N) float64 states; NaN for a member that needs steps shorter than a millionth of dt.

    Source:
        See fortran/implicit.f90.
    """
    return torch.stack([_halved(state, dt, tendency, partial(drift, member=i), tableau) for i, state in enumerate(x)])


def _halved(state: Tensor, dt: float, tendency: Callable[[Tensor], Tensor], drift: Callable[[Tensor], Tensor],
            tableau: tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]) -> Tensor:
    done, depth = 0.0, 0  # sums of halves are exact
    while done < 1:
        share = 2.0**-depth
        end = _imex(state, dt * share, tendency, drift, tableau)
        if end is None:
            depth += 1
            if depth > HALVINGS:
                return torch.full_like(state, torch.nan)
            continue
        state, done = end, done + share
        if depth and done % (2 * share) == 0:
            depth -= 1
    return state


def _imex(x: Tensor, h: float, tendency: Callable[[Tensor], Tensor], drift: Callable[[Tensor], Tensor],
          tableau: tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]) -> Tensor | None:
    y = x
    slopes: list[Tensor] = []
    drifts: list[Tensor] = []
    for implicit, explicit in zip(*tableau, strict=True):
        drifts.append(drift(y))
        known = x + h * sum((w * one for w, one in zip(implicit, slopes, strict=False)), torch.zeros_like(x))
        known = known + h * sum((w * one for w, one in zip(explicit, drifts, strict=True)), torch.zeros_like(x))
        w = h * implicit[-1]
        found = _solve(tendency, w, known, y.detach())
        if found is None:
            return None
        y = found
        slopes.append((y - known) / w)
    return y


def _solve(tendency: Callable[[Tensor], Tensor], w: float, known: Tensor, y: Tensor) -> Tensor | None:
    """y - w F(y) = known by Newton; one more iteration carries the graph, and so dy = (1 - w J)^-1 d known."""
    most, enough = NEWTON
    for _ in range(most):
        change = _newton(tendency, w, known.detach(), y)
        y = y + change
        if not y.isfinite().all():
            return None
        if change.abs().max() <= enough * max(y.abs().max(), known.detach().abs().max()):
            return y + _newton(tendency, w, known, y)
    return None


def _newton(tendency: Callable[[Tensor], Tensor], w: float, known: Tensor, y: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(tendency, y)
    answer: Tensor = torch.linalg.solve(torch.eye(len(y), dtype=y.dtype) - w * jacobian, known + w * tendency(y) - y)
    return answer
