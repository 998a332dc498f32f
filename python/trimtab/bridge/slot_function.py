# SPDX-License-Identifier: MIT
"""What fills a slot: the module itself behind a Python callback, or its compiled form, as the module's attribute `compiled` says.

Whoever fills a slot, of a solver here or of a coupled code, asks `slot_function` before every run, and hands the solver the
answer's (address, context, bytes).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from trimtab.bridge.aot_compile import NotCompiledError
from trimtab.bridge.aot_function import TOLERANCE, Compiled
from trimtab.bridge.slot_callback import Callback
from trimtab.core.errors import CorrectionError
from trimtab.core.log import log
from trimtab.corrections.networks import network_dtype
from trimtab.corrections.repeatable import as_slot, changes_itself, fingerprint

MEMBERS = 2     # states of a run on which a compiled form is held against the module
MOST_FORMS = 8  # of one module: a setting that is changed for every run must not fill the memory


def slot_function(module: nn.Module, size: int, present: Callback | Compiled | None = None, *, outputs: int = 0,
                  states: Tensor | None = None) -> Callback | Compiled:
    """The function to fill a slot with.

    Args:
        module: (B, N) -> (B, M), a tendency; compiled when it has an attribute `compiled` that is true.
        size: N, numbers the slot reads a member.
        present: what fills the slot now; returned when it still serves.
        outputs: M, numbers it writes a member; 0 for N.
        states: (B, N) of the run to come: a compiled form is held against the module on the first of them; without, on what the
            module gives as `examples`, else on random ones.

    Returns:
        A Callback or a Compiled; keep it alive as long as it fills the slot.

    Raises:
        ConfigError: the module works in neither float32 nor float64.
    """
    if getattr(module, "compiled", False):
        compiled = _compiled_form(module, size, outputs, states)
        if compiled is not None:
            return compiled
    wanted = (module, 0 if outputs == size else outputs, network_dtype(module))
    if isinstance(present, Callback) and (present.module, present.outputs, present.dtype) == wanted:
        return present
    return Callback(*wanted[:2])


@contextlib.contextmanager
def explained(fillings: Iterable[Callback | Compiled | None]) -> Iterator[None]:
    """While a solver runs: a failed call of a compiled form is raised with its own reason, which the solver does not know.

    Args:
        fillings: of the solver's slots.

    Raises:
        CorrectionError: with the reason.
    """
    try:
        yield
    except CorrectionError as error:
        for one in fillings:
            if isinstance(one, Compiled) and one.message:
                raise CorrectionError(f"In the solver's slot, {one.message.rstrip('.')}.") from error
        raise


class _Forms:
    """The compiled forms of one module, by what it is; None where that failed, so that it is tried and told once."""

    def __init__(self) -> None:
        self.known: dict[object, Compiled | None] = {}
        self.moving: frozenset[tuple[str, str]] | None = None  # attributes that a call changes, so that they are no setting


_compiled: WeakKeyDictionary[nn.Module, _Forms] = WeakKeyDictionary()


def _compiled_form(module: nn.Module, size: int, outputs: int, states: Tensor | None) -> Compiled | None:
    forms = _compiled.setdefault(module, _Forms())
    if states is None:
        examples = getattr(module, "examples", None)
        states = torch.randn(MEMBERS, size, generator=torch.Generator().manual_seed(0)) if examples is None else examples(MEMBERS)
    states = states[:MEMBERS]
    if forms.moving is None:
        forms.moving = _moving(module, states)
    setting = frozenset(item for item in fingerprint(module).items() if item[0] not in forms.moving)
    mode = (network_dtype(module), size, outputs, setting)
    try:
        known = forms.known.get(mode)
        if known is not None:
            known.refresh()
            if not _still(known, states):
                log.info("The network computes something else than when it was compiled: it is compiled again.")
                del forms.known[mode]
        if mode not in forms.known:
            while len(forms.known) >= MOST_FORMS:
                del forms.known[next(iter(forms.known))]
            forms.known[mode] = None  # until it is known to work
            known = Compiled(module, size, outputs)
            _trust(known, states)
            forms.known[mode] = known
        return known
    except NotCompiledError as error:
        forms.known[mode] = None
        log.warning("The correction is not compiled, it runs as it is: %s.", str(error).rstrip("."))
        return None


def _moving(module: nn.Module, states: Tensor) -> frozenset[tuple[str, str]]:
    def call() -> None:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            as_slot(module, states)

    try:
        call()  # the first makes what is made late
        return changes_itself(module, call)
    except Exception:  # whatever the user's network raises: the compiler or the slot says it, as it is
        return frozenset()


def _still(compiled: Compiled, states: Tensor) -> bool:
    """Whether a form that was good is so on the first states of a run; where its call fails, the run will say why."""
    try:
        return compiled.compare(states) <= TOLERANCE[compiled.dtype]
    except NotCompiledError:
        return True


def _trust(compiled: Compiled, states: Tensor) -> None:
    with torch.no_grad():
        difference = compiled.compare(states)
    if not difference <= TOLERANCE[compiled.dtype]:
        raise NotCompiledError(f"its compiled form differs from it by {difference:.1e} of its largest answer, more than "
                               f"{TOLERANCE[compiled.dtype]:.0e}")
