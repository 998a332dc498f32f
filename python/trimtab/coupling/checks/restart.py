# SPDX-License-Identifier: MIT
"""Is the described state all that the code remembers? If not: which variables of it are left out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trimtab.coupling.checks.not_restored import guilty, not_put_back
from trimtab.coupling.elf import IN_PART, Statics
from trimtab.coupling.finding import Finding
from trimtab.coupling.harness import Bench

LENGTHS = (1, 3, 8, 33)  # steps before and after the cut, odd and even, short and long
LONG, DIRT = 999, 86     # the longest, and steps of another run before its second half: no multiple of a usual interval
A_LONG = 6.0             # seconds that the long one may take
BEFORE = (1, 2, 3, 8)    # steps of the runs before one from the code's own start: every place of a short cycle
MOST_NAMED, HARMLESS_NAMED = 20, 5
DESCRIBE = ("describe what the code remembers with trimtab_hidden (a flag, a counter, an old time level, a diagnostic; a local "
            "variable that is saved is declared in its module or a COMMON for that)")
FORK = "; where it cannot be reached, [solver] isolation = \"fork\" starts every rollout alike"
HALO = ("first see the halo: the neighbours' points are not in the state, so that your code's own exchange has to be called at "
        "the end of trimtab_set_state; then ")
STRIPPED = "which variables, a library with a symbol table would tell: build it without -s, and do not strip it"


def check_restart(bench: Bench) -> list[Finding]:
    """Run n, store, restore over another state, run n: the same bits as 2 n in one go; from the developed state and from a
    perturbed one, in which what symmetry keeps at zero has begun to move. And runs from the code's own start, after others."""
    lengths = [n for n in LENGTHS if 2 * n <= max(2, bench.most)]
    length = next((n for n in reversed(lengths) if _lasts(bench, bench.state, 2 * n)), 1)
    checked = [n for n in lengths if n <= length]
    starts = [bench.state] + [bench.perturbed] * _lasts(bench, bench.perturbed, 2 * length)
    for start in starts:
        for n in checked:
            finding = _halves(bench, start, n, n + 1)
            if finding:
                return [finding]
    finding, begun = _from_own_start(bench)
    if finding:
        return [finding]
    known = sum(one.hidden for one in bench.spec.fields)
    left = f"; {bench.why()}" if len(lengths) < len(LENGTHS) else ""
    found = (f"run n, store, restore, run n: the same bits for n = {', '.join(map(str, checked))} ({known} hidden fields), "
             f"{'perturbed, too' if len(starts) > 1 else 'not perturbed, where it leaves the finite numbers'}{left}; {begun}")
    if len(checked) < len(lengths):
        return [Finding("restart", "note", f"{found}; in {2 * lengths[len(checked)]} steps it leaves the finite numbers",
                        "see whether that is so without trimtab; a shorter dt, or a calmer start")]
    return [Finding("restart", "ok", found), *_remembered(bench, checked[-1])]


def check_long_restart(bench: Bench) -> list[Finding]:
    """The same once for as long as a few seconds allow: what is refreshed every 200 steps is not seen in 33."""
    n = min(LONG, int(A_LONG / (4 * max(1e-9, bench.seconds))), bench.most // 2)
    n -= 1 - n % 2
    if n <= LENGTHS[-1]:
        why = bench.why() if bench.most // 2 <= LENGTHS[-1] else f"left out, as a step takes {bench.seconds:.2g} s"
        return [Finding("restart, long", "note", f"{why}; what is done once in many steps is not seen",
                        "describe counters, sums and times with trimtab_hidden whether a check asks for them or not")]
    if not _lasts(bench, bench.perturbed, 2 * n):
        return [Finding("restart, long", "note", f"in {2 * n} steps from a perturbed state it leaves the finite numbers",
                        "a reference runs as long: a smaller reference.perturbation, or a shorter dt")]
    return [_halves(bench, bench.perturbed, n, DIRT)
            or Finding("restart, long", "ok", f"the same bits for n = {n}, from a perturbed state")]


def _lasts(bench: Bench, start: np.ndarray, steps: int) -> bool:
    return bool(bench.advance(start, 1, stride=steps, on_blow_up="mark").alive.all())


def _halves(bench: Bench, start: np.ndarray, n: int, dirt: int) -> Finding | None:
    """What is wrong with a restart after n steps, when the code makes some others before it; None when nothing is."""
    other = bench.perturbed if start is bench.state else bench.state
    whole = bench.run(start, 2, stride=n)
    bench.run(other, 1, stride=dirt)  # leave every flag and old level standing otherwise
    second = bench.run(whole[1], 1, stride=n)[1]
    if not bench.differing(second, whole[2]):
        return None
    name = "restart" if n <= LENGTHS[-1] else "restart, long"
    back = bench.differing(bench.restored(whole[1]), whole[1])
    if back:
        return Finding(name, "bad", "a state that is stored and looked at again at once differs: "
                       f"{bench.sizes(bench.restored(whole[1]), whole[1])}",
                       "trimtab_set_state must put back what trimtab_get_state returns; look for a halo or a derived array there")

    def arrive() -> None:
        bench.run(start, 1, stride=n)

    said = f"restored after {_steps(n)}, the next {n} differ{'s' * (n == 1)}: {bench.sizes(second, whole[2])}"
    return _explain(bench, name, said, arrive, n, [(bench.state, steps) for steps in (n + 1, n + 2, 1)])


def _from_own_start(bench: Bench) -> tuple[Finding | None, str]:
    """What is wrong with a run from the code's own start when others came before it (None when nothing is), and what was done:
    a first step may set what all later ones turn on."""
    start = bench.solver.initial_state()
    wanted = [n for n in BEFORE if n <= bench.most][: 2 if bench.slow else None]
    n = next((n for n in reversed(wanted) if _lasts(bench, start, n)), 1)
    starts = (("its own start", start), ("a developed state", bench.state))
    (first_name, first, first_steps), *others = [(where, state, steps) for steps in wanted for where, state in starts]
    bench.run(first, 1, stride=first_steps)
    whole = bench.run(start, n)
    for where, state, steps in others:
        bench.run(state, 1, stride=steps)
        again = bench.run(start, n)
        step = next((step for step in range(1, n + 1) if bench.differing(again[step], whole[step])), 0)
        if step:
            def arrive() -> None:
                bench.run(first, 1, stride=first_steps)
                bench.restored(start[0])

            said = (f"from the code's own start (n = 0) it goes another way after a run of {_steps(steps)} from {where} than "
                    f"after one of {_steps(first_steps)} from {first_name}: in step {step} "
                    f"{bench.sizes(again[step], whole[step])}")
            return _explain(bench, "restart", said, arrive, n, [(state, steps)]), ""
    if bench.differing(whole[1], bench.first):
        return Finding("restart", "bad", "from the code's own start (n = 0) it makes another first step than it did when it was "
                       f"opened: {bench.sizes(whole[1], bench.first)}", _remedy(bench, [])), ""
    return None, f"{_steps(n)} from its own start, too, after runs of {', '.join(map(str, wanted))}"


def _explain(bench: Bench, name: str, said: str, arrive: Callable[[], None], n: int,
             others: list[tuple[np.ndarray, int]]) -> Finding:
    """Which static variables were not put back, those first without which the next steps come out wrong.

    Args:
        bench: the code.
        name, said: the row, and what is wrong.
        arrive: brings the code to a state in such a way that the next `n` steps come out right.
        n: see above.
        others: start and length of runs after which, that state restored, they do not.
    """
    statics = Statics(bench)
    named: dict[str, str] = {}
    culprits: list[str] | None = None
    for start, steps in others:
        arrive()
        right, state = statics.look(), bench.onward(0)
        expected = bench.onward(n)
        bench.run(start, 1, stride=steps)
        bench.restored(state)
        named = not_put_back(bench, right, statics.look())
        if bench.differing(bench.onward(n), expected):
            bench.run(start, 1, stride=steps)
            bench.restored(state)
            culprits = guilty(bench, list(named), right, statics.look(), n, expected)
            break
    if culprits:
        said += f"; not put back are: {_spoken([named[one] for one in culprits])}"
        if len(named) > len(culprits):
            said += " (and without effect on these steps: "
            said += f"{_spoken([named[one] for one in named if one not in culprits], HARMLESS_NAMED)})"
    elif named:
        said += f"; not put back are: {_spoken(list(named.values()))} (work arrays among them are harmless)"
    if not named:
        return Finding(name, "bad", said, f"{_remedy(bench, [])}; {statics.unseen if statics.known else STRIPPED}")
    return Finding(name, "bad", said, _remedy(bench, [named[one] for one in culprits or named]))


def _steps(number: int) -> str:
    return f"{number} step{'s' * (number > 1)}"


def _remedy(bench: Bench, left: list[str]) -> str:
    """What to do about variables that were not put back."""
    remedy = f"{HALO if bench.divided else ''}{DESCRIBE}{'' if bench.calls_mpi else FORK}"
    if any(one.endswith(IN_PART) for one in left):
        remedy += "; what lies around a section, a halo, is filled at the end of trimtab_set_state by your code's own routine"
    return remedy


def _remembered(bench: Bench, n: int) -> list[Finding]:
    """What changes in a run and is not described: what differs after a restart (it knows the past, and no field has felt it
    yet), and what does not (it is computed anew)."""
    statics = Statics(bench)
    if not statics.known:
        return [Finding("restart, memory", "note", "what else changes in a run cannot be listed", STRIPPED)]
    middle = bench.run(bench.perturbed, 1, stride=n)[1]
    before = statics.look()
    bench.onward(n)
    after = statics.look()
    bench.run(bench.state, 1, stride=n + 1)
    bench.restored(middle)
    bench.onward(n)
    past = not_put_back(bench, after, statics.look())
    anew = {name: one for name, one in not_put_back(bench, before, after).items() if name not in past}
    findings = []
    if past:
        findings.append(Finding("restart, memory", "note", f"not described, and other after a restart than after a run, though "
                                f"no field has felt it in {n} steps: {_spoken(list(past.values()))}",
                                "harmless where only output looks at it (a timer, a diagnostic); where something is done "
                                "every so many steps, or from some step on, or summed up: trimtab_hidden"))
    if anew:
        findings.append(Finding("restart, memory", "ok", f"changes and is not described, but is the same after a restart, as it "
                                f"is computed anew: {_spoken(list(anew.values()))}"))
    return findings


def _spoken(found: list[str], most: int = MOST_NAMED) -> str:
    """Names, and how many in all where not all of them are told."""
    more = f" and {len(found) - most} more, {len(found)} in all" if len(found) > most else ""
    return f"{', '.join(found[:most])}{more}"
