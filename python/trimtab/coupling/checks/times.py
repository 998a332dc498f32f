# SPDX-License-Identifier: MIT
"""Are the times of the experiment whole numbers of steps? Looked at before anything runs."""

from __future__ import annotations

import contextlib
from pathlib import Path

from trimtab.core.errors import ConfigError, DataError
from trimtab.coupling.finding import Finding, in_unit, unchecked
from trimtab.coupling.harness import Bench
from trimtab.data.lead_times import match_times
from trimtab.data.reference import recipe_of
from trimtab.data.reference_reader import find_interval, interval_error, match_interval, open_file
from trimtab.data.reference_run import whole_steps

TIMES = "times"
MULTIPLE = "give a multiple of dt, as the code keeps it, or another training.stride"


def check_times(bench: Bench) -> list[Finding]:
    """The truth's spin-up and interval, or the times of its file, and the lead times of the scores, against the time step."""
    if bench.untrue:
        return [unchecked(TIMES, bench.untrue)]
    spec, reference = bench.spec, bench.experiment.reference
    text = f"dt = {in_unit(spec.dt, spec.time_units, 9)} ({spec.dt_kind})"
    h = bench.stride * spec.dt
    bench.untrue = TIMES  # unless they fit
    try:
        if reference.file:
            path = Path(reference.file)
            if not path.exists():
                return [Finding(TIMES, "bad", f"{text}; there is no reference.file = {reference.file}", "give the truth's file")]
            with contextlib.closing(open_file(path)) as file:
                interval, error = find_interval(file, path, spec.time_units), interval_error(file)
            skip, gap = match_interval(interval, h, path, error)
            interval = gap * h / skip
            text += f"; {path.name} has a snapshot every {gap} outer steps" if gap > 1 else \
                f"; an outer step is {skip} of the intervals of {path.name}"
        else:
            interval, said = _of_the_truth(bench)
            text += said
        bench.untrue = ""
        match_times(spec.dt, bench.stride, interval, bench.experiment.score.leads)
    except (ConfigError, DataError) as error:
        return [Finding(TIMES, "bad", f"{text}; {error}", MULTIPLE)]
    return [Finding(TIMES, "ok", f"{text}; the lead times of the scores fall on snapshots")]


def _of_the_truth(bench: Bench) -> tuple[float, str]:
    """Time between two snapshots, and what was found of the truth's times.

    Raises:
        ConfigError: one that is no whole number of steps.
    """
    recipe = recipe_of(bench.experiment, bench.spec)
    truth = bench.opened(recipe.truth) if bench.experiment.reference.solver else bench.spec
    asked = [("reference.interval", recipe.interval, truth), ("reference.spin_up", recipe.spin_up, truth)]
    if recipe.coarse:
        asked.append(("reference.coarse.spin_up", recipe.coarse_spin_up, bench.opened(recipe.coarse)))
    counts = [(name, whole_steps(time, spec.dt, name, spec.dt_kind)) for name, time, spec in asked]
    if counts[0][1] < 1:
        raise ConfigError(f"reference.interval = {recipe.interval:g} is shorter than the truth's step dt = {truth.dt:g}.")
    return recipe.interval, "".join(f"; {name} = {count} steps" + (" of the truth" if truth.dt != bench.spec.dt else "")
                                    for name, count in counts)
