# SPDX-License-Identifier: MIT
"""Ensemble-EGA: the step's Jacobian, transposed, from forward runs alone: a black box is enough."""

from __future__ import annotations

import math
import numbers
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import ConfigError, SolverError
from trimtab.core.solver import Solver
from trimtab.core.spec import SolverSpec
from trimtab.gradient.base import Tape
from trimtab.gradient.ensemble.anomalies import Slices
from trimtab.gradient.ensemble.perturbations import field_scales, perturbations, smooth_stretch, stencil_transpose
from trimtab.gradient.quadrature import QuadratureEGA
from trimtab.parallel.subgroup import Cohort

RUN_VALUES = 2**19  # numbers of the states advanced in one call; a network may hold hundreds of times as many
CALL_VALUES = 2**12  # and so many that a call is worth its overhead
GROUPS = 4          # in which the general members run by default, so that ranks have something to share
LEAST = 1e-12       # perturbation that a float64 state still holds
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
        localisation: radius in grid points; each point is regressed on its stencil, in all fields of its shape, by the general
            ones, which must be random and more than it has points. 0 for none.
        group: general members advanced in one call. The bits depend on it, and not on who runs which group; 0 chooses, a
            quarter of them unless states are small or large.
        comm: mpi4py communicator of ranks that share the members of each window, all of which make the same calls; the trainer
            hands its own over ([parallel] members). See below.
        seed: of random perturbations.
        quadrature: see `quadrature.py`.

    **Over ranks.** Each runs some groups of the general members. None ever has all anomalies: of its own it has all components,
    of the others' one stretch, in which it sums the inner products. A step and window exchanges the K numbers lambda Y, 8 K x K
    products, and of length d_u what makes each aimed direction and lambda whole again; anomalies themselves only where a rank
    cannot make its stretch itself (random, travelling ones, responses to be localised). The aimed ones come one after the other
    and are run by every rank alike, like the rollout: sharing pays when there are few of them among many members. Any number of
    ranks finds the same bits, on processors of one kind.

    Raises:
        ConfigError: values out of range, or that exclude each other.

    Source:
        Ouala et al., arXiv 2311.10665 (ETLM); localisation: Bishop, Frolov, Allen, Kuhl, Hoppel, Mon. Wea. Rev. 145
        (2017) 1433, 10.1175/MWR-D-16-0184.1; identity base and aimed perturbations: here.
    """

    name = "ensemble"

    def __init__(self, members: int = 20, *, aim: int | None = None, base: str = "identity", perturbation: float = 1e-4,
                 spectrum: str | float = "smooth", climatology: Any = None, renew: str = "step", ridge: float = 0.0,
                 rank: int | None = None, localisation: int = 0, group: int = 0, comm: Any = None, seed: int = 0,
                 quadrature: str = "left"):
        super().__init__(quadrature)
        self.members = members
        self.base, self.perturbation, self.spectrum, self.renew = base, perturbation, spectrum, renew
        self.ridge, self.rank, self.localisation, self.group, self.seed = ridge, rank, localisation, group, seed
        self._cohort = Cohort(comm)
        self._blocks: Cohort | None = None
        self._travelling: tuple[Tape, Tensor] | None = None
        self._refuse_kinds(aim)
        self.aim = (2 * members) // 5 if aim is None else aim
        try:
            self.climatology = None if climatology is None else np.asarray(climatology, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError("The ensemble's climatology must be a (T, N) array of finite states.") from error
        self._refuse()

    def _refuse_kinds(self, aim: int | None) -> None:
        whole = {"aim": aim, **{name: getattr(self, name) for name in ("members", "rank", "localisation", "group", "seed")}}
        real = {name: getattr(self, name) for name in ("perturbation", "ridge", "spectrum")}
        for name, value in {**whole, **real}.items():
            kind = numbers.Integral if name in whole else numbers.Real
            if (value is None and name in ("aim", "rank")) or (isinstance(value, str) and name == "spectrum"):
                continue
            if not isinstance(value, kind) or not math.isfinite(value) or (name == "seed" and value < 0):
                raise ConfigError(f"An ensemble's {name} must be a {'whole' if name in whole else 'finite'} number"
                                  f"{', at least 0' if name == 'seed' else ''}, not {value!r}.")

    def _refuse(self) -> None:
        if not 0 <= self.aim <= self.members:
            raise ConfigError(f"An ensemble of {self.members} members cannot aim {self.aim} of them.")
        if self.base not in ("identity", "none") or self.renew not in ("step", "window"):
            raise ConfigError(f"The ensemble takes base \"identity\" or \"none\" and renew \"step\" or \"window\", not "
                              f"{self.base!r} and {self.renew!r}.")
        if isinstance(self.spectrum, str) and self.spectrum not in ("smooth", "white"):
            raise ConfigError(f"spectrum = {self.spectrum!r}: give \"smooth\", \"white\" or a slope.")
        if not (self.perturbation >= LEAST and min(self.ridge, self.localisation, self.rank or 0, self.group) >= 0):
            raise ConfigError(f"An ensemble's perturbation must be at least {LEAST}, or it is lost in rounding; ridge, rank, "
                              "localisation and group at least 0.")
        if self.climatology is not None and (self.climatology.ndim != 2 or not np.isfinite(self.climatology).all()):
            raise ConfigError("The ensemble's climatology must be a (T, N) array of finite states.")
        if self.localisation and (self.renew == "window" or (self.spectrum == "smooth" and self.climatology is None)):
            raise ConfigError("A localised ensemble needs random perturbations at each step: give spectrum \"white\" or a "
                              "slope, and renew \"step\".")

    def join(self, cohort: Cohort, blocks: Cohort | None = None) -> None:
        """Share the members; see `Gradient.join`."""
        self._cohort, self._blocks = cohort, blocks

    def check(self, solver: Solver) -> None:
        """No localisation across blocks, no climatology of another solver; see `Gradient.check`."""
        spec = solver.spec if self._blocks is None else getattr(solver, "whole", solver.spec)
        if self.climatology is not None and self.climatology.shape[1] != spec.size:
            raise ConfigError(f"The ensemble's climatology has states of {self.climatology.shape[1]} numbers; the solver "
                              f"{spec.solver} has {spec.size}.")
        if self._blocks is not None and self.localisation:
            raise ConfigError("A localised ensemble needs the whole state on each rank, and with parallel.domain above 1 a rank "
                              "holds a block of it: leave out localisation.")

    def pullback(self, tape: Tape, k: int, lam: Tensor) -> Tensor:
        """By forward runs from u_k; see `Gradient.pullback`.

        Raises:
            SolverError: every perturbed run of a member blew up.
        """
        if self.members == 0:
            return lam if self.base == "identity" else torch.zeros_like(lam)
        step = _Step(self, tape, k)
        seen = step.scale * lam  # from here on in units of each field's size
        held = step.slices.cut(seen)
        found = [one.clone() if self.base == "identity" else torch.zeros_like(one) for one in held]
        general, aim = (self.members - self.aim, self.aim) if self.members < step.size else (step.size, 0)
        basis = [one.new_empty(0, 1, one.shape[1]) for one in held]
        if general and self.localisation:
            found = self._localised(step, seen, found, general)
        elif general:
            rows, grown = (self._travelled if self.renew == "window" else self._renewed)(step, seen, general)
            basis = self._mended(step.slices, found, held, rows, grown)
        self._aimed(step, seen, held, found, basis, aim)
        step.refuse_if_lost()
        whole = step.slices.whole(found)
        return lam + (whole - seen) / step.scale if self.base == "identity" else whole / step.scale

    def _renewed(self, step: _Step, seen: Tensor, general: int) -> tuple[list[Tensor], Tensor]:
        """What this rank holds of anomalies X (M, 1, N) about the control, and lambda times the responses Y - X, (M, B)."""
        groups = step.groups(general)
        rows = step.perturbations(general, groups.members)
        grown = torch.empty(len(rows), len(seen), 2, dtype=torch.float64)
        for part in groups.parts:
            responses, lost = step.responses(rows[part][:, None])
            grown[part] = torch.stack([(responses * seen).sum(-1), lost.double()], -1)
        smooth = self.spectrum == "smooth" and self.climatology is None and general < step.size
        if smooth and self._cohort.size > 1 and self._blocks is None:
            stretch = step.slices.stretch
            field = step.slices.cut(smooth_stretch(step.tape.solver.spec, general, stretch)[:, None], stretch.start)
        else:
            field = step.slices.turn(rows[:, None], groups.counts)
        return field, step.together(grown, groups.counts)

    def _localised(self, step: _Step, seen: Tensor, found: list[Tensor], general: int) -> list[Tensor]:
        """`found`, and what the regression of each point on its stencil adds; every rank makes all perturbations for it."""
        groups, slices = step.groups(general), step.slices
        rows = step.perturbations(general, range(general))
        responses = torch.empty(len(groups.members), *seen.shape, dtype=torch.float64)
        lost = torch.empty(len(groups.members), len(seen), 2, dtype=torch.float64)
        for part in groups.parts:
            own = rows[groups.members.start : groups.members.stop][part][:, None]
            responses[part], gone = step.responses(own)
            responses[part] += own if self.base == "none" else 0.0
            lost[part] = gone.double()[..., None]
        step.together(lost, groups.counts)
        firsts = slices.firsts
        parts = [stencil_transpose(rows, one, first, seen, step.spec, self.localisation, self.ridge)
                 for one, first in zip(slices.turn(responses, groups.counts), firsts, strict=True)]
        added = slices.cut(slices.sum(parts))
        return [one + other for one, other in zip(found, added, strict=True)]

    def _mended(self, slices: Slices, found: list[Tensor], held: list[Tensor], rows: list[Tensor], grown: Tensor) -> list[Tensor]:
        """An orthonormal basis of the span of `rows` (M, B or 1, N); `found` is made right there.

        `grown` (M, B) is lambda times the responses Y - X.
        """
        number, members = grown.shape
        products = slices.sum([torch.cat([torch.einsum("mbn,lbn->bml", one, one).flatten(),
                                          torch.einsum("mbn,bn->mb", one.expand(-1, members, -1), seen - there).flatten()])
                               for one, seen, there in zip(rows, held, found, strict=True)])
        wanted = (grown + products[-number * members :].reshape(number, members)).T  # (B, M): lambda Y - found X
        weights, vectors = torch.linalg.eigh(products[: -number * members].reshape(-1, number, number))
        kept = torch.arange(number - 1, -1, -1)[: self.rank]
        weights, vectors = weights[:, kept], vectors[:, :, kept]
        largest = weights[:, :1].clamp_min(torch.finfo(weights.dtype).tiny)
        inverse = torch.where(weights > SMALLEST * largest, weights.clamp_min(SMALLEST * largest).rsqrt(), 0.0)
        basis = [torch.einsum("bml,mbn->lbn", vectors * inverse[:, None, :], one) for one in rows]
        parts = (vectors.mT @ wanted[..., None])[..., 0] * inverse * weights / (weights + self.ridge * largest)
        for there, one in zip(found, basis, strict=True):
            there += torch.einsum("bl,lbn->bn", parts, one.expand(-1, members, -1))
        return basis

    def _aimed(self, step: _Step, seen: Tensor, held: list[Tensor], found: list[Tensor], basis: list[Tensor], aim: int) -> None:
        """`found` is made right in the Krylov space that grows from lambda, outside of `basis` (r, B or 1, N)."""
        slices, members = step.slices, len(seen)
        missing = [one - there for one, there in zip(held, found, strict=True)]
        ahead = [one.clone() for one in held]
        directions = [one.new_empty(aim, *one.shape) for one in held]
        for number in range(aim):
            spans = [(one.expand(-1, members, -1), other[:number]) for one, other in zip(basis, directions, strict=True)]
            before = [one.square().sum(-1)[None] for one in ahead]
            # The norm of what comes, with the first of two projections; the second is for what rounding left.
            norms, *shares = slices.sum([torch.cat([one, *_shares(pair, there)])
                                         for one, pair, there in zip(before, spans, ahead, strict=True)])
            ahead = [_without(there, pair, shares) for there, pair in zip(ahead, spans, strict=True)]
            shares = list(slices.sum([torch.cat(_shares(pair, there)) for pair, there in zip(spans, ahead, strict=True)]))
            ahead = [_without(there, pair, shares) for there, pair in zip(ahead, spans, strict=True)]
            norm = slices.sum([there.square().sum(-1) for there in ahead]).sqrt()
            keep = (norm > SMALLEST * norms.sqrt())[:, None]
            divisor = norm.clamp_min(torch.finfo(norm.dtype).tiny)[:, None]
            one = [torch.where(keep, there / divisor, 0.0) for there in ahead]
            (response,), lost = step.responses(slices.whole(one)[None])
            step.lost += lost[0]
            step.runs += 1
            ahead = slices.cut(response)
            share = slices.sum([(there * toward).sum(-1) + (direction * gone).sum(-1)
                                for there, toward, direction, gone in zip(ahead, held, one, missing, strict=True)])
            for there, direction, others in zip(found, one, directions, strict=True):
                there += share[:, None] * direction
                others[number] = direction

    def _travelled(self, step: _Step, seen: Tensor, general: int) -> tuple[list[Tensor], Tensor]:
        """As `_renewed`, of an ensemble that left u_0 with the window; X is (M, B, N)."""
        tape, k = step.tape, step.k
        groups = step.groups(general, tape.states.shape[0])
        if self._travelling is None or self._travelling[0] is not tape:
            self._travelling = tape, self._launched(step, general, groups)
        trajectories, spread = self._travelling[1], self.perturbation * step.scale * math.sqrt(step.size)
        rows, after = ((trajectories[:, i] - tape.states[i]) / spread for i in (k, k + 1))
        lost = ~after.isfinite().all(-1)
        rows, after = (torch.where(lost[..., None], 0.0, one) for one in (rows, after))
        if k == 0:
            self._travelling = None
        grown = torch.stack([((after - rows) * seen).sum(-1), lost.double()], -1)
        return step.slices.turn(rows, groups.counts), step.together(grown, groups.counts)

    def _launched(self, step: _Step, general: int, groups: _Groups) -> Tensor:
        """States (m, K+1, B, N) of the members of the travelling ensemble that are this rank's."""
        tape, (members, length) = step.tape, step.scale.shape
        steps = tape.states.shape[0] - 1
        begin = _Step(self, tape, 0)
        rows = begin.perturbations(general, groups.members)
        spread = self.perturbation * math.sqrt(step.size) * begin.scale
        found = torch.empty(len(rows), *tape.states.shape, dtype=torch.float64)
        for part in groups.parts:
            starts = (tape.states[0] + spread * rows[part][:, None]).reshape(-1, length)
            window = tape.solver.advance(starts, steps, correction=tape.correction, stride=tape.stride, on_blow_up="mark")
            states = torch.from_numpy(window.states).reshape(steps + 1, -1, members, length)
            found[part] = states.transpose(0, 1)
        return found


class _Groups:
    """The general members in groups, each advanced in one call by one rank.

    Attributes:
        members: those that are this rank's.
        parts: its groups, as slices of these.
        counts: members of every rank.
    """

    def __init__(self, general: int, size: int, cohort: Cohort):
        number = -(-general // size)
        bounds = [min(general, size * first) for first in cohort.bounds(number)]
        self.counts = [stop - first for first, stop in pairwise(bounds)]
        first, stop = bounds[cohort.rank], bounds[cohort.rank + 1]
        self.members = range(first, stop)
        self.parts = [slice(one, min(one + size, stop - first)) for one in range(0, stop - first, size)]


class _Step:
    """One outer step as a black box: from perturbations to what it adds to them."""

    def __init__(self, gradient: EnsembleEGA, tape: Tape, k: int):
        self.gradient, self.tape, self.k = gradient, tape, k
        blocks, solver = gradient._blocks, tape.solver
        self.spec: SolverSpec = solver.spec if blocks is None else getattr(solver, "whole", solver.spec)
        self.size = self.spec.size
        self.block = None if blocks is None else getattr(solver, "block", None)
        self.scale = field_scales(tape, k, blocks)
        self.slices = Slices(self.scale.shape[1], gradient._cohort, blocks)
        self.lost, self.runs = torch.zeros(len(self.scale), dtype=torch.long), 0

    def groups(self, general: int, states: int = 1) -> _Groups:
        """How the general members run, when each makes so many states a window."""
        values = self.scale.shape[0] * self.size * states
        least = max(-(-CALL_VALUES // values), -(-general // GROUPS))
        size = self.gradient.group or max(1, min(RUN_VALUES // values, least))
        return _Groups(general, size, self.gradient._cohort)

    def perturbations(self, general: int, which: range) -> Tensor:
        """Some of the general directions, (m, N) float64."""
        gradient = self.gradient
        rows = perturbations(self.spec, general, gradient.spectrum, gradient.climatology, (gradient.seed, self.k), which)
        return rows if self.block is None else rows[:, self.block]

    def responses(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Y - X (m, B, N) for X of `rows` (m, B or 1, N); 0 where a run blew up, as if the step did nothing, and (m, B) where."""
        tape, (members, length) = self.tape, self.scale.shape
        spread = self.gradient.perturbation * math.sqrt(self.size) * self.scale
        starts = (tape.states[self.k] + spread * rows).reshape(-1, length)
        window = tape.solver.advance(starts, 1, correction=tape.correction, stride=tape.stride, on_blow_up="mark")
        after = torch.from_numpy(window.states[1]).reshape(-1, members, length)
        lost = ~after.isfinite().all(-1)
        return torch.where(lost[..., None], 0.0, (after - tape.states[self.k + 1]) / spread - rows), lost

    def together(self, grown: Tensor, counts: list[int]) -> Tensor:
        """Lambda times the responses of all members, (M, B), of (m, B, 2) with those that were lost."""
        cohort = self.gradient._cohort
        found = torch.from_numpy(cohort.gather(grown.numpy(), counts)).clone()
        self.lost += found[..., 1].sum(0).long()
        self.runs += len(found)
        if self.gradient._blocks is None:
            return found[..., 0]
        return self.slices.over_blocks(found[..., 0].contiguous())

    def refuse_if_lost(self) -> None:
        """An error when nothing was learnt of a member."""
        if self.runs and bool((self.lost == self.runs).any()):
            raise SolverError(f"Every perturbed run of member {int((self.lost == self.runs).int().argmax())} at step {self.k} "
                              "blew up, though the rollout did not: lower the ensemble's perturbation, or shorten dt.")


def _shares(spans: tuple[Tensor, Tensor], vectors: Tensor) -> list[Tensor]:
    """Inner products of orthonormal directions (r, B, n), in two parts, with vectors (B, n): (r, B) each."""
    return [torch.einsum("lbn,bn->lb", one, vectors) for one in spans]


def _without(vectors: Tensor, spans: tuple[Tensor, Tensor], shares: list[Tensor]) -> Tensor:
    """Vectors (B, n) without their shares of the directions."""
    for one, part in zip(spans, (shares[: len(spans[0])], shares[len(spans[0]) :]), strict=True):
        if part:
            vectors = vectors - torch.einsum("lb,lbn->bn", torch.stack(part), one)
    return vectors
