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

from trimtab.config.experiment import load_experiment
from trimtab.core.errors import TrimtabError
from trimtab.coupling.checks import basic as checks
from trimtab.coupling.checks.cold_start import check_cold
from trimtab.coupling.checks.description import check_experiment
from trimtab.coupling.checks.restart import check_long_restart, check_restart
from trimtab.coupling.checks.start import check_again, check_random, check_runs, check_start
from trimtab.coupling.checks.times import check_times
from trimtab.coupling.checks.training import check_training
from trimtab.coupling.checks.truth import check_truth
from trimtab.coupling.checks.weight import check_weight
from trimtab.coupling.finding import MEND, START, Finding
from trimtab.coupling.harness import Bench

PLAIN: dict[str, Callable[[Bench], list[Finding]]] = {
    "description": check_experiment,
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


def work() -> None:
    """Read {"toml", "checks", "weight", "hand", "longest", "folder"} as JSON, answer each check with {"begin"}, {"run"} at each
    run of the code, and {"findings"}, JSON lines."""
    messages = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not mix with the messages
    task = json.load(sys.stdin)

    def tell(**message: Any) -> None:
        messages.write(json.dumps(message) + "\n")

    tell(begin="open")
    try:
        bench = Bench(load_experiment(task["toml"]), task["longest"], lambda text: tell(run=text))
    except TrimtabError as error:
        tell(findings=[asdict(Finding("open", "bad", str(error), "mend that first"))])
        return
    except Exception:
        tell(findings=[asdict(Finding("open", "bad", traceback.format_exc().strip().splitlines()[-1], "mend that first"))])
        return
    tell(findings=[])
    weight = task["weight"]
    for name in task["checks"]:
        tell(begin=name)
        try:
            if name == "weight":
                found, measured = check_weight(bench, Path(task["folder"]))
                weight = weight if task["hand"] else measured  # its author's is what a training uses
                tell(findings=[asdict(one) for one in found], weight=measured)
            elif name == "gradient":
                tell(findings=[asdict(one) for one in checks.check_gradient(bench, weight or {})])
            elif name == "truth":
                tell(findings=[asdict(one) for one in check_truth(bench, weight or {}, Path(task["toml"]))])
            elif name == "training":
                found, settings = check_training(bench, weight or {}, Path(task["toml"]), write=task["write"])
                tell(findings=[asdict(one) for one in found], settings=settings)
            else:
                plain = PLAIN[name](bench)
                tell(findings=[asdict(one) for one in plain])
                if name == START and any(one.state == "bad" for one in plain):
                    break
        except Exception as error:
            last = "" if isinstance(error, TrimtabError) else f"{type(error).__name__}: "
            tell(findings=[asdict(Finding(name, "bad", f"{last}{error}", MEND))])
            if not isinstance(error, TrimtabError):
                traceback.print_exc()
            if name == START:
                break
    bench.close()
