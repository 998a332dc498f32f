# SPDX-License-Identifier: MIT
"""The working folder is not trusted: a file there that is called as a module of Python hides nothing and is never run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trimtab.config.import_path import import_named, search_path, search_working_folder
from trimtab.coupling import report as doctor

EXPERIMENT = """
[solver]
name = "lorenz63"
dt = 0.01
beta = 0.0
[network]
name = "MLP"
[reference]
solver = { beta = 2.6666666666666665 }
initial = [8.0, 0.0, 30.0]
spin_up = 0.1
snapshots = 24
training_runs = 1
validation_runs = 1
test_runs = 1
[offline]
steps = 2
[training]
window = 2
batch = 4
epochs = 1
steps_per_epoch = 1
[score]
leads = [1]
starts = 1
long_steps = 4
"""
SOLVER = """
import trimtab
def Named(dt=0.01, beta=0.0):
    return trimtab.open_solver("lorenz63", dt=dt, beta=beta)
"""
COMMAND = str(Path(sys.executable).parent / "trimtab")
NETWORK = "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(3, 3)\n"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with a file for each module of Python, and for packages that others import when they are there."""
    for name in (*sys.stdlib_module_names, "IPython", "numba", "dask", "tensorboard", "cupy", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'taken')!r}, 'a').write('{name} ')\n")
    (tmp_path / "nothing.py").write_text("")
    taken, environment = tmp_path / "taken", {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    while True:  # what `python -m` itself imports, before it comes to anything of ours: importlib and what that needs
        subprocess.run([sys.executable, "-m", "nothing"], cwd=tmp_path, capture_output=True, env=environment)
        if not taken.exists():
            return tmp_path
        for name in taken.read_text().split():
            (tmp_path / f"{name}.py").unlink()
        taken.unlink()


def run(folder: Path, *command: str) -> set[str]:
    """What a command that succeeds imports from its working folder."""
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "TRIMTAB_CACHE": str(folder / "cache")})
    taken = folder / "taken"
    found = set(taken.read_text().split()) if taken.exists() else set()
    taken.unlink(missing_ok=True)
    assert done.returncode == 0, f"{found}\n{done.stdout}{done.stderr}"
    return found


def test_a_training_imports_nothing_of_the_working_folder(hostile: Path) -> None:
    """With `python -m` and with the command; processes of the reference run, table, figures and report."""
    assert {"queue", "copy", "random", "select", "argparse", "typing", "json"} <= {one.stem for one in hostile.glob("*.py")}
    (hostile / "exp.toml").write_text(EXPERIMENT.replace("spin_up = 0.1", "spin_up = 33400.0"))  # worth starting processes for
    assert not run(hostile, "-m", "trimtab", "train", "exp.toml", "--out", "run")


def test_what_is_named_by_import_path_hides_nothing(hostile: Path) -> None:
    """A solver in a process of its own and a network of that folder, which comes last: what Python has is Python's."""
    for file in hostile.glob("*.py"):
        if importlib.util.find_spec(file.stem) is None:  # a module of another system
            file.unlink()
    (hostile / "solvers.py").write_text(SOLVER)
    (hostile / "nets.py").write_text(NETWORK)
    (hostile / "exp.toml").write_text(EXPERIMENT.replace('"lorenz63"', '"solvers:Named"\nisolation = "process"')
                                      .replace('"MLP"', '"nets:Net"'))
    assert not run(hostile, COMMAND, "train", "exp.toml", "--out", "run")
    assert (hostile / "run" / "best.pt").is_file()


def test_the_process_of_couple_check_imports_nothing_of_the_folder_of_the_code(hostile: Path, built: Path) -> None:
    toml = hostile / "column.toml"
    toml.write_text(f'[solver]\nname = "column"\nlibrary = "{built}/libcolumn.so"\nisolation = "process"\n'
                    '[network]\nname = "MLP"\nsizes = [8, 4, 8]\n')
    seen = doctor._run(toml, ["description"], {}, 0, hostile / "scratch", hostile, lambda name: None, False,
                       write=False, causes={}, debug=False)
    assert seen.ending is None and seen.findings[0].check == "description"
    assert not (hostile / "taken").exists()


def test_what_is_named_is_found_there_and_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    (tmp_path / "named_here.py").write_text(NETWORK)
    assert str(tmp_path) not in sys.path and str(tmp_path) in search_path()
    assert isinstance(import_named("named_here", "Net")(), torch.nn.Linear)
    assert sys.path[-1] == str(tmp_path)
    search_working_folder()
    assert sys.path.count(str(tmp_path)) == 1 == search_path().count(str(tmp_path))


def test_a_folder_that_is_gone_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    before = list(sys.path)
    search_working_folder()
    assert sys.path == before and str(gone) not in search_path()
