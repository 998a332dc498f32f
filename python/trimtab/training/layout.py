# SPDX-License-Identifier: MIT
"""In which order fields stand in something that was stored: it says so, and is compared with the solver that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.core.errors import CheckpointError
from trimtab.core.spec import SolverSpec


def check_fields(content: dict[str, Any], spec: SolverSpec, path: str | Path) -> None:
    """Refuse a solver whose fields, or whose slots' inputs and outputs, have other names, or another order, than at training.

    Args:
        content: of the checkpoint.
        spec: the solver's.
        path: of the checkpoint.

    Raises:
        CheckpointError: see above; the order counts, because weights and normalisation are by place.
    """
    pairs = [("a state", content["state"], spec.fields)]
    if "slots" in content:
        trained, asked = [one["name"] for one in content["slots"]], [one.name for one in spec.slots]
        if trained != asked:
            raise CheckpointError(f"{path} was trained for the slots {', '.join(trained) or 'none'}, in this order; the solver "
                                  f"{spec.solver} has {', '.join(asked) or 'none'}.")
        pairs += [(f"{kind} of the slot {slot.name}", saved[kind], getattr(slot, kind))
                  for saved, slot in zip(content["slots"], spec.slots, strict=True) for kind in ("inputs", "outputs")]
    for what, saved_fields, fields in pairs:
        trained, asked = [one["name"] for one in saved_fields], [one.name for one in fields]
        if trained != asked:
            raise CheckpointError(f"{path} was trained for {what} of {', '.join(trained)}, in this order; the solver "
                                  f"{spec.solver} has {', '.join(asked)}: describe them as they were, or train anew.")
