# SPDX-License-Identifier: MIT
"""A trained correction of a solver of ours."""

from __future__ import annotations

import torch

from trimtab.config.experiment import dump_experiment, parse_experiment
from trimtab.core.provenance import provenance
from trimtab.corrections.factory import build_correction
from trimtab.training.checkpoint import load_correction, save_checkpoint, state_of

LORENZ = """
[solver]
name = "lorenz63"
dt = 0.01
beta = 0.0
[network]
name = "MLP"
sizes = [3, 32, 3]
[correction]
dtype = "DTYPE"
compiled = SLOT
"""


def trained(folder, text, open_solver):
    """A run folder as a training leaves it, with weights nobody trained; and its solver and correction."""
    experiment = parse_experiment(text, "test")
    solver = open_solver(experiment.solver.name, **experiment.solver.options)
    torch.manual_seed(5)
    correction = build_correction(experiment, solver.spec)
    correction.input_mean.fill_(0.25)
    correction.input_scale.fill_(4.0)
    correction.output_scale.fill_(3.0)
    folder.mkdir()
    (folder / "experiment.toml").write_text(dump_experiment(experiment))
    save_checkpoint(folder / "best.pt", {"experiment": dump_experiment(experiment), "state": state_of(solver.spec),
                                         "correction": correction.state_dict(), "best": None, "optimiser": None, "random": None,
                                         "progress": {}, "history": [], **provenance()})
    return solver, load_correction(folder / "best.pt", solver.spec)
