# SPDX-License-Identifier: MIT
"""What a first training goes by: which window the gradient bears, how loud the truth is, what a step costs; and its rows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.config.experiment import load_experiment
from trimtab.core.errors import TrimtabError
from trimtab.core.loss import mean_square
from trimtab.core.random_fields import smooth_waves
from trimtab.corrections.factory import build_correction
from trimtab.corrections.slot_weights import SlotWeight, named_outputs
from trimtab.corrections.slots import AnyCorrection
from trimtab.coupling.checks.cost import fit_seconds, seconds_of
from trimtab.coupling.checks.truth import LOOK_BYTES, Look, check_truth, faintest, labels_of
from trimtab.coupling.finding import MEND, Finding, unchecked
from trimtab.coupling.harness import Bench
from trimtab.coupling.plan import Measured, Plan, choose, choose_window
from trimtab.coupling.settings import overrides
from trimtab.gradient import get_gradient
from trimtab.gradient.rollout import rollout
from trimtab.training.optimiser import EPSILON

ROW, GRADIENT = "training", "training, gradient"
LONGEST = 64         # outer steps up to which the gradient is looked at
PATTERNS = 2         # random outputs that are pushed with, besides the offline label
PUSHED = 1e-2        # standard deviations by which they move a field in the end
AGREES = 0.8         # cosine of a push's true effect and of what the gradient believes, above which a window is borne
A_PUSH = 10.0        # seconds that the pushes may take
MEMBERS = 2          # windows of the loss whose gradient is looked at
ABOVE = 10.0         # times it, that the gradient of a weight should have
TINY = 1e-18         # of a gradient in float32, whose square is nothing
SEEN = 1e3           # times the rounding of the network's numbers, that an input should vary


def check_training(bench: Bench, weight: dict[str, Any], toml: Path, *, write: bool) -> tuple[list[Finding], dict[str, Any]]:
    """The rows of a first training, and the settings that it should have ({} where none can be chosen).

    Args:
        bench: the code; its experiment becomes the one that the TOML will hold.
        weight: how the slots' outputs enter the state, as measured.
        toml: see `truth.look_at`.
        write: the settings will be written.
    """
    if not bench.spec.slots or bench.experiment.training.epochs == 0:
        return [], {}
    if bench.cause:
        return [unchecked(ROW, bench.cause), unchecked(GRADIENT, bench.cause)], {}
    try:
        if bench.truth is None:  # a process that began after the check of the truth
            check_truth(bench, weight, toml)
        if bench.truth is None:
            return [unchecked(ROW, "truth")], {}
        look: Look = bench.truth
        bench.solver.weight = SlotWeight(bench.spec, weight)
        correction, label = fitted(bench, look, weight)
        if not np.any(look.runs[:, 1:] != look.runs[:, :-1]):
            return [Finding(ROW, "bad", "the truth does not move", "a truth that changes with time")], {}
        measured, findings = measure(bench, look, correction, label)
    except TrimtabError as error:
        return [Finding(ROW, "note", f"no settings are chosen: {error}", MEND)], {}
    plan = choose(measured)
    findings.insert(0, _row(bench, measured, plan))
    if write:
        bench.experiment = load_experiment(toml, overrides(toml.read_text(encoding="utf-8"), plan.settings))
    return findings, plan.settings


def fitted(bench: Bench, look: Look, weight: dict[str, Any]) -> tuple[AnyCorrection, np.ndarray]:
    """The experiment's network as its training begins with it, and the offline label at one state of the truth, (M',)."""
    if look.gap > 1:
        seen = bench.solver.slot_view(look.runs[0, :2], np.zeros((2, bench.spec.size)), bench.stride)[0]
        outputs = np.zeros((2, sum(one.size for one in named_outputs(bench.spec).values())))
    else:
        _, _, seen, outputs = labels_of(bench, look, weight)
    torch.manual_seed(bench.experiment.training.seed)
    correction = build_correction(bench.experiment, bench.spec)
    correction.fit_normalisation(seen, outputs if np.any(outputs) else None)
    return correction.eval(), outputs[len(outputs) // 2]


def measure(bench: Bench, look: Look, correction: AnyCorrection, label: np.ndarray) -> tuple[Measured, list[Finding]]:
    """Everything that `plan.choose` goes by, and the row on the gradient."""
    scale = torch.from_numpy(look.scale(bench.spec))
    reference, last = bench.experiment.reference, (look.runs.shape[1] - 1) * look.gap
    weights = sum(one.numel() for one in correction.parameters() if one.requires_grad)
    measured = Measured(
        dt=bench.stride * bench.spec.dt, step=0.0, sweep=0.0, fit=fit_seconds(bench, correction), norm=0.0,
        bears=min(last, borne(bench, look, label, scale)), loud=_loud(bench, look), reached=bench.reached, weights=weights,
        size=bench.spec.size, runs=reference.training_runs + reference.validation_runs + reference.test_runs,
        spin_up=look.settles, sparse=look.gap, snapshots=_snapshots(bench, look))
    window = choose_window(measured)
    norm, sweep = _gradient(bench, look, correction, scale, window)
    step = seconds_of(lambda: bench.advance(look.runs[0, :1], window, stride=bench.stride, correction=correction)) / window
    if bench.slow:  # by the clock: it may wait for something else than the processor
        step = max(step, bench.stride * bench.seconds)
    measured = replace(measured, step=step, sweep=max(step, sweep / (MEMBERS * window)), norm=norm)
    return measured, [_gradient_row(bench, correction, look, norm, weights, window)]


def borne(bench: Bench, look: Look, label: np.ndarray, scale: Tensor) -> int:
    """Outer steps up to which the experiment's gradient points the right way: an output is held over a run, and its true effect
    on the visible fields is compared with what the gradient takes for it.

    For variants other than `static` the longest window that was looked at.
    """
    stride, weight = bench.stride, bench.solver.weight
    longest = max(1, min(LONGEST, bench.most // stride, LOOK_BYTES // (8 * bench.spec.size),
                         int(A_PUSH / ((PATTERNS + 2) * stride * max(1e-9, bench.seconds)))))
    if bench.experiment.training.gradient != "static":
        return longest
    shown = slice(None) if bench.spec.visible is None else bench.spec.visible
    start = look.runs[0, look.runs.shape[1] // 2]
    free = bench.run(start, longest, stride=stride, noop=True)
    cosines = []
    for pattern in _patterns(bench, label):
        output = torch.from_numpy(pattern)
        lam = torch.zeros(1, bench.spec.size, dtype=torch.float64, requires_grad=True)
        (weight.transpose(lam, stride, True) * output).sum().backward()
        assert lam.grad is not None
        believed = (lam.grad[0] / scale)[shown].numpy() * stride * bench.spec.dt
        size = math.sqrt(float(np.mean(believed[believed != 0] ** 2))) if believed.any() else 0.0
        if not size:
            continue
        factor = PUSHED / (longest * size)
        pushed = bench.run(start, longest, stride=stride, outputs=factor * pattern)
        true = ((pushed - free) / scale.numpy())[1:, shown]
        steps = np.arange(1, longest + 1)
        together = np.cumsum(steps * (true @ believed))
        sizes = np.cumsum(np.square(true).sum(1)) * np.cumsum(steps**2) * float(believed @ believed)
        cosines.append(together / np.sqrt(np.maximum(sizes, 1e-300)))
    if not cosines:
        return 1
    bad = np.flatnonzero(np.mean(cosines, axis=0) < AGREES)
    return longest if not len(bad) else max(1, int(bad[0]))


def _patterns(bench: Bench, label: np.ndarray) -> list[np.ndarray]:
    """Outputs to push with: the offline label, and smooth random ones of its size by output."""
    generator, patterns = np.random.default_rng(0), [label] if np.any(label) else []
    sizes = [float(np.sqrt(np.mean(part**2))) for part in _parts(bench, label)]
    for _ in range(PATTERNS):
        patterns.append(np.concatenate([(size or max(sizes) or 1.0) * smooth_waves(one.shape, generator).ravel()
                                        for size, one in zip(sizes, named_outputs(bench.spec).values(), strict=True)]))
    return patterns


def _parts(bench: Bench, outputs: np.ndarray) -> list[np.ndarray]:
    ends = np.cumsum([one.size for one in named_outputs(bench.spec).values()])
    return np.split(outputs, ends[:-1])


def _gradient(bench: Bench, look: Look, correction: AnyCorrection, scale: Tensor, window: int) -> tuple[float, float]:
    """2-norm of the loss's gradient over some windows of the truth with the untrained network, and the quickest seconds."""
    training = bench.experiment.training
    gradient = get_gradient(training.gradient, **training.gradient_options)
    last = look.runs.shape[1] - 1 - window // look.gap
    starts = np.stack([look.runs[0, 0], look.runs[-1, last]])
    ends = np.stack([look.runs[0, 1 : 1 + window // look.gap], look.runs[-1, last + 1 : last + 1 + window // look.gap]], 1)
    leads = list(range(look.gap, window + 1, look.gap))
    parameters, norms = [one for one in correction.parameters() if one.requires_grad], [0.0]

    def sweep() -> None:
        bench.tell(f"windows of {window} steps, forth and back, for the plan of a training")
        states = rollout(bench.solver, correction, torch.from_numpy(starts), window, gradient=gradient,
                                 stride=training.stride, on_blow_up="mark")
        loss = mean_square(states, torch.from_numpy(np.ascontiguousarray(ends)), leads, bench.spec.visible, scale)
        parts = torch.autograd.grad(loss, parameters, allow_unused=True)
        bench.made += MEMBERS * window * training.stride
        norms.append(math.sqrt(sum(float(one.double().square().sum()) for one in parts if one is not None)))

    seconds = seconds_of(sweep)
    return norms[-1] if math.isfinite(norms[-1]) else 0.0, seconds


def _loud(bench: Bench, look: Look) -> int:
    """Outer steps after which some visible field's difference of truth and solver is well above rounding; 0 for never."""
    truth = look.runs[-1]
    last = (len(truth) - 1) * look.gap
    leads = sorted({min(last, -(-lead // look.gap) * look.gap) for lead in (1, 2, 4, 8, 16, 32, LONGEST)})
    free = bench.advance(truth[:1], max(leads), stride=bench.stride, on_blow_up="mark").states[:, 0]
    least = faintest(bench.spec, truth[0])
    for lead in leads:
        off = bench.spec.split(np.abs(free[lead] - truth[lead // look.gap]))
        if any(np.sqrt(np.mean(off[one.name] ** 2)) > least[one.name] for one in bench.spec.fields if not one.hidden):
            return lead
    return 0


def _snapshots(bench: Bench, look: Look) -> int:
    """Snapshots of a run of the user's own file, 0 where the reference is made."""
    reference = bench.experiment.reference
    if not reference.file:
        return 0
    from trimtab.data.windows import Targets

    targets = Targets(reference.file, bench.spec, reference, bench.stride * bench.spec.dt, in_memory=0)
    targets.close()
    return targets.shape[1] // targets.skip


def _row(bench: Bench, measured: Measured, plan: Plan) -> Finding:
    training, gradient = plan.settings["training"], bench.experiment.training.gradient
    steps = training["epochs"] * training["steps_per_epoch"]
    offline = plan.settings["offline"]["steps"]
    least = " or more" if measured.bears >= LONGEST else ""
    first = f"after {offline} on offline labels" if offline else "no offline fit"
    found = (f"{gradient} bears windows of {measured.bears} steps{least}; chosen: windows of {training['window']}, {steps} steps "
             f"of {training['batch']} of them, {first}")
    if measured.bears < training["window"]:
        return Finding(ROW, "note", found, "targets that are not so far apart; or gradient = \"ensemble\"")
    if measured.bears < 2:
        return Finding(ROW, "note", found, "the flow turns a perturbation within a step or two: gradient = \"ensemble\" bears "
                       "more, a smaller training.stride, too")
    return Finding(ROW, "ok", found)


def _gradient_row(bench: Bench, correction: AnyCorrection, look: Look, norm: float, count: int, window: int) -> Finding:
    """How large the gradient will be against the optimiser's epsilon and the network's precision."""
    each = norm / math.sqrt(max(1, count))
    found = f"at the start {each:.0e} per weight over {window} steps"
    single = correction.dtype == torch.float32
    states = look.runs[:, [0, -1]].reshape(-1, bench.spec.size)
    seen = bench.solver.slot_view(states, np.zeros_like(states), bench.stride)[0]
    inputs = [one for slot in bench.spec.slots for one in slot.inputs]
    ends = np.cumsum([one.size for one in inputs])
    varies = {one.name: float(part.std()) / (float(np.abs(part).max()) or 1.0)
              for one, part in zip(inputs, np.split(seen, ends[:-1], axis=1), strict=True)}
    faint = [name for name, share in varies.items() if single and 0 < share < SEEN * 6e-8]
    if not norm:
        return Finding(GRADIENT, "note", "the loss does not move with the network", "see weight, truth and the network's layers")
    if faint:
        return Finding(GRADIENT, "note", f"{found}; {', '.join(faint)} vary by less than {SEEN:g} roundings of float32",
                       "dtype = \"float64\" in [correction]; or give the network the difference from a mean")
    if each < ABOVE * EPSILON or (single and each < TINY):
        return Finding(GRADIENT, "note", f"{found}: too small for the optimiser, the weights would hardly move "
                       f"(Adam's epsilon is {EPSILON:.0e})", "a longer training.window, or a truth that "
                       "differs more; an offline fit does not depend on it")
    return Finding(GRADIENT, "ok", f"{found}: large enough for the optimiser; inputs "
                   f"vary by {min(varies.values()):.0e} of their size and more, in "
                   f"{'float32' if single else 'float64'}")
