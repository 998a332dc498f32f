# SPDX-License-Identifier: MIT
"""The doctor's other checks: what the code is, what it touches, what a call costs, how far a gradient is right."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch

from trimtab.checkpoint import build_correction
from trimtab.coupling.bench import Bench, Given
from trimtab.coupling.finding import Finding
from trimtab.errors import TrimtabError
from trimtab.gradient import get_gradient
from trimtab.gradient.check import gradcheck
from trimtab.loss import field_scale
from trimtab.slot_correction import AnyCorrection
from trimtab.slot_weight import SlotWeight

PUSH = 0.01           # of the fields' size over a window: how far the gradient check's network moves them
GOOD, FAIR = 0.05, 0.9  # error at one step, cosine over a window
ROUNDS = 200                   # rollouts
GROWTH, LITTLE = 64, 2**21     # bytes a step, and in all, above which memory counts as growing
BUDGET = 1.0          # seconds of a timing


def check_description(bench: Bench) -> list[Finding]:
    """Loaded, shaken hands with; what the adapter says."""
    spec = bench.spec
    fields = ", ".join(f"{one.name}{list(one.shape) or ''} {one.dtype}" for one in spec.fields if not one.hidden)
    hidden = [one.name for one in spec.fields if one.hidden]
    findings = [Finding("description", "ok", f"{fields}; hidden: {', '.join(hidden) or 'none'}; dt = {spec.dt:g} "
                                             f"{spec.time_units}")]
    for slot in spec.slots:
        sides = " -> ".join(", ".join(f"{one.name}{list(one.shape)}" for one in side) for side in (slot.inputs, slot.outputs))
        findings.append(Finding(f"slot {slot.name}", "ok", sides))
    if not spec.slots:
        findings.append(Finding("slot", "bad", "the adapter describes none", "trimtab_slot, trimtab_input, trimtab_output in "
                                                                             "trimtab_describe"))
    findings.append(Finding("handshake", "ok", f"{spec.size} numbers of 8 bytes arrive as they were sent"))
    single = [one.name for one in spec.fields if one.dtype == "real32" and not one.hidden]
    if single:
        findings.append(Finding("precision", "note", f"real32: {', '.join(single)}", "differences below 1e-7 of a field are "
                                                                                     "rounding: a loss "
                                "there is noise, and gradcheck's ± says how much"))
    else:
        findings.append(Finding("precision", "ok", "real64"))
    return findings


def check_files(bench: Bench) -> list[Finding]:
    """What it leaves in its scratch folder, and what stays open."""
    surroundings = bench.solver.surroundings
    given = {"trimtab.log", bench.solver.library.private.name, *surroundings.copied}
    made = sorted(str(one.relative_to(surroundings.folder)) for one in surroundings.folder.rglob("*") if one.name not in given)
    folder = Path("/proc/self/fd")
    own = {str(one) for one in surroundings.descriptors}
    held = {os.path.basename(os.readlink(one)) for one in folder.iterdir() if one.name not in own and one.exists()} \
        if folder.is_dir() else set()
    opened = sorted(name for name in held if name in {Path(one).name for one in (*made, *surroundings.copied)})
    lines = len(surroundings.log.read_text(errors="replace").splitlines())
    found = (f"reads {', '.join(surroundings.copied) or 'nothing given'}; writes {', '.join(made) or 'no file'}; "
             f"prints {lines} lines")
    if opened:
        return [Finding("files", "note", f"{found}; still open: {', '.join(opened)}", "a position in an open file is state "
                                                                                      "that nobody "
                        "restores: write only when asked, or see that nothing read later depends on it")]
    return [Finding("files", "ok", found)]


def check_empty_slot(bench: Bench) -> list[Finding]:
    """An empty slot and a correction of zeros: the same bits."""
    if not bench.spec.slots:
        return []
    again, empty, zeros, third = (bench.run(bench.state, 3, stride=3, noop=noop) for noop in (False, False, True, False))
    if bench.differing(again[-1], empty[-1]) or bench.differing(third[-1], empty[-1]):
        return [Finding("empty slot", "note", "two runs with an empty slot differ already", "see restart")]
    wrong = bench.differing(zeros[-1], empty[-1])
    if wrong:
        return [Finding("empty slot", "bad", f"a correction of zeros changes {', '.join(wrong[:5])}", "the procedure that "
                                                                                                      "calls the slot must "
                        "only add with trimtab_add; what else it sets must be set with an empty slot, too")]
    return [Finding("empty slot", "ok", "empty, and filled with zeros: the same bits")]


def check_gradient(bench: Bench, weight: dict[str, object]) -> list[Finding]:
    """The sweep against finite differences: one step by the measured response, then a window by the experiment's variant."""
    if not bench.spec.slots:
        return []
    bench.solver.weight = SlotWeight(bench.spec, weight)
    training, stride = bench.experiment.training, bench.stride
    window = min(training.window, 3 if bench.slow else 10)
    correction = _network(bench, window)
    start = np.repeat(bench.state, 2, axis=0)
    start[1] = bench.run(bench.state, 1, stride=4)[1]
    with torch.no_grad():
        correction.output_scale.mul_(0.5)
    truth = bench.solver.advance(start, window, stride=stride, correction=correction).states
    with torch.no_grad():
        correction.output_scale.mul_(2.0)
    findings = []
    cases = [("none", 1, "gradient, one step"), (training.gradient, window, f"gradient {training.gradient}, {window} steps")]
    for name, steps, title in cases:
        options = training.gradient_options if name == training.gradient else {}
        try:
            table = gradcheck(bench.solver, correction, start, truth[1:], [steps],
                              gradients=[get_gradient(name, **options)], directions=1 if bench.slow else 2,
                              stride=stride, leads=list(range(1, window + 1)), seed=0,
                              scale=field_scale(bench.spec, truth.reshape(-1, bench.spec.size)))
        except TrimtabError as error:
            findings.append(Finding(title, "note", str(error), "see trimtab gradcheck"))
            continue
        row = table.rows[0]
        found = f"cosine {row.cosine:.4f}, error {row.error:.2g} against finite differences (± {row.uncertainty:.0e})"
        sure = row.uncertainty < 0.1
        if name == "none":
            good = row.error < GOOD + 2 * row.uncertainty
            remedy = ("" if good else "the network's input must be that of the call, in the window's first step; see the "
                                      "weights above, and "
                      "whether more than one call a step sees different inputs (the first is differentiated)")
        else:
            good = row.cosine > FAIR
            remedy = "" if good else "shorten training.window; `trimtab gradcheck` says which variant reaches how far"
        findings.append(Finding(title, "ok" if good and sure else "note", found, remedy if sure else "too much rounding to tell: "
                                "let the network move the fields more, or take real64"))
    return findings


def check_memory(bench: Bench) -> list[Finding]:
    """Memory after many rollouts over memory after a few."""
    bench.run(bench.state, 8)
    before, steps = _resident(), 0
    began = time.perf_counter()
    while steps < 8 * ROUNDS and time.perf_counter() - began < 5 * BUDGET:
        bench.run(bench.state, 8, noop=bool(bench.spec.slots))
        steps += 8
    grown = _resident() - before
    if grown > max(LITTLE, GROWTH * steps):
        return [Finding("memory", "note", f"grows by {grown / steps:,.0f} bytes a step", "something is allocated each step and "
                                                                                         "not freed; solver "
                        "isolation = \"process\" gives it back at the end of a run")]
    return [Finding("memory", "ok", f"steady over {steps} steps")]


def check_cost(bench: Bench) -> list[Finding]:
    """Time of a step: slot empty, filled with zeros, with the network."""
    solver, start = bench.solver, bench.state

    def once(steps: int, correction: object) -> float:
        return _seconds(lambda: solver.advance(start, 1, stride=steps, correction=correction, on_blow_up="mark"))

    steps = 1
    while once(steps, None) < 0.02 and steps < 4096:
        steps *= 2

    def step(correction: object) -> float:
        return 1e6 * float(np.median([once(steps, correction) for _ in range(5)])) / steps

    empty = step(None)
    found = f"a step {_time(empty)}"
    if bench.spec.slots:
        correction = _network(bench, 1)
        nothing, network = step(Given(bench.spec)), step(correction)
        found += f" with an empty slot, {_time(nothing)} with zeros from Python, {_time(network)} with the network"
    recorded = _seconds(lambda: solver.advance(start, steps, on_blow_up="mark")) / steps * 1e6
    return [Finding("cost", "ok", f"{found}; recording every step {_time(max(0.0, recorded - empty))} more")]


def check_stop(bench: Bench) -> list[Finding]:
    """What a blow-up does; comes last, as the code may end the process."""
    if not bench.spec.slots:
        return []
    sizes = np.concatenate([np.full(one.size, 1e6 * (np.abs(bench.state).max() or 1.0) / bench.spec.dt)
                            for slot in bench.spec.slots for one in slot.outputs])
    window = bench.solver.advance(bench.state, 60, stride=1, correction=Given(bench.spec, sizes), on_blow_up="mark")
    step = int(window.failed_step[0])
    said = f"a blow-up is seen at step {step}" if step else "a push of a million times its size does not blow it up in 60 steps"
    return [Finding("blow-up", "ok", f"{said}; the code does not stop the process")]


def _network(bench: Bench, window: int) -> AnyCorrection:
    """The experiment's network in float64 with random last weights, scaled to move each field by `PUSH` over a window."""
    torch.manual_seed(0)
    correction = build_correction(bench.experiment, bench.spec).double()
    with torch.no_grad():
        for one in correction.network.parameters():
            if not one.any():  # a last layer of zeros has no gradient before it
                one.copy_(0.1 * torch.randn_like(one))
    seen = bench.solver.slot_view(bench.state, np.zeros((1, bench.spec.size)), bench.stride)[0]
    correction.fit_normalisation(np.concatenate([seen, 0.9 * seen]))
    time_span = window * bench.stride * bench.spec.dt
    views = bench.spec.split(bench.state)
    outputs = [one for slot in bench.spec.slots for one in slot.outputs]
    sizes = [float(np.sqrt(np.mean(np.square(views[one.name])))) or 1.0 if one.name in views else 1.0 for one in outputs]
    with torch.no_grad():
        correction.output_scale.copy_(PUSH / time_span * torch.tensor(sizes))
        reply = correction(torch.from_numpy(seen)).split(correction.output_sizes, -1)  # type: ignore[union-attr]
        ratios = [PUSH / time_span * size / float(part.square().mean().sqrt() or 1.0)
                  for size, part in zip(sizes, reply, strict=True)]
        correction.output_scale.mul_(torch.tensor(ratios))
    return correction.eval()


def _seconds(call: object) -> float:
    began = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - began


def _time(microseconds: float) -> str:
    return f"{microseconds:.3g} µs" if microseconds < 1000 else f"{microseconds / 1000:.3g} ms"


def _resident() -> int:
    """Resident bytes of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return 1024 * int(line.split()[1])
    return 0
