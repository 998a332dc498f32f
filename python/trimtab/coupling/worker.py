# SPDX-License-Identifier: MIT
"""The process in which the doctor's checks run: the code may end it, and only it."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trimtab.bridge.threads import configure_runtime
from trimtab.config.experiment import load_experiment
from trimtab.coupling.blame import finding_of
from trimtab.coupling.checks import basic as checks
from trimtab.coupling.checks.cold_start import check_cold
from trimtab.coupling.checks.description import check_experiment
from trimtab.coupling.checks.restart import check_long_restart, check_restart
from trimtab.coupling.checks.start import check_again, check_random, check_runs, check_start
from trimtab.coupling.checks.times import check_times
from trimtab.coupling.checks.training import check_training
from trimtab.coupling.checks.truth import OPENING, check_opening, check_truth
from trimtab.coupling.checks.weight import check_weight
from trimtab.coupling.finding import START, Finding
from trimtab.coupling.harness import Bench, begins_alike
from trimtab.parallel.launcher import asked_threads, threads_of_openmp

PLAIN: dict[str, Callable[[Bench], list[Finding]]] = {
    "description": check_experiment,
    OPENING: check_opening,
    "times": check_times,
    "files": checks.check_files,
    "empty slot": checks.check_empty_slot,
    START: check_start,
    "opened twice": check_again,
    "random numbers": check_random,
    "restart": check_restart,
    "restart, long": check_long_restart,
    "runs": check_runs,
    "cold start": check_cold,
    "memory": checks.check_memory,
    "cost": checks.check_cost,
    "blow-up": checks.check_stop,
}


FORGETFUL = ("random numbers", "restart", "restart, long")  # after which further runs of the code show nothing


def work() -> None:
    """Read {"toml", "checks", "weight", "hand", "longest", "folder", "causes", "debug"} as JSON, answer each check with
    {"begin"}, {"run"} at each run of the code, and {"findings"}, JSON lines."""
    messages = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not mix with the messages
    task = json.load(sys.stdin)

    def tell(**message: Any) -> None:
        messages.write(json.dumps(message) + "\n")

    def failed(name: str, error: Exception) -> None:
        if task["debug"]:
            tell(traceback="".join(traceback.format_exception(error)))
        tell(findings=[asdict(finding_of(name, error))])

    tell(begin="open")
    try:
        one_thread()
        bench = Bench(load_experiment(task["toml"]), task["longest"], lambda text: tell(run=text))
    except Exception as error:
        failed("open", error)
        return
    bench.forgets, bench.untrue = task["causes"].get("forgets", ""), task["causes"].get("untrue", "")
    tell(findings=[])
    weight, alike = task["weight"], begins_alike(bench.experiment.solver.options)
    for name in task["checks"]:
        tell(begin=name)
        more: dict[str, Any] = {}
        try:
            if name == "weight":
                found, measured = check_weight(bench, Path(task["folder"]))
                weight = weight if task["hand"] else measured  # its author's is what a training uses
                more = {"weight": measured}
            elif name == "gradient":
                found = checks.check_gradient(bench, weight or {})
            elif name == "truth":
                found = check_truth(bench, weight or {}, Path(task["toml"]))
            elif name == "training":
                found, more["settings"] = check_training(bench, weight or {}, Path(task["toml"]), write=task["write"])
            else:
                found = PLAIN[name](bench)
        except Exception as error:
            failed(name, error)
            if name == START:
                break
            continue
        if name in FORGETFUL and not alike and any(one.state == "bad" for one in found):
            bench.forgets = bench.forgets or name
        tell(findings=[asdict(one) for one in found], causes={"forgets": bench.forgets, "untrue": bench.untrue}, **more)
        if name == START and any(one.state == "bad" for one in found):
            break
    bench.close()


def one_thread() -> None:
    """Torch gets one thread here unless the environment asks for another number: with all of them, a busy machine makes a small
    network hundreds of times slower, and what a training takes was a guess."""
    if not asked_threads() and not threads_of_openmp():
        os.environ["TRIMTAB_THREADS"] = "1"
    configure_runtime()
