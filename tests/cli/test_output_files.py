# SPDX-License-Identifier: MIT
"""What a command writes over: regular files alone, one process at a time, and folders however they are called."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from helpers.experiments import EXPERIMENT, refusal
from helpers.lorenz import LORENZ, trained
from trimtab.__main__ import main
from trimtab.config.experiment import dump_experiment, parse_experiment
from trimtab.core.atomic_files import check_file, only_writer_of, replacing, replacing_in
from trimtab.core.errors import ConfigError, DataError

KINDS = {"device": "a device", "pipe": r"a pipe \(FIFO\)", "socket": "a socket", "folder": "a folder", "link": "a device"}


def special(kind: str, path: Path) -> Path:
    """Something at a path that is no regular file."""
    if kind == "device":
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:  # not as root
            path.symlink_to("/dev/null")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    return path


@pytest.fixture
def run_folder(tmp_path, open_solver, monkeypatch):
    """A run whose weights nobody trained."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    short = ("score.long_steps=50", "correction.dtype=float32", "reference.snapshots=40", "score.leads=[5]")
    experiment = dump_experiment(parse_experiment(EXPERIMENT, "test", short))
    trained(tmp_path / "RUN", experiment, open_solver)
    return tmp_path / "RUN"


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_left_alone(kind, tmp_path):
    """In the one place that replaces files, before anything is written; a pipe is not waited for."""
    path = special(kind, tmp_path / "x")
    before = path.lstat()
    with pytest.raises(ConfigError, match=f"x is {KINDS[kind]}, no regular file, and is left alone"), replacing(path):
        pytest.fail("the work is not begun")
    if kind != "folder":
        with pytest.raises(ConfigError, match="no folder, and is left alone"), replacing_in(path):
            pytest.fail("the work is not begun")
    with pytest.raises(ConfigError, match="left alone"), replacing_in(tmp_path) as partial:
        (partial / "a").write_text("new")
        (partial / "x").write_text("new")
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_rdev) == (before.st_ino, before.st_mode, before.st_rdev)
    assert [one.name for one in tmp_path.iterdir()] == ["x"]  # all of the files or none


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_every_command_leaves_it_alone(kind, run_folder, tmp_path, capsys):
    """Each says it before it computes, whatever --overwrite says."""
    run, x = str(run_folder), special(kind, tmp_path / "x")
    before = x.lstat()
    commands = [
        ("run", run, "--steps", "3", "--out", "x"),
        ("run", run, "--steps", "3", "--out", "x", "--overwrite"),
        ("ensemble", run, "--members", "2", "--steps", "3", "--out", "x", "--overwrite"),
        ("export", run, "--out", "x", "--overwrite"),
        ("couple", "init", "x", "--name", "lake"),
    ]
    for command in commands:
        sentence = refusal(capsys, *command)
        assert "left alone" in sentence, sentence
    after = x.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    special(kind, run_folder / "report.html")
    assert "report.html is" in refusal(capsys, "report", run)
    special(kind, run_folder / "scores.csv")
    assert "scores.csv is" in refusal(capsys, "score", run)
    assert not (run_folder / "curves.npz").exists()


def test_a_second_run_into_one_file_is_refused_and_the_first_goes_on(run_folder, tmp_path):
    """Two processes, one --out; the second says so before it computes."""
    command = [str(Path(sys.executable).parent / "trimtab"), "run", str(run_folder), "--every", "100", "--out", "x.nc"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([*command, "--steps", "4000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env=environment)
    try:
        while not (tmp_path / "x.nc.partial").exists():
            assert first.poll() is None, first.communicate()
            time.sleep(0.05)
        second = subprocess.run([*command, "--steps", "200"], capture_output=True, text=True, env=environment, timeout=120)
        assert first.poll() is None and (tmp_path / "x.nc.partial").exists()
        assert second.returncode == 2 and "Another process is writing x.nc; wait for it" in second.stderr, second.stderr
    finally:
        first.kill()
        first.communicate()
    done = subprocess.run([*command, "--steps", "200"], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr  # a lock ends with its process, however that ends
    assert not [one.name for one in tmp_path.iterdir() if one.name.endswith((".lock", ".partial"))]


def test_writers_of_one_name_come_one_after_the_other(tmp_path):
    path, order = tmp_path / "x", []

    def write(text):
        with replacing(path) as partial:
            order.append("begins")
            partial.write_text(text)
            time.sleep(0.05)
            order.append("ends")

    threads = [threading.Thread(target=write, args=(str(number),)) for number in range(5)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert order == ["begins", "ends"] * 5 and path.read_text() in set("01234")
    assert [one.name for one in tmp_path.iterdir()] == ["x"]
    (tmp_path / ".x.lock").write_text("")  # of a process that was killed
    with only_writer_of(path), pytest.raises(DataError, match="Another process is writing"), only_writer_of(path):
        pytest.fail("two hold one name")
    check_file(path)


def test_this_folder_is_a_folder(open_solver, tmp_path, monkeypatch, capsys, compiled_cache):
    """`couple init .` and `export --out .`; also where the folder above cannot be written to."""
    trained(tmp_path / "RUN", LORENZ.replace("DTYPE", "float32").replace("SLOT", "true"), open_solver)
    (tmp_path / "a" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "here")
    (tmp_path / "a").chmod(0o500)
    try:
        assert main(["couple", "init", ".", "--name", "lake"]) == 0
        assert (Path.cwd() / "lake.toml").is_file()
        assert "already holds" in refusal(capsys, "couple", "init", ".", "--name", "lake")
        assert main(["export", str(tmp_path / "RUN"), "--out", ".", "--overwrite"]) == 0
    finally:
        (tmp_path / "a").chmod(0o700)
    assert (Path.cwd() / "manifest.json").is_file() and not list(Path.cwd().glob(".*"))
    shutil.rmtree(Path.cwd())
