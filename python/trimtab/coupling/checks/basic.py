# SPDX-License-Identifier: MIT
"""The doctor's other checks: what the code is, what it touches, what a call costs, how far a gradient is right."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from trimtab.core.errors import TrimtabError
from trimtab.core.loss import field_size
from trimtab.core.spec import Field
from trimtab.corrections.factory import build_correction
from trimtab.corrections.slot_weights import SlotWeight, named_outputs
from trimtab.corrections.slots import AnyCorrection
from trimtab.coupling.checks.cost import on_threads, training_cost
from trimtab.coupling.finding import GRADCHECK, Finding, in_unit, unchecked
from trimtab.coupling.harness import A_CHECK, OTHER, Bench
from trimtab.gradient import get_gradient
from trimtab.gradient.gradcheck.check import gradcheck

ONCE = ("{calls:g} calls a step (stages, sweeps or split steps) show the network as many inputs, and the first is "
        "differentiated: call it once, after the step, with `call trimtab_add(state, 'x', dt)`, which is cheapest and exact over "
        "one step")
INPUT = ("one call a step is made: see whether what trimtab_give hands over is the state at the call's own step (not an old "
         "level or an average), whether a limiter or a branch follows on what trimtab_add changed, and the weights above")
ROUNDED = "rounding hides the gradient here, and says nothing against it: let the network move the fields more, or take real64"
UNSURE = ("the finite differences do not agree among themselves, and say nothing for or against the gradient: a limiter, a "
          "branch or chaos within the window; a shorter training.window or a calmer state is measured better")
PUSH = 0.01           # of the fields' size over a window: how far the gradient check's network moves them
GOOD, FAIR, LONG = 0.05, 0.9, 1.0  # error at one step, cosine and error over a window
ROUNDS = 200                   # rollouts
GROWTH, LITTLE = 64, 2**21     # bytes a step, and in all, above which memory counts as growing
BUDGET = 1.0          # seconds of a timing
SURE = 0.1            # uncertainty of finite differences, from which on they judge nothing
PUSHES = (1e6, 1e24, 1e60)  # of a blow-up, in sizes of the field a step; the last are for a code that answers a push by itself
RESOLUTION = 0.02     # of a short run's time: below it, two timings are not told apart
PIECE = 32            # steps of a timed run: a code that is sound here need not be so for thousands
TALK = 200            # bytes a step that a code may print and write
RUNS = 24             # of the gradient check, about


def check_description(bench: Bench) -> list[Finding]:
    """Loaded, shaken hands with; what the adapter says."""
    spec = bench.spec
    fields = ", ".join(f"{one.name}{list(one.shape) or ''} {one.dtype}" for one in spec.fields if not one.hidden)
    hidden = [one.name for one in spec.fields if one.hidden]
    findings = [Finding("description", "ok", f"{fields}; hidden: {', '.join(hidden) or 'none'}; dt = "
                                             f"{in_unit(spec.dt, spec.time_units)}")]
    for slot in spec.slots:
        sides = " -> ".join(", ".join(f"{one.name}{list(one.shape)}" for one in side) for side in (slot.inputs, slot.outputs))
        findings.append(Finding(f"slot {slot.name}", "ok", sides))
    if not spec.slots:
        findings.append(Finding("slot", "bad", "the adapter describes none", "trimtab_slot, trimtab_input, trimtab_output in "
                                                                             "trimtab_describe"))
    findings.append(Finding("handshake", "ok", f"{spec.size} numbers of 8 bytes arrive as they were sent"))
    single = [one.name for one in spec.fields if one.dtype == "real32" and not one.hidden]
    found = f"real32: {', '.join(single)}; differences below 1e-7 of a field are rounding, see the ± of the gradient"
    findings.append(Finding("precision", "ok", found if single else "real64"))
    return findings


def check_files(bench: Bench) -> list[Finding]:
    """What its first steps leave in its scratch folder, how much they print, and what stays open."""
    surroundings = bench.own.surroundings
    given = {"trimtab.log", bench.own.library.private.name, *surroundings.copied}
    _ = bench.state
    a_step = (bench.written() - bench.at_first) / max(1, bench.made)
    made = sorted(str(one.relative_to(surroundings.folder)) for one in surroundings.folder.rglob("*") if one.name not in given)
    changed = sorted(surroundings.changed())
    folder = Path("/proc/self/fd")
    own = {str(one) for one in surroundings.descriptors}
    held = {os.path.basename(os.readlink(one)) for one in folder.iterdir() if one.name not in own and one.exists()} \
        if folder.is_dir() else set()
    opened = sorted(name for name in held if name in {Path(one).name for one in (*made, *surroundings.copied)})
    with surroundings.log.open("rb") as log:
        lines = sum(1 for _ in log)
    found = (f"in {bench.made} steps it reads {', '.join(surroundings.copied) or 'nothing given'}, writes "
             f"{', '.join(made) or 'no file'}, prints {lines} line{'s' * (lines != 1)}")
    if changed:
        found += f"; it changes its copy of {', '.join(changed)}"
    findings = [Finding("files", "ok", found)]
    if not folder.is_dir():
        findings = [Finding("files", "note", f"{found}; which stay open this system does not tell", "see that nothing read later "
                            "depends on a position in an open file")]
    if opened:
        findings = [Finding("files", "note", f"{found}; still open: {', '.join(opened)}",
                            "a position in an open file is state that nobody restores: write only when asked, or see that "
                            "nothing read later depends on it")]
    if a_step > TALK:
        findings.append(Finding("files, size", "note", f"it prints and writes {_bytes(a_step)} a step, {_bytes(1e6 * a_step)} "
                                "in a million steps", "a training makes millions: write less often (its namelist or an option)"))
    return findings


def check_empty_slot(bench: Bench) -> list[Finding]:
    """An empty slot and a correction of zeros: the same numbers."""
    if not bench.spec.slots:
        return []
    steps = min(3, max(1, bench.most // 3))
    again, empty, zeros, third = (bench.run(bench.state, steps, stride=steps, noop=noop) for noop in (False, False, True, False))
    if bench.differing(again[-1], empty[-1]) or bench.differing(third[-1], empty[-1]):
        return [Finding("empty slot", "note", "two runs with an empty slot differ already", "see restart")]
    if bench.unequal(zeros[-1], empty[-1]):
        return [Finding("empty slot", "bad", f"a correction of zeros changes in {steps} steps "
                        f"{bench.sizes(zeros[-1], empty[-1])}", "the procedure that calls the slot must only add with "
                        "trimtab_add; what else it sets must be set with an empty slot, too")]
    signs = bench.differing(zeros[-1], empty[-1])
    but = f" but for the sign of zeros in {', '.join(signs[:5])} (-0.0 + 0.0 is 0.0)" if signs else ""
    return [Finding("empty slot", "ok", f"empty, and filled with zeros: the same {'numbers' if signs else 'bits'} after {steps} "
                                        f"steps{but}")]


def check_gradient(bench: Bench, weight: dict[str, object]) -> list[Finding]:
    """The sweep against finite differences: one step by the measured response, then a window by the experiment's variant."""
    if not bench.spec.slots:
        return []
    bench.solver.weight = SlotWeight(bench.spec, weight)
    training, stride = bench.experiment.training, bench.stride
    window = min(training.window, 3 if bench.slow else 10, max(1, bench.most // stride))
    correction, title = scaled_network(bench, window), f"gradient {training.gradient}, {window} steps"
    start, single = bench.state, any(one.dtype == "real32" and not one.hidden for one in bench.spec.fields)
    if not bench.slow:
        start = np.repeat(bench.state, 2, axis=0)
        start[1] = bench.run(bench.state, 1, stride=4)[1]
    with torch.no_grad():
        correction.output_scale.mul_(0.5)
    truth = bench.advance(start, window, stride=stride, correction=correction).states
    bench.run(bench.state, 1, stride=OTHER)
    if bench.differing(bench.advance(start, window, stride=stride, correction=correction).states[-1, 0], truth[-1, 0]):
        return [Finding(one, "note", "cannot be told: two runs from the same state with the same network differ",
                        "see restart and random numbers") for one in ("gradient, one step", title)]
    with torch.no_grad():
        correction.output_scale.mul_(2.0)
    findings = []
    cases = [("none", 1, "gradient, one step"), (training.gradient, window, title)]
    for name, steps, title in cases:
        options = training.gradient_options if name == training.gradient else {}
        expected = RUNS * len(start) * steps * stride * bench.seconds
        if expected > A_CHECK:
            findings.append(Finding(title, "note", f"left out: a step takes {bench.seconds:.2g} s, and this about "
                                    f"{expected / 60:.0f} minutes", "`trimtab gradcheck` does it, over night"))
            continue
        bench.tell(f"runs of {steps * stride} steps, the slot filled with the network, for the {title}")
        try:
            table = gradcheck(bench.solver, correction, start, truth[1:], [steps],
                              gradients=[get_gradient(name, **options)], directions=1 if bench.slow else 2,
                              stride=stride, leads=list(range(1, window + 1)), seed=0,
                              scale=field_size(bench.spec, truth.reshape(-1, bench.spec.size)))
        except TrimtabError as error:
            findings.append(Finding(title, "note", str(error), GRADCHECK))
            continue
        row = table.rows[0]
        if math.isnan(row.cosine):  # the loss does not move with the network
            findings.append(unchecked(title, "weight"))
            continue
        found = (f"cosine {row.cosine:.4f}, error {row.error:.2g} of the gradient's length, against finite differences "
                 f"(± {row.uncertainty:.0e})")
        sure = row.uncertainty < SURE
        if name == "none":
            good = row.error < GOOD + 2 * row.uncertainty
            calls = _calls(bench)
            remedy = "" if good else ONCE.format(calls=calls) if calls > 1 else INPUT
        else:
            good = row.cosine > FAIR and row.error < LONG
            remedy = "" if good else "shorten training.window; `trimtab gradcheck` says which variant reaches how far" \
                if row.cosine <= FAIR else "its direction is right, its length is not: see steady in the weights above"
        findings.append(Finding(title, "ok" if good and sure else "note", found,
                                remedy if sure else ROUNDED if single else UNSURE))
    return findings


def _calls(bench: Bench) -> float:
    """Calls of the slot a step."""
    before = bench.own.library.calls()
    bench.run(bench.state, 2, noop=True)
    return (bench.own.library.calls() - before) / 2


def check_memory(bench: Bench) -> list[Finding]:
    """Memory after many rollouts over memory after a few."""
    piece = min(8, bench.most)
    bench.run(bench.state, piece)
    before, steps = _resident(), 0
    began = time.perf_counter()
    while steps < piece * ROUNDS and bench.agreed(time.perf_counter() - began) < 5 * BUDGET:
        bench.run(bench.state, piece, noop=bool(bench.spec.slots))
        steps += piece
    if not before:
        return [Finding("memory", "note", "not looked at: this system does not tell how much a process holds",
                        "watch a training's memory by your own means")]
    grown = _resident() - before
    if grown > max(LITTLE, GROWTH * steps):
        back = "" if bench.calls_mpi else "; [solver] isolation = \"process\" gives it back at the end of a run"
        return [Finding("memory", "note", f"grows by {grown / steps:,.0f} bytes a step",
                        f"something is allocated each step and not freed{back}")]
    return [Finding("memory", "ok", f"steady over {steps} steps")]


def check_cost(bench: Bench, network: AnyCorrection | None = None) -> list[Finding]:
    """Time of a step: slot empty, filled with zeros, with the network, which is made where none is given; runs are short and from
    one state, which is sound."""
    steps = max(2, min(PIECE, bench.most, int(BUDGET / bench.seconds)))

    def seconds(correction: nn.Module | None, steps: int, stride: int = 1) -> float:
        """The quickest of several runs."""
        taken: list[float] = []
        while not taken or (len(taken) < 200 and sum(taken) < BUDGET / 4):
            began = time.perf_counter()
            bench.advance(bench.state, steps, stride=stride, correction=correction)
            taken.append(bench.agreed(time.perf_counter() - began))
        return min(taken)

    def step(correction: nn.Module | None) -> tuple[float, float]:
        """Microseconds a step, without what a run costs at its begin and end, and the least that could be told from none."""
        alone, together = seconds(correction, 1), seconds(correction, 1, steps)
        return 1e6 * (together - alone) / (steps - 1), RESOLUTION * 1e6 * alone / (steps - 1)

    (empty, least), training = step(None), ""
    found = f"a step {_told(empty, least)}"
    if bench.spec.slots:
        correction = network or scaled_network(bench, steps).to(build_correction(bench.experiment, bench.local).dtype)
        nothing, filled = step(bench.given(None))[0], step(correction)[0]
        if bench.own is bench.solver:
            training = training_cost(bench, correction, 1e-6 * max(empty, least), 1e-6 * filled)
        found += (f" with an empty slot, {_told(nothing, least)} with zeros from Python, {_told(filled, least)} with the network "
                  f"{on_threads()}")
    recorded = 1e6 * (seconds(None, steps) - seconds(None, 1, steps)) / (steps - 1)
    return [Finding("cost", "ok", f"{found}; recording every step {_told(recorded, least)} more{training}")]


def check_stop(bench: Bench) -> list[Finding]:
    """What a blow-up does; comes last, as the code may end the process. Pushed with noise: what is alike everywhere a code that
    looks at differences, or drops the mean, does not feel."""
    if not bench.spec.slots:
        return []
    steps, views, noise = min(60, bench.most), bench.spec.split(bench.state), np.random.default_rng(0)
    every = float(np.abs(bench.state).max()) or 1.0
    for push in PUSHES:
        sizes = []
        for one in named_outputs(bench.spec).values():
            size = float(np.abs(views[one.name]).max()) if one.name in views else every
            sizes.append(push * (size or every) / bench.spec.dt * noise.standard_normal(one.size))
        window = bench.advance(bench.state, steps, correction=bench.given(np.concatenate(sizes)), on_blow_up="mark")
        if step := int(window.failed_step[0]):
            return [Finding("blow-up", "ok", f"noise of {push:.0e} times the fields' size a step: a blow-up is seen "
                            f"at step {step}; the code does not stop the process")]
    return [Finding("blow-up", "note", f"noise of {PUSHES[-1]:.0e} times the fields' size a step does not blow it up in "
                    f"{steps} steps, so that what a blow-up does was not seen",
                    "nothing, where the code limits or clips what it is given")]


def scaled_network(bench: Bench, window: int) -> AnyCorrection:
    """The experiment's network in float64 with random last weights, scaled to move each field by `PUSH` over a window.

    Args:
        bench: of a code on this rank alone.
        window: outer steps.

    Returns:
        Its correction.
    """
    torch.manual_seed(0)
    correction = build_correction(bench.experiment, bench.spec).double()
    with torch.no_grad():
        for one in correction.network.parameters():
            if not one.any():  # a last layer of zeros has no gradient before it
                one.copy_(0.1 * torch.randn_like(one))
    seen = bench.solver.slot_view(bench.state, np.zeros((1, bench.spec.size)), bench.stride)[0]
    correction.fit_normalisation(np.concatenate([seen, 0.9 * seen]))
    time_span = window * bench.stride * bench.spec.dt
    sizes = [_size(bench, name, one) for name, one in named_outputs(bench.spec).items()]
    with torch.no_grad():
        correction.output_scale.copy_(PUSH / time_span * torch.tensor(sizes))
        reply = correction(torch.from_numpy(seen)).split(correction.output_sizes, -1)  # type: ignore[union-attr]
        ratios = [PUSH / time_span * size / float(part.square().mean().sqrt() or 1.0)
                  for size, part in zip(sizes, reply, strict=True)]
        correction.output_scale.mul_(torch.tensor(ratios))
    return correction.eval()


def _size(bench: Bench, name: str, output: Field) -> float:
    """The output that, lasting a unit of time, moves what it moves by its own size."""
    views, response = bench.spec.split(bench.state), bench.solver.weight.response
    if response is not None and name in response.matrices:
        shown = bench.state if bench.spec.visible is None else bench.state[:, bench.spec.visible]
        return _root_mean_square(shown) / (response.size(name) or 1.0)
    return _root_mean_square(views[output.name]) if output.name in views else 1.0


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) or 1.0


def _time(microseconds: float) -> str:
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{microseconds / size:.3g} {unit}"
    return f"{microseconds:.3g} µs"


def _told(microseconds: float, least: float) -> str:
    """A time, or that it is below what the clock tells apart."""
    return _time(microseconds) if microseconds > least else f"less than {_time(least)}"


def _bytes(number: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} bytes"


def _resident() -> int:
    """Resident bytes of this process; 0 where the system does not tell."""
    told = Path("/proc/self/status")
    for line in told.read_text().splitlines() if told.is_file() else ():
        if line.startswith("VmRSS"):
            return 1024 * int(line.split()[1])
    return 0
