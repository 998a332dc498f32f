# SPDX-License-Identifier: MIT
"""The Fortran program drives: what the interpreter inside it (`bridge/production/embed.c`) is asked for.

    path, named slot, description of the solver -> address of a C function, its context, bytes a number

Everything goes the way it goes when Python drives, so that the bits are the same.
"""

from __future__ import annotations

import ctypes
import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import torch

from trimtab.bridge.adapter_solver import coupled_spec
from trimtab.bridge.aot_function import Compiled, library
from trimtab.bridge.fortran_solver import described_spec
from trimtab.bridge.slot_function import slot_function
from trimtab.bridge.threads import configure_runtime
from trimtab.production.slots import slot_layout, slot_part
from trimtab.training.checkpoint import load_correction, saved_spec
from trimtab.training.run_folder import load_run, run_checkpoint

# Packages that bring a library of their own, and a function of it: where the program has linked that library, in another version,
# the package would call the program's, and fall.
LINKED = {"netCDF4": ("nc_open", "H5open"), "h5py": ("H5open",), "h5netcdf": ("H5open",)}


class _Refused(MetaPathFinder):
    """In the way of an import of `LINKED`, in a program that links the library: a network of the user's may ask for it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """None, so that the next finder is asked.

        Raises:
            ImportError: the program has the library.
        """
        program = ctypes.CDLL(None)
        found = [name for name in LINKED.get(fullname, ()) if hasattr(program, name)]
        if found:
            raise ImportError(f"this program links the library of {found[0]} itself, and {fullname} brings another: import "
                              f"{fullname} in none of the modules that the network needs to run")


def open_correction(path: str, slot: str, description: str) -> tuple[int, int, int, int, str, Any]:
    """The correction of a checkpoint, as what fills a slot.

    Args:
        path: a run folder (its best checkpoint), or a checkpoint file.
        slot: of a coupled code the slot's name; "" where there is one at most.
        description: the solver's JSON, or a coupled code's (`trimtab_slot.h`); "" for what the checkpoint says of its state.

    Returns:
        Addresses of function and context, bytes a number, the address of a C function that says why a call failed (0: Python's
        exception does), the slot's layout (see `slot_layout`), and what keeps all that alive.

    Raises:
        CheckpointError: see `load_correction`; or no slot of that name.
    """
    configure_runtime()
    if not any(isinstance(one, _Refused) for one in sys.meta_path):
        sys.meta_path.insert(0, _Refused())
    file = run_checkpoint(load_run(path)) if Path(path).is_dir() else Path(path)
    described = json.loads(description) if description else {}
    if not described or "slots" in described:
        spec = saved_spec(file)
        spec = coupled_spec(spec.solver, described) if described else spec
    else:
        spec = described_spec(described)
    correction = load_correction(file, spec).requires_grad_(False)
    torch.set_grad_enabled(False)  # for this thread, whose calls come from Fortran
    module, inputs, outputs = slot_part(correction, spec, slot)
    filling = slot_function(module, inputs, outputs=outputs)
    explain = 0
    if isinstance(filling, Compiled):
        explain = ctypes.cast(library().trimtab_compiled_message, ctypes.c_void_p).value or 0
    return filling.address, filling.context, filling.bytes, explain, slot_layout(spec, slot), (filling, correction)

