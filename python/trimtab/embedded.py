# SPDX-License-Identifier: MIT
"""The Fortran program drives: what the interpreter inside it (`bridge/embed.c`) is asked for.

    path, description of the solver -> address of a C function, its context, bytes a number

Everything goes the way it goes when Python drives, so that the bits are the same.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.bridge.compiled import Compiled, library
from trimtab.bridge.fortran_solver import described_spec
from trimtab.bridge.runtime import configure_runtime
from trimtab.bridge.slot import slot_function
from trimtab.checkpoint import load_correction, load_run, read_checkpoint
from trimtab.config import parse_experiment
from trimtab.deploy import run_checkpoint
from trimtab.state import Field, SolverSpec


def open_correction(path: str, description: str) -> tuple[int, int, int, int, Any]:
    """The correction of a checkpoint, as what fills a slot.

    Args:
        path: a run folder (its best checkpoint), or a checkpoint file.
        description: the solver's JSON; "" for what the checkpoint says of its state.

    Returns:
        Addresses of function and context, bytes a number, the address of a C function that says why a call failed (0: Python's
        exception does), and what keeps all that alive.

    Raises:
        CheckpointError: see `load_correction`.
    """
    configure_runtime()
    file = run_checkpoint(load_run(path)) if Path(path).is_dir() else Path(path)
    spec = described_spec(json.loads(description)) if description else saved_spec(file)
    correction = load_correction(file, spec).requires_grad_(False)
    torch.set_grad_enabled(False)  # for this thread, whose calls come from Fortran
    filling = slot_function(correction, spec.size)
    explain = 0
    if isinstance(filling, Compiled):
        explain = ctypes.cast(library().trimtab_compiled_message, ctypes.c_void_p).value or 0
    return filling.address, filling.context, filling.bytes, explain, (filling, correction)


def saved_spec(file: Path) -> SolverSpec:
    """What a checkpoint says of the solver it was trained in: fields, and of the parameters those that the experiment gives.

    Args:
        file: the checkpoint.

    Returns:
        The spec; coordinates are left out.

    Raises:
        CheckpointError: see `read_checkpoint`.
    """
    content = read_checkpoint(file)
    solver = parse_experiment(content["experiment"], str(file)).solver
    empty: dict[str, np.ndarray] = {}
    fields = tuple(Field(one["name"], one["name"], one["units"], tuple(one["dims"]), tuple(one["shape"]), empty)
                   for one in content["state"])
    return SolverSpec(solver.name, float(solver.options.get("dt", 0.0)), 0, fields, "1", dict(solver.options))
