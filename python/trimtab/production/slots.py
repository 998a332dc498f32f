# SPDX-License-Identifier: MIT
"""What a program that drives itself asks of a run folder: which file, which part of a correction fills a slot, and its layout.

A program links libraries of its own, netCDF and HDF5 of other versions than Python's packages bring. So nothing here, nor in what
`embedded.py` imports, may import such a package; `tests/production/test_production_libraries.py` holds it.
"""

from __future__ import annotations

from torch import nn

from trimtab.core.errors import CheckpointError
from trimtab.core.spec import SolverSpec
from trimtab.corrections.slots import AnyCorrection, SlotCorrection


def slot_part(correction: AnyCorrection, spec: SolverSpec, slot: str) -> tuple[nn.Module, int, int]:
    """What fills one slot of a solver.

    Args:
        correction: of all slots.
        spec: the solver's.
        slot: name of the slot; "" where there is one at most.

    Returns:
        The module, and how many numbers it reads and returns a member.

    Raises:
        CheckpointError: no such slot, or none named among several.
    """
    if not isinstance(correction, SlotCorrection):
        return correction, spec.size, spec.size
    names = [one.name for one in spec.slots]
    if not slot and len(names) == 1:
        slot = names[0]
    if slot not in names:
        raise CheckpointError(f"The correction was trained for the slots {', '.join(names)}; it has none of the name {slot!r}.")
    found = spec.slots[names.index(slot)]
    inputs, outputs = (sum(one.size for one in fields) for fields in (found.inputs, found.outputs))
    return correction.slot(slot), inputs, outputs


def slot_layout(spec: SolverSpec, slot: str) -> str:
    """The inputs and outputs of a slot, as `trimtab_slot_declare` of trimtab_slot.h reads them.

    Args:
        spec: the solver's.
        slot: name of the slot; "" where there is one at most.

    Returns:
        "slot NAME;input NUMBERS NAME;...output NUMBERS NAME;"; "" for a solver without named slots.

    Raises:
        CheckpointError: a name with a semicolon in it.
    """
    found = next((one for one in spec.slots if one.name == slot or not slot), None)
    if found is None:
        return ""
    parts = [f"slot {found.name}", *(f"{kind} {one.size} {one.name}" for kind, fields in
                                     (("input", found.inputs), ("output", found.outputs)) for one in fields)]
    if any(";" in part for part in parts):
        raise CheckpointError(f"The slot {found.name} has a semicolon in a name ({', '.join(parts)}): rename it in the adapter.")
    return "".join(f"{part};" for part in parts)
