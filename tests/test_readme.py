# SPDX-License-Identifier: MIT
"""What the README shows runs as it stands there."""

from __future__ import annotations

import importlib
import pkgutil
import re
import types
from pathlib import Path

import torch

import trimtab

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_ten_lines_run_and_learn():
    (script,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    torch.manual_seed(0)
    exec(compile(script, "README.md", "exec"), names)
    states, correction, loss = names["states"], names["correction"], names["loss"]
    assert states.shape == (21, 1, 4096) and states.requires_grad
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in correction.parameters())
    with torch.no_grad():
        first = trimtab.rollout(names["solver"], None, names["u0"], 20)
    assert torch.equal(first, names["target"]) and loss.item() > 0


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
