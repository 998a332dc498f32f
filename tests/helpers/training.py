# SPDX-License-Identifier: MIT
"""A small training, and what two equal ones share."""

from __future__ import annotations

import csv

import torch

from trimtab.training.checkpoint import read_checkpoint
from trimtab.training.metrics import COLUMNS, RECORDED

# A network that draws from torch's and from numpy's global generator, so that resuming must restore both.
NETWORK = """
import numpy as np, torch
class Restless(torch.nn.Sequential):
    def __init__(self, width=8):
        super().__init__(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(width, 3))
    def forward(self, u):
        noise = 1 + 1e-3 * np.random.randn() if self.training else 1.0
        return noise * super().forward(u)
"""


TEXT = """
name = "small"
[solver]
name = "lorenz63"
dt = 0.01
beta = 0.0
[network]
name = "restless:Restless"
[correction]
dtype = "float64"
[reference]
solver = { beta = 2.6666666666666665 }
initial = [8.0, 0.0, 30.0]
perturbation = 1.0
spin_up = 1.0
snapshots = 150
training_runs = 2
validation_runs = 1
test_runs = 1
[offline]
steps = 40
batch = 16
rate = 0.02
[training]
window = 4
curriculum = [[0, 2], [1, 4]]
batch = 8
epochs = 4
steps_per_epoch = 8
rate = 0.01
clip = 10.0
validate_windows = 40
checkpoint_every = 3
"""


def rows_of(folder):
    with open(folder / "metrics.csv", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if key not in ("seconds", *RECORDED)} for row in csv.DictReader(file)]


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def assert_same_run(folder, whole):
    """Same bits in everything but the wall time."""
    assert rows_of(folder) == rows_of(whole)
    for name in ("offline.pt", "best.pt", "last.pt"):
        one, other = read_checkpoint(folder / name), read_checkpoint(whole / name)
        for key in ("correction", "best", "optimiser", "random", "state", "experiment"):
            assert same(one[key], other[key]), f"{key} of {name} differs"
        assert same({**one["progress"], "seconds": 0, "times": {}}, {**other["progress"], "seconds": 0, "times": {}})
        seconds = COLUMNS.index("seconds")
        assert same([row[:seconds] for row in one["history"]], [row[:seconds] for row in other["history"]])
