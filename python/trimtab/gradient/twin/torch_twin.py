# SPDX-License-Identifier: MIT
"""Torch twins of our Fortran solvers: the differentiable yardstick for tests, checks and benchmarks, and nothing else.

A twin is written from the equations, not from the Fortran: two independent codes that agree to round-off hold each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.errors import BlowUpError, ConfigError
from trimtab.core.solver import OnBlowUp, Solver
from trimtab.core.spec import SolverSpec
from trimtab.core.window import Window
from trimtab.corrections.repeatable import as_slot
from trimtab.gradient.twin.tableaux import IMEX, TABLEAUX, adaptive, imex

Tendency = Callable[[Tensor], Tensor]
_FIXED = ("euler", "rk2", "rk3", "rk4")


class TorchSolver:
    """A twin: same border state, same step, every operation visible to autograd.

    Args:
        spec: of the Fortran solver to be the twin of; parameters and step are taken from it.

    Raises:
        ConfigError: a solver or an integrator without a twin.
    """

    def __init__(self, spec: SolverSpec):
        if spec.solver not in _PHYSICS:
            raise ConfigError(f"The solver {spec.solver} has no torch twin; there are {', '.join(_PHYSICS)}.")
        self.integrator = str(spec.parameters.get("integrator", "rk4"))
        if self.integrator not in (*TABLEAUX, *IMEX):
            raise ConfigError(f"The integrator {self.integrator} has no torch twin; there are {', '.join((*TABLEAUX, *IMEX))}.")
        self.spec = spec
        self.held = spec.parameters.get("correction_at", "stage") == "step"
        self.physics: _Ode | _Plane = _PHYSICS[spec.solver](spec)
        if self.integrator not in _FIXED and not isinstance(self.physics, _Ode):
            raise ConfigError(f"The twin of {spec.solver} steps with {', '.join(_FIXED)}, not {self.integrator}: measure with "
                              "\"discrete\" instead.")

    def tendency(self, u: Tensor) -> Tensor:
        """Physics tendency at the border, (B, N) float64 -> (B, N)."""
        return self.physics.leave(self.physics.tendency(self.physics.enter(u)))

    def flow(self, u: Tensor, correction: nn.Module | None = None, stride: int = 1) -> Tensor:
        """One outer step, (B, N) float64 -> (B, N), with the autograd graph."""
        x = self.physics.enter(u)
        for _ in range(stride):
            x = self._step(x, correction)
        return self.physics.leave(x)

    def rollout(self, u0: Tensor, steps: int, correction: nn.Module | None = None, stride: int = 1) -> Tensor:
        """States (K+1, B, N) with the autograd graph through every step."""
        states = [u0]
        for _ in range(steps):
            states.append(self.flow(states[-1], correction, stride))
        return torch.stack(states)

    def advance(self, u0: Any, steps: int, *, correction: nn.Module | None = None, stride: int = 1, time: float = 0.0,
                on_blow_up: OnBlowUp = "raise") -> Window:
        """See `Solver.advance`; a blow-up is told to the outer step only."""
        h = stride * self.spec.dt
        with torch.no_grad():
            states = self.rollout(torch.from_numpy(self.spec.check_states(u0)), steps, correction, stride).numpy()
        finite = torch.from_numpy(states).isfinite().all(-1)
        failed = torch.where(finite.all(0), 0, (~finite).int().argmax(0) * stride).long().numpy()
        if failed.any() and on_blow_up == "raise":
            raise BlowUpError(f"The twin of {self.spec.solver} left the finite numbers by step {failed.max()}.", failed)
        return Window(states, time + h * torch.arange(steps + 1).double().numpy(), h, failed)

    def close(self) -> None:
        """Nothing to give back."""

    def _step(self, x: Tensor, correction: nn.Module | None) -> Tensor:
        dt = self.spec.dt
        held = self._correct(x, correction) if self.held else None
        if self.integrator not in _FIXED:
            def drift(y: Tensor, member: int) -> Tensor:
                extra = held[member : member + 1] if held is not None else self._correct(y[None], correction)
                return torch.zeros_like(y) if extra is None else extra[0]

            physics, parameters = self.physics.tendency, self.spec.parameters
            if self.integrator in IMEX:
                return imex(x, dt, physics, drift, IMEX[self.integrator])
            return adaptive(x, dt, lambda y, member: physics(y) + drift(y, member=member), parameters["rtol"], parameters["atol"])
        slopes: list[Tensor] = []
        a, b = TABLEAUX[self.integrator]
        for row in a:
            stage = x + dt * sum((w * k for w, k in zip(row, slopes, strict=True)), torch.zeros_like(x))
            extra = held if self.held else self._correct(stage, correction)
            slopes.append(self.physics.tendency(stage) + (0 if extra is None else extra))
        return x + dt * sum((w * k for w, k in zip(b, slopes, strict=True)), torch.zeros_like(x))

    def _correct(self, x: Tensor, correction: nn.Module | None) -> Tensor | None:
        if correction is None:
            return None
        u = self.physics.leave(x)
        answer = as_slot(correction, u).to(u.device, u.dtype)
        return self.physics.enter(answer) if self.spec.coefficient is None else self.physics.influence(x, answer)


def twin(solver: Solver) -> TorchSolver:
    """The torch twin of a solver."""
    return TorchSolver(solver.spec)


class _Ode:
    """Internal and border state are the same."""

    def __init__(self, spec: SolverSpec):
        self.p = spec.parameters

    def enter(self, u: Tensor) -> Tensor:
        return u

    leave = enter

    def tendency(self, x: Tensor) -> Tensor:
        raise ConfigError("this physics has no tendency")

    def influence(self, x: Tensor, p: Tensor) -> Tensor:
        raise ConfigError("the slot of this physics takes no coefficient")


class _Lorenz63(_Ode):
    def tendency(self, x: Tensor) -> Tensor:
        u, v, w = x.unbind(-1)
        sigma, rho, beta = self.p["sigma"], self.p["rho"], self.p["beta"]
        return torch.stack([sigma * (v - u), u * (rho - w) - v, u * v - beta * w], dim=-1)

    def influence(self, x: Tensor, p: Tensor) -> Tensor:
        zero = torch.zeros_like(x[..., 0])
        return torch.stack([zero, zero, -p[..., 0] * x[..., 2]], dim=-1)


class _Oscillator(_Ode):
    def tendency(self, x: Tensor) -> Tensor:
        u, v = x.unbind(-1)
        return torch.stack([v, -self.p["restoring"] * self.p["omega"] ** 2 * u], dim=-1)


class _VanDerPol(_Ode):
    def tendency(self, x: Tensor) -> Tensor:
        fast, slow = x.unbind(-1)
        return torch.stack([self.p["stiffness"] * (fast - fast**3 / 3 - slow), self.p["restoring"] * fast], dim=-1)


class _Burgers(_Ode):
    """MUSCL on a ring; at kinks the same side as the Fortran, by the same comparisons."""

    def tendency(self, x: Tensor) -> Tensor:
        p, n = self.p, x.shape[-1]
        dx = p["length"] / n
        a, b = x - torch.roll(x, 1, -1), torch.roll(x, -1, -1) - x
        same = a * b > 0
        slope = {
            "minmod": lambda: torch.where(same, torch.where(a.abs() <= b.abs(), a, b), 0.0),
            "vanleer": lambda: torch.where(same, 2 * a * b / torch.where(same, a + b, 1.0), 0.0),
            "none": lambda: (a + b) / 2,
        }[p["limiter"]]()
        left, right = x + slope / 2, torch.roll(x - slope / 2, -1, -1)
        if p["flux"] == "godunov":
            inflow, outflow = left.clamp_min(0) ** 2, right.clamp_max(0) ** 2
            flux = torch.where(inflow >= outflow, inflow, outflow) / 2
        else:
            one, other = (torch.where(v < 0, -v, v) for v in (left, right))
            flux = (left**2 + right**2) / 4 - torch.where(one >= other, one, other) * (right - left) / 2
        centres = (torch.arange(n, dtype=torch.float64) + 0.5) * dx
        k = 2 * math.pi * p["forcing_wavenumber"] / p["length"]
        forcing = p["forcing_amplitude"] * torch.sin(k * centres) * math.sin(k * dx / 2) / (k * dx / 2)
        answer: Tensor = (torch.roll(flux, 1, -1) - flux) / dx + p["viscosity"] / dx**2 * (b - a) - p["drag"] * x + forcing
        return answer


class _Lorenz96(_Ode):
    def tendency(self, x: Tensor) -> Tensor:
        answer: Tensor = _advection96(x) - x + self.p["forcing"]
        return answer


class _Lorenz96TwoScale(_Ode):
    """Lorenz (1996), with X_k slow and Y_{j,k} fast on one ring of J K points."""

    def tendency(self, x: Tensor) -> Tensor:
        n, fast = int(self.p["n"]), int(self.p["fast"])
        b, c, h = self.p["b"], self.p["c"], self.p["coupling"]
        slow, ring = x[..., :n], x[..., n:]
        sums = ring.unflatten(-1, (n, fast)).sum(-1)
        dslow = _advection96(slow) - slow + self.p["forcing"] - h * c / b * sums
        advection = c * b * torch.roll(ring, -1, -1) * (torch.roll(ring, 1, -1) - torch.roll(ring, -2, -1))
        dring = advection - c * ring + h * c / b * slow.repeat_interleave(fast, -1)
        return torch.cat([dslow, dring], dim=-1)


def _advection96(x: Tensor) -> Tensor:
    return torch.roll(x, 1, -1) * (torch.roll(x, -1, -1) - torch.roll(x, 2, -1))


class _Plane:
    """Barotropic vorticity on the doubly periodic plane; internal state: rfft2 coefficients of the retained waves."""

    def __init__(self, spec: SolverSpec):
        p = spec.parameters
        n = spec.grid[0]
        self.n, self.fine = n, {"3/2": 3 * n // 2, "2/3": n, "none": n}[p["dealiasing"]]
        unit = 2 * math.pi / float(p.get("length", 2 * math.pi))
        kx = torch.fft.rfftfreq(n, 1 / n, dtype=torch.float64)
        ky = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)[:, None]
        largest = n / 3 if p["dealiasing"] == "2/3" else n / 2
        self.mask = ((kx.abs() < largest) & (ky.abs() < largest)).double()
        self.kx, self.ky = kx * unit, ky * unit
        square = self.kx**2 + self.ky**2
        self.inverse = torch.where(square > 0, -1 / square, 0.0)
        order = float(p["hyperviscosity_order"])
        damping = -p["drag"] - p["viscosity"] * square - p["hyperviscosity"] * square ** (order / 2)
        self.linear = damping - p["beta"] * 1j * self.kx * self.inverse
        x = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
        wave = torch.cos(p["forcing_wavenumber"] * x)
        k = torch.cos(p["pattern_wavenumber"] * x)
        self.pattern = p["viscosity_pattern"] * (1 + k[:, None] * k[None, :])
        self.forcing = torch.fft.rfft2(p["forcing_amplitude"] * (wave[None, :] + wave[:, None])) * self.mask

    def enter(self, u: Tensor) -> Tensor:
        answer: Tensor = torch.fft.rfft2(u.unflatten(-1, (self.n, self.n))) * self.mask
        return answer

    def leave(self, x: Tensor) -> Tensor:
        answer: Tensor = torch.fft.irfft2(x, s=(self.n, self.n)).flatten(-2)
        return answer

    def tendency(self, x: Tensor) -> Tensor:
        psi = x * self.inverse
        u, v, q = (self._to_fine(one) for one in (-1j * self.ky * psi, 1j * self.kx * psi, x))
        # Flux form, unlike the Fortran's: div(u q) from five transforms.
        advection = 1j * self.kx * self._from_fine(u * q) + 1j * self.ky * self._from_fine(v * q)
        answer: Tensor = -advection + self.linear * x + self.forcing + self.influence(x, self.pattern.flatten())
        return answer

    def influence(self, x: Tensor, p: Tensor) -> Tensor:
        viscosity = p.unflatten(-1, (self.n, self.n))
        answer = torch.zeros_like(x)
        for k in (self.kx, self.ky):
            slope = torch.fft.irfft2(1j * k * x, s=(self.n, self.n))
            answer = answer + 1j * k * torch.fft.rfft2(viscosity * slope) * self.mask
        return answer

    def _to_fine(self, x: Tensor) -> Tensor:
        n, m = self.n, self.fine
        if m == n:
            answer: Tensor = torch.fft.irfft2(x, s=(n, n))
            return answer
        half = n // 2
        padded = torch.zeros(*x.shape[:-2], m, m // 2 + 1, dtype=x.dtype)
        padded[..., :half, : half + 1] = x[..., :half, :]
        padded[..., -half:, : half + 1] = x[..., half:, :]
        answer = torch.fft.irfft2(padded, s=(m, m)) * (m / n) ** 2
        return answer

    def _from_fine(self, product: Tensor) -> Tensor:
        n, m = self.n, self.fine
        x = torch.fft.rfft2(product) * (n / m) ** 2
        half = n // 2
        if m != n:
            x = torch.cat([x[..., :half, : half + 1], x[..., -half:, : half + 1]], dim=-2)
        answer: Tensor = x * self.mask
        return answer


_PHYSICS: dict[str, Callable[[SolverSpec], _Ode | _Plane]] = {
    "lorenz63": _Lorenz63,
    "lorenz96": _Lorenz96,
    "lorenz96_two_scale": _Lorenz96TwoScale,
    "oscillator": _Oscillator,
    "vanderpol": _VanDerPol,
    "burgers": _Burgers,
    "qg": _Plane,
}
