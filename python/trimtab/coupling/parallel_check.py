# SPDX-License-Identifier: MIT
"""`mpirun -n 2 trimtab couple check`: a code on several ranks, looked at by all of them; do they compute what one computes?

Nothing here runs in a process that the code may end: what it does at a blow-up is tried on one rank.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from trimtab.config.experiment import load_experiment
from trimtab.core.atomic_files import is_writable
from trimtab.core.errors import ConfigError
from trimtab.corrections.factory import build_correction
from trimtab.corrections.slots import AnyCorrection
from trimtab.coupling.checks import basic as checks
from trimtab.coupling.checks.cold_start import check_cold
from trimtab.coupling.checks.description import check_experiment
from trimtab.coupling.checks.restart import check_restart
from trimtab.coupling.checks.weight import check_weight
from trimtab.coupling.finding import Finding, unchecked
from trimtab.coupling.harness import Bench
from trimtab.coupling.report import Seen, find_toml, in_folder, judge_weight
from trimtab.coupling.weight_line import ROW, by_hand
from trimtab.parallel.world import World

ALONE = ("random numbers", "restart, long", "runs")
STEPS = 8             # of the comparison with one rank
ROUNDING = 1e-9       # of the fields' size: sums over the ranks may be rounded in another order
AGREED = 1e-4         # of what a network in float64 does to the state: the same network on blocks


def check_together(source: str | Path, world: World, *, write: bool = True,
                   tell: Callable[[str], None] = lambda name: None) -> list[Finding]:
    """Check a coupled code that the ranks of this job share; all of them call this.

    Args:
        source: its TOML, or the folder that holds one.
        world: the ranks.
        write: put the measured weight into the TOML where it differs from what the TOML believes.
        tell: told which check begins.

    Returns:
        The findings, the same on every rank but for times.

    Raises:
        ConfigError: no TOML, one that cannot be read, or what the code or its adapter refuse.
    """
    path = find_toml(source).resolve()
    with in_folder(path):
        experiment = load_experiment(path)
        tell("open")
        bench = Bench(experiment, comm=world.domain)
        findings = [_blocks(bench, world)]
        for name, check in (("description", check_experiment), ("files", checks.check_files),
                            ("empty slot", checks.check_empty_slot), ("restart", check_restart),
                            ("cold start", check_cold)):
            tell(name)
            findings += check(bench)
            if name == "restart":
                bench.forgets = next((one.check for one in findings if one.check == name and one.state == "bad"), "")
        tell("weight")
        believed = dict(experiment.solver.options.get("weight", {}))
        hand = by_hand(path, believed)
        world.wait()  # before the first rank writes what the others read
        writes = write and world.rank == 0 and not bench.forgets and not hand
        found, weight = check_weight(bench, Path() if writes and is_writable(Path()) else bench.own.surroundings.folder)
        measured = Seen("weight", findings=found, answer={"weight": weight})
        findings += found
        findings += [unchecked(ROW, bench.forgets)] if bench.forgets else judge_weight(path, believed, measured, writes, hand)
        weight = believed if hand else weight
        tell("one rank")
        correction, compared = _compare(bench, world, weight)
        findings += compared
        tell("memory")
        findings += checks.check_memory(bench)
        if correction is not None:
            tell("cost")
            correction.output_scale.mul_(1e-3)  # over thousands of steps
            findings += checks.check_cost(bench, correction)
        elif bench.forgets:
            findings.append(unchecked("cost", bench.forgets))
        findings.append(Finding(", ".join(ALONE), "note", "not looked at here", "`trimtab couple check` without mpirun looks at "
                                "them, on one rank"))
        findings.append(Finding("blow-up", "note", "not tried here, where a STOP or MPI_Abort would end the job",
                                "`trimtab couple check` without mpirun tries it in a process of its own"))
        findings.append(Finding("truth", "note", "not compared with the solver here, nor is a training chosen",
                                "`trimtab couple check` without mpirun does both, on one rank"))
        bench.close()
    world.wait()
    return findings


def _blocks(bench: Bench, world: World) -> Finding:
    """Who holds what."""
    division = bench.own.division
    held = ", ".join(f"{whole} {dim} from {before}" for dim, (whole, before) in
                     ((dim, (division.lengths[dim], before)) for dim, (_, before) in division.dims.items()))
    return Finding("blocks", "ok", f"{world.size} ranks: {'; '.join(world.share(held))}")


def _compare(bench: Bench, world: World, weight: dict[str, object]) -> tuple[AnyCorrection | None, list[Finding]]:
    """The code alone on a rank against the code on all of them, without and with the network; and the gradient, alone."""
    if bench.forgets:
        names = ("one rank", "network", "gradient") if bench.spec.slots else ("one rank",)
        return None, [unchecked(name, bench.forgets) for name in names]
    try:
        alone = Bench(bench.experiment)
    except ConfigError as error:
        return None, [Finding("one rank", "note", f"cannot be compared with: {error}", "fine while all ranks of a job share the "
                              "code; the gradient is not checked")]
    one, all_of_them = alone.run(bench.state, 1, stride=STEPS)[1], bench.run(bench.state, 1, stride=STEPS)[1]
    findings = [_agreement("one rank", one - all_of_them, one, ROUNDING, "the same as on one rank",
                           "see whether the code exchanges its halo before each use, and what trimtab_block says")]
    if not bench.spec.slots:
        return None, findings
    correction = checks.scaled_network(alone, STEPS)
    try:
        here = build_correction(bench.experiment, bench.local).double()
        here.load_state_dict(correction.state_dict())
    except (RuntimeError, ConfigError):
        return None, [*findings, Finding("network", "bad", "its parameters depend on the size of a block",
                                         "take one that acts point by point or by a stencil, as a convolution does")]
    here.eval()
    if findings[0].state == "bad":
        return here, [*findings, *(unchecked(name, "one rank") for name in ("network", "gradient"))]
    pushed = [_run(alone, bench.state, correction), _run(bench, bench.state, here)]
    findings.append(_agreement("network", pushed[0] - pushed[1], pushed[0] - one, AGREED,
                               "does on blocks what it does on one rank", "its input needs its halo filled when the slot is "
                               "called, the corners, too, where the network looks "
                               "diagonally (a 3x3 convolution); it must not pad the divided dimension, nor look beyond the halo"))
    findings += [Finding(found.check, found.state, f"{found.found}; on one rank", found.remedy)
                 for found in checks.check_gradient(alone, weight)]
    alone.close()
    return here, findings


def _run(bench: Bench, state: np.ndarray, correction: AnyCorrection) -> np.ndarray:
    window = bench.solver.advance(state.reshape(1, -1), 1, stride=STEPS, correction=correction)
    return np.asarray(window.states[1, 0])


def _agreement(name: str, difference: np.ndarray, measure: np.ndarray, bound: float, good: str, remedy: str) -> Finding:
    largest, size = float(np.abs(difference).max()), float(np.abs(measure).max()) or 1.0
    said = "to the last bit" if not largest else f"but for {largest / size:.0e}"
    if largest <= bound * size:
        return Finding(name, "ok", f"{STEPS} steps: {good}, {said}")
    return Finding(name, "bad", f"{STEPS} steps differ from those on one rank by {largest / size:.1e} of the size", remedy)
