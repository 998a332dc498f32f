# SPDX-License-Identifier: MIT
"""Is the described state all that the code remembers? If not: which variables of it are left out."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess

import numpy as np

from trimtab.coupling.bench import Bench
from trimtab.coupling.finding import Finding

LENGTHS = (1, 3, 8, 33)  # steps before and after the cut, odd and even, short and long
MOST_NAMED = 6


def check_restart(bench: Bench) -> list[Finding]:
    """Run n, store, restore over another state, run n: the same bits as 2 n in one go."""
    start = bench.state
    lengths = [n for n in LENGTHS if 2 * n <= max(2, bench.most)]
    length = next((n for n in reversed(lengths) if bench.advance(start, 1, stride=2 * n, on_blow_up="mark").alive.all()), 1)
    checked = [n for n in lengths if n <= length]
    for n in checked:
        whole = bench.run(start, 2, stride=n)
        bench.run(start, 1, stride=n + 1)  # leave every flag and old level standing otherwise
        second = bench.run(whole[1], 1, stride=n)[1]
        wrong = bench.differing(second, whole[2])
        if wrong:
            return [_explain(bench, whole[1], n, wrong)]
    known = sum(one.hidden for one in bench.spec.fields)
    left = f"; {bench.why()}" if len(lengths) < len(LENGTHS) else ""
    found = (f"run n, store, restore, run n: the same bits for n = {', '.join(map(str, checked))} ({known} hidden fields){left}")
    if len(checked) < len(lengths):
        return [Finding("restart", "note", f"{found}; in {2 * lengths[len(checked)]} steps it leaves the finite numbers",
                        "see whether that is so without trimtab; a shorter dt, or a calmer start")]
    return [Finding("restart", "ok", found)]


def _explain(bench: Bench, middle: np.ndarray, n: int, wrong: list[str]) -> Finding:
    """Where the halves part, and which static variables were not put back."""
    back = _after_restore(bench, middle)
    if back:
        return Finding("restart", "bad", f"a state that is stored and looked at again at once differs in {', '.join(back)}",
                       "trimtab_set_state must put back what trimtab_get_state returns; look for a halo or a derived array there")
    left = _not_put_back(bench, middle, n)
    culprits = ""
    if left:
        more = f" and {len(left) - MOST_NAMED} more" if len(left) > MOST_NAMED else ""
        culprits = f"; not put back are: {', '.join(left[:MOST_NAMED])}{more} (work arrays among them are harmless)"
    return Finding("restart", "bad", f"restored after {n} steps, the next {n} differ, first in {wrong[0]} (of "
                                     f"{', '.join(wrong[:5])})"
                   + culprits,
                   "describe what the code remembers with trimtab_hidden (a flag, a counter, an old time level, a diagnostic; a "
                   "local variable that is saved is declared in its module or a COMMON for that); where it cannot be reached, "
                   "[solver] isolation = \"fork\" starts every rollout alike")


def _after_restore(bench: Bench, state: np.ndarray) -> list[str]:
    again = np.empty_like(state)
    with bench.solver.surroundings.entered():
        bench.solver.library.set_state(np.ascontiguousarray(state))
        bench.solver.library.get_state(again)
    return bench.differing(again, state)


def _not_put_back(bench: Bench, middle: np.ndarray, n: int) -> list[str]:
    """Static variables that differ when the same state was reached by a run and by a restart, and the next steps differ."""
    found: list[str] = []
    for dirt in (n + 1, n + 2, 1):
        bench.run(bench.state, 1, stride=n)
        before = static_memory(bench)
        onward = _onward(bench, n)
        bench.run(bench.state, 1, stride=dirt)
        _after_restore(bench, middle)
        after = static_memory(bench)
        described = bench.solver.library.spans()
        several = [_differences(name, address, memory, after[name][1], described) for name, (address, memory) in before.items()]
        found = [one for one in several if one]
        if bench.differing(_onward(bench, n), onward):
            break
    return found


def _onward(bench: Bench, n: int) -> np.ndarray:
    """The state after n more steps, from wherever the code is."""
    state = np.empty(bench.spec.size)
    with bench.solver.surroundings.entered():
        bench.solver.library.advance(n)
        bench.solver.library.get_state(state)
    return state


def _differences(name: str, address: int, one: bytes, other: bytes, described: list[tuple[int, int]]) -> str:
    """A variable and, of a block, the bytes in it that differ and are in no described array; "" when there are none."""
    differ = np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8)
    for start, stop in described:
        differ[max(0, start - address) : max(0, stop - address)] = False
    places = np.flatnonzero(differ)
    if not places.size:
        return ""
    if len(one) <= 8:
        return _spoken(name)
    words = 4 * np.unique(places // 4)
    runs = np.split(words, np.flatnonzero(np.diff(words) > 64) + 1)
    spans = [f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1] + 3}" for run in runs]
    return f"{_spoken(name)} at byte {', '.join(spans[:4])}{' ...' if len(spans) > 4 else ''} of {len(one)}"


def static_memory(bench: Bench) -> dict[str, tuple[int, bytes]]:
    """Address and bytes of every writable static variable of the library by the linker's name; empty without `nm`."""
    library = bench.solver.library
    nm = shutil.which("nm")
    if nm is None:
        return {}
    said = subprocess.run([nm, "-S", "--defined-only", str(library.private)], capture_output=True, text=True, check=False).stdout
    table = [(int(a, 16), int(s, 16), kind, name) for a, s, kind, name in re.findall(r"^(\w+) (\w+) (\w) "
                                                                                      "(.+)$", said, re.MULTILINE)]
    anchor = next((address for address, _, _, name in table if name == "trimtab_slot_status"), None)
    if anchor is None:
        return {}
    base = library.address("trimtab_slot_status") - anchor
    return {name: (base + address, ctypes.string_at(base + address, size)) for address, size, kind, name in table
            if kind in "bBdD" and ("_MOD_" in name or not name.startswith(("_", "trimtab_")))}


def _spoken(symbol: str) -> str:
    """A linker's name as the Fortran has it."""
    module = re.fullmatch(r"__(\w+)_MOD_(\w+)", symbol)
    if module:
        return f"{module[2]} (module {module[1]})"
    saved = re.fullmatch(r"(\w+)\.\d+", symbol)
    if saved:
        return f"{saved[1]} (a local variable that is saved)"
    return f"COMMON /{symbol.rstrip('_')}/" if symbol.endswith("_") else symbol
