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

from trimtab.bridge.callback import Callback
from trimtab.bridge.compile import NotCompiledError
from trimtab.bridge.compiled import TOLERANCE, Compiled
from trimtab.errors import CorrectionError
from trimtab.networks import network_dtype
from trimtab.session import log

# A module is compiled once in each of its modes; None where that failed, so that it is tried and told once.
_compiled: WeakKeyDictionary[nn.Module, dict[object, Compiled | None]] = WeakKeyDictionary()


def slot_function(module: nn.Module, size: int, present: Callback | Compiled | None = None, *, outputs: int = 0,
                  states: Tensor | None = None) -> Callback | Compiled:
    """The function to fill a slot with.

    Args:
        module: (B, N) -> (B, M), a tendency; compiled when it has an attribute `compiled` that is true.
        size: N, numbers the slot reads a member.
        present: what fills the slot now; returned when it still serves.
        outputs: M, numbers it writes a member; 0 for N.
        states: (B, N) of the run to come: a compiled form that is new is held against the module there; on random ones without.

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


def _compiled_form(module: nn.Module, size: int, outputs: int, states: Tensor | None) -> Compiled | None:
    forms = _compiled.setdefault(module, {})
    mode = (network_dtype(module), size, outputs, *(one.training for one in module.modules()))
    try:
        known = forms.get(mode)
        if mode not in forms:
            forms[mode] = None  # until it is known to work
            known = Compiled(module, size, outputs)
            _trust(known, torch.randn(4, size, generator=torch.Generator().manual_seed(0)) if states is None else states)
            forms[mode] = known
        elif known is not None:
            known.refresh()
        return known
    except NotCompiledError as error:
        forms[mode] = None
        log.warning("The correction is not compiled, it runs as it is: %s.", str(error).rstrip("."))
        return None


def _trust(compiled: Compiled, states: Tensor) -> None:
    with torch.no_grad():
        difference = compiled.compare(states)
    if not difference <= TOLERANCE[compiled.dtype]:
        raise NotCompiledError(f"its compiled form differs from it by {difference:.1e} of its largest answer, more than "
                               f"{TOLERANCE[compiled.dtype]:.0e}")
