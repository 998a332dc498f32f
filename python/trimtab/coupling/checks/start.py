# SPDX-License-Identifier: MIT
"""Does the code begin soundly: finite from its own start, with one time step, alike in every process, its random numbers put
back? And do the runs that a reference makes of it differ?"""

from __future__ import annotations

import re

import numpy as np

from trimtab.bridge.opener import open_solver
from trimtab.core.errors import BlowUpError
from trimtab.coupling.elf import called
from trimtab.coupling.finding import START, Finding, in_unit, unchecked
from trimtab.coupling.harness import DEVELOP, FEW, Bench
from trimtab.data.reference_run import perturb
from trimtab.isolation.leak_probe import gfortran_generators

FORTRAN = re.compile(r"_gfortran_a?random_r\d+|_gfortran_random_seed_i\d")
DRAWN = re.compile(r"_gfortran_a?random_r\d+")
OLD = re.compile(r"_gfortran_i?rand|i?rand|rand_r|random|[delmnj]rand48")  # whose state nobody can ask for
DRAWS = 8        # steps in which the generator is watched
A_PAIR = 4.0     # seconds that two runs of the reference may take
ALIKE = 0.1      # of what the fields vary, below which two runs are near-copies
LOST = ("`program` made a subroutine forgets its variables between calls: SAVE them, or compile with -fno-automatic; a loop that "
        "cuts its last step short (`if (t + dt > t_end) dt = t_end - t`) makes dt = 0: set the end out of reach; or else a "
        "calmer start, a shorter dt")
UNSET = ("see whether trimtab_initialise calls all of the set-up, with the files and the namelist it reads; a field that only "
         "the first step sets is given a number in trimtab_initialise")
RECIPE = ("in trimtab_describe `call random_seed(get=seeds)` before `call trimtab_hidden(seeds, 'seeds')`, in trimtab_set_state "
          "`call random_seed(put=seeds)` after trimtab_to_fields; seeds is an integer array of a module, as long as "
          "random_seed(size=) says")


def check_start(bench: Bench) -> list[Finding]:
    """A few steps from the code's own start with an empty slot, looked at one by one: they are finite, and of one length."""
    views = bench.spec.split(bench.solver.initial_state())
    lost = [f"{name} ({np.count_nonzero(~np.isfinite(view))} of {view.size} numbers)" for name, view in views.items()
            if not np.isfinite(view).all()]
    if lost:
        return [Finding(START, "bad", f"after its set-up the code's own state holds NaN or Inf, in {', '.join(lost)}", UNSET)]
    try:
        state = bench.state
    except BlowUpError as error:
        steps = min(DEVELOP, bench.longest or DEVELOP)
        step = int(bench.advance(bench.solver.initial_state(), steps, on_blow_up="mark").failed_step[0])
        said = str(error).partition("; the code printed last: ")[2]
        return [Finding(START, "bad", f"the code itself leaves the finite numbers from its own start, with an empty slot, "
                        f"in step {step or f'1 to {steps}'}{f'; it printed last: {said}' if said else ''}", LOST)]
    steps = min(FEW, bench.most)
    bench.advance(state, steps)
    return [Finding(START, "ok", f"finite for {DEVELOP} steps with an empty slot, dt the same in each")]


def check_again(bench: Bench) -> list[Finding]:
    """The code opened in another process: the same initial state, bit for bit; a code on MPI ranks cannot be."""
    if bench.calls_mpi:
        return [Finding("opened twice", "note", "not looked at: a code that is linked with MPI is not opened in another process "
                        "from here", "run the code twice from its own start, writing a restart or output file after its first "
                        "step, and compare the two files with cmp: bytes that differ are another start each time")]
    options = {**bench.options, "isolation": "process", "instances": 1}
    with open_solver(bench.experiment.solver.name, **options) as other:
        wrong = bench.differing(bench.solver.initial_state()[0], other.initial_state()[0])
    if not wrong:
        return [Finding("opened twice", "ok", "two processes begin with the same bits")]
    return [Finding("opened twice", "note", f"two processes begin with another {', '.join(wrong[:5])}: a reference made again is "
                    "another truth, and no run can be repeated", "gfortran seeds random_number anew in each process: give it a "
                    "seed in trimtab_initialise, before your set-up, with `call random_seed(put=seeds)`, and take out of your "
                    "code a `call random_seed()` without arguments, which draws another; or the clock, the process or memory "
                    "that was never set is in it")]


def check_random(bench: Bench) -> list[Finding]:
    """Whether the code draws random numbers, and its generator is part of the state; nothing for one that calls none."""
    names = called(bench.own.library.private)
    fortran, old = any(map(FORTRAN.fullmatch, names)), sorted(one for one in names if OLD.fullmatch(one))
    findings = []
    if old:
        findings.append(Finding("random numbers", "note", f"it calls {', '.join(old)}, whose state cannot be put back",
                                "where the steps draw from it, a restart draws other numbers: take random_number in its place, "
                                "or seed it anew each step from a counter that is described"))
    if fortran:
        generators = gfortran_generators()
        few = max(1, min(DRAWS, bench.most // 3))
        middle = bench.run(bench.state, 1, stride=few)[1]
        at_first = [one.state() for one in generators]
        bench.onward(few)
        if [one.state() for one in generators] == at_first:
            findings.append(Finding("random numbers", "ok", f"it can draw some, and draws none in {few} steps"))
        else:
            bench.restored(middle)
            back = [one.state() for one in generators] == at_first
            findings.append(Finding("random numbers", "ok", "its steps draw some, and the generator is put back with the state")
                            if back else
                            Finding("random numbers", "bad", "its steps draw some, and the generator's state is not part of the "
                                    "code's: a restart draws others", RECIPE))
    return findings


def check_runs(bench: Bench) -> list[Finding]:
    """Two runs of the reference from perturbed starts: how far apart they end."""
    reference, spec = bench.experiment.reference, bench.spec
    if reference.file or reference.initial or "name" in reference.solver or not reference.perturbation:
        return []
    if bench.cause:
        return [unchecked("runs", bench.cause)]
    initial = bench.solver.initial_state()
    other = perturb(initial, spec, reference.perturbation, np.random.default_rng((reference.seed, 1)))
    shown = [one for one in spec.fields if not one.hidden and one.dtype.startswith("real")]
    still = [one.name for one in shown if np.array_equal(spec.split(initial)[one.name], spec.split(other)[one.name])]
    interval = reference.interval or bench.stride * spec.dt
    wanted = max(1, round((reference.spin_up + (reference.snapshots - 1) * interval) / spec.dt))
    steps = max(1, min(wanted, bench.most, int(A_PAIR / (2 * max(1e-9, bench.seconds)))))
    stride = max(1, steps // 20)
    records = steps // stride
    one, two = (bench.advance(start, records, stride=stride, on_blow_up="mark").states[:, 0] for start in (initial, other))
    if not np.isfinite(one[-1]).all() or not np.isfinite(two[-1]).all():
        return [Finding("runs", "note", f"a run of the reference leaves the finite numbers in {records * stride} steps",
                        "a smaller reference.perturbation, a shorter dt, or a calmer start")]
    apart = {field.name: _apart(*(np.asarray(spec.split(run)[field.name]) for run in (one, two))) for field in shown}
    name = max(apart, key=lambda one: apart[one])
    whole = f" (of {wanted})" if wanted > steps else ""
    found = (f"two runs of the reference, perturbed by {reference.perturbation:g}, differ by {apart[name]:.2g} of what {name} "
             f"varies after {records * stride} steps{whole}, with spin_up = {in_unit(reference.spin_up, spec.time_units)}")
    if still:
        found += f"; {', '.join(still)} is zero at the start and not perturbed"
    found += f"; they count as different from {ALIKE:g} on"
    if apart[name] >= ALIKE:
        return [Finding("runs", "ok", found)]
    return [Finding("runs", "note", found, "near-copies: what is trained on one run was seen in the others, and the scores say "
                    "little of other cases; a larger reference.perturbation, a longer spin_up, or runs of your own in a file")]


def _apart(one: np.ndarray, two: np.ndarray) -> float:
    """Distance of two runs (T, ...) at their end over their deviation from the mean."""
    both = np.concatenate([one, two])
    varies = float(np.sqrt(np.mean((both - both.mean()) ** 2)))
    return float(np.sqrt(np.mean((one[-1] - two[-1]) ** 2))) / (varies or 1.0)
