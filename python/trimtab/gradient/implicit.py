# SPDX-License-Identifier: MIT
"""The transpose of an implicit step (IMEX Runge-Kutta), and the choice of the transpose that belongs to a solver's scheme."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.gradient.adjoint import Applied, HybridStep, project, tendency_adjoint
from trimtab.gradient.base import Tape
from trimtab.gradient.twin.tableaux import IMEX, NEWTON


def hybrid_step(tape: Tape, parameters: Sequence[Tensor] = ()) -> HybridStep:
    """The transpose of the outer step, by the integrator that the solver names.

    Args:
        tape: the rollout.
        parameters: see `HybridStep`.

    Returns:
        Explicit, adaptive or implicit.
    """
    kind = ImplicitStep if tape.solver.spec.parameters["integrator"] in IMEX else HybridStep
    return kind(tape, parameters)


class ImplicitStep(HybridStep):
    """One outer step with the physics implicit and the correction explicit, stages computed again by Newton's method.

    With y_0 = u, u' = y_s, J_i = dF/du(y_i), and w = dt a_ii:

        y_i - w F(y_i) = u + dt sum_{j<i} a_ij F(y_j) + dt sum_{j<i} e_ij P M(y_j)
        (1 - w J_i)^T mu_i = [i = s] lambda + J_i^T dt sum_{j>i} a_ji mu_j + P (dM/du(y_i))^T dt sum_{j>i} e_ji mu_j
        J^T lambda = sum_i mu_i + P (dM/du(u))^T dt sum_j e_j0 mu_j
        (du'/dtheta)^T lambda = sum_j (dM/dtheta(y_j))^T dt sum_{i>j} e_ij mu_i

    A stiff mode that the step damps is damped backwards by the same factor; the equations are small and dense, like the step's.
    """

    @property
    def stages(self) -> int:
        """See `HybridStep`."""
        return len(IMEX[self.integrator][0])

    def _end(self, start: Tensor, dt: float | Tensor, drift: Tensor | None) -> Tensor:
        return self._forward(start, dt, drift)[0][-1]

    def _transpose_piece(
        self, start: Tensor, dt: float | Tensor, lam: Tensor, drift: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        implicit, explicit = IMEX[self.integrator]
        last = len(implicit)
        states, applied = self._forward(start, dt, drift)
        mus: list[Tensor] = [lam] * (last + 1)  # mus[0] is not used
        answer, total = torch.zeros_like(lam), torch.zeros_like(lam)
        for i in range(last, -1, -1):
            right = lam if i == last else torch.zeros_like(lam)
            weight = sum((dt * explicit[j - 1][i] * mus[j] for j in range(i + 1, last + 1)), torch.zeros_like(lam))
            total += weight
            if applied and i < last:
                right = right + self._pull(applied[i], weight)
            if i == 0:
                answer = answer + right
                break
            later = sum((dt * implicit[j - 1][i - 1] * mus[j] for j in range(i + 1, last + 1)), torch.zeros_like(lam))
            jacobian = self._jacobian(states[i])
            right = right + (jacobian.mT @ later[..., None])[..., 0]
            mus[i] = torch.linalg.solve(_matrix(jacobian, dt * implicit[i - 1][-1]).mT, right)
            answer = answer + mus[i]
        return answer, total

    def _forward(self, start: Tensor, dt: float | Tensor, drift: Tensor | None) -> tuple[list[Tensor], list[Applied]]:
        """y_0 ... y_s, and the correction at y_0 ... y_{s-1} unless it is held."""
        states, applied = [start], []
        slopes: list[Tensor] = []
        drifts: list[Tensor] = []
        for implicit, explicit in zip(*IMEX[self.integrator], strict=True):
            if drift is not None:
                drifts.append(drift)
            elif self.tape.correction is not None:
                applied.append(Applied(self.solver, self.tape.correction, states[-1]))
                drifts.append(project(self.solver, applied[-1].value))
            known = start
            for weight, slope in zip(implicit, slopes, strict=False):
                known = known + dt * weight * slope
            for weight, one in zip(explicit, drifts, strict=False):
                known = known + dt * weight * one
            w = torch.as_tensor(dt * implicit[-1], dtype=start.dtype)
            states.append(self._solve(w, known, states[-1]))
            slopes.append(torch.where(w > 0, (states[-1] - known) / w, 0.0))  # 0: a member that has no such piece
        return states, applied

    def _solve(self, w: Tensor, known: Tensor, y: Tensor) -> Tensor:
        most, enough = NEWTON
        for _ in range(most):
            slope = torch.as_tensor(self.solver.tendency(y))
            change = torch.linalg.solve(_matrix(self._jacobian(y), w), known + w * slope - y)
            y = y + change
            if (change.abs().amax(1) <= enough * torch.maximum(y.abs(), known.abs()).amax(1)).all():
                break
        return y

    def _jacobian(self, y: Tensor) -> Tensor:
        """dF/du of every member, (B, N, N): row j is (dF/du)^T e_j."""
        members, size = y.shape
        units = torch.eye(size, dtype=y.dtype).repeat(members, 1)
        return tendency_adjoint(self.solver, y.repeat_interleave(size, 0), units).reshape(members, size, size)


def _matrix(jacobian: Tensor, w: float | Tensor) -> Tensor:
    """1 - w J, w one number or (B, 1)."""
    return torch.eye(jacobian.shape[-1], dtype=jacobian.dtype) - torch.as_tensor(w, dtype=jacobian.dtype)[..., None] * jacobian
