# SPDX-License-Identifier: MIT
"""`Solver` over somebody's code: the shared library of its sources and an adapter; see bridge/adapter/README.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from trimtab.bridge.adapter_library import Library
from trimtab.bridge.aot_function import Compiled
from trimtab.bridge.slot_callback import Callback
from trimtab.bridge.slot_function import explained, slot_function
from trimtab.bridge.threads import configure_runtime
from trimtab.core.errors import BlowUpError, ConfigError, CorrectionError, SolverError
from trimtab.core.solver import OnBlowUp, whole_steps
from trimtab.core.spec import Field, Slot, SolverSpec
from trimtab.core.window import Window
from trimtab.corrections.slot_weights import SlotWeight
from trimtab.corrections.slots import slot_sizes
from trimtab.isolation.solver_lock import SURROUNDINGS, Turn, in_turn
from trimtab.isolation.workdir.surroundings import Surroundings
from trimtab.parallel.decomposition import Division, check_blocks
from trimtab.parallel.mpi import get_world

EMPTY = "the slot is empty, so that it is the code's own doing, or the start's: a shorter time step, or a calmer start"
SCALE = "shorten the time step, or check the correction's scale"
LARGEST = 1e30  # of a visible field; beyond, a member has blown up (real32 ends at 3e38)


class SlotViews:
    """What a gradient and an offline phase ask of a solver with slots; needs `spec`, `weight` and `advance`."""

    spec: SolverSpec
    weight: SlotWeight
    advance: Any

    def slot_adjoint(self, u: torch.Tensor, lam: torch.Tensor, *, stride: int, steady: bool) -> torch.Tensor:
        """See `gradient/adjoint.py` and `SlotWeight.transpose`."""
        return self.weight.transpose(lam, stride, steady)

    def slot_view(self, states: np.ndarray, tendencies: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
        """States and missing tendencies as the networks of the slots see and return them.

        Args:
            states: (B, N) float64.
            tendencies: (B, N), what an outer step of `stride` inner steps misses, per unit of time.
            stride: see above.

        Returns:
            (B, M) inputs at these states, by one inner step of the code, and (B, M') outputs.
        """
        window = self.advance(states, 1, correction=_Nothing(self.spec), on_blow_up="mark")
        assert window.inputs is not None
        return window.inputs[0], self.weight.outputs(tendencies, stride)


class CoupledSolver(SlotViews):
    """A code with an adapter, in this process; one instance a library copy, members one after the other.

    Args:
        name: its name.
        library: the shared library.
        files, stdin, namelist: see `Surroundings`.
        weight: how the slot's outputs enter the state, as `trimtab couple check` wrote it; see `SlotWeight`.
        alone: this process is the code's own: its folder, standard input and output are used as they are.
        comm: communicator (mpi4py) of the ranks that share the code; None for this rank alone.
        options: what the adapter takes with trimtab_option.

    Attributes:
        spec: what the adapter says.
        whole, block: of a code that says with trimtab_block what it holds, see `trimtab.core.solver`; else `spec` and None.
        on_step: called with the number of outer steps done, when it is set.
        surroundings: where it runs; `surroundings.log` holds what it printed.

    Raises:
        ConfigError: a missing file, an option that the adapter does not ask for, or the adapter's own sentence.
    """

    def __init__(self, name: str, *, library: str, files: Sequence[str] = (), stdin: str = "",
                 namelist: Mapping[str, Any] | None = None, weight: Mapping[str, Any] | None = None, alone: bool = False,
                 comm: Any = None, **options: Any):
        configure_runtime()
        self.turn = Turn(name, SURROUNDINGS)
        self.surroundings = Surroundings(name, files, stdin, namelist or {}, alone=alone, comm=comm)
        try:
            self.library = Library(library, self.surroundings, comm)
            with self.surroundings.entered():
                self.library.initialise(options)
                described = self.library.describe()
                self.spec = coupled_spec(name, described)
                _check_options(name, options, described["options"])
                self._divide(described, comm)
                self._initial = np.empty((1, self.spec.size))
                self.library.get_state(self._initial[0])
                self.library.shake_hands(self._initial[0].copy())
            self.weight = SlotWeight(self.spec, weight or {})
        except BaseException:
            self.surroundings.close()
            raise
        self._visible, self._closed = self.spec.visible, False
        self._fillings: dict[str, Callback | Compiled] = {}
        self.on_step: Callable[[int], None] | None = None

    def _divide(self, described: Mapping[str, Any], comm: Any) -> None:
        """Which block is here; every rank that shares the code looks at all blocks."""
        self._comm = comm if comm is not None and comm.size > 1 else None
        blocks = {one["dim"]: (one["whole"], one["before"]) for one in described.get("blocks", [])}
        self.division = Division(self.spec, blocks)
        self.whole = self.division.whole if blocks else self.spec
        self.block: np.ndarray | None = self.division.places if blocks else None
        remedy = "set the code's communicator with trimtab_communicator, and use that one everywhere in place of MPI_COMM_WORLD"
        if self._comm is None and self.whole.size != self.spec.size:
            raise ConfigError(f"{self.spec.solver} is to be on one rank, and holds {self.spec.size} of {self.whole.size} numbers "
                              f"there: {remedy}.")
        if self._comm is not None and self._comm.size < get_world().size and not described.get("communicator"):
            raise ConfigError(f"{self._comm.size} of {get_world().size} ranks share {self.spec.solver}, and its adapter does not "
                              f"ask which: {remedy}.")
        check_blocks(self.division, [self.division.places] if self._comm is None else self._comm.allgather(self.division.places))

    def undivided(self, seen: np.ndarray, tendencies: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
        """What the slots see and should return, of all blocks and without halos: the same numbers for any number of ranks.

        Args:
            seen, tendencies: (B, M) and (B, M') of this rank's block; every rank that shares the code calls this.

        Returns:
            One (B, m) array an input and an output on the first rank; None on the others.
        """
        sides = []
        for kind, values in (("inputs", seen), ("outputs", tendencies)):
            fields = [one for slot in self.spec.slots for one in getattr(slot, kind)]
            parts = np.split(values, np.cumsum([one.size for one in fields])[:-1], axis=1)
            sides.append([(part[:, own], there) for part, (own, there) in
                          zip(parts, map(self.division.within, fields), strict=True)])
        found = [sides] if self._comm is None else self._comm.gather(sides, root=0)
        if found is None:
            return None
        return _put_together([one[0] for one in found]), _put_together([one[1] for one in found])

    def initial_state(self) -> np.ndarray:
        """(1, N) float64, the code's own state after its set-up."""
        return self._initial.copy()

    @in_turn
    def advance(self, u0: Any, steps: int, *, correction: nn.Module | None = None, stride: int = 1, time: float = 0.0,
                on_blow_up: OnBlowUp = "raise") -> Window:
        """See `Solver.advance`; `failed_step` is the first recorded step at which a member was no longer finite.

        `inputs` of the window are those of the slots' first calls in each outer step. The time is the code's own: what
        depends on it is a field of the state, or not restored.
        """
        start = self.spec.check_states(u0)
        steps, stride = whole_steps(steps, stride)
        if on_blow_up not in ("raise", "mark"):
            raise ConfigError(f"on_blow_up = {on_blow_up!r}: give \"raise\" or \"mark\".")
        if self._closed:
            raise SolverError(f"The solver {self.spec.solver} is closed.")
        states = np.empty((steps + 1, *start.shape))
        states[0] = start
        failed = np.zeros(start.shape[0], dtype=np.int64)
        inputs = np.empty((steps, start.shape[0], slot_sizes(self.spec)[0])) if correction is not None else None
        self._fill(correction)
        with self.surroundings.entered(), explained(self._fillings.values()), torch.no_grad():
            for member in range(start.shape[0]):
                self.library.set_state(start[member])
                for step in range(steps):
                    try:
                        self._step(states[step + 1, member], None if inputs is None else inputs[step, member], stride)
                    except ConfigError as error:  # the adapter's own refusal
                        raise ConfigError(f"By inner step {(step + 1) * stride} of a run: {error}") from error
                    if self.on_step is not None:
                        self.on_step(step + 1)
                    sound = self._sound(states[step + 1, member])
                    if self._comm is not None:  # the others would wait for a rank that goes on to the next member
                        lost = np.empty(1)
                        self._comm.Allreduce(np.array([not sound], float), lost)  # a sum
                        sound = not lost[0]
                    if not sound:
                        states[step + 1 :, member] = np.nan
                        if inputs is not None:
                            inputs[step + 1 :, member] = np.nan
                        failed[member] = (step + 1) * stride
                        break
        if failed.any() and on_blow_up == "raise":
            members = np.flatnonzero(failed)
            raise BlowUpError(
                f"The solver {self.spec.solver} left the finite numbers by inner step {int(failed[members].min())} of "
                f"{steps * stride} ({members.size} of {failed.size} members, the first is {int(members[0])}): "
                f"{EMPTY if correction is None else SCALE}{self._said()}.", failed)
        h = stride * self.spec.dt
        return Window(states, time + h * np.arange(steps + 1), h, failed, inputs)

    @in_turn
    def close(self) -> None:
        """Forget the code; a second call does nothing. What it allocated stays allocated, as the library stays loaded."""
        if not self._closed:
            self._closed = True
            self.library.empty()
            self._fillings.clear()
            self.surroundings.close()

    def __reduce__(self) -> Any:
        raise SolverError("An open solver cannot be copied or sent to another process: open one there with the same options.")

    def __enter__(self) -> CoupledSolver:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _step(self, state: np.ndarray, inputs: np.ndarray | None, stride: int) -> None:
        library = self.library
        if inputs is not None:
            library.record(None)
        library.advance(stride)
        if inputs is not None and library.record(inputs):
            raise CorrectionError(
                f"A slot of {self.spec.solver} was not called within an outer step of {stride} inner steps: put the call where "
                "every step passes, or choose training.stride so that it is called at least once an outer step.")
        library.get_state(state)

    def _said(self) -> str:
        with self.surroundings.entered():
            self.library.flush()
        return self.surroundings.said()

    def _sound(self, state: np.ndarray) -> bool:
        seen = state if self._visible is None else state[self._visible]
        return bool(np.isfinite(state).all()) and bool((np.abs(seen) < LARGEST).all())

    def _fill(self, correction: nn.Module | None) -> None:
        """Leave in the slots what this run needs; callbacks are made once a module and precision."""
        if correction is None:
            self.library.empty()
            self._fillings.clear()
            return
        if not self.spec.slots:
            raise ConfigError(f"The adapter of {self.spec.solver} describes no slot: call trimtab_slot, trimtab_input and "
                              "trimtab_output in trimtab_describe.")
        part = getattr(correction, "slot", None)
        if part is None and len(self.spec.slots) > 1:
            raise ConfigError(f"The solver {self.spec.solver} has {len(self.spec.slots)} slots: give a trimtab.SlotCorrection.")
        for slot in self.spec.slots:
            inputs, outputs = (sum(one.size for one in fields) for fields in (slot.inputs, slot.outputs))
            present = self._fillings.get(slot.name)
            wanted = slot_function(correction if part is None else part(slot.name), inputs, present, outputs=outputs)
            if wanted is not present:
                self.library.fill(slot.name, wanted.address, wanted.context, wanted.bytes)
                self._fillings[slot.name] = wanted


class IsolatedCode(SlotViews):
    """A `CoupledSolver` in processes of its own; what the gradient asks is answered here.

    Args:
        inner: an `IsolatedSolver` or `ImagedSolver` over it.
        weight: see `SlotWeight`.
    """

    def __init__(self, inner: Any, weight: Mapping[str, Any]):
        self.inner, self.spec = inner, inner.spec
        try:
            self.weight = SlotWeight(self.spec, weight)
        except BaseException:
            inner.close()
            raise

    def advance(self, u0: Any, steps: int, **options: Any) -> Window:
        """See `Solver.advance` and `CoupledSolver.advance`."""
        window: Window = self.inner.advance(u0, steps, **options)
        return window

    def initial_state(self) -> np.ndarray:
        """See `CoupledSolver.initial_state`."""
        return np.asarray(self.inner.initial_state())

    def close(self) -> None:
        """End the processes; a second call does nothing."""
        self.inner.close()

    def __reduce__(self) -> Any:
        raise SolverError("An open solver cannot be copied or sent to another process: open one there with the same options.")

    def __enter__(self) -> IsolatedCode:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class _Nothing(nn.Module):
    """A correction that returns zeros."""

    dtype = torch.float64

    def __init__(self, spec: SolverSpec):
        super().__init__()
        self.spec = spec

    def slot(self, name: str) -> nn.Module:
        """Zeros of a slot's length."""
        part = _Nothing(self.spec)
        part.outputs = sum(one.size for slot in self.spec.slots if slot.name == name for one in slot.outputs)  # type: ignore
        return part

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """(B, m) -> (B, m') zeros."""
        return torch.zeros(seen.shape[0], self.outputs, dtype=seen.dtype)  # type: ignore[call-overload,no-any-return]


def coupled_spec(name: str, described: Mapping[str, Any]) -> SolverSpec:
    """What an adapter says of its code.

    Args:
        name: the code's.
        described: see `Library.describe`.

    Returns:
        The spec.

    Raises:
        ConfigError: no field, no time step, or a description that does not hold together.
    """
    if not described["fields"]:
        raise ConfigError(f"The adapter of {name} describes no field: call trimtab_field in trimtab_describe.")
    if not described["dt"] > 0:
        raise ConfigError(f"The adapter of {name} says that the time step is {described['dt']}: call trimtab_clock(dt, units) in "
                          "trimtab_describe, with the step in force.")
    fields = tuple(_field(name, one) for one in described["fields"])
    lengths: dict[str, int] = {}
    for one in fields:
        for dim, length in zip(one.dims, one.shape, strict=True):
            if lengths.setdefault(dim, length) != length:
                raise ConfigError(f"The adapter of {name} has a dimension {dim!r} of {lengths[dim]} and of {length} points: "
                                  "give each its own name.")
    own = {one.name: one for one in fields}
    slots = tuple(Slot(one["name"], tuple(_field(name, field) for field in one["inputs"]),
                       tuple(_output(own, _field(name, field)) for field in one["outputs"])) for one in described["slots"])
    for slot in slots:
        if not slot.inputs or not slot.outputs:
            raise ConfigError(f"The slot {slot.name} of {name} has no {'output' if slot.inputs else 'input'}: name it in "
                              "trimtab_describe.")
    parameters = {one["name"]: _number(one["value"]) for one in described["options"]}
    return SolverSpec(name, float(described["dt"]), 1, fields, described["time_units"] or "1", parameters, slots,
                      dt_kind=described.get("dt_kind") or "real64")


def _field(name: str, one: Mapping[str, Any]) -> Field:
    shape, dims = tuple(one["shape"]), tuple(one["dims"].split())
    if not dims:
        dims = tuple(f"{one['name']}_{i + 1}" for i in range(len(shape)))
    elif len(dims) == len(shape) - 1 and shape[0] == 2:  # a complex number is two
        dims = ("part", *dims)
    if len(dims) != len(shape):
        raise ConfigError(f"{one['name']} in the adapter of {name} has the dimensions ({', '.join(dims)}) and the shape "
                          f"{shape}: name one for each, first index first.")
    return Field(one["name"], one["name"], one["units"] or "1", dims[::-1], shape[::-1], {}, one["hidden"], one["kind"])


def _output(fields: Mapping[str, Field], output: Field) -> Field:
    """An output with the dimensions of its own field, of which it is the tendency."""
    own = fields.get(output.name)
    return output if own is None or own.shape != output.shape else dataclasses.replace(output, dims=own.dims)


def _put_together(ranks: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]) -> list[np.ndarray]:
    """Of each field the undivided (B, m) from the ranks' parts and their places; what every rank holds is taken once."""
    fields = []
    for parts in zip(*ranks, strict=True):
        if len(parts) > 1 and np.array_equal(parts[0][1], parts[1][1]) and not np.array_equal(parts[0][0], parts[1][0]):
            fields.append(np.concatenate([values for values, _ in parts], axis=1))  # divided, but the adapter does not say how
            continue
        whole = np.empty((len(parts[0][0]), 1 + max(int(places.max()) for _, places in parts)))
        for values, places in reversed(parts):
            whole[:, places] = values
        fields.append(whole)
    return fields


def _check_options(name: str, given: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> None:
    asked = [one["name"] for one in known if one["asked"]]
    for one in given:
        if one not in asked:
            raise ConfigError(f"Unknown key {one!r} in [solver]; the adapter of {name} asks for {', '.join(asked) or 'none'} "
                              "with trimtab_option.")


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

