# SPDX-License-Identifier: MIT
"""`trimtab couple check`: every check in a process that the code may end, one table, one remedy a line."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.bridge.adapter_mpi import mpi_libraries
from trimtab.config.experiment import Experiment, load_experiment
from trimtab.core.atomic_files import is_writable
from trimtab.core.errors import ConfigError
from trimtab.coupling.checks.truth import OPENING
from trimtab.coupling.checks.truth import ROW as TRUTH
from trimtab.coupling.checks.weight import UNTOLD
from trimtab.coupling.finding import START, Finding, once, unchecked
from trimtab.coupling.harness import FEW, begins_alike
from trimtab.coupling.settings import ROW as SETTINGS
from trimtab.coupling.settings import write_settings
from trimtab.coupling.weight_line import ROW, by_hand, compare_weight

CHECKS = ("description", OPENING, "times", START, "opened twice", "files", "random numbers", "empty slot", "restart",
          "restart, long", "cold start", "weight", "gradient", "truth", "memory", "runs", "training", "cost", "blow-up")
ENDING = ("open", OPENING, "restart, long", "blow-up")  # in which a code may end without being looked at again
RESTARTS = ("restart", "restart, long")
LOG_WIDTH = 150      # columns of the table in a file or a pipe
PATIENCE = 1800.0  # seconds that one check may take
ENDS = re.compile(r"(ERROR )?STOP\b|Fortran runtime error")
ABORTED = re.compile(r"the code ended this process, by MPI_ABORT \(exit code (-?\d+)\)")
BOILERPLATE = re.compile(r"NOTE: invoking MPI_ABORT causes Open MPI to kill.*?exactly when Open MPI kills them\.", re.DOTALL)
WORDS = 4000  # bytes of a log that are looked at
SURVIVE = ("see what it printed. Has it come to its last step: describe its counter of steps with trimtab_hidden, so that it is "
           "put back, or set the last step out of reach (a namelist, an option). Has it blown up: a calmer start, a shorter dt")


def check_coupling(source: str | Path, *, write: bool = True, tell: Callable[[str], None] = lambda name: None,
                   debug: bool = False) -> list[Finding]:
    """Check a coupled code.

    Args:
        source: its TOML, or the folder that holds one.
        write: put the measured weight into the TOML where it differs from what the TOML believes.
        tell: told which check begins.
        debug: print the traceback of an error that ends a check.

    Returns:
        The findings, in the order of the table.

    Raises:
        ConfigError: no TOML, or one that cannot be read.
    """
    path = find_toml(source)
    experiment = load_experiment(path)
    findings: list[Finding] = []
    repeats = begins_alike(experiment.solver.options)  # whatever the code remembers
    with in_folder(path):
        library = Path(experiment.solver.options.get("library", ""))
        shared = bool(library.is_file() and mpi_libraries(library))
    if shared:
        findings.append(Finding("ranks", "ok", "the code calls MPI, and is looked at here on one rank",
                                "on several, with blocks and halos: mpirun -n 2 trimtab couple check"))
    causes: dict[str, str] = {}
    remaining, weight, longest = list(CHECKS), dict(experiment.solver.options.get("weight", {})), 0
    hand = by_hand(path, weight)
    # What the code started may still clear up after it in there.
    with tempfile.TemporaryDirectory(prefix="trimtab-check-", ignore_cleanup_errors=True) as root:
        scratch, folder = Path(root) / "scratch", Path(root)
        if write and not hand and is_writable(path.resolve().parent):
            folder = Path()
        scratch.mkdir()
        while remaining:
            seen = _run(path, remaining, weight, longest, scratch, folder, tell, hand, write=write, causes=causes, debug=debug)
            findings += seen.findings
            causes |= seen.answer.get("causes", {})
            if seen.ending and not longest and seen.begun not in ENDING:  # perhaps it is sound before
                believed = weight if hand else seen.answer.get("weight", weight)
                short = _run(path, [seen.begun], believed, FEW, scratch, folder, tell, hand, write=write, causes=causes,
                             debug=debug)
                findings += short.findings
                findings.append(_ended(experiment, short, shared) if short.ending else _lasted(seen))
                longest = 0 if short.ending else FEW
                seen.answer |= short.answer
            elif seen.ending:
                findings.append(_ended(experiment, seen, shared))
            causes["untrue"] = _bad(findings, TRUTH) or causes.get("untrue", "")
            causes["forgets"] = causes.get("forgets") or ("" if repeats else _bad(findings, "random numbers", *RESTARTS))
            if "weight" in seen.answer:
                forgets = not repeats and _bad(findings, "random numbers", *RESTARTS)
                findings += [unchecked(ROW, forgets)] if forgets else judge_weight(path, weight, seen, write, hand)
                weight = weight if hand else seen.answer["weight"]
            if seen.answer.get("settings"):
                wrong = next((one.check for one in findings if one.state == "bad"), "")
                findings += [unchecked(SETTINGS, wrong)] if wrong else write_settings(path, seen.answer["settings"], write)
            if _bad(findings, START):
                findings += [unchecked(name, START) for name in CHECKS[CHECKS.index(START) + 1 :]]
                break
            if seen.begun == "open" or seen.ending is None:
                break
            remaining = remaining[remaining.index(seen.begun) + 1 :]
    findings = _by_cause(once(findings))
    if repeats:
        findings = [Finding(one.check, "note", one.found, "every rollout begins with what the code remembered when it was "
                                                          "opened, so "
                            "that it repeats; a truth run in one go had that memory from its own past")
                    if one.check in (*RESTARTS, "random numbers") and one.state == "bad" else one for one in findings]
    order = {name: number for number, name in enumerate(CHECKS)}
    return sorted(findings, key=lambda one: next((order[name] for name in reversed(CHECKS) if one.check.startswith(name)), 0))


def judge_weight(path: Path, believed: dict[str, Any], seen: Seen, write: bool, hand: bool) -> list[Finding]:
    """The row of the TOML's weight: none is written, nor called right, where an output does not arrive.

    Args:
        path, believed, write, hand: see `compare_weight`.
        seen: findings and answer of the check of the weight.
    """
    rows = {one.check.removeprefix("weight of "): one for one in seen.findings
            if one.check == "weight" or one.check.startswith("weight of ")}
    wrong = [one.check for one in rows.values() if one.state == "bad"]
    if wrong:
        return [unchecked(ROW, wrong[0])]
    untold = [name for name, one in rows.items() if UNTOLD in one.found]
    return compare_weight(path, believed, seen.answer["weight"], write, hand=hand, untold=untold)


def _by_cause(findings: list[Finding]) -> list[Finding]:
    """What is bad for what the code forgets is not bad by itself: restarts for random numbers, the long restart for the short
    one, the empty slot for both."""
    for cause, spoilt in (("random numbers", (*RESTARTS, "empty slot")), ("restart", ("restart, long", "empty slot"))):
        if _bad(findings, cause):
            findings = [unchecked(one.check, cause) if one.check in spoilt and one.state == "bad" else one for one in findings]
    return findings


def _bad(findings: list[Finding], *names: str) -> str:
    """The first of some checks that is bad; "" when none is."""
    return next((one.check for one in findings if one.check in names and one.state == "bad"), "")


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


@dataclass
class Seen:
    """What one process told.

    Args:
        begun: the check begun last.
        run: the run of the code begun last, in words.
        findings, answer: of the checks that ended.
        ending: how it ended when it should not have, and what the code printed last.
    """

    begun: str = "open"
    run: str = ""
    findings: list[Finding] = field(default_factory=list)
    answer: dict[str, Any] = field(default_factory=dict)
    ending: str | None = None


def _run(path: Path, names: list[str], weight: dict[str, Any], longest: int, scratch: Path, folder: Path,
         tell: Callable[[str], None], hand: bool, *, write: bool, causes: Mapping[str, str], debug: bool) -> Seen:
    """Checks in one process, in a scratch folder that is emptied before; a response is written into `folder`."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(exist_ok=True)
    command = [sys.executable, "-P", "-c", "from trimtab.coupling.worker import work; work()"]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    seen, finished = Seen(), False
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
            process.stdin.write(json.dumps({"toml": path.name, "checks": names, "weight": weight, "longest": longest,
                                            "folder": str(folder), "hand": hand, "write": write, "causes": dict(causes),
                                            "debug": debug}))
            process.stdin.close()
            while (line := lines.get(timeout=PATIENCE)) is not None:
                message = json.loads(line)
                if "begin" in message:
                    seen.begun, seen.run, finished = message["begin"], "", False
                    tell(seen.begun)
                elif "traceback" in message:
                    print(message["traceback"], end="", file=sys.stderr, flush=True)
                elif "run" in message:
                    seen.run = message["run"]
                else:
                    seen.findings += [Finding(**one) for one in message.pop("findings")]
                    seen.answer |= message
                    finished = True
            code = process.wait()
            if not finished or code:
                seen.ending = f"ended the process with {_exit(code, scratch)}"
        except queue.Empty:
            seen.ending = f"did not end within {PATIENCE:g} s"
        finally:
            process.kill()
    if seen.ending:
        where = f" in {seen.run}" if seen.run and seen.begun != "blow-up" else ""
        seen.ending += f"{where}{_last_words(scratch)}"
    return seen


def _ended(experiment: Experiment, seen: Seen, shared: bool) -> Finding:
    said = f"the code {seen.ending}"
    if seen.begun == "open":
        return Finding("open", "bad", said, "trimtab_initialise in the adapter must come back: see what the code printed")
    if seen.begun == OPENING:
        return Finding(TRUTH, "bad", f"opening the truth's solver, {said}", "see [reference] solver")
    if seen.begun == "restart, long":
        return Finding(seen.begun, "note", said, f"a reference makes as many steps: {SURVIVE}")
    if seen.begun != "blow-up":
        return Finding(seen.begun, "bad", said, SURVIVE)
    if shared:
        return Finding("blow-up", "note", f"at a blow-up {said}", "a code that calls MPI runs in the ranks, so that this ends a "
                       "training, whose last checkpoint is whole; let it return there if it can, and the window is dropped")
    isolated = experiment.solver.options.get("isolation", "process") != "none"
    return Finding("blow-up", "ok" if isolated else "note", f"at a blow-up {said}", "" if isolated else
                   "take isolation = \"none\" out of [solver]: a process of its own keeps a training alive through that")


def _lasted(seen: Seen) -> Finding:
    return Finding(seen.begun, "note", f"the code {seen.ending}; what stands above is from runs of at most {FEW} steps", SURVIVE)


def _exit(code: int, scratch: Path) -> str:
    """How a process ended; of MPI_ABORT the code says so itself, through trimtab_stop.h."""
    if code < 0:
        return f"signal {-code}"
    said = ABORTED.search((scratch / "errors.txt").read_text(errors="replace"))
    return f"exit code {code} (MPI_ABORT with the code {said[1]})" if said else f"exit code {code} (a STOP, most likely)"


def _last_words(scratch: Path) -> str:
    # os.walk passes over folders that vanish meanwhile, as those of an MPI job that was aborted do.
    logs = [Path(folder) / "trimtab.log" for folder, _, files in os.walk(scratch) if "trimtab.log" in files]
    for path in (*logs, scratch / "errors.txt"):
        if path.is_file():
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - WORDS))
                lines = spoken_lines(file.read().decode(errors="replace"))
            if lines:
                ends = [line for line in lines[:-2] if ENDS.match(line)]  # buffered lines may come out after it
                return f", having printed: {' / '.join([*ends[-1:], *lines[-2:]])}"
    return ""


def spoken_lines(text: str) -> list[str]:
    """The lines of a log in which a code says something: without empty ones, rulers, and what Open MPI says of MPI_Abort."""
    lines = [line.strip() for line in BOILERPLATE.sub("\n", text).splitlines()]
    return [line for line in lines if any(map(str.isalnum, line))]
