# SPDX-License-Identifier: MIT
"""What variants with a Jacobian ask of solver and correction, and the transpose of the hybrid's whole outer step.

A solver may offer, beside the three members of `Solver`:

    tendency(u) -> (B, N)                physics tendency F at the border
    tendency_adjoint(u, lam) -> (B, N)   (dF/du(u))^T lam, Euclidean inner product of border states
    project(u) -> (B, N)                 orthogonal projection on what it holds of a state; left out: all of it
    has_adjoint: bool                    False when tendency_adjoint refuses; left out: True when it is there
    substeps(u, *, correction) -> (S, B)  lengths of the steps that one dt is made of, where its scheme is adaptive; 0 is none
    flow_adjoint(u, lam, *, correction, stride) -> (B, N)
                                         the transpose of the outer step's Jacobian, by the solver's own means
    slot_adjoint(u, lam, *, stride, steady) -> (B, M)
                                         the transpose of how the slot's M outputs enter the state, per unit of time; left
                                         out: they are the tendency of the state (`Tape.slot_adjoint`, `Gradient.steady`)

and, where its slot takes a coefficient P (`spec.coefficient`), in which its tendency N is linear:

    slot_adjoint(u, lam, *, ...) -> (B, M)      (dN/dP(u))^T lam, as above
    influence(u, p) -> (B, N)                   N(u, p) - N(u, 0)
    influence_adjoint(u, p, lam) -> (B, N)      the transpose of its derivative by u at fixed p, applied to lam

All arrays are (B, N) float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.core.errors import ConfigError
from trimtab.core.solver import Solver
from trimtab.core.spec import SolverSpec
from trimtab.corrections.repeatable import as_slot
from trimtab.gradient.base import CHUNK_STATES, CHUNK_VALUES, Tape
from trimtab.gradient.twin.tableaux import IMEX, TABLEAUX


def has_adjoint(solver: Solver) -> bool:
    """Whether a solver offers its tendency and the adjoint of it."""
    offers = all(callable(getattr(solver, name, None)) for name in ("tendency", "tendency_adjoint"))
    return offers and bool(getattr(solver, "has_adjoint", True))


def has_influence(solver: Solver) -> bool:
    """Whether a solver's slot takes a tendency, or a coefficient of which the solver offers all that a Jacobian needs."""
    names = ("influence", "influence_adjoint", "slot_adjoint")
    return solver.spec.coefficient is None or all(callable(getattr(solver, name, None)) for name in names)


def has_step(spec: SolverSpec) -> bool:
    """Whether a solver's step is a Runge-Kutta scheme known here, so that its transpose follows from the tableau."""
    return spec.parameters.get("integrator") in (*TABLEAUX, *IMEX)


def require_adjoint(solver: Solver, variant: str) -> None:
    """Refuse a solver without an adjoint of its tendency.

    Raises:
        ConfigError: what is missing.
    """
    if has_adjoint(solver) and not has_influence(solver):
        raise ConfigError(f"The gradient {variant!r} needs to know how the coefficient in the slot of {solver.spec.solver} acts: "
                          "give it influence, influence_adjoint and slot_adjoint (gradient/adjoint.py), or use \"static\".")
    if not has_adjoint(solver):
        raise ConfigError(f"The gradient {variant!r} needs the adjoint of the tendency, and the solver {solver.spec.solver} "
                          "offers none: give it tendency and tendency_adjoint (gradient/adjoint.py), or use \"static\".")


def require_step(solver: Solver, variant: str) -> None:
    """Refuse a solver whose step cannot be transposed.

    Raises:
        ConfigError: what is missing.
    """
    require_adjoint(solver, variant)
    if not has_step(solver.spec):
        raise ConfigError(f"The gradient {variant!r} transposes the steps {', '.join((*TABLEAUX, *IMEX))}, and the solver "
                          f"{solver.spec.solver} steps otherwise: use \"euler\" or \"static\".")


def project(solver: Solver, vector: Tensor) -> Tensor:
    """What the solver holds of a state, a tendency or a derivative by either, (B, N) -> (B, N)."""
    operation = getattr(solver, "project", None)
    return vector if operation is None else _tensor(operation(vector))


def tendency_adjoint(solver: Any, u: Tensor, lam: Tensor) -> Tensor:
    """(dF/du(u))^T lam of the physics, (B, N)."""
    return _tensor(solver.tendency_adjoint(u, lam))


class Applied:
    """The correction applied to states, kept with its graph so that its transpose can follow.

    Args:
        solver: whose slot takes a tendency or a coefficient.
        correction: the module, (B, N) -> (B, M).
        u: (B, N) float64 states.
    """

    def __init__(self, solver: Solver, correction: nn.Module, u: Tensor):
        self.solver: Any = solver if solver.spec.coefficient is not None else None
        held = next(iter((*correction.parameters(), *correction.buffers())), u)
        self.state = u.detach().to(held.device).requires_grad_()
        with torch.enable_grad():
            self.output: Tensor = as_slot(correction, self.state)

    @property
    def value(self) -> Tensor:
        """(B, N) float64 tendency."""
        output = self.output.detach().to("cpu", torch.float64)
        return output if self.solver is None else _tensor(self.solver.influence(self.state.detach().cpu(), output))

    def transpose(self, lam: Tensor, parameters: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor | None]]:
        """(dM/du)^T lam, (B, N) float64, and (dM/dtheta)^T lam, one tensor a parameter or None; once only."""
        eta, cotangent = torch.zeros_like(lam), lam
        if self.solver is not None:
            u, output = self.state.detach().cpu(), self.output.detach().to("cpu", torch.float64)
            eta = _tensor(self.solver.influence_adjoint(u, output, lam))
            cotangent = torch.as_tensor(self.solver.slot_adjoint(u, lam, stride=1, steady=False))
        if not self.output.requires_grad:
            return eta, [None] * len(parameters)
        grads: tuple[Tensor | None, ...] = torch.autograd.grad(
            self.output, [self.state, *parameters], cotangent.to(self.output), allow_unused=True)
        return eta if grads[0] is None else eta + grads[0].cpu(), list(grads[1:])


class HybridStep:
    """One outer step of the hybrid as the Runge-Kutta scheme that it is, recomputed at the border from the recorded state.

    With P the solver's projection, dt the inner step, and M (of a coefficient, N(y, P(y)) - N(y, 0)) evaluated at each stage, or
    once, and held:

        y_i = u + dt sum_j a_ij k_j,   k_i = F(y_i) + P M(y_i),   u' = u + dt sum_i b_i k_i
        kappa_i = dt (b_i lambda + sum_j a_ji eta_j),   eta_i = (dF/du(y_i))^T kappa_i + P (dM/du(y_i))^T kappa_i
        J^T lambda = lambda + sum_i eta_i,   (du'/dtheta)^T lambda = sum_i (dM/dtheta(y_i))^T kappa_i

    for u and lambda that the solver holds (`project`). A dt that was divided is the product of the steps accepted, whose
    lengths count as constants: how they would change with the state is left out, which is within the solver's tolerance. They
    are made again by a run of one dt (`substeps`). Implicit steps: `implicit.py`.

    Source: Hairer, Lubich, Wanner, Geometric Numerical Integration (2006), VI.6; Sandu, ICCS 2006, doi:10.1007/11758549_19.

    Args:
        tape: the rollout.
        parameters: tensors of the correction; `parts` collects the derivatives by them.
    """

    def __init__(self, tape: Tape, parameters: Sequence[Tensor] = ()):
        spec = tape.solver.spec
        self.tape, self.dt, self.parameters = tape, spec.dt, parameters
        self.solver: Any = tape.solver
        self.integrator = str(spec.parameters["integrator"])
        self.each_stage = spec.parameters.get("correction_at", "stage") == "stage"
        self.parts: list[Tensor | None] = [None] * len(parameters)

    def transpose(self, k: int, lam: Tensor) -> Tensor:
        """J_k^T lam, (B, N) float64; the states within a stride are made anew by one forward run.

        Members go through in groups, so that the graphs of all stages together hold no more states than one chunk of the
        sweep. The groups depend on nothing but the sizes.
        """
        u = self.tape.states[k]
        members, size = u.shape
        group = max(1, min(CHUNK_STATES, CHUNK_VALUES // size) // self.stages)
        parts = [slice(first, first + group) for first in range(0, members, group)]
        return torch.cat([self._transpose_members(u[part] if k else project(self.solver, u[part]), lam[part])
                          for part in parts])

    def _transpose_members(self, u: Tensor, lam: Tensor) -> Tensor:
        starts = [u]
        if self.tape.stride > 1:
            inner = self.solver.advance(u, self.tape.stride, correction=self.tape.correction)
            starts += torch.from_numpy(inner.states[1:-1])
        for start in reversed(starts):
            lam = self._transpose_inner(start, lam)
        return lam

    @property
    def stages(self) -> int:
        """Stages of a step, each of which keeps a graph of the correction."""
        return len(TABLEAUX[self.integrator][0])

    def _transpose_inner(self, start: Tensor, lam: Tensor) -> Tensor:
        held = None
        if self.tape.correction is not None and not self.each_stage:
            held = Applied(self.solver, self.tape.correction, start)
        drift = None if held is None else project(self.solver, held.value)
        total = torch.zeros_like(lam)
        for state, dt in reversed(self._pieces(start, drift)):
            lam, kappas = self._transpose_piece(state, dt, lam, drift)
            total += kappas
        return lam if held is None else lam + self._pull(held, total)

    def _pieces(self, start: Tensor, drift: Tensor | None) -> list[tuple[Tensor, float | Tensor]]:
        """The steps that one dt is made of: the state each begins with, and its length, one number a member."""
        if self.integrator != "dopri5" and self.integrator not in IMEX:
            return [(start, self.dt)]
        sizes = _tensor(self.solver.substeps(start, correction=self.tape.correction))[..., None]
        pieces: list[tuple[Tensor, float | Tensor]] = [(start, sizes[0])]
        for dt in sizes[1:]:
            pieces.append((self._end(*pieces[-1], drift), dt))
        return pieces

    def _end(self, start: Tensor, dt: float | Tensor, drift: Tensor | None) -> Tensor:
        """The state after one explicit step."""
        _, slopes, _ = self._stages(start, dt, drift, every=True)
        b = TABLEAUX[self.integrator][1]
        return start + dt * sum(w * slope for w, slope in zip(b, slopes, strict=True) if w)

    def _transpose_piece(
        self, start: Tensor, dt: float | Tensor, lam: Tensor, drift: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One explicit step, transposed; and the sum of the kappas, which a held correction wants."""
        a, b = TABLEAUX[self.integrator]
        stages, _, applied = self._stages(start, dt, drift)
        etas: list[Tensor] = [lam] * len(stages)
        total = torch.zeros_like(lam)
        for i in reversed(range(len(stages))):
            kappa = b[i] * lam
            for j in range(i + 1, len(stages)):
                if a[j][i]:
                    kappa = kappa + a[j][i] * etas[j]
            kappa = dt * kappa
            etas[i] = tendency_adjoint(self.solver, stages[i], kappa)
            if applied:
                etas[i] = etas[i] + self._pull(applied[i], kappa)
            total += kappa
        return lam + sum(etas), total

    def _stages(
        self, start: Tensor, dt: float | Tensor, drift: Tensor | None, every: bool = False
    ) -> tuple[list[Tensor], list[Tensor], list[Applied]]:
        """The states at which the tendencies are taken, these (the last when `every`), and the correction there if not held."""
        stages: list[Tensor] = []
        applied: list[Applied] = []
        slopes: list[Tensor] = []
        a, _ = TABLEAUX[self.integrator]
        for row in a:
            stage = start
            for weight, slope in zip(row, slopes, strict=True):
                if weight:
                    stage = stage + (dt * weight) * slope
            stages.append(stage)
            if self.tape.correction is not None and self.each_stage:
                applied.append(Applied(self.solver, self.tape.correction, stage))
            if every or len(stages) < len(a):
                slope = _tensor(self.solver.tendency(stage))
                if applied:
                    slope = slope + project(self.solver, applied[-1].value)
                slopes.append(slope if drift is None else slope + drift)
        return stages, slopes, applied

    def _pull(self, applied: Applied, kappa: Tensor) -> Tensor:
        eta, parts = applied.transpose(kappa, self.parameters)
        for i, part in enumerate(parts):
            if part is not None:
                total = self.parts[i]
                self.parts[i] = part if total is None else total + part
        return project(self.solver, eta)


def _tensor(array: np.ndarray | Tensor) -> Tensor:
    return array if isinstance(array, Tensor) else torch.from_numpy(array)
