# SPDX-License-Identifier: MIT
"""Ensemble-EGA: the step's Jacobian, transposed, from forward runs alone: a black box is enough."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import ConfigError, SolverError
from trimtab.gradient.base import Tape
from trimtab.gradient.perturbations import field_scales, perturbations, stencil_transpose
from trimtab.gradient.quadrature import QuadratureEGA

RUN_VALUES = 2**19  # numbers of the states advanced in one call; a network may hold hundreds of times as many
SMALLEST = 1e-10    # of a direction's norm, below which it adds nothing to those there are


class EnsembleEGA(QuadratureEGA):
    """J_k from K forward runs of one outer step from perturbed states; at most K d_u numbers are ever held, a member.

    Anomalies X before and Y after the step, about the control (which the rollout has run already), give
    J^T lambda = lambda + (X^+)^T (Y - X)^T lambda: the identity, mended in the K directions that were looked at. In d_u
    dimensions everything hangs on which. There are two kinds:

    - `members - aim` general ones, by default the smoothest waves of each field, the same for all windows;
    - `aim` aimed ones: lambda itself, then what the step added to the direction before, made orthogonal to all others
      (a Krylov space of J - I, grown from lambda by forward runs). J^T lambda lies almost inside: exactly for a flow that
      turns (advection: J^T - I = I - J to first order) or damps, whatever d_u.

    Cost: `members` outer steps of the hybrid a step and window, `aim + 1` calls one after the other; when members >= d_u,
    d_u runs along the axes give the whole Jacobian. Directions follow from `seed` and k alone, so that repeated, resumed
    or cut into chunks a sweep finds the same bits (up to a torch network's own dependence on its batch size).

    Measured, RK4, mean square over the window; relative error of d loss / d theta, and cosine of d loss / d u_0, to the exact
    gradient ("left" alone costs 0.02 to 0.06 in theta). QG runs at n (64: h = 5e-3; 256: h = 2e-3), K = 20:

                                       QG 64², n = 10    QG 64², n = 50    QG 256², n = 20   Lorenz 96 (40), n = 50
        static                         0.47, 0.623       0.96, 0.294       0.37, 0.569       0.89, 0.337
        white, base "none"             0.92, 0.060       1.00, 0.018                         0.99, 0.079
        white                          0.47, 0.625       0.96, 0.301                         0.58, 0.845
        smooth                         0.31, 0.668       0.79, 0.753       0.41, 0.519
        20 aimed                       0.42, 0.801       0.88, 0.149                         0.49, 0.831
        16 smooth + 4 aimed            0.06, 0.994       0.13, 0.974
        12 smooth + 8 aimed (default)  0.06, 0.993       0.04, 0.987       0.02, 0.996       0.49, 0.797
        5 smooth + 3 aimed             0.07, 0.980       0.19, 0.957
        24 smooth + 16 aimed           0.06, 0.996                         0.02, 0.997       0.03, 1.000 (K = d_u)
        travelling, slope 2, "none"    0.35, 0.659       0.79, 0.896                         0.64, 0.717
        white, localisation 2          0.27, 0.817 *                                         0.04, 0.999

    (* 28 members, 8 of them aimed, radius 1, ridge 0.1. Lorenz 96: the travelling one is white.) So: the smooth ones catch
    what a stream function carries far, the aimed ones the advection of small scales, and neither does alone. Where a point
    depends on near ones only (Lorenz 96, finite differences, shocks) localise: spectrum "white", aim 0, radius of the
    solver's reach, members beyond the stencil.
    For d_u = 3, K = 3 runs equal `tangent` at any window; at 512², n = 3: static 0.083, ensemble 0.008 in d loss / d u_0.

    Args:
        members: forward runs K a step.
        aim: how many of them are aimed; None for two in five, as measured best.
        base: "identity", or "none" for what an ensemble sees and nothing else (the paper's, with aim = 0).
        perturbation: root mean square of a perturbation over that of its field in the window. Small enough for the
            flow to be linear, large enough for the rounding of solver and network: 1e-2 for a solver in float32.
        spectrum: of the general ones: "smooth", or "white" (new random fields at each step), or a number s for random
            fields whose amplitude falls with wavenumber k as (1 + k)^-s.
        climatology: (T, N) states whose differences from their mean the general ones mix at random; in place of spectrum.
        renew: "step": the ensemble starts around the control at each step; "window": the general ones start at u_0 and
            travel with the window, which takes the memory of members - aim rollouts.
        ridge: added to the anomalies' covariance, over its largest eigenvalue.
        rank: directions kept of the general ones (truncated singular value decomposition); None for all.
        localisation: radius in grid points; each point is regressed on its stencil by the general ones, which must be
            random. 0 for none.
        seed: of random perturbations.
        quadrature: see `quadrature.py`.

    Raises:
        ConfigError: values out of range, or that exclude each other.

    Source:
        Ouala et al., arXiv 2311.10665 (ETLM); localisation: Bishop, Frolov, Allen, Kuhl, Hoppel, Mon. Wea. Rev. 145
        (2017) 1433, 10.1175/MWR-D-16-0184.1; identity base and aimed perturbations: here.
    """

    name = "ensemble"

    def __init__(self, members: int = 20, *, aim: int | None = None, base: str = "identity", perturbation: float = 1e-4,
                 spectrum: str | float = "smooth", climatology: Any = None, renew: str = "step", ridge: float = 0.0,
                 rank: int | None = None, localisation: int = 0, seed: int = 0, quadrature: str = "left"):
        super().__init__(quadrature)
        self.members, self.aim = members, (2 * members) // 5 if aim is None else aim
        self.base, self.perturbation, self.spectrum, self.renew = base, perturbation, spectrum, renew
        self.ridge, self.rank, self.localisation, self.seed = ridge, rank, localisation, seed
        self.climatology = None if climatology is None else np.asarray(climatology, dtype=np.float64)
        self._travelling: tuple[Tape, Tensor] | None = None
        self._refuse()

    def _refuse(self) -> None:
        if not 0 <= self.aim <= self.members:
            raise ConfigError(f"An ensemble of {self.members} members cannot aim {self.aim} of them.")
        if self.base not in ("identity", "none") or self.renew not in ("step", "window"):
            raise ConfigError(f"The ensemble takes base \"identity\" or \"none\" and renew \"step\" or \"window\", not "
                              f"{self.base!r} and {self.renew!r}.")
        if not (isinstance(self.spectrum, int | float) or self.spectrum in ("smooth", "white")):
            raise ConfigError(f"spectrum = {self.spectrum!r}: give \"smooth\", \"white\" or a slope.")
        if not (self.perturbation > 0 and self.ridge >= 0 and self.localisation >= 0 and (self.rank or 0) >= 0):
            raise ConfigError("An ensemble's perturbation must be positive; ridge, rank and localisation at least 0.")
        if self.climatology is not None and (self.climatology.ndim != 2 or not np.isfinite(self.climatology).all()):
            raise ConfigError("The ensemble's climatology must be a (T, N) array of finite states.")
        if self.localisation and (self.renew == "window" or (self.spectrum == "smooth" and self.climatology is None)):
            raise ConfigError("A localised ensemble needs random perturbations at each step: give spectrum \"white\" or a "
                              "slope, and renew \"step\".")

    def pullback(self, tape: Tape, k: int, lam: Tensor) -> Tensor:
        """By forward runs from u_k; see `Gradient.pullback`.

        Raises:
            SolverError: every perturbed run of a member blew up.
        """
        if self.members == 0:
            return lam if self.base == "identity" else torch.zeros_like(lam)
        size = lam.shape[1]
        step = _Step(self, tape, k, field_scales(tape.states[k], tape.solver.spec))
        seen = step.scale * lam  # from here on in units of each field's size
        found = seen if self.base == "identity" else torch.zeros_like(seen)
        general, aim = (self.members - self.aim, self.aim) if self.members < size else (size, 0)
        basis = seen.new_empty(0, 1, size)
        if general and self.renew == "window":
            rows, grown = self._travelled(step, seen, general)
            basis, found = self._mended(found, seen, rows, grown)
        elif general:
            rows = perturbations(tape.solver.spec, general, self.spectrum, self.climatology, (self.seed, k))
            if self.localisation:
                responses = torch.cat(list(step.responses(rows[:, None])))
                responses += rows[:, None] if self.base == "none" else 0.0
                found = found + stencil_transpose(rows, responses, seen, tape.solver.spec, self.localisation, self.ridge)
            else:
                grown = torch.cat([(one * seen).sum(-1) for one in step.responses(rows[:, None])])
                basis, found = self._mended(found, seen, rows[:, None], grown)
        found = self._aimed(step, seen, found, basis, aim)
        step.refuse_if_lost()
        return lam + (found - seen) / step.scale if self.base == "identity" else found / step.scale

    def _mended(self, found: Tensor, seen: Tensor, rows: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
        """An orthonormal basis of the span of `rows` (M, B or 1, N), and `found` made right there.

        `grown` (M, B) is lambda times the responses Y - X.
        """
        wanted = (grown + (rows * (seen - found)).sum(-1)).T  # (B, M): lambda Y - found X
        weights, vectors = torch.linalg.eigh(torch.einsum("mbn,lbn->bml", rows, rows))
        kept = torch.arange(rows.shape[0] - 1, -1, -1)[: self.rank]
        weights, vectors = weights[:, kept], vectors[:, :, kept]
        largest = weights[:, :1].clamp_min(torch.finfo(weights.dtype).tiny)
        inverse = torch.where(weights > SMALLEST * largest, weights.clamp_min(SMALLEST * largest).rsqrt(), 0.0)
        basis = torch.einsum("bml,mbn->lbn", vectors * inverse[:, None, :], rows)
        parts = (vectors.mT @ wanted[..., None])[..., 0] * inverse * weights / (weights + self.ridge * largest)
        return basis, found + torch.einsum("bl,lbn->bn", parts, basis.expand(-1, len(seen), -1))

    def _aimed(self, step: _Step, seen: Tensor, found: Tensor, basis: Tensor, aim: int) -> Tensor:
        """`found` made right in the Krylov space that grows from lambda, outside of `basis` (r, B or 1, N)."""
        directions: list[Tensor] = []
        ahead, total = seen, found
        for _ in range(aim):
            before = ahead.norm(dim=-1, keepdim=True)
            for _ in range(2):  # the second time for what rounding left
                for one in (*basis, *directions):
                    ahead = ahead - (one * ahead).sum(-1, keepdim=True) * one
            norm = ahead.norm(dim=-1, keepdim=True)
            one = torch.where(norm > SMALLEST * before, ahead / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0.0)
            (ahead,) = (each[0] for each in step.responses(one[None]))
            total = total + ((ahead * seen).sum(-1) + (one * (seen - found)).sum(-1))[:, None] * one
            directions.append(one)
        return total

    def _travelled(self, step: _Step, seen: Tensor, general: int) -> tuple[Tensor, Tensor]:
        """Anomalies X (M, B, N) before the step of an ensemble that left u_0 with the window, and lambda (Y - X) (M, B)."""
        if self._travelling is None or self._travelling[0] is not step.tape:
            self._travelling = step.tape, self._launched(step.tape, general)
        tape, trajectories = self._travelling
        k, spread = step.k, self.perturbation * step.scale * math.sqrt(seen.shape[1])
        rows, after = ((trajectories[:, i] - tape.states[i]) / spread for i in (k, k + 1))
        lost = ~after.isfinite().all(-1)
        step.lost += lost.sum(0)
        step.runs += len(rows)
        rows, after = (torch.where(lost[..., None], 0.0, one) for one in (rows, after))
        if k == 0:
            self._travelling = None
        return rows, ((after - rows) * seen).sum(-1)

    def _launched(self, tape: Tape, general: int) -> Tensor:
        """States (M, K+1, B, N) of the travelling ensemble."""
        steps, members, size = tape.states.shape[0] - 1, *tape.states.shape[1:]
        spec = tape.solver.spec
        rows = perturbations(spec, general, self.spectrum, self.climatology, (self.seed, 0))
        spread = self.perturbation * math.sqrt(size) * field_scales(tape.states[0], spec)
        found = torch.empty(general, *tape.states.shape, dtype=torch.float64)
        chunk = max(1, RUN_VALUES // (members * size * (steps + 1)))
        for first in range(0, general, chunk):
            starts = (tape.states[0] + spread * rows[first : first + chunk, None]).reshape(-1, size)
            window = tape.solver.advance(starts, steps, correction=tape.correction, stride=tape.stride, on_blow_up="mark")
            states = torch.from_numpy(window.states).reshape(steps + 1, -1, members, size)
            found[first : first + chunk] = states.transpose(0, 1)
        return found


class _Step:
    """One outer step as a black box: from perturbations, a chunk of bounded memory at a time, to what it adds to them."""

    def __init__(self, gradient: EnsembleEGA, tape: Tape, k: int, scale: Tensor):
        self.gradient, self.tape, self.k, self.scale = gradient, tape, k, scale
        self.lost, self.runs = torch.zeros(len(scale), dtype=torch.long), 0

    def responses(self, rows: Tensor) -> Iterator[Tensor]:
        """Y - X (m, B, N) for X of `rows` (M, B or 1, N); 0 where a run blew up, as if the step did nothing."""
        tape, (members, size) = self.tape, self.scale.shape
        spread = self.gradient.perturbation * math.sqrt(size) * self.scale
        chunk = max(1, RUN_VALUES // (members * size))
        self.runs += len(rows)
        for first in range(0, len(rows), chunk):
            some = rows[first : first + chunk]
            starts = (tape.states[self.k] + spread * some).reshape(-1, size)
            window = tape.solver.advance(starts, 1, correction=tape.correction, stride=tape.stride, on_blow_up="mark")
            after = torch.from_numpy(window.states[1]).reshape(-1, members, size)
            lost = ~after.isfinite().all(-1)
            self.lost += lost.sum(0)
            yield torch.where(lost[..., None], 0.0, (after - tape.states[self.k + 1]) / spread - some)

    def refuse_if_lost(self) -> None:
        """An error when nothing was learnt of a member."""
        if self.runs and bool((self.lost == self.runs).any()):
            raise SolverError(f"Every perturbed run of member {int((self.lost == self.runs).int().argmax())} at step {self.k} "
                              "blew up, though the rollout did not: lower the ensemble's perturbation, or shorten dt.")
