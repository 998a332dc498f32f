# SPDX-License-Identifier: MIT
"""What the adapter says of the code, and whether a training would take the experiment at all."""

from __future__ import annotations

from trimtab.core.errors import TrimtabError
from trimtab.coupling.checks.basic import check_description
from trimtab.coupling.finding import Finding
from trimtab.coupling.harness import Bench
from trimtab.training.checkpoint import take_weights
from trimtab.training.refusals import check_fit

ROW = "description, training"


def check_experiment(bench: Bench) -> list[Finding]:
    """The adapter's rows; and a bad one where a training would end at once: its network, gradient, options or weights do not fit.

    Args:
        bench: the code.
    """
    findings = check_description(bench)
    experiment = bench.experiment
    if not bench.spec.slots:
        return findings
    try:
        correction, _ = check_fit(experiment, bench.solver, bench.local, bench.spec)
        if experiment.training.start_from:
            take_weights(correction, experiment.training.start_from, bench.local)
    except TrimtabError as error:
        findings.append(Finding(ROW, "bad", f"`trimtab train` refuses this TOML: {error}",
                                "correct [network], [correction] or [training] in the TOML"))
    return findings
