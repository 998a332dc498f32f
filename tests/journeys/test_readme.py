# SPDX-License-Identifier: MIT
"""What the README shows runs as it stands there."""

from __future__ import annotations

import importlib
import pkgutil
import re
import types

import numpy as np
import pytest
import torch

import trimtab
from helpers import ROOT

README = (ROOT / "README.md").read_text()


def test_the_ten_lines_run_and_learn():
    script, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    torch.manual_seed(0)
    exec(compile(script, "README.md", "exec"), names)
    states, correction, loss = names["states"], names["correction"], names["loss"]
    assert states.shape == (21, 1, 4096) and states.requires_grad
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in correction.parameters())
    with torch.no_grad():
        first = trimtab.rollout(names["solver"], None, names["u0"], 20)
    assert torch.equal(first, names["target"]) and loss.item() > 0


def test_a_python_class_trains_from_a_toml(tmp_path, monkeypatch):
    """The second script of the README is a solver; nothing else is needed to train a correction in it."""
    _, script = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "mymodule.py").write_text(script)
    (tmp_path / "decay.toml").write_text("""
        [solver]
        name = "mymodule:Decay"
        rate = 0.5
        [network]
        name = "MLP"
        sizes = [8, 16, 8]
        [reference]
        solver = {rate = 1.0}
        initial = [1.0]
        perturbation = 0.3
        snapshots = 20
        training_runs = 2
        test_runs = 1
        [offline]
        steps = 20
        [training]
        window = 3
        epochs = 2
    """)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    trainer = trimtab.Trainer("decay.toml", tmp_path / "run")
    assert trainer.fit().status == "finished"
    losses = [float(row.split(",")[6]) for row in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
    assert losses[-1] < losses[0]


SHARED = """
import numpy as np
from trimtab.core.spec import Field, SolverSpec
from trimtab.core.window import Window

rate = 0.0                                # as a Fortran module keeps it, for everyone in this process

class Shared:
    def __init__(self, dt=0.1, speed=1.0):
        global rate
        rate, self.spec = speed, SolverSpec("shared", dt, 1, (Field("x", "amount", "kg", ("i",), (2,)),))

    def advance(self, u0, steps, *, correction=None, stride=1, time=0.0, on_blow_up="raise"):
        states = np.stack([u0 * (1 - rate * self.spec.dt) ** (stride * k) for k in range(steps + 1)])
        h = stride * self.spec.dt
        return Window(states, time + h * np.arange(steps + 1), h, np.zeros(len(u0), np.int64))

    def close(self): ...
"""


def test_a_class_whose_parameters_live_in_the_process_gets_a_process(tmp_path, monkeypatch):
    """Two of them in one process are one solver, twice; with isolation each is its own, and what it does not take is refused."""
    (tmp_path / "shared_code.py").write_text(SHARED)
    monkeypatch.syspath_prepend(str(tmp_path))
    start = np.ones((1, 2))

    def factors(**options):
        slow, fast = (trimtab.open_solver("shared_code:Shared", speed=speed, **options) for speed in (1.0, 2.0))
        try:
            return [solver.advance(start, 1).states[1, 0, 0] for solver in (slow, fast)]
        finally:
            slow.close()
            fast.close()

    np.testing.assert_allclose(factors(), [0.8, 0.8])
    np.testing.assert_allclose(factors(isolation="process"), [0.9, 0.8])
    with pytest.raises(trimtab.errors.ConfigError, match=r"does not take these arguments.*'spede'"):
        trimtab.open_solver("shared_code:Shared", spede=1.0, isolation="process")
    with pytest.raises(trimtab.errors.ConfigError, match="only with isolation"):
        trimtab.open_solver("shared_code:Shared", instances=2)


def test_the_face_is_what_it_says_whatever_was_imported_before():
    """A submodule of the same name would take a function's place on the package."""
    for module in pkgutil.walk_packages(trimtab.__path__, "trimtab."):
        if not module.name.endswith(("__main__", "_solver_api")):
            importlib.import_module(module.name)
    for name in trimtab.__all__:
        is_module = isinstance(getattr(trimtab, name), types.ModuleType)
        assert is_module == (name in ("networks", "gradient", "scores", "errors")), name


def test_commands_in_the_readme_exist():
    from trimtab.__main__ import _parser

    commands = set(re.findall(r"^trimtab (\w+)", README, re.MULTILINE))
    known = set(re.findall(r"^ {4}(\w+)\b", _parser().format_help(), re.MULTILINE))
    assert commands and commands <= known
