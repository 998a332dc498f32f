# SPDX-License-Identifier: MIT
"""Runs that ensembles are made of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.__main__ import main

EXPERIMENT = """
[solver]
name = "lorenz63"
dt = 0.01
[network]
name = "MLP"
sizes = [3, 8, 3]
[reference]
initial = [8.0, 0.0, 30.0]
perturbation = 1.0
spin_up = 5.0
snapshots = 400
training_runs = 2
validation_runs = 1
test_runs = 2
[correction]
input_mean = [0.0]
input_scale = [20.0]
output_scale = [1.0]
[offline]
steps = 1
[training]
window = 1
batch = 4
epochs = 1
steps_per_epoch = 1
[score]
closures = ["none"]
leads = [5]
starts = 1
long_steps = 10
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two runs of one experiment whose solver is perfect, and networks that disturb it."""
    folder = tmp_path_factory.mktemp("ensembles")
    (folder / "exp.toml").write_text(EXPERIMENT)
    before = os.environ.get("TRIMTAB_CACHE")
    os.environ["TRIMTAB_CACHE"] = str(folder / "cache")
    for seed in (0, 1):
        arguments = ["train", str(folder / "exp.toml"), "--out", str(folder / f"run{seed}")]
        assert main([*arguments, "--set", f"training.seed={seed}"]) == 0
    yield folder
    if before is None:
        del os.environ["TRIMTAB_CACHE"]
    else:
        os.environ["TRIMTAB_CACHE"] = before
