# SPDX-License-Identifier: MIT
"""A small experiment, and how a command refuses one."""

from __future__ import annotations

import pytest

from trimtab.__main__ import main

EXPERIMENT = """
description = "a small one for the tests"
[solver]
name = "lorenz63"
dt = 0.01
beta = 0.0
[network]
name = "MLP"
sizes = [3, 8, 3]
[reference]
solver = { beta = 2.6666666666666665 }
initial = [8.0, 0.0, 30.0]
perturbation = 1.0
spin_up = 2.0
snapshots = 400
training_runs = 2
validation_runs = 1
test_runs = 2
[offline]
steps = 60
batch = 32
[training]
window = 4
batch = 32
epochs = 2
steps_per_epoch = 15
rate = 0.01
[score]
leads = [5, 20]
starts = 2
long_steps = 200
lyapunov_time = 1.1
"""


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The sentence with which a command is refused."""
    capsys.readouterr()
    assert main(arguments) == code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("trimtab: ")]
    assert len(lines) == 1 and lines[0].endswith(".") and "Traceback" not in error
    return lines[0]
