# SPDX-License-Identifier: MIT
"""Where a reference run is kept when the current folder cannot be written: somewhere else, and the name is said."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import trimtab
from trimtab.__main__ import main
from trimtab.config.experiment import parse_experiment
from trimtab.core.errors import OutputError
from trimtab.data import cache_folder as cache
from trimtab.data.reference import make_reference, reference_path

TEXT = """
[solver]
name = "lorenz63"
dt = 0.01
[reference]
solver = {beta = 2.5}
initial = [8.0, 0.0, 30.0]
perturbation = 1.0
snapshots = 20
training_runs = 1
validation_runs = 1
test_runs = 1
[network]
name = "MLP"
sizes = [3, 4, 3]
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
leads = [1]
starts = 1
long_steps = 4
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder and a cache of the user's, neither named by TRIMTAB_CACHE."""
    (tmp_path / "work").mkdir()
    monkeypatch.delenv("TRIMTAB_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def made():
    experiment = parse_experiment(TEXT, "test")
    with trimtab.open_solver("lorenz63", dt=0.01) as solver:
        return make_reference(experiment, solver.spec), reference_path(experiment, solver.spec)


def read_only(monkeypatch, folder):
    """As on a read-only file system, which refuses root, too: asked before, and when it is tried."""
    access, mkdir = os.access, os.mkdir

    def inside(path):
        return Path(path).absolute().is_relative_to(folder)

    def refuse(path, *arguments, **named):
        if inside(path):
            raise OSError(30, "Read-only file system", str(path))
        return mkdir(path, *arguments, **named)

    def allowed(path, mode, **named):
        return not (mode & os.W_OK and inside(path)) and access(path, mode, **named)

    monkeypatch.setattr(os, "access", allowed)
    monkeypatch.setattr(os, "mkdir", refuse)


def test_in_the_current_folder_by_default(place):
    path, again = made()
    assert path == again and path.parent == cache.HERE and path.is_file()


def test_a_read_only_folder(place, monkeypatch, caplog):
    read_only(monkeypatch, place / "work")
    with caplog.at_level(logging.WARNING, "trimtab"):
        path, again = made()
    assert path == again and path.is_relative_to(place / "user" / "trimtab") and path.is_file()
    assert str(path.parent) in caplog.text and str(place / "work") in caplog.text
    assert list((place / "work").iterdir()) == []
    (place / "other").mkdir()
    monkeypatch.chdir(place / "other")  # solvers of one name in two folders need not be one
    read_only(monkeypatch, place / "other")
    assert made()[0].parent != path.parent


def test_a_file_stands_where_the_folder_should(place):
    Path(".trimtab-cache").write_text("a file of somebody's")
    path, _ = made()
    assert path.is_relative_to(place / "user") and Path(".trimtab-cache").read_text() == "a file of somebody's"


def test_what_is_in_the_current_folder_is_found_there(place, monkeypatch):
    path, _ = made()
    before = path.stat().st_mtime_ns
    read_only(monkeypatch, place / "work")
    assert made() == (path, path) and path.stat().st_mtime_ns == before and not (place / "user").exists()


def test_neither_takes_it(place, monkeypatch):
    """The temporary folder then; and a cache that was asked for by name is never replaced by another."""
    read_only(monkeypatch, place / "work")
    (place / "user").mkdir()
    read_only(monkeypatch, place / "user")
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(place / "temporary"))
    assert made()[0].is_relative_to(place / "temporary" / f"trimtab-{os.getuid()}")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert made()[0].is_relative_to(place / "temporary")
    monkeypatch.setenv("TRIMTAB_CACHE", "/proc/nowhere")
    with pytest.raises(OutputError, match=r"/proc/nowhere cannot be made .*TRIMTAB_CACHE"):
        made()


def test_runs_and_ensembles_from_a_read_only_folder(place, monkeypatch):
    Path("small.toml").write_text(TEXT)
    out = place / "out"
    out.mkdir()
    assert main(["train", "small.toml", "--out", str(out / "run")]) == 0
    shutil.rmtree(".trimtab-cache")
    mounted = False
    if os.getuid() == 0 and shutil.which("mount"):  # a real one, where the system lets it
        command = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(place / "work")]
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        monkeypatch.chdir(place / "work")
        if not mounted:
            read_only(monkeypatch, place / "work")
        else:
            assert not os.access(".", os.W_OK)
        run = str(out / "run")
        assert main(["run", run, "--steps", "4", "--out", str(out / "a.nc")]) == 0
        assert main(["ensemble", run, "--members", "2", "--steps", "4", "--out", str(out / "e.nc")]) == 0
    finally:
        monkeypatch.chdir(place)
        if mounted:
            subprocess.run(["umount", str(place / "work")], check=True)
    with xr.open_dataset(out / "e.nc", decode_times=False) as file:
        assert np.isfinite(file["u"]).all()
    assert any((place / "user" / "trimtab" / "reference").rglob("reference-*.nc"))
