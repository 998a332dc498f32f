# SPDX-License-Identifier: MIT
"""What surrounds a command: variables that are empty or absurd, a user without a name, an encoding, a file for a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.experiments import EXPERIMENT
from helpers.lorenz import LORENZ, trained
from trimtab.cli.terminal import print_pairs
from trimtab.config.experiment import load_experiment, parse_experiment
from trimtab.core.errors import ConfigError
from trimtab.parallel.launcher import LAUNCHERS, MOST_THREADS, asked_threads, launched, threads_of_openmp

COMMAND = [str(Path(sys.executable).parent / "trimtab")]
MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
THREADS = """
import os, torch
from trimtab.bridge.threads import configure_runtime
for value in ("", "many", "0", "2", "2,1"):
    os.environ["OMP_NUM_THREADS"] = value
    torch.set_num_threads(2)
    configure_runtime.cache_clear()
    configure_runtime()
    print(torch.get_num_threads())
"""


def run(*command: str, before=(), code: int = 0, **environment: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "TRIMTAB_THREADS")}
    done = subprocess.run([*before, *command], env={**kept, **environment}, capture_output=True, timeout=300)
    assert done.returncode == code and b"Traceback" not in done.stderr, (done.returncode, done.stdout, done.stderr)
    return done


def test_idle_threads_sleep_unless_the_user_says_otherwise():
    script = "from trimtab.__main__ import main; main(['experiments']); import os; print(os.environ['OMP_WAIT_POLICY'])"
    for given, wanted in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == wanted


def test_a_variable_that_is_empty_or_unreadable_counts_as_unset():
    """As a job script leaves OMP_NUM_THREADS under srun: one thread a rank, not all cores."""
    done = run(sys.executable, "-c", THREADS, PMI_SIZE="2", PMI_RANK="0")
    assert done.stdout.split() == [b"1", b"1", b"1", b"2", b"2"]


def test_threads_are_read_or_refused(monkeypatch):
    for name in (*(one for pair in LAUNCHERS for one in pair), "OMP_NUM_THREADS", "TRIMTAB_THREADS"):
        monkeypatch.setenv(name, "")
    assert (asked_threads(), threads_of_openmp(), launched()) == (0, 0, (0, 0))
    monkeypatch.setenv("PMI_SIZE", "four")
    assert launched() == (0, 0)
    for value in ("100000", "0", "-1", "two", "²", "9" * 5000):
        monkeypatch.setenv("TRIMTAB_THREADS", value)
        with pytest.raises(ConfigError, match=f"from 1 to {MOST_THREADS}: give as many as there are cores"):
            asked_threads()
    monkeypatch.setenv("TRIMTAB_THREADS", "3")
    assert asked_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    with pytest.raises(ConfigError, match="OMP_NUM_THREADS='100000' is more than 1024 threads"):
        asked_threads()


def test_more_threads_than_any_machine_has_are_a_sentence_from_a_command(tmp_path):
    done = run(*COMMAND, "train", "lorenz63", "--out", str(tmp_path / "run"), code=2, TRIMTAB_THREADS="100000")
    assert done.stderr.decode().strip().endswith("give as many as there are cores.") and not done.stdout


@pytest.mark.parametrize("number", ["1" + "0" * 400, "9" * 5000, "-" + "9" * 400, "0x" + "f" * 6000, "1e400"])
@pytest.mark.parametrize("key", ["reference.perturbation", "training.epochs", "solver.dt", "network.sizes", "score.leads"])
def test_a_number_of_hundreds_of_digits_is_a_sentence(key, number):
    section, name = key.split(".")
    value = f"[3, {number}]" if name in ("sizes", "leads") else number
    text = f'[solver]\nname = "lorenz63"\n[{section}]\n{name} = {value}\n'.replace("[solver]\n[", "[")
    if section == "solver":
        text = f'[solver]\nname = "lorenz63"\n{name} = {value}\n'
    if number == "1e400" and section in ("solver", "network"):
        assert parse_experiment(text, "test")  # inf, which the solver or network refuses itself
        return
    with pytest.raises(ConfigError) as refused:
        parse_experiment(text, "test")
    assert len(str(refused.value)) < 300
    with pytest.raises(ConfigError):
        parse_experiment('[solver]\nname = "lorenz63"\n', "test", [f"{key}={value}"])


def test_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbf" + EXPERIMENT.encode())
    assert load_experiment(tmp_path / "bom.toml").solver.name == "lorenz63"
    deep = "[" * 5000 + "]" * 5000
    with pytest.raises(ConfigError, match="not valid TOML"):
        parse_experiment(f"x = {deep}", "deep.toml")


def test_an_encoding_without_a_character_replaces_it(tmp_path):
    """A table with ±, ↑ and θ; the files are UTF-8 whatever the terminal takes."""
    text = EXPERIMENT.replace("a small one for the tests", "für θ ± ↑").replace("epochs = 2", "epochs = 1")
    (tmp_path / "exp.toml").write_text(text.replace("long_steps = 200", "long_steps = 20"), encoding="utf-8")
    environment = {"PYTHONIOENCODING": "ascii", "TRIMTAB_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "LC_ALL": "C",
                   "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run(*COMMAND, "train", str(tmp_path / "exp.toml"), "--out", str(tmp_path / "run"), **environment)
    assert b"rmse" in done.stdout.lower() and b"?" in done.stdout
    assert "für θ ± ↑" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")


def test_a_user_without_a_name_and_a_home(tmp_path, open_solver):
    """As in containers: `version` and `export` work, compiled in a folder of its own in TMPDIR that nobody else may write to."""
    trained(tmp_path / "RUN", LORENZ.replace("DTYPE", "float32").replace("SLOT", "false"), open_solver)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pwd\ndef nobody(number):\n    raise KeyError(f'getpwuid(): uid not found: {number}')\n"
        "pwd.getpwuid = nobody\n[os.environ.pop(one, None) for one in ('HOME', 'TRIMTAB_CACHE', 'XDG_CACHE_HOME')]\n")
    environment = {"TMPDIR": str(tmp_path / "tmp"), "CXX": "false", "PYTHONPATH": str(tmp_path)}
    own = tmp_path / "tmp" / f"trimtab-{os.getuid()}"
    assert str(own) in run(*COMMAND, "version", **environment).stdout.decode()
    export = (*COMMAND, "export", str(tmp_path / "RUN"), "--overwrite", "--out", str(tmp_path / "out"))
    done = run(*export, **environment)
    said = done.stdout.decode()
    assert "No library correction.so: AOTInductor does not take it" in said and "correction.ts" in said, said
    assert "compiling the correction with AOTInductor" in done.stderr.decode()
    assert "No library correction.so" in done.stderr.decode()  # the log's warning
    assert own.stat().st_mode & 0o077 == 0
    own.chmod(0o777)
    assert "is somebody else's, or others may write to it" in run(*export, **environment).stdout.decode()


def test_a_table_in_a_file_is_plain_and_wide(capsys, monkeypatch, tmp_path):
    """Whatever the environment asks of rich; and under mpirun, which gives ranks a terminal of no width."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1")
    print_pairs("", [("name", "word " * 60)])
    out = capsys.readouterr().out
    assert "\x1b" not in out and len(out.splitlines()) == 1
    table = ("from trimtab.cli.terminal import print_checks\n"
             "print_checks('title', [['what is measured ' * 5, '1', 'expected ' * 8, 'outside', 'source ' * 9]])")
    said = subprocess.run([sys.executable, "-c", table], capture_output=True, text=True, check=True).stdout
    assert "\x1b" not in said and sum("outside" in line and "source source" in line for line in said.splitlines()) == 1
    said = subprocess.run(["mpirun", "-n", "1", sys.executable, "-c", table], capture_output=True, text=True, check=True,
                          env={**os.environ, **MPI}).stdout
    assert "\x1b" not in said and sum("outside" in line and "source source" in line for line in said.splitlines()) == 1


def test_a_table_on_a_terminal_has_its_width():
    """Colours there, folded to the columns that there are."""
    table = "from trimtab.cli.terminal import print_checks; print_checks('t', [['what', '1', 'expected ' * 30, 'outside', 's']])"
    script = (f"import fcntl, os, struct, sys, termios; fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('4H', 24, 90, 0, 0))\n"
              f"os.environ.pop('COLUMNS', None)\n{table}")
    seen = bytearray()

    def read(file: int) -> bytes:
        seen.extend(part := os.read(file, 4096))
        return part

    with open(os.devnull, "w") as nothing:
        before = os.dup(1)
        os.dup2(nothing.fileno(), 1)
        try:
            pty.spawn([sys.executable, "-c", script], read)
        finally:
            os.dup2(before, 1)
            os.close(before)
    text = seen.decode()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert "\x1b[1m" in text and 80 < max(map(len, lines)) <= 90 and text.count("expected") == 31
