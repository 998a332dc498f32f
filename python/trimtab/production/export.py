# SPDX-License-Identifier: MIT
"""A trained correction as files that need neither Python nor trimtab: for Fortran, for torch, for FTorch."""

from __future__ import annotations

import io
import json
import math
import shutil
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trimtab import __version__
from trimtab.bridge.aot_compile import NotCompiledError, export_program, save_program
from trimtab.bridge.aot_function import BYTES, INSTALLED, TOLERANCE, Compiled, named_tensors, torch_folder
from trimtab.core.atomic_files import check_folder, replacing_in
from trimtab.core.errors import ConfigError
from trimtab.core.log import log
from trimtab.core.spec import Field
from trimtab.corrections.networks import network_dtype
from trimtab.production.slots import slot_layout, slot_part
from trimtab.training.checkpoint import load_correction, saved_spec
from trimtab.training.run_folder import Run, run_checkpoint

LIBRARY, PROGRAM, SCRIPT, PARAMETERS, MANIFEST, NOTE = (
    "correction.so", "correction.pt2", "correction.ts", "parameters.bin", "manifest.json", "README.md")
SOURCES = ("correction.h", "aoti_runtime.c", "aoti_export.c", "open.c", "production.f90")
LINE = 64  # bytes: numbers begin at multiples of it
_SAMPLES = 4


class Exported(NamedTuple):
    """What was written.

    Attributes:
        folder: where.
        files: names of the files.
        missing: one sentence for each form that could not be written.
        difference: of the library's answers to the correction's, over the largest; NaN without a library.
    """

    folder: Path
    files: list[str]
    missing: list[str]
    difference: float


def export_run(run: Run, folder: str | Path, checkpoint: str = "best", *, overwrite: bool = False) -> list[Exported]:
    """Write the correction of a run; that of a code with several slots into one folder a slot, of the slot's name.

    Args:
        run: see `load_run`.
        folder: to write to.
        checkpoint: "best", "last" or "offline".
        overwrite: write into a folder that holds something.

    Returns:
        What was written, one entry a slot.

    Raises:
        CheckpointError, ConfigError: see `run_checkpoint` and `export_correction`.
    """
    file = run_checkpoint(run, checkpoint)
    spec = saved_spec(file)
    correction = load_correction(file, spec)
    done = []
    for slot in [one.name for one in spec.slots] or [""]:
        module, size, outputs = slot_part(correction, spec, slot)
        found = next((one for one in spec.slots if one.name == slot), None)
        fields = (found.inputs, found.outputs) if found else (spec.fields, spec.fields)
        about = {"solver": spec.solver, "slot": slot, "ports": slot_layout(spec, slot), "inputs": _named(fields[0]),
                 "outputs": _named(fields[1]),
                 "network": run.experiment.network.name, "features": ", ".join(getattr(correction, "features", ())),
                 "checkpoint": checkpoint}
        place = Path(folder) / slot if len(spec.slots) > 1 else Path(folder)
        done.append(export_correction(module, size, place, about, outputs=outputs, overwrite=overwrite))
    return done


def export_correction(correction: nn.Module, size: int, folder: str | Path, about: dict[str, Any], *, outputs: int = 0,
                      overwrite: bool = False) -> Exported:
    """Write a correction, with its normalisation and features inside, in every form that works here.

    The folder gets the compiled library with parameters.bin, manifest.json and the C files that run it; correction.pt2
    (torch.export); correction.ts (TorchScript, which FTorch reads); and a README.md that says how each is used.

    Args:
        correction: to be written, (B, size) -> (B, outputs).
        size: numbers it reads a member.
        folder: to write to; made when it is not there.
        about: what else the manifest shall say: numbers and strings.
        outputs: numbers it returns a member; 0 for `size`.
        overwrite: write into a folder that holds something.

    Returns:
        What was written.

    Raises:
        ConfigError: the folder holds something already, or torch.export does not follow the network, so that nothing is written.
        OutputError: the disk is full, or the folder cannot be written to; an earlier export is as it was.
    """
    folder = Path(folder)
    check_folder(folder)
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise ConfigError(f"{folder} is already there and holds something: give another --out, or --overwrite.")
    correction = correction.eval().requires_grad_(False)
    outputs, dtype = outputs or size, network_dtype(correction)
    try:
        program = export_program(correction, size, dtype)
    except NotCompiledError as error:
        raise ConfigError(f"The correction cannot be exported: {str(error).rstrip('.')}.") from error
    sample = torch.randn(_SAMPLES, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    missing, difference = [], math.nan
    capability = torch.backends.cpu.get_cpu_capability()
    manifest = {"format": "trimtab exported correction", "version": 1, "library": LIBRARY, "parameters": PARAMETERS, "n": size,
                "n_out": outputs, "bytes": BYTES[dtype], "layout": "(members, n), n fastest", "normalisation": "inside",
                "torch": torch.__version__, "torch_folder": str(torch_folder()), "processor": capability, **about}
    for key, value in manifest.items():
        if isinstance(value, str) and ('"' in value or "\\" in value):
            raise ConfigError(f"{key} = {value!r} holds a quotation mark or a backslash, and the manifest cannot: rename it.")
    with replacing_in(folder) as partial:
        try:
            save_program(program, partial / PROGRAM)
        except NotCompiledError as error:
            missing.append(f"No program {PROGRAM}: {str(error).rstrip('.')}.")
        try:
            compiled = Compiled(correction, size, outputs)
            difference = compiled.compare(sample)
            shutil.copyfile(compiled.path, partial / LIBRARY)
            write_parameters(partial / PARAMETERS, named_tensors(correction))
            for name in SOURCES:
                shutil.copyfile(INSTALLED / name, partial / name)
        except NotCompiledError as error:
            missing.append(f"No library {LIBRARY}: {str(error).rstrip('.')}.")
        _write_script(correction, sample, partial, missing)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (partial / NOTE).write_text(_note(manifest, missing, difference), encoding="utf-8")
    for sentence in missing:
        log.warning("%s", sentence)
    return Exported(folder, sorted(one.name for one in folder.iterdir()), missing, difference)


def _named(fields: Sequence[Field]) -> str:
    return ", ".join(f"{one.name} [{one.units}] ({', '.join(f'{d} {n}' for d, n in zip(one.dims, one.shape, strict=True))})"
                     for one in fields)


def write_parameters(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors for `bridge/production/aoti_export.c`, which describes the format.

    Args:
        path: the file.
        tensors: by name, contiguous, on the CPU.
    """
    content = bytearray(b"TRIMTABP" + struct.pack("=q", len(tensors)))
    for name, one in tensors.items():
        text, numbers = name.encode(), one.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        content += struct.pack(f"={3 + one.dim()}q", len(text), one.dim(), len(numbers), *one.shape) + text
        content += bytes(-len(content) % LINE) + numbers
        content += bytes(-len(content) % LINE)
    path.write_bytes(content)


def _write_script(correction: nn.Module, sample: Tensor, folder: Path, missing: list[str]) -> None:
    """TorchScript by tracing, checked on another number of members than it was traced with."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation, which the note says
        try:
            script = torch.jit.trace(correction, sample[:1], check_trace=False)
            expected = correction(sample)
            largest = float(np.abs((script(sample) - expected).numpy()).max() / max(float(expected.abs().max()), 1e-300))
            if not largest <= TOLERANCE[sample.dtype]:
                raise ValueError(f"its answers differ by {largest:.1e}")
        except Exception as error:  # tracing is deprecated and raises many kinds; the other forms stand
            missing.append(f"No TorchScript {SCRIPT}: torch.jit.trace does not follow the network ({type(error).__name__}: "
                           f"{str(error).splitlines()[0][:200] if str(error) else ''}).")
            return
        content = io.BytesIO()
        torch.jit.save(script, content)
        (folder / SCRIPT).write_bytes(content.getbuffer())


def _note(manifest: dict[str, Any], missing: list[str], difference: float) -> str:
    kind = {4: "real32 (`real(c_float)`)", 8: "real64 (`real(c_double)`)"}[manifest["bytes"]]
    lacks = "".join(f"\n**{one}**\n" for one in missing)
    return f"""# An exported correction

It reads {manifest["n"]} numbers a state and returns {manifest["n_out"]} tendencies a state, in {kind}, in physical
units: normalisation and features are inside. Fortran `a(n, members)` and torch `(members, n)` are the same bytes. Written by
trimtab {__version__} with torch {manifest["torch"]}; the library's answers differ from torch's by {difference:.1e} of the
largest.
{lacks}
## In a Fortran or C program, without Python

    gcc -O2 -c aoti_runtime.c aoti_export.c open.c
    gfortran -O2 your_program.f90 compiled.o exported.o open.o -ldl -lm

`correction.h` describes the functions. `trimtab_open_correction` gives the function, context and kind that fill a slot;
`trimtab_fill_slot`, in Fortran `trimtab_load_correction` of production.f90, fills a named slot of a code coupled with
trimtab_slot.c. The namelist of trimtab's own program says
`&correction library = 'this folder' /`. What has to be on the machine is libtorch (the folder `lib` of a torch of the same major
and minor version, in manifest.json; TRIMTAB_TORCH names another) and a processor with {manifest["processor"]}. Threads:
OMP_NUM_THREADS.

## In torch

    program = torch.export.load("{PROGRAM}").module()
    tendency = program(states)          # (members, {manifest["n"]})

## In FTorch

FTorch loads TorchScript, deprecated since torch 2.11 and still written here: `{SCRIPT}`. It needs no helper of the training side:

    call torch_model_load(correction, '{SCRIPT}', torch_kCPU)
    call torch_tensor_from_array(inputs(1), states, [1, 2], torch_kCPU)       ! states(members, n), FTorch's layout
    call torch_tensor_from_array(outputs(1), tendencies, [1, 2], torch_kCPU)
    call torch_model_forward(correction, inputs, outputs)

With states(n, members) give the layout [2, 1] instead of [1, 2].
"""
