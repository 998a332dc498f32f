# SPDX-License-Identifier: MIT
"""What the doctor's checks work with: the code opened in this process, a developed state, runs with given outputs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.bridge.adapter_mpi import mpi_libraries
from trimtab.bridge.opener import open_solver
from trimtab.config.experiment import Experiment
from trimtab.core.errors import ConfigError
from trimtab.core.solver import OnBlowUp
from trimtab.core.spec import SolverSpec
from trimtab.core.window import Window
from trimtab.corrections.slots import slot_sizes
from trimtab.data.reference_run import perturb
from trimtab.parallel.gathered_solver import local_spec, open_joined

SLOW = 0.05    # seconds a step, above which the checks make do with fewer
A_RUN = 20.0   # seconds that one run may take, and
A_CHECK = 300.0  # that the gradient's runs may take
DEVELOP = 21   # steps after which a state counts as developed: odd, so that alternating flags stand the other way
PERTURBATION = 0.01  # where reference.perturbation says none
FEW = 8        # steps of a run, where the code does not last longer
OTHER = 3        # steps of a run that lies between two which should be alike
MOST_FIELDS = 8  # fields named in one row
HERE = ("isolation", "snapshot", "instances", "timeout", "weight")  # keys of [solver] that a look from inside leaves out


def begins_alike(options: Mapping[str, Any]) -> bool:
    """Whether [solver] lets every rollout begin with the memory that the code had when it was opened, whatever it forgets."""
    return options.get("isolation") == "fork" or options.get("snapshot") == "image"


class Given(nn.Module):
    """A correction that returns given numbers, whatever it sees.

    Args:
        spec: the solver's.
        values: (M',) float64 outputs of all slots; None for zeros.
    """

    dtype = torch.float64

    def __init__(self, spec: SolverSpec, values: np.ndarray | None = None):
        super().__init__()
        self.spec = spec
        self.values = np.zeros(slot_sizes(spec)[1]) if values is None else values

    def slot(self, name: str) -> nn.Module:
        """The part of one slot."""
        start = 0
        for slot in self.spec.slots:
            stop = start + sum(one.size for one in slot.outputs)
            if slot.name == name:
                return Given(self.spec, self.values[start:stop])
            start = stop
        raise KeyError(name)

    def forward(self, seen: Tensor) -> Tensor:
        """(B, m) -> (B, m')."""
        return torch.from_numpy(self.values).expand(seen.shape[0], -1).contiguous()


class Bench:
    """A code on the doctor's bench.

    Args:
        experiment: whose [solver] is opened, in this process and as it is.
        comm: communicator of the ranks that share the code, all of which do the same on their benches; None for this one alone.
        longest: steps that a run may have, where the code ended in a longer one; 0 for as many as the checks want.
        tell: told which run begins: the code may end the process in it.

    Attributes:
        solver, spec: the code, opened with `options`, and what it says of the (undivided) state.
        own, local: what is of it on this rank, and its spec.
        made: steps that the code has made since it was opened.
        at_first: bytes in its scratch folder before the first.
        forgets: the check that found a restart to be wrong, so that what further runs show counts for nothing; "" for none.
        untrue: the row that says why the truth cannot be opened; "" where it can.
        truth, reached: a look at the truth, and the share of one step's difference that the slots reach; None before
            `truth.check_truth`, and where it cannot be told.

    Raises:
        ConfigError: what the code or its adapter refuse; or a solver without an adapter.
    """

    def __init__(self, experiment: Experiment, longest: int = 0, tell: Callable[[str], None] = lambda text: None, *,
                 comm: Any = None):
        self.experiment, self.longest, self.tell, self._comm = experiment, longest, tell, comm
        self.options = {key: value for key, value in experiment.solver.options.items() if key not in HERE}
        if "library" not in self.options:
            raise ConfigError(f"`trimtab couple check` is for a code with an adapter; [solver] of {experiment.name} names no "
                              "library.")
        self.solver: Any = open_joined(open_solver, comm, experiment.solver.name, isolation="none", **self.options)
        self.spec: SolverSpec = self.solver.spec
        self.own, self.local = self.solver if comm is None else self.solver.inner, local_spec(self.solver)
        self.stride, self.made, self.at_first = experiment.training.stride, 0, self.written()
        self.forgets = self.untrue = ""
        self.described: dict[str, SolverSpec] = {}
        self.truth: Any = None
        self.reached: float | None = None

    @cached_property
    def state(self) -> np.ndarray:
        """(1, N) a developed state."""
        return self._developed[0]

    @cached_property
    def seconds(self) -> float:
        """What a step takes, about."""
        return self._developed[1]

    @cached_property
    def first(self) -> np.ndarray:
        """(N,) the state after the first step that the code made, from its own start."""
        return self._developed[2]

    @cached_property
    def calls_mpi(self) -> bool:
        """Whether the code is linked with MPI: it runs in the ranks, and takes no isolation."""
        return bool(mpi_libraries(self.options["library"])) if Path(self.options["library"]).is_file() else False

    @property
    def divided(self) -> bool:
        """Whether ranks share the code here."""
        return self._comm is not None

    @cached_property
    def most(self) -> int:
        """Steps that a run may have; what a check leaves out for it, it says."""
        affordable = int(max(2, A_RUN / max(1e-9, self.seconds)))
        return min(self.longest, affordable) if self.longest else affordable

    @cached_property
    def perturbed(self) -> np.ndarray:
        """(1, N) the developed state, perturbed as the reference perturbs a code's own start: what symmetry keeps at zero or
        constant moves from here."""
        amplitude = self.experiment.reference.perturbation or PERTURBATION
        state = perturb(self.state, self.spec, amplitude, np.random.default_rng(0))
        return state if np.isfinite(state).all() else self.state

    @property
    def cause(self) -> str:
        """The row for which nothing can be said of runs of the truth, or of a training; "" where something can."""
        return self.forgets or self.untrue

    def opened(self, options: Mapping[str, Any]) -> SolverSpec:
        """What a solver of [reference] says of itself; it is opened once, in a process of its own where it can be, and closed.

        Raises:
            TrimtabError: it cannot be opened.
        """
        key = json.dumps(options, sort_keys=True, default=str)
        if key not in self.described:
            apart = {name: value for name, value in options.items() if "library" not in options or name != "isolation"
                     or value != "none"}  # so that a STOP ends nothing else; a code on MPI ranks stays in this process
            solver = open_solver(**apart)
            try:
                self.described[key] = solver.spec
            finally:
                solver.close()
        return self.described[key]

    @property
    def slow(self) -> bool:
        """Whether a step takes so long that the checks make do with fewer."""
        return self.seconds > SLOW

    def why(self) -> str:
        """Why a run has no more than `most` steps, as a sentence's end."""
        if self.longest and self.most == self.longest:
            return f"runs of more than {self.most} steps were left out, as the code ends in them"
        return f"runs of more than {self.most} steps were left out, as a step takes {self.seconds:.2g} s"

    @cached_property
    def _developed(self) -> tuple[np.ndarray, float, np.ndarray]:
        """A developed state, seconds a step, and the state after the first step."""
        self._tells(1, "its own start")
        began = time.perf_counter()
        state = self.solver.advance(self.solver.initial_state(), 1).states[1]
        after_one, seconds = np.array(state[0]), self.agreed(time.perf_counter() - began)
        more = min(DEVELOP, self.longest or DEVELOP, int(A_RUN / seconds)) - 1
        more -= more % 2
        if more > 0:
            self._tells(more, "the state after its first step")
            began = time.perf_counter()
            state = self.solver.advance(state, 1, stride=more).states[1]
            seconds = self.agreed((time.perf_counter() - began) / more)
        return np.ascontiguousarray(state), seconds, after_one

    def agreed(self, number: float) -> float:
        """The first rank's number: what ranks do next must not depend on how fast each was."""
        return number if self._comm is None else float(self._comm.bcast(number, root=0))

    def written(self) -> int:
        """Bytes of all files in its scratch folder, the log among them; what it holds in buffers is written out before."""
        with self.own.surroundings.entered():
            self.own.library.flush()
        folders = {self.own.surroundings.folder, self.own.surroundings.own}  # the second has this rank's log
        return sum(one.stat().st_size for folder in folders for one in folder.rglob("*") if one.is_file())

    def given(self, outputs: np.ndarray | None) -> Given:
        """A correction that returns (M',) outputs of the undivided slots, or zeros."""
        if outputs is None or self._comm is None:
            return Given(self.local, outputs)
        parts, first = [], 0
        for slot, whole in zip(self.local.slots, self.spec.slots, strict=True):
            for one, undivided in zip(slot.outputs, whole.outputs, strict=True):
                parts.append(outputs[first : first + undivided.size][self.own.division.within(one)[1]])
                first += undivided.size
        return Given(self.local, np.concatenate(parts))

    def restored(self, state: np.ndarray) -> np.ndarray:
        """(N,) a state that was stored and is looked at again at once."""
        with self.own.surroundings.entered():
            self.own.library.set_state(np.ascontiguousarray(state if self._comm is None else state[self.own.block]))
        return self.onward(0)

    def onward(self, steps: int) -> np.ndarray:
        """(N,) the state after so many more steps, from wherever the code is."""
        state = np.empty(self.local.size)
        with self.own.surroundings.entered():
            if steps:
                self.own.library.advance(steps)
            self.own.library.get_state(state)
        return state if self._comm is None else np.asarray(self.solver.undivided(state[None])[0])

    def run(self, state: np.ndarray, steps: int, *, stride: int = 1, outputs: np.ndarray | None = None,
            noop: bool = False) -> np.ndarray:
        """States (steps + 1, N) of a run; the slot is empty, or returns `outputs`, or zeros."""
        correction = self.given(outputs) if outputs is not None or noop else None
        window = self.advance(state.reshape(1, -1), steps, stride=stride, correction=correction)
        return np.asarray(window.states[:, 0])

    def advance(self, start: np.ndarray, steps: int, *, stride: int = 1, correction: nn.Module | None = None,
                on_blow_up: OnBlowUp = "raise") -> Window:
        """`Solver.advance`, told before it begins."""
        filling = "empty" if correction is None else "filled with the network"
        if isinstance(correction, Given):
            filling = f"filled with {'a constant tendency' if correction.values.any() else 'zeros'}"
        self._tells(steps * stride * len(start), "a restored state", filling)
        window: Window = self.solver.advance(start, steps, stride=stride, correction=correction, on_blow_up=on_blow_up)
        return window

    def _tells(self, steps: int, start: str, filling: str = "empty") -> None:
        slot = f", the slot {filling}" if self.spec.slots else ""
        self.tell(f"a run of {steps} step{'s' * (steps > 1)} from {start}{slot}, {self.made} steps after the code was opened")
        self.made += steps

    def differing(self, one: np.ndarray, other: np.ndarray) -> list[str]:
        """Names of the fields in which two states differ in any bit."""
        views = zip(self.spec.split(one).items(), self.spec.split(other).values(), strict=True)
        return [name for (name, a), b in views if a.tobytes() != b.tobytes()]

    def unequal(self, one: np.ndarray, other: np.ndarray) -> list[str]:
        """Names of the fields in which two states differ as numbers: 0 and -0 do not."""
        views = zip(self.spec.split(one).items(), self.spec.split(other).values(), strict=True)
        return [name for (name, a), b in views if not np.array_equal(a, b, equal_nan=True)]

    def sizes(self, one: np.ndarray, other: np.ndarray) -> str:
        """By how much two states (N,) differ, in each field that does, the largest first, as a part of a sentence."""
        found = []
        for name in self.differing(one, other):
            a, b = (self.spec.split(state)[name] for state in (one, other))
            with np.errstate(invalid="ignore"):
                far, size = float(np.abs(a - b).max()), float(np.abs(b).max())
            found.append((far / size if size and np.isfinite(far) else np.inf, name, far, size))
        found.sort(key=lambda entry: -entry[0])
        told = [f"{name} by {far:.2g} (values up to {size:.2g})" if far else f"{name} by the sign of zeros"
                for _, name, far, size in found[:MOST_FIELDS]]
        return ", ".join(told) + (f" and {len(found) - MOST_FIELDS} fields more" if len(found) > MOST_FIELDS else "")

    def close(self) -> None:
        """Close the code."""
        self.solver.close()
