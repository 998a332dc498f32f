# SPDX-License-Identifier: MIT
"""Which gradient to trust: each variant against central differences of the loss, from forward runs only.

Nothing is asked of the solver but to run forward, so that the check holds for a black box. Let g be the true gradient of
the loss of a window and a that of a variant. (J(theta + e v) - J(theta - e v)) / 2e gives g . v for any direction v:

- along the variants' own gradients, made orthonormal, it gives the part of g that lies in their span, and so a . g;
- along m random orthonormal directions w it estimates the length of the rest r: |r|^2 = P mean (r . w)^2 for P parameters,
  without bias, to sqrt(2 / m) of itself; exactly when m = P.

The step e: along the first direction of a window differences are taken on a ladder of steps, from 0.03 of the parameters'
norm down by factors of 4. Going down, neighbours come together while truncation rules (error e^2) and part again when
rounding does (error 1 / e); the closest pair is taken, and its Richardson extrapolation, (16 D(e/4) - D(e)) / 15. The other
directions of the window use the same pair, and the distance within it tells how far a derivative is uncertain.

The losses are computed with a copy of the network in float64: a float32 network's rounding is larger than the differences.
The variants are computed with the network as it is.
"""

from __future__ import annotations

import copy
import math
import numbers
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.core.errors import ConfigError, CorrectionError, InputError, SolverError
from trimtab.core.loss import alive, field_scale, mean_square
from trimtab.core.solver import Solver
from trimtab.corrections.real_numbers import in_precision, set_from_vector, to_vector
from trimtab.corrections.repeatable import check_function
from trimtab.gradient import GRADIENTS, Gradient, get_gradient
from trimtab.gradient.gradcheck.table import YARDSTICK, CheckRow, CheckTable
from trimtab.gradient.rollout import rollout

LADDER = tuple(0.03 * 4.0**-i for i in range(9))  # steps over the norm of the parameters

def gradcheck(
    solver: Solver,
    correction: nn.Module,
    starts: Any,
    targets: Any,
    windows: Sequence[int],
    *,
    gradients: Sequence[str | Gradient] = ("static", "ensemble"),
    directions: int = 8,
    stride: int = 1,
    leads: Sequence[int] = (),
    tolerance: float = 0.05,
    time_scale: float = 0.0,
    time_name: str = "",
    seed: int = 0,
    components: np.ndarray | None = None,
    scale: Tensor | None = None,
    progress: Callable[[float, str], None] = lambda fraction, text: None,
) -> CheckTable:
    """Check gradient variants on a solver, a correction and the mean square loss of some windows.

    Args:
        solver: any `Solver`; it is only run forward, but for variants that ask more of it.
        correction: module (B, N) -> (B, N) with at least one trainable parameter.
        starts: (B, N) float64 initial states.
        targets: (L, B, N) float64 truth at the lead times; what is not among the components may be NaN.
        windows: lengths in outer steps.
        gradients: variants by name or object; "exact" is added where the solver has a torch twin.
        directions: random directions m.
        stride: inner steps an outer step.
        leads: (L,) rising lead times in outer steps; empty for 1 to L. A window's loss takes those within it.
        tolerance: loss of steepest descent up to which a variant is called good.
        time_scale: Lyapunov or eddy time in the solver's unit; 0 when not known.
        time_name: what it is, as "Lyapunov times".
        seed: of the random directions.
        components: (M,) int64, those of the state that enter the loss, see `loss.mean_square`; None for all.
        scale: (N,) float64 by which differences are divided, as in training (`online.loss_scale`), so that a field in large
            numbers does not make up the whole loss; None for that over the targets, or 1 where they are all 0.
        progress: told the share done.

    Returns:
        The table, see `CheckTable`; `recommendation()` is its sentence.

    Raises:
        ConfigError: no window, a window without target, no trainable parameter, or a variant that the solver cannot give.
        InputError: targets, a scale or components of another shape, or that are not finite.
        SolverError: every member blew up, or no finite difference could be taken.
        CorrectionError: no gradient is finite.
    """
    _refuse(correction, directions, tolerance, time_scale, seed)
    windows, leads = sorted(set(_whole("windows", windows))), _whole("leads", leads)
    variants = _variants(solver, gradients)
    truth, start = _numbers_of("targets", targets), torch.from_numpy(solver.spec.check_states(starts))
    leads = leads or list(range(1, len(truth) + 1))
    components, scale = _checked(solver, start, truth, windows, leads, components, scale)
    rows: list[CheckRow] = []
    derivatives = {}
    for number, steps in enumerate(windows):
        within = [lead for lead in leads if lead <= steps]
        problem = _Problem(solver, correction, start, truth[: len(within)], within, steps, stride, components, scale)
        found = []
        for i, (name, variant) in enumerate(variants.items()):
            progress((number + 0.5 * i / len(variants)) / len(windows), f"gradcheck: {name}, n = {steps}")
            found.append(problem.gradient(variant))
        progress((number + 0.5) / len(windows), f"gradcheck: finite differences, n = {steps}")
        judged, derivatives[steps] = _judge(problem, dict(zip(variants, found, strict=True)), directions, seed, time_scale)
        rows += judged
    return CheckTable(tuple(rows), time_name if time_scale else "", tolerance, derivatives)


def _judge(problem: _Problem, found: dict[str, _Found], directions: int, seed: int, time_scale: float,
           ) -> tuple[list[CheckRow], Any]:
    """The rows of one window's gradients, and the derivatives by finite differences that they are held against."""
    steps, h = problem.steps, problem.stride * problem.solver.spec.dt
    if not any(one.vector.isfinite().all() for one in found.values()):
        raise CorrectionError(f"No gradient is finite at n = {steps}: the correction has a derivative that is not, as a "
                              "root has at zero.")
    generator = torch.Generator().manual_seed(seed)
    measured, derivatives = _measure(problem, [one.vector for one in found.values()], directions, generator)
    exact = found[YARDSTICK].vector if YARDSTICK in found else None
    rows = []
    for (name, one), (share, error, along, efficiency, uncertainty) in zip(found.items(), measured, strict=True):
        cosine = _cosine(one.vector, exact) if exact is not None else math.nan
        rows.append(CheckRow(steps, steps * h, steps * h / time_scale if time_scale else math.nan, name, share, cosine,
                             error, along, efficiency, uncertainty, one.solver_steps, one.network_states, one.seconds))
    return rows, derivatives


def _checked(solver: Solver, start: Tensor, truth: Tensor, windows: list[int], leads: list[int], components: np.ndarray | None,
             scale: Tensor | None) -> tuple[np.ndarray | None, Tensor]:
    """Components and scale of the loss; what does not fit together is refused."""
    if any(b <= a for a, b in pairwise([-1, *leads])):
        raise ConfigError(f"The lead times must rise from 0 or more, one a target, not {leads}.")
    if truth.shape != (len(leads), *start.shape):
        raise InputError(f"The targets have shape {tuple(truth.shape)}; {len(leads)} lead times of the starts have "
                         f"{(len(leads), *start.shape)}.")
    if not windows or windows[0] < min(leads) or windows[-1] > max(leads):
        raise ConfigError(f"The windows {windows} must lie between the first and the last lead time of the targets, "
                          f"{min(leads)} and {max(leads)}.")
    if components is not None:
        components = np.asarray(components)
        if not (components.ndim == 1 and components.size and components.dtype.kind in "iu"
                and components.min() >= 0 and components.max() < start.shape[1]):
            raise InputError(f"The components must be whole numbers of 0 to {start.shape[1] - 1}, at least one.")
    if not (truth if components is None else truth[..., torch.from_numpy(components)]).isfinite().all():
        raise InputError("The targets must be finite, and hold a NaN or an infinity.")
    if scale is None and not truth.nan_to_num(0.0).any():
        scale = torch.ones(start.shape[1], dtype=torch.float64)
    elif scale is None:
        scale = field_scale(solver.spec, truth.nan_to_num(0.0).flatten(0, 1).numpy())
    else:
        scale = _numbers_of("scale", scale)
    if not (scale.shape == start.shape[1:] and (scale > 0).all()):  # infinity leaves a field out
        raise InputError(f"The scale must hold a positive number for each of the {start.shape[1]} numbers of a state.")
    return components, scale


def _refuse(correction: Any, directions: Any, tolerance: float, time_scale: float, seed: Any) -> None:
    if not isinstance(correction, nn.Module):
        raise ConfigError(f"The correction must be a torch module, not {type(correction).__name__}.")
    if not isinstance(directions, numbers.Integral) or directions < 1 or not 0 < tolerance < 1:
        raise ConfigError(f"Give at least one direction and a tolerance between 0 and 1, not {directions} and {tolerance}.")
    if not 0 <= time_scale < math.inf or not isinstance(seed, numbers.Integral):
        raise ConfigError(f"The time scale must be a number of at least 0, the seed a whole one, not {time_scale} and {seed!r}.")
    if not any(one.requires_grad for one in correction.parameters()):
        raise ConfigError("The correction has no trainable parameter, so there is no gradient to check.")


def _whole(name: str, values: Any) -> list[int]:
    try:
        return [operator.index(one) for one in values]
    except TypeError as error:
        raise ConfigError(f"The {name} must be a list of whole numbers, not {values!r}.") from error


def _numbers_of(name: str, values: Any) -> Tensor:
    try:
        return torch.as_tensor(values, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"The {name} must be an array of numbers, not {type(values).__name__}.") from error


@dataclass(frozen=True)
class _Found:
    vector: Tensor
    solver_steps: int
    network_states: int
    seconds: float


class _Problem:
    """The loss of one window as a function of the parameters, its variants' gradients and its directional derivatives."""

    def __init__(self, solver: Solver, correction: nn.Module, start: Tensor, truth: Tensor, leads: list[int], steps: int,
                 stride: int, components: np.ndarray | None, scale: Tensor | None):
        self.solver, self.correction, self.steps, self.stride, self.leads = solver, correction, steps, stride, leads
        self.components, self.scale = solver.spec.visible if components is None else components, scale
        window = solver.advance(start, steps, correction=correction, stride=stride, on_blow_up="mark")
        kept = torch.from_numpy(window.alive)
        if not kept.any():
            raise SolverError(f"Every member blew up within {steps} outer steps: check shorter windows, or the "
                              "correction's scale.")
        self.start, self.truth = start[kept], truth[:, kept]
        self.seen = self.start if window.inputs is None else torch.from_numpy(window.inputs[0])[kept]
        self.double = in_precision(copy.deepcopy(correction), torch.float64)
        self.parameters = [one for one in self.double.parameters() if one.requires_grad]
        self.centre = to_vector(self.parameters)
        self.ladder = [one * (float(self.centre.norm()) or 1.0) for one in LADDER]
        self.pair = -1

    def gradient(self, variant: Gradient) -> _Found:
        """A variant's gradient by the parameters, (P,) float64, and what it cost."""
        counted = _Counted(self.solver)
        parameters = [one for one in self.correction.parameters() if one.requires_grad]
        calls: list[int] = []
        hook = self.correction.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[0]))
        try:
            check_function(self.correction, self.seen)  # before what is counted and timed
            calls.clear()
            began = time.perf_counter()
            states = rollout(counted, self.correction, self.start, self.steps, gradient=variant, stride=self.stride)
            loss = mean_square(states, self.truth, self.leads, self.components, self.scale)
            parts = torch.autograd.grad(loss, parameters, allow_unused=True)
            seconds = time.perf_counter() - began
        finally:
            hook.remove()
        vector = to_vector(torch.zeros_like(p) if one is None else one for p, one in zip(parameters, parts, strict=True))
        return _Found(vector, counted.steps, sum(calls), seconds)

    def derivative(self, direction: Tensor) -> tuple[float, float]:
        """g . v for a unit vector v, and its uncertainty; the first call climbs down the ladder."""
        if self.pair < 0:
            values = [self._difference(direction, step) for step in self.ladder]
            gaps = [abs(a - b) for a, b in pairwise(values)]
            if all(gap != gap for gap in gaps):
                raise SolverError(f"No finite difference of the loss at n = {self.steps}: every perturbed run blew up; check "
                                  "shorter windows.")
            self.pair = int(np.nanargmin(gaps))
            coarse, fine = values[self.pair : self.pair + 2]
        else:
            coarse, fine = (self._difference(direction, step) for step in self.ladder[self.pair : self.pair + 2])
        return (16 * fine - coarse) / 15, abs(coarse - fine)

    def _difference(self, direction: Tensor, step: float) -> float:
        up, down = (self._loss(self.centre + sign * step * direction) for sign in (1, -1))
        return (up - down) / (2 * step)

    @torch.no_grad()
    def _loss(self, parameters: Tensor) -> float:
        set_from_vector(parameters, self.parameters)
        window = self.solver.advance(self.start, self.steps, correction=self.double, stride=self.stride, on_blow_up="mark")
        states = torch.from_numpy(window.states)
        if not alive(states).all():
            return math.nan
        return float(mean_square(states, self.truth, self.leads, self.components, self.scale))


class _Counted:
    """A solver that counts the inner steps of its states."""

    def __init__(self, solver: Solver):
        self._solver, self.spec, self.steps = solver, solver.spec, 0

    def advance(self, u0: Any, steps: int, **options: Any) -> Any:
        self.steps += len(u0) * steps * options.get("stride", 1)
        return self._solver.advance(u0, steps, **options)

    def close(self) -> None:
        """Nothing: the solver is the caller's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._solver, name)


def _measure(problem: _Problem, found: list[Tensor], directions: int,
             generator: torch.Generator) -> tuple[list[tuple[float, ...]], np.ndarray]:
    """(cosine, error, error_along, efficiency, uncertainty) of each gradient, and the derivatives along random directions."""
    basis: list[Tensor] = []
    parts = []
    for vector in found:
        rest = _outside(vector, basis)
        if rest.norm() > 1e-6 * vector.norm():
            basis.append(rest / rest.norm())
            parts.append(problem.derivative(basis[-1]))
    inside = sum((value * one for one, (value, _) in zip(basis, parts, strict=True)), torch.zeros_like(found[0]))
    size = found[0].numel()
    randoms = torch.linalg.qr(torch.randn(size, min(directions, size), dtype=torch.float64, generator=generator))[0].T
    derivatives = np.array([[problem.derivative(one)[0], *(float(one @ vector) for vector in found)] for one in randoms])
    outside = derivatives[:, 0] - (randoms @ inside).numpy()
    square = float(inside @ inside) + size * float(np.mean(outside**2))
    uncertain = math.hypot(*(gap for _, gap in parts))
    return [_numbers(one, inside, square, uncertain) for one in found], derivatives


def _numbers(vector: Tensor, inside: Tensor, square: float, uncertain: float) -> tuple[float, ...]:
    length = float(vector.norm())
    if not length or not square:
        return (math.nan,) * 5
    along = float(inside @ vector) / length
    distance = math.sqrt(max(0.0, square - 2 * along * length + length**2))
    relative = (abs(length - along) / abs(along), uncertain / abs(along)) if along else (math.inf, math.inf)
    return along / math.sqrt(square), distance / math.sqrt(square), relative[0], along / length, relative[1]


def _outside(vector: Tensor, basis: list[Tensor]) -> Tensor:
    for _ in range(2):  # the second time for what rounding left
        for one in basis:
            vector = vector - (vector @ one) * one
    return vector


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def _variants(solver: Solver, gradients: Sequence[str | Gradient]) -> dict[str, Gradient]:
    """By a name that tells two of one kind apart; the yardstick last, where there is one."""
    found: dict[str, Gradient] = {}
    if isinstance(gradients, str) or not gradients:
        raise ConfigError(f"The gradients must be a list of one variant or more, not {gradients!r}.")
    for one in gradients:
        variant = get_gradient(one)
        variant.check(solver)
        name, number = variant.name, 2
        while name in found:
            name, number = f"{variant.name} {number}", number + 1
        found[name] = variant
    if YARDSTICK not in found and YARDSTICK in GRADIENTS:
        yardstick = get_gradient(YARDSTICK)
        try:
            yardstick.check(solver)
        except ConfigError:
            return found
        found[YARDSTICK] = yardstick
    return found
