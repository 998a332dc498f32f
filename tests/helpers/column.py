# SPDX-License-Identifier: MIT
"""A column of air, coupled, with its own program."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import trimtab
from helpers import CODES, ROOT
from trimtab.bridge.aot_function import installed
from trimtab.config.experiment import dump_experiment, parse_experiment
from trimtab.core.provenance import provenance
from trimtab.corrections.factory import build_correction
from trimtab.training.checkpoint import load_correction, save_checkpoint, slots_of, state_of

HERE = CODES / "column"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The shared library for training and the program for production, of the same sources."""
    folder = tmp_path_factory.mktemp("column")
    legacy = ROOT / "bridge" / "adapter"
    program(folder, (HERE / "column.f90").read_text())
    subprocess.run(["gfortran", "-O2", "-fPIC", "-ffp-contract=off", "-J", str(folder), str(legacy / "trimtab.f90"),
                    str(HERE / "column.f90"), str(folder / "trimtab_slot.o"), "-shared", "-Wl,-Bsymbolic", "-o",
                    str(folder / "libcolumn.so")], check=True)
    return folder


def program(folder, column):
    """The program for production, of a text of column.f90, with every check of the compiler."""
    legacy, bridge = ROOT / "bridge" / "adapter", ROOT / "bridge" / "production"
    sources = [legacy / "trimtab_slot.c", *(bridge / f"{one}.c" for one in ("aoti_runtime", "aoti_export", "open"))]
    for source in sources:
        subprocess.run(["gcc", "-O2", "-fPIC", "-c", str(source), "-o", str(folder / f"{source.stem}.o")], check=True)
    (folder / "column.f90").write_text(column)
    subprocess.run(["gfortran", "-O2", "-ffp-contract=off", "-fcheck=all", "-J", str(folder), str(legacy / "trimtab.f90"),
                    str(folder / "column.f90"), str(bridge / "production.f90"), str(HERE / "column_main.f90"),
                    *(str(folder / f"{one.stem}.o") for one in sources), "-ldl", "-lm", "-o", str(folder / "column")], check=True)
    return folder


PYTHON = {"TRIMTAB_PYTHON": sys.executable, "TRIMTAB_EMBED": str(installed("libtrimtab_embed"))}


MLP = 'name = "MLP"\nsizes = [8, 16, 8]'


def trained(folder, built, compiled, network=MLP):
    """A run folder with weights nobody trained, and its solver, open in this process."""
    text = f"""
[solver]
name = "column"
library = "{built}/libcolumn.so"
isolation = "none"
[network]
{network}
[correction]
compiled = {str(compiled).lower()}
"""
    experiment = parse_experiment(text, "test")
    solver = trimtab.open_solver(experiment.solver.name, **experiment.solver.options)
    torch.manual_seed(3)
    experiment_text = dump_experiment(experiment)
    content = {"experiment": experiment_text, "state": state_of(solver.spec), "slots": slots_of(solver.spec), "best": None,
               "optimiser": None, "random": None, "progress": {}, "history": [], "folder": str(folder.parent), **provenance()}
    folder.mkdir()
    (folder / "experiment.toml").write_text(experiment_text)
    correction = build_correction(experiment, solver.spec)
    save_checkpoint(folder / "best.pt", {**content, "correction": correction.state_dict()})
    return solver, load_correction(folder / "best.pt", solver.spec)
