# SPDX-License-Identifier: MIT
"""`trimtab couple check`: every check in a process that the code may end, one table, one remedy a line."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trimtab.bridge.ranks import mpi_libraries
from trimtab.config import Experiment, load_experiment
from trimtab.coupling.finding import Finding
from trimtab.coupling.weight import write_weight
from trimtab.errors import ConfigError

CHECKS = ("description", "files", "empty slot", "restart", "weight", "gradient", "memory", "cost", "blow-up")
PATIENCE = 1800.0  # seconds that one check may take
COLOURS = {"ok": "green", "note": "yellow", "bad": "bold red"}
LOG_WIDTH = 150


def check_coupling(source: str | Path, *, write: bool = True, tell: Callable[[str], None] = lambda name: None) -> list[Finding]:
    """Check a coupled code.

    Args:
        source: its TOML, or the folder that holds one.
        write: put the measured weight into the TOML where it differs from what the TOML believes.
        tell: told which check begins.

    Returns:
        The findings, in the order of the table.

    Raises:
        ConfigError: no TOML, or one that cannot be read.
    """
    path = find_toml(source)
    experiment = load_experiment(path)
    findings: list[Finding] = []
    with in_folder(path):
        library = Path(experiment.solver.options.get("library", ""))
        shared = bool(library.is_file() and mpi_libraries(library))
    if shared:
        findings.append(Finding("ranks", "ok", "the code calls MPI, and is looked at here on one rank",
                                "on several, with blocks and halos: mpirun -n 2 trimtab couple check"))
    remaining, weight = list(CHECKS), dict(experiment.solver.options.get("weight", {}))
    # What the code started may still clear up after it in there.
    with tempfile.TemporaryDirectory(prefix="trimtab-check-", ignore_cleanup_errors=True) as scratch:
        while remaining:
            begun, done, answer, ending = _run(path, remaining, weight, Path(scratch), tell)
            findings += done
            if "weight" in answer:
                findings += compare_weight(path, weight, answer["weight"], write)
                weight = answer["weight"]
            if begun == "open" and ending is None:
                break
            if ending is None:
                remaining = []
            else:
                findings.append(_ended(experiment, begun, ending, _last_words(Path(scratch)), shared))
                if begun == "open":
                    break
                remaining = remaining[remaining.index(begun) + 1 :]
            shutil.rmtree(scratch, ignore_errors=True)
            Path(scratch).mkdir(exist_ok=True)
    if any(one.check == "restart" and one.state == "bad" for one in findings):
        findings = [Finding(one.check, "note", "cannot be told while a restart differs", "see restart")
                    if one.check == "empty slot" and one.state == "bad" else one for one in findings]
    options = experiment.solver.options
    if options.get("isolation") == "fork" or options.get("snapshot") == "image":
        findings = [Finding(one.check, "note", one.found, "every rollout begins with what the code remembered when it was "
                                                          "opened, so "
                            "that it repeats; a truth run in one go had that memory from its own past")
                    if one.check == "restart" and one.state == "bad" else one for one in findings]
    order = {name: number for number, name in enumerate(CHECKS)}
    return sorted(findings, key=lambda one: next((order[name] for name in CHECKS if one.check.startswith(name)), 0))


def find_toml(source: str | Path) -> Path:
    """The TOML of a folder, or the file itself.

    Raises:
        ConfigError: none, or several.
    """
    path = Path(source)
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.toml"))
    if len(found) != 1:
        raise ConfigError(f"{path} holds {len(found)} TOML files{': ' if found else ''}{', '.join(one.name for one in found)}; "
                          "name one.")
    return found[0]


@contextlib.contextmanager
def in_folder(path: Path) -> Iterator[None]:
    """In the folder of a TOML, from where its names of files count."""
    before = os.getcwd()
    os.chdir(path.resolve().parent)
    try:
        yield
    finally:
        os.chdir(before)


def print_findings(findings: list[Finding]) -> None:
    """The table and its sum, on standard output."""
    table = Table(box=box.SIMPLE_HEAD, title="Coupling", title_justify="left", show_lines=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", ratio=3)
    table.add_column("remedy", ratio=2)
    for one in findings:
        table.add_row(one.check, Text(one.state, COLOURS[one.state]), Text(one.found), Text(one.remedy))
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    console.print(table, highlight=False)
    count = {state: sum(one.state == state for one in findings) for state in COLOURS}
    console.print(f"{count['ok']} ok, {count['note']} to note, {count['bad']} bad", highlight=False)


def _run(path: Path, names: list[str], weight: dict[str, Any], scratch: Path,
         tell: Callable[[str], None]) -> tuple[str, list[Finding], dict[str, Any], str | None]:
    """One process: the check begun last, findings, other answers, and how it ended when it should not have."""
    command = [sys.executable, "-c", "import sys; sys.path.insert(0, ''); from trimtab.coupling.probe import work; work()"]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with (scratch / "errors.txt").open("w") as errors, subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
            cwd=path.resolve().parent) as process:
        lines: queue.Queue[str | None] = queue.Queue()

        def listen() -> None:
            for line in process.stdout or ():
                lines.put(line)
            lines.put(None)

        threading.Thread(target=listen, daemon=True).start()
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"toml": path.name, "checks": names, "weight": weight}))
            process.stdin.close()
            begun, finished, found = "open", False, []
            answer: dict[str, Any] = {}
            while True:
                line = lines.get(timeout=PATIENCE)
                if line is None:
                    break
                message = json.loads(line)
                if "begin" in message:
                    begun, finished = message["begin"], False
                    tell(begun)
                else:
                    found += [Finding(**one) for one in message.pop("findings")]
                    answer |= message
                    finished = True
            code = process.wait()
        except queue.Empty:
            return begun, found, answer, f"did not end within {PATIENCE:g} s"
        finally:
            process.kill()
    return begun, found, answer, None if finished and code == 0 else f"ended the process with {_exit(code)}"


def compare_weight(path: Path, believed: dict[str, Any], measured: dict[str, Any], write: bool) -> list[Finding]:
    """What the TOML believes against what was measured.

    Args:
        path: the TOML.
        believed, measured: [solver] weight.
        write: put the measured one into the TOML.

    Returns:
        One finding.
    """
    if measured == believed:
        return [Finding("weight in TOML", "ok", "as measured" if measured else "none is needed: every output moves its field "
                                                                               "by c h")]
    said = "not what was measured" if believed else "none, and one is needed for the gradient"
    if not write:
        return [Finding("weight in TOML", "note", said, "leave out --keep and it is written")]
    write_weight(path, measured)
    return [Finding("weight in TOML", "ok", f"was {said}: {'written' if measured else 'taken out of'} {path.name}")]


def _ended(experiment: Experiment, name: str, ending: str, words: str, shared: bool) -> Finding:
    isolated = experiment.solver.options.get("isolation", "process") != "none"
    said = f"the code {ending}{words}"
    if name != "blow-up":
        return Finding(name, "bad", said, "the code must survive this check: see what it printed")
    if shared:
        return Finding(name, "note", f"at a blow-up {said}", "a code that calls MPI runs in the ranks, so that this ends a "
                       "training, whose last checkpoint is whole; let it return there if it can, and the window is dropped")
    return Finding(name, "ok" if isolated else "note", f"at a blow-up {said}", "" if isolated else
                   "take isolation = \"none\" out of [solver]: a process of its own keeps a training alive through that")


def _exit(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code} (a STOP, most likely)"


def _last_words(scratch: Path) -> str:
    for path in (*scratch.rglob("trimtab.log"), scratch / "errors.txt"):
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.is_file() else []
        if lines:
            break
    return f", having printed: {' / '.join(lines[-2:])}" if lines else ""
