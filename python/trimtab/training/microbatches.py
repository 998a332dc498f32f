# SPDX-License-Identifier: MIT
"""How the ranks share a step: microbatches handed out, gradients summed in one order, the time of each part kept.

A batch is cut into microbatches that follow from the experiment alone. Which rank computes which follows from how fast the ranks
were; the sum does not see it. So weights have the same bits for any number of ranks, and after a resume on another number.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import math
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import SolverError
from trimtab.core.failures import HYBRID, LATER, NETWORK, Failures
from trimtab.core.log import log
from trimtab.core.signals import Interrupted, StopSignal
from trimtab.corrections.real_numbers import content, length, pairs, shaped
from trimtab.corrections.slots import AnyCorrection, SlotCorrection
from trimtab.parallel.world import PATIENCE, World
from trimtab.training.phase import Phase

TIMES = ("solver", "network", "backward", "exchange", "wait", "busy", "span")
LEAST_LIMIT, STEPS_OF_PATIENCE = 30.0, 20.0  # a rank hangs when it takes longer than the one, and the other, together
LEARNING_SPEED = 0.2  # weight of the last step in what is known of a rank's speed
LOST_STEPS = 16       # in a row, of which every window blew up: the network stays as it is, and so will the next ones
_SINGLE = (torch.float32, torch.complex64)
VALIDATION = -1       # in place of an epoch's number where a microbatch validates
T = TypeVar("T")


class Crew:
    """The ranks at work on one correction.

    Args:
        world: the ranks.
        correction: what is trained; its calls are timed from now on.
        seed: of what is random in a microbatch.
        timeout: seconds after which a rank hangs; 0 chooses.
        share: of the whole state that this rank's solver holds, 1 but for a solver on several ranks.
        signal: the wish to stop that this rank was sent; None for none ever.

    Attributes:
        times: seconds this rank spent in each of `TIMES` since they were last asked for; the network's are those within
            rollouts, "busy" is what it computed, "span" what the slowest rank did.
    """

    def __init__(self, world: World, correction: AnyCorrection, *, seed: int, timeout: float = 0.0, share: float = 1.0,
                 signal: StopSignal | None = None):
        self.world, self.correction, self.seed = world, correction, seed
        self.timeout, self.share, self._signal, self._agreed, self._cut = timeout, share, signal or StopSignal(), 0, False
        self.parameters = [one for one in correction.parameters() if one.requires_grad]
        self.times = dict.fromkeys(TIMES, 0.0)
        self._network = _Stopwatch(correction)
        if not getattr(correction, "compiled", False):  # a compiled one is called by the solver, within whose time its own is
            self._network.start()
        self._sharing = 1  # teams that compute a microbatch together
        self._pace: np.ndarray | None = None  # (lines,) seconds a microbatch
        self._longest, self._told = 0.0, False
        self._lost_steps = 0  # in a row
        self._training = self._validating = Failures("windows", NETWORK, first=HYBRID)

    def begin(self, phase: Phase) -> None:
        """A phase begins: nothing is known of how long its steps take."""
        self._pace, self._longest, self._told = None, 0.0, False
        self._sharing = self.world.members if phase.shares_members else 1
        self._lost_steps = 0
        what = f"windows of the {phase.name} phase"
        self._training = Failures(f"training {what}", NETWORK, first=HYBRID)
        shorter = phase.window(0) < phase.window(max(0, phase.epochs - 1))  # a validation is as long as the last windows
        self._validating = Failures(f"validation {what}", NETWORK, first=LATER if shorter else HYBRID)
        self.world.limit = self.timeout or PATIENCE
        self.world.doing = f"the beginning of the {phase.name} phase"

    def asked_to_stop(self) -> int:
        """Number of the signal that any rank got, once all ranks know of it; 0 for none."""
        return self._agreed if self.world.size > 1 else self._signal.number

    def step(self, phase: Phase, indices: np.ndarray, epoch: int, step: int) -> tuple[float, int]:
        """Loss and gradient of a batch; the gradient is left in the parameters.

        Args:
            phase: whose loss.
            indices: (B,) int, windows of the batch.
            epoch, step: the place in the phase, which decides what is random.

        Returns:
            Mean loss over the windows that stayed finite, NaN when none did, and how many did not. The gradient is of use if
            the loss is finite.

        Raises:
            Interrupted: a signal cut the work of a rank; on all ranks, and none takes the step.
            SolverError: window after window ended the solver's process, or blew up.
        """
        world, began = self.world, time.perf_counter()
        world.doing = f"step {step + 1} of {phase.name} epoch {epoch + 1}"
        pieces = np.split(indices, range(phase.microbatch, len(indices), phase.microbatch))
        lines = self._hand_out(len(pieces))
        line, member = divmod(world.team, self._sharing)
        mine = np.flatnonzero(lines == line)
        alone = len(pieces) == world.size == 1
        gradients, found = [], np.zeros((int(np.bincount(lines).max()), 3))
        shared = world.cohort.seconds
        for row, number in enumerate(mine):
            self._seed(phase, epoch, step, int(number))
            done = self._compute(self._training, self._backward, phase, pieces[number], epoch)
            if done is None:
                break
            found[row] = done
            if not alone and member == 0:  # who share the members of its windows have the same gradient
                gradients.append(self._flat())
        self._seed(phase, epoch, step, len(pieces))  # so that what a checkpoint keeps does not depend on who did what
        busy = time.perf_counter() - began - (world.cohort.seconds - shared)
        table = self._meet(np.concatenate([[busy], found.ravel()]))
        self._learn_pace(table[:, 0], lines)
        results = self._in_order(table[:, 1:], lines)
        counts, losses = results[:, 0, 1], results[:, :, 0].sum(1)
        dropped = int(results[:, 0, 2].sum())
        self._lost_steps = 0 if counts.any() else self._lost_steps + 1
        if self._lost_steps == LOST_STEPS:
            raise SolverError(f"Every window of {LOST_STEPS} steps in a row blew up, at {world.doing}: {NETWORK}")
        if not counts.any():
            return math.nan, dropped
        weights = counts / counts.sum()
        value = float(sum(weight * loss for weight, loss in zip(weights, losses, strict=True) if weight))
        if math.isfinite(value) and not alone:
            before = time.perf_counter()
            owners = (lines[:, None] * self._sharing * world.blocks + np.arange(world.blocks)).ravel()
            parts = np.stack(gradients) if gradients else np.empty((0, len(self._flat())), self._flat().dtype)
            self._unfold(world.sum(parts, owners.tolist(), np.repeat(weights, world.blocks).tolist()))
            self.times["exchange"] += time.perf_counter() - before
        return value, dropped

    def validate(self, phase: Phase, boundary: Callable[[], None]) -> tuple[float, int]:
        """The loss on held-out windows, shared by the ranks.

        Args:
            phase: whose loss.
            boundary: called before each round; may raise to leave.

        Returns:
            The loss, NaN when every window blew up, and how many did.

        Raises:
            Interrupted, SolverError: as in `step`.
        """
        world, parts = self.world, phase.held()
        world.doing = f"validation, {phase.name}"
        total, count, dropped = 0.0, 0, 0
        for first in range(0, len(parts), world.teams):
            boundary()
            began, row = time.perf_counter(), np.zeros(3)
            number = first + world.team
            if number < len(parts):
                self._seed(phase, VALIDATION, 0, number)
                judged = self._compute(self._validating, phase.judge, parts[number])
                if judged is not None:
                    row[:] = judged[0] * self.share, len(parts[number]) - judged[1], judged[1]
            table = self._meet(np.concatenate([[time.perf_counter() - began], row]))
            self._set_limit(table[:, 0].max())
            shares = table[:, 1:].reshape(world.teams, world.blocks, 3)
            for team in shares:
                if team[0, 1]:
                    total += team[0, 1] * team[:, 0].sum()
                count, dropped = count + int(team[0, 1]), dropped + int(team[0, 2])
        return float(total / count) if count else math.nan, dropped

    def check_weights(self) -> None:
        """Refuse to go on when the ranks hold different weights, as unlike processors could make them.

        Raises:
            SolverError: which ranks differ from rank 0.
        """
        if self.world.size == 1:
            return
        digest = hashlib.sha256()
        for value in self.correction.state_dict().values():
            if isinstance(value, Tensor):  # what a module keeps besides need not have the same bytes in two processes
                digest.update(content(value))
        mark = float(int.from_bytes(digest.digest()[:6], "big"))
        marks = self.world.table(np.array([mark]))[:, 0]
        if (marks != marks[0]).any():
            raise SolverError(f"Rank {int(np.flatnonzero(marks != marks[0])[0])} holds other weights than rank 0: the ranks "
                              "round differently; give them nodes of one kind, and the same number of threads.")

    def take_times(self) -> dict[str, float]:
        """Mean over the ranks of the seconds since the last call, by `TIMES`, and the share of it all that ranks were idle."""
        table = self.world.table(np.array([self.times[name] for name in TIMES]))
        self.times = dict.fromkeys(TIMES, 0.0)
        means = dict(zip(TIMES, table.mean(0).tolist(), strict=True))
        means["idle"] = max(0.0, 1 - means["busy"] / means["span"]) if means["span"] else 0.0
        return means

    def _backward(self, phase: Phase, indices: np.ndarray, epoch: int) -> tuple[float, int, int]:
        """This rank's share of the loss of one microbatch, its windows that count, and those that blew up."""
        for one in self.parameters:
            one.grad = None
        began, network, shared = time.perf_counter(), self._network.seconds, self.world.cohort.seconds
        loss, dropped = phase.loss(indices, epoch)
        if self.share != 1:
            loss = loss * self.share
        value = loss.item()
        middle, network = time.perf_counter(), self._network.seconds - network
        if math.isfinite(value):
            loss.backward()
        self.times["network"] += network
        self.times["solver"] += middle - began - network
        shared = self.world.cohort.seconds - shared
        self.times["wait"] += shared
        self.times["backward"] += time.perf_counter() - middle - shared
        return value, len(indices) - dropped, dropped

    def _flat(self) -> np.ndarray:
        """This rank's gradient as one vector of real numbers, and behind it for each parameter whether it has one."""
        parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in self.parameters]
        used = torch.tensor([one.grad is not None for one in self.parameters])
        kind = torch.float32 if all(one.dtype in _SINGLE for one in parts) else torch.float64
        return torch.cat([pairs(part).to("cpu", kind) for part in [*parts, used]]).numpy()

    def _unfold(self, flat: np.ndarray) -> None:
        used = flat[len(flat) - len(self.parameters):]
        values, first = torch.from_numpy(flat), 0
        for one, share in zip(self.parameters, used, strict=True):
            one.grad = shaped(values[first : first + length(one)], one) if share else None
            first += length(one)

    def _hand_out(self, number: int) -> np.ndarray:
        """(number,) line of each microbatch: whoever would be done with one more first gets it; each gets a stretch.

        A line is those ranks that compute a microbatch together.
        """
        ranks = self.world.blocks * self._sharing
        lines = self.world.size // ranks
        if number < lines and not self._told:
            self._told = True
            log.warning("%d of %d ranks have nothing to do: a batch is cut into %d; raise training.batch, or lower "
                        "training.microbatch, which pays where a window costs milliseconds", (lines - number) * ranks,
                        self.world.size, number)
        pace = np.ones(lines) if self._pace is None else self._pace
        counts, ends = np.zeros(lines, int), [(pace[line], line) for line in range(lines)]
        heapq.heapify(ends)
        for _ in range(number):
            end, line = ends[0]
            counts[line] += 1
            heapq.heapreplace(ends, (end + pace[line], line))
        return np.repeat(np.arange(lines), counts)

    def _learn_pace(self, busy: np.ndarray, lines: np.ndarray) -> None:
        world = self.world
        self.times["busy"] += busy[world.rank]
        self.times["span"] += busy.max()
        self._set_limit(busy.max())
        seconds = busy.reshape(-1, world.blocks * self._sharing).max(1)
        counts = np.bincount(lines, minlength=len(seconds))
        seconds = seconds / np.maximum(counts, 1)
        known = seconds[counts > 0].mean() * np.ones(len(seconds)) if self._pace is None else self._pace
        self._pace = np.where(counts > 0, (1 - LEARNING_SPEED) * known + LEARNING_SPEED * seconds, known)

    def _set_limit(self, seconds: float) -> None:
        self._longest = max(self._longest, seconds)
        self.world.limit = self.timeout or LEAST_LIMIT + STEPS_OF_PATIENCE * self._longest

    def _meet(self, row: np.ndarray) -> np.ndarray:
        """Everybody's rows; and all ranks know of a signal that one got, and by its sign whether it cut that one's work."""
        before, number = time.perf_counter(), self._signal.number
        table = self.world.table(np.concatenate([[-number if self._cut else number], row]))
        self.times["wait"] += time.perf_counter() - before if self.world.size > 1 else 0.0
        self._agreed = abs(int(next((one for one in table[:, 0] if one), 0)))
        if (table[:, 0] < 0).any():
            raise Interrupted(self._agreed, agreed=True)
        return table[:, 1:]

    def _compute(self, failures: Failures, work: Callable[..., T], *arguments: Any) -> T | None:
        """What some work returns; None when a signal cut it, which `_meet` tells all ranks.

        Ranks that compute one window together would wait for the one that was cut: they are asked between two steps alone.
        """
        together = self.world.blocks * self.world.members > 1
        try:
            interrupting = contextlib.nullcontext() if together else self._signal.interrupting()
            with failures.watching(), self.world.computing(), interrupting:
                return work(*arguments)
        except Interrupted:
            self._cut = True
            return None

    def _in_order(self, rows: np.ndarray, lines: np.ndarray) -> np.ndarray:
        """(M, blocks, 3) of the ranks' rows, in the order of the microbatches."""
        blocks, ranks = self.world.blocks, self.world.blocks * self._sharing
        shaped = rows.reshape(self.world.size // ranks, ranks, -1, 3)[:, :blocks]
        places = np.arange(len(lines)) - np.searchsorted(lines, lines)
        return shaped[lines, :, places]

    def _seed(self, phase: Phase, epoch: int, step: int, number: int) -> None:
        """What a network draws follows from its place in the training, not from what a rank did before."""
        text = f"{self.seed} {phase.name} {epoch} {step} {number}"
        key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
        torch.default_generator.manual_seed(key)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(key)
        np.random.seed(key)  # noqa: NPY002  a user's network may draw from the global generator
        random.seed(key)


class _Stopwatch:
    """A correction's `forward` (of one with slots, `apply_slot`) that adds up its time. It is sent to another process with its
    correction, as the attribute `stopwatch`, and what it shows there is added here (`isolation/process_solver.py`)."""

    def __init__(self, correction: AnyCorrection):
        self.correction: Any = correction
        self.method = "apply_slot" if isinstance(correction, SlotCorrection) else "forward"
        self.seconds = 0.0

    def start(self) -> None:
        """Time the correction's calls from now on."""
        self.correction.stopwatch = self
        setattr(self.correction, self.method, self)

    def __call__(self, *arguments: Any) -> Tensor:
        began = time.perf_counter()
        answer: Tensor = getattr(type(self.correction), self.method)(self.correction, *arguments)
        self.seconds += time.perf_counter() - began
        return answer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "seconds": 0.0}  # or the correction would look changed, and be sent anew, after every call
