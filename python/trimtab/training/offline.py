# SPDX-License-Identifier: MIT
"""The a priori phase: fit the correction to the tendency that the solver misses on the truth's own states."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from trimtab.config.sections import OfflineConfig, TrainingConfig
from trimtab.core.errors import BlowUpError, ConfigError
from trimtab.core.failures import TRUTH, Failures
from trimtab.core.log import log
from trimtab.core.loss import field_weights, output_weights
from trimtab.core.solver import Solver
from trimtab.corrections.repeatable import STATES, check_function, check_memory, in_mode, unused
from trimtab.corrections.slots import AnyCorrection
from trimtab.data.windows import Targets, Windows
from trimtab.parallel.world import World
from trimtab.training.phase import Phase, cosine, cut

LABEL_BATCH = 256  # states advanced at once
MICROBATCH_VALUES = 2**12  # numbers of the states of a microbatch, by default
SAMPLE = 2048      # states that fix the normalisation, and most that validate
COMPARED = 16      # states from which solver and truth are compared over a whole window
EPOCHS = 50        # most rows of metrics.csv for this phase


class Labels:
    """States of the truth and the tendency the solver misses there, (truth(t + T) - Psi(truth(t))) / T.

    Psi is the solver alone, run for the time T: the outer step h, or with sparse targets the multiple of h at which the
    next snapshot comes. With an observation operator: (y(t + T) - Psi(u_0)) / T from the windows' initial states u_0, with the
    noise of y over T in it, and no label, NaN, for a component that is not observed.

    Args:
        solver: without correction.
        windows: of length `targets.gap`.
        stride: inner steps an outer step.
        keep: compute all labels at the first call and keep them, instead of those asked for at every call.
    """

    def __init__(self, solver: Solver, windows: Windows, stride: int, *, keep: bool):
        self.solver, self.windows, self.stride, self.keep = solver, windows, stride, keep
        self.outer, self.view = windows.targets.gap, getattr(solver, "slot_view", None)
        # Components that have a label; what a named slot should return is no component of the state.
        self.observed = windows.targets.counted if self.view is None else None
        self._all: tuple[np.ndarray | None, np.ndarray] | None = None
        self._failures = Failures("windows of the truth", TRUTH)
        self.blown: tuple[int, int, int] | None = None  # the first blow-up met: run, snapshot, inner step by which it came

    def get(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """States and labels of some windows; those on which the solver alone blows up are left out.

        Args:
            indices: (B,) int.

        Returns:
            (B', N) float64 states and (B', N) float64 labels in the state's unit per unit of time, B' <= B; of a solver with
            named slots what they see, (B', M), and should return, (B', M').
            The labels are NaN for components that are not observed.
        """
        self.prepare()
        if self._all is None:
            states, labels = self._compute(indices)
        else:
            kept, labels = self._all[0], self._all[1][indices]
            states = self.windows.start(indices) if kept is None else kept[indices]
        finite = np.isfinite(labels if self.observed is None else labels[:, self.observed]).all(axis=1)
        if self.view is not None:
            finite &= np.isfinite(states).all(axis=1)
        return (states, labels) if finite.all() else (states[finite], labels[finite])

    def where(self) -> str:
        """The first blow-up, as a part of a sentence."""
        return "" if self.blown is None else " (run {}, snapshot {}: by inner step {})".format(*self.blown)

    def prepare(self, world: World | None = None) -> None:
        """Compute the labels that are kept, unless they are there.

        Args:
            world: ranks that share the work; all of them have to call this.

        Raises:
            BlowUpError: the solver alone blows up on every state.
            SolverStopped: it ends its process on each of the first ones.
        """
        if self._all is not None or not self.keep:
            return
        world, everything = world or World(), np.arange(len(self.windows))
        parts = np.array_split(everything, math.ceil(len(everything) / LABEL_BATCH))
        mine = []
        for part in parts[world.team :: world.teams]:
            world.sign("the labels of the offline phase")
            mine.append(self._compute(part))
        shared = world.share([(None if self.view is None else seen, labels) for seen, labels in mine])
        found = [shared[number % world.teams * world.blocks + world.block][number // world.teams] for number in range(len(parts))]
        self._all = (None if self.view is None else np.concatenate([seen for seen, _ in found]),
                     np.concatenate([labels for _, labels in found]))
        if not np.isfinite(self._all[1] if self.observed is None else self._all[1][:, self.observed]).all(axis=1).any():
            raise self.all_blown(len(everything))

    def _compute(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start, end = self.windows.start(indices), self.windows.observe(indices, (self.outer,))[0]
        order = _scattered(len(start))
        with self._failures.watching():
            window = self.solver.advance(start[order], 1, stride=self.stride * self.outer, on_blow_up="mark")
        after, failed = np.empty_like(start), np.empty(len(start), np.int64)
        after[order], failed[order] = window.states[1], window.failed_step
        # Waves that the solver drops are nothing that it misses; of a part of the field nobody can tell them.
        project = getattr(self.solver, "project", None) if self.observed is None else None
        missing = ((end if project is None else project(end)) - after) / window.h
        if self.view is not None:
            with self._failures.watching():
                start, missing = self.view(start, missing, self.stride * self.outer)
            failed = np.where((failed == 0) & ~np.isfinite(start).all(axis=1), 1, failed)  # in the step that looks at the inputs
        if failed.any() and self.blown is None:
            member = int(np.argmax(failed > 0))
            self.blown = (*self.windows.place(int(indices[member])), int(failed[member]))
        return start, missing

    def all_blown(self, count: int) -> BlowUpError:
        """What to raise where the solver alone blew up on all of `count` states."""
        return BlowUpError(f"The solver alone blew up on all of {count} states of the truth, within one outer "
                           f"step{self.where()}: shorten its time step or training.stride, or look whether those "
                           "states are such as the code can start from (a hidden field that is missing, another unit).",
                           np.ones(count, np.int64))


def _scattered(count: int) -> np.ndarray:
    """0 to count - 1 in an order whose first few lie far apart, and tell of all states, not of one run's beginning."""
    return np.argsort(np.arange(count) * 0.6180339887498949 % 1, kind="stable")  # steps of the golden ratio


def fit_normalisation(correction: AnyCorrection, solver: Solver, targets: Targets, training: TrainingConfig) -> None:
    """Set a correction's means and scales from states of the training runs and their labels.

    Args:
        correction: its buffers are set; of a solver on several ranks those of the first alone.
        solver: without correction.
        targets: the reference run.
        training: whose window and stride count.

    Raises:
        ConfigError: the solver is the truth, over several steps and in all fields; or it differs where no output reaches.
        BlowUpError: the solver alone blows up on every state.
        SolverStopped: it ends its process on each of the first ones.
        InputError: an input or all labels do not vary.
    """
    labels = Labels(solver, targets.windows("training", targets.gap, training.window), training.stride, keep=False)
    chosen = labels.windows.spread(SAMPLE)
    seen, missing = labels.get(chosen)
    if not len(seen):
        raise labels.all_blown(len(chosen))
    if len(seen) < len(chosen):
        log.warning("The solver alone blew up on %d of %d states of the truth within one outer step%s: they are left out; "
                    "shorten its time step if that is not meant.", len(chosen) - len(seen), len(chosen), labels.where())
    if not missing.any():
        seen, missing = _later(solver, targets, training)
    if getattr(solver, "block", None) is None or not hasattr(solver, "undivided"):
        correction.fit_normalisation(seen, missing)
        return
    found = solver.undivided(seen, missing)  # all blocks, so that it does not depend on how many there are
    if found is not None:
        correction.fit_normalisation(*found)


def _later(solver: Solver, targets: Targets, training: TrainingConfig) -> tuple[np.ndarray, np.ndarray]:
    """States and labels where one step shows nothing that is missing: over so many steps that something is.

    Raises:
        ConfigError: the solver is the truth as far as a window reaches, or parts from it where no output reaches.
    """
    steps = max(training.window, targets.gap)
    windows, leads = targets.windows("training", steps, training.window), targets.leads(steps)
    chosen = windows.spread(COMPARED)
    truth = windows.batch(chosen, (0, *leads))
    window = solver.advance(truth[0], leads[-1], stride=training.stride, on_blow_up="mark")
    project, view = getattr(solver, "project", None), getattr(solver, "slot_view", None)
    parted: dict[int, np.ndarray] = {}
    for place, lead in enumerate(leads):
        end = truth[place + 1] if project is None else project(truth[place + 1])
        difference = end - window.states[lead]
        sound = np.isfinite(difference).all(axis=1)
        if not difference[sound].any():
            continue
        parted[lead] = difference
        label = difference[sound] / (lead * window.h)
        seen, label = (truth[0][sound], label) if view is None else view(truth[0][sound], label, training.stride)
        if label.any():
            log.warning("One outer step of the solver gives the truth's in all that the correction can change, so that the "
                        "labels of the offline phase are 0; the two part after %d outer steps, in %s. The normalisation is of "
                        "that; take offline.steps = 0, or a training.stride of %d.", lead,
                        _differing(solver, difference[sound]), lead * training.stride)
            return seen, label
    if parted:
        lead, difference = next(iter(parted.items()))
        raise ConfigError(f"The solver parts from the truth after {lead} outer steps, in {_differing(solver, difference)} alone, "
                          f"which no output of its slots moves within {leads[-1]} steps: there is nothing that this "
                          "correction can learn. Describe the field that differs as an output of a slot, or lengthen "
                          "training.window.")
    raise ConfigError(f"The solver makes the truth's steps bit for bit, over {leads[-1]} outer steps from {len(chosen)} states "
                      "and in all fields, the hidden ones too, so that there is nothing to learn: change in [reference] solver "
                      "what the truth has, or in [solver] what the solver lacks (a value that the code's own namelist sets holds "
                      "for both).")


def _differing(solver: Solver, difference: np.ndarray) -> str:
    """Names of the fields in which differences (B, N) are not 0."""
    return ", ".join(name for name, part in solver.spec.split(difference).items() if np.any(part))


class Offline(Phase):
    """Adam on the mean square of (M(u) - label) / output scale, times training.weights, with a cosine decay of the rate.

    An epoch is a pass over the training states, or a fiftieth of the steps when that is longer.

    Args:
        config: [offline].
        training: [training], whose seed, window and stride count.
        solver, correction, targets: what is trained, and on what.

    Raises:
        ConfigError: a solver whose slot takes a coefficient.
    """

    name = "offline"

    def __init__(self, config: OfflineConfig, training: TrainingConfig, solver: Solver, correction: AnyCorrection,
                 targets: Targets):
        if solver.spec.coefficient is not None:
            raise ConfigError(f"There is no label for the coefficient {solver.spec.coefficient.name}: train it online.")
        self.config, self.correction, self.online = config, correction, training.epochs > 0
        self.weights: Tensor | None = None
        if training.weights:
            weights = field_weights(targets.spec, training.weights)
            weights = weights if targets.block is None else weights[torch.from_numpy(targets.block)]
            self.weights = output_weights(solver.spec, weights)
        self.batch, self.seed, self._window = config.batch, training.seed, targets.gap
        self.microbatch = cut(config.microbatch, config.batch, targets.spec.size, MICROBATCH_VALUES)
        self.labels, self.held_out = (
            Labels(solver, targets.windows(purpose, targets.gap, training.window), training.stride,
                   keep=targets.in_memory)
            for purpose in ("training", "validation")
        )
        a_pass = math.ceil(len(self.labels.windows) / self.batch)
        self._steps = max(1, min(config.steps, max(a_pass, math.ceil(config.steps / EPOCHS))))
        self.epochs = math.ceil(config.steps / self._steps)

    def size(self, epoch: int) -> int:
        """See `Phase.size`."""
        return len(self.labels.windows)

    def steps(self, epoch: int) -> int:
        """See `Phase.steps`; the last epoch may be shorter."""
        return min(self._steps, self.config.steps - epoch * self._steps)

    def rate(self, epoch: int, step: int) -> float:
        """See `Phase.rate`."""
        return cosine(self.config.rate, self.config.rate_end, (epoch * self._steps + step) / self.config.steps)

    def window(self, epoch: int) -> int:
        """See `Phase.window`."""
        return self._window

    def loss(self, indices: np.ndarray, epoch: int) -> tuple[Tensor, int]:
        """See `Phase.loss`; 1 is about what no correction gives."""
        return self._loss(self.labels, indices)

    def held(self) -> list[np.ndarray]:
        """See `Phase.held`."""
        indices = self.held_out.windows.spread(SAMPLE)
        return [indices[first : first + LABEL_BATCH] for first in range(0, len(indices), LABEL_BATCH)]

    @torch.no_grad()
    def judge(self, indices: np.ndarray) -> tuple[float, int]:
        """See `Phase.judge`."""
        loss, dropped = self._loss(self.held_out, indices)
        return float(loss), dropped

    def prepare(self, world: World) -> None:
        """See `Phase.prepare`: the labels; and whether the network can be trained, in this phase and the next.

        Raises:
            ConfigError: see `repeatable`.
        """
        self.labels.prepare(world)
        self.held_out.prepare(world)
        states = torch.from_numpy(self.labels.get(np.arange(min(STATES, len(self.labels.windows))))[0])
        if not len(states):
            return
        with in_mode(self.correction, True):
            if world.size > 1:
                check_memory(self.correction, states, world.size)
            said = unused(self.correction, states)
        if said:
            log.warning("offline: %s", said)
        if self.online:
            with in_mode(self.correction, False):
                check_function(self.correction, states)

    def _loss(self, source: Labels, indices: np.ndarray) -> tuple[Tensor, int]:
        states, labels = (torch.from_numpy(one) for one in source.get(indices))
        misfit = (self.correction(states) - labels) / self.correction.scale_of_outputs()
        if self.weights is not None:
            misfit = misfit * self.weights.sqrt()
        if source.observed is not None:
            misfit = misfit[:, torch.from_numpy(source.observed)]
        return misfit.square().mean(), len(indices) - len(states)
