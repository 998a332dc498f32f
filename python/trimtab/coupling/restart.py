# SPDX-License-Identifier: MIT
"""Is the described state all that the code remembers? If not: which variables of it are left out."""

from __future__ import annotations

import numpy as np

from trimtab.coupling.bench import Bench
from trimtab.coupling.finding import Finding
from trimtab.coupling.symbols import IN_PART, Statics, difference

LENGTHS = (1, 3, 8, 33)  # steps before and after the cut, odd and even, short and long
LONG, DIRT = 999, 86     # the longest, and steps of another run before its second half: no multiple of a usual interval
A_LONG = 6.0             # seconds that the long one may take
MOST_NAMED = 6
DESCRIBE = ("describe what the code remembers with trimtab_hidden (a flag, a counter, an old time level, a diagnostic; a local "
            "variable that is saved is declared in its module or a COMMON for that); where it cannot be reached, [solver] "
            "isolation = \"fork\" starts every rollout alike")
STRIPPED = "which variables, a library with a symbol table would tell: build it without -s, and do not strip it"


def check_restart(bench: Bench) -> list[Finding]:
    """Run n, store, restore over another state, run n: the same bits as 2 n in one go; from the developed state and from a
    perturbed one, in which what symmetry keeps at zero has begun to move."""
    lengths = [n for n in LENGTHS if 2 * n <= max(2, bench.most)]
    length = next((n for n in reversed(lengths) if _lasts(bench, bench.state, 2 * n)), 1)
    checked = [n for n in lengths if n <= length]
    starts = [bench.state] + [bench.perturbed] * _lasts(bench, bench.perturbed, 2 * length)
    for start in starts:
        for n in checked:
            finding = _halves(bench, start, n, n + 1)
            if finding:
                return [finding]
    known = sum(one.hidden for one in bench.spec.fields)
    left = f"; {bench.why()}" if len(lengths) < len(LENGTHS) else ""
    found = (f"run n, store, restore, run n: the same bits for n = {', '.join(map(str, checked))} ({known} hidden fields), "
             f"{'perturbed, too' if len(starts) > 1 else 'not perturbed, where it leaves the finite numbers'}{left}")
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
        return [Finding("restart, long", "ok", f"{why}; what is done once in many steps is not seen")]
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
    wrong = bench.differing(second, whole[2])
    return _explain(bench, start, whole[1], n, wrong) if wrong else None


def _explain(bench: Bench, start: np.ndarray, middle: np.ndarray, n: int, wrong: list[str]) -> Finding:
    """Where the halves part, and which static variables were not put back."""
    name = "restart" if n <= LENGTHS[-1] else "restart, long"
    back = bench.differing(bench.restored(middle), middle)
    if back:
        return Finding(name, "bad", f"a state that is stored and looked at again at once differs in {', '.join(back)}",
                       "trimtab_set_state must put back what trimtab_get_state returns; look for a halo or a derived array there")
    statics = Statics(bench)
    left = _not_put_back(bench, statics, start, middle, n)
    culprits = f"; not put back are: {_named(left)} (work arrays among them are harmless)" if left else ""
    remedy = DESCRIBE
    if any(one.endswith(IN_PART) for one in left):
        remedy += "; what lies around a section, a halo, is filled at the end of trimtab_set_state by your code's own routine"
    if not left:
        remedy += f"; {statics.unseen if statics.known else STRIPPED}"
    return Finding(name, "bad", f"restored after {n} steps, the next {n} differ, first in {wrong[0]} (of "
                                f"{', '.join(wrong[:5])})" + culprits, remedy)


def _not_put_back(bench: Bench, statics: Statics, start: np.ndarray, middle: np.ndarray, n: int) -> list[str]:
    """Variables that differ when the same state was reached by a run and by a restart, and the next steps differ."""
    found: list[str] = []
    for dirt in (n + 1, n + 2, 1):
        bench.run(start, 1, stride=n)
        before = statics.look()
        onward = bench.onward(n)
        bench.run(bench.state, 1, stride=dirt)
        bench.restored(middle)
        found = _differences(bench, before, statics.look())
        if bench.differing(bench.onward(n), onward):
            break
    return found


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
    past = _differences(bench, after, statics.look())
    anew = [one for one in _differences(bench, before, after) if one not in past]
    findings = []
    if past:
        findings.append(Finding("restart, memory", "note", f"not described, and other after a restart than after a run, though "
                                f"no field has felt it in {n} steps: {_named(past)}", "harmless where only output looks at it (a "
                                "timer, a diagnostic); where something is done every so many steps, or from some step on, or "
                                "summed up: trimtab_hidden"))
    if anew:
        findings.append(Finding("restart, memory", "ok", f"changes and is not described, but is the same after a restart, as it "
                                f"is computed anew: {_named(anew)}"))
    return findings


def _differences(bench: Bench, one: dict[str, tuple[int, bytes]], other: dict[str, tuple[int, bytes]]) -> list[str]:
    """Variables that differ in what no field describes, single numbers first: flags and counters."""
    described = bench.own.library.spans()
    found = [(len(memory[1]), difference(name, memory, other.get(name, (0, b"")), described)) for name, memory in one.items()]
    return [text for _, text in sorted(found, key=lambda pair: pair[0]) if text]


def _named(found: list[str]) -> str:
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return f"{', '.join(found[:MOST_NAMED])}{more}"
