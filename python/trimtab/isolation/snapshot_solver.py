# SPDX-License-Identifier: MIT
"""A solver whose library's static memory is put back before each rollout, so that a rollout is a function of u0 alone."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.errors import ConfigError, SolverError
from trimtab.core.solver import OnBlowUp
from trimtab.core.spec import SolverSpec
from trimtab.core.window import Window
from trimtab.isolation.descriptors import loaded_libraries, open_files
from trimtab.isolation.leak_probe import Traces, gfortran_generators
from trimtab.isolation.solver_lock import Turn, in_turn
from trimtab.isolation.static_memory import LibraryImage

PROBE = 8  # outer steps of the two short rollouts that are compared
_SYSTEM = ("/lib/", "/lib64/", "/usr/")
_RUNTIMES = ("libgfortran", "libquadmath", "libgomp", "libgcc_s", "libstdc++", "libmpi", "libopen-", "libfftw", "libopenblas")


class ImagedSolver:
    """Any solver whose hidden state stands in static memory of its libraries; members are run one by one.

    Before each rollout, and each call of another method, the image is put back, and gfortran's random generator. When the
    solver has a method `restored`, it is called then, to forget what it believes to stand in the library (a filled slot).

    Args:
        inner: the solver, just opened: what it is now is what each rollout begins with.
        libraries: paths of its shared objects.
        verify: run a few steps twice before the first rollout, and refuse when the bits differ.
        others: open files that are not the solver's.

    Raises:
        ConfigError: no library; not Linux.
    """

    def __init__(self, inner: Any, libraries: Iterable[str], verify: bool = True, others: Iterable[str] = ()):
        self.inner, self._others = inner, frozenset(others)
        self._images = [LibraryImage(path) for path in libraries]
        if not self._images:
            raise ConfigError("snapshot = \"image\" found no shared object that the opener has loaded: name it in libraries.")
        self._random = [(one, one.state()) for one in gfortran_generators()]
        self._verify, self.turn = verify, Turn(type(inner).__name__)

    @classmethod
    def opened(cls, opener: Callable[[], Any], module: str, libraries: tuple[str, ...], verify: bool) -> ImagedSolver:
        """Open a solver and take the image of the shared objects that this loaded.

        Args:
            opener: imports what it needs and opens the solver.
            module: the module that it stands in.
            libraries: parts of the objects' names; none for all that were loaded, but for those of the system and of other
                installed packages.
            verify: see the class.

        Raises:
            ConfigError: a name that fits no loaded library.
        """
        before, others = set(loaded_libraries()), open_files().values()
        inner = opener()
        loaded = loaded_libraries()
        for name in libraries:
            if not any(name in Path(path).name for path in loaded):
                raise ConfigError(f"No library called {name!r} is loaded after the solver was opened: check libraries.")
        if libraries:
            chosen = [path for path in loaded if any(name in Path(path).name for name in libraries)]
        else:
            chosen = [path for path in loaded if path not in before and _is_own(Path(path), module)]
        return cls(inner, chosen, verify, others)

    @property
    def spec(self) -> SolverSpec:
        """The inner solver's."""
        spec: SolverSpec = self.inner.spec
        return spec

    @in_turn
    def advance(self, u0: Any, steps: int, *, correction: Any = None, stride: int = 1, time: float = 0.0,
                on_blow_up: OnBlowUp = "raise") -> Window:
        """See `Solver.advance`.

        Raises:
            SolverError: hidden state that the image does not cover: an array on the heap was allocated, freed or exchanged
                during the rollout, or two equal rollouts gave different bits.
        """
        start = self.spec.check_states(u0)
        run = functools.partial(self._run, correction=correction, stride=stride, time=time, on_blow_up=on_blow_up)
        if self._verify:
            self._compare(functools.partial(run, start[:1], min(steps, PROBE)))
            self._verify = False
        windows = [run(start[member : member + 1], steps) for member in range(start.shape[0])]
        inputs = None
        if windows[0].inputs is not None:
            inputs = np.concatenate([one.inputs for one in windows], 1)  # type: ignore[misc]
        return Window(np.concatenate([one.states for one in windows], 1), windows[0].times, windows[0].h,
                      np.concatenate([one.failed_step for one in windows]), inputs)

    @in_turn
    def close(self) -> None:
        """Close the inner solver."""
        self.inner.close()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["inner"], name)
        if not callable(value) or name.startswith("_"):
            return value

        @functools.wraps(value)
        def prepared(*positional: Any, **named: Any) -> Any:
            with self.turn.taken():
                self._restore()
                return value(*positional, **named)

        return prepared

    def _restore(self) -> None:
        for image in self._images:
            image.restore()
        for generator, state in self._random:
            if generator.state() != state:
                generator.set(state)
        forget = getattr(self.inner, "restored", None)
        if forget is not None:
            forget()

    def _run(self, start: np.ndarray, steps: int, **options: Any) -> Window:
        self._restore()
        window: Window = self.inner.advance(start, steps, **options)
        for image in self._images:
            moved = image.moved_pointers()
            if moved:
                raise SolverError(f"{moved} arrays on the heap of {Path(image.path).name} were allocated, freed or exchanged "
                                  "during a rollout, and an image of static memory cannot undo that: allocate them when the "
                                  "solver is opened, or set isolation = \"fork\".")
        return window

    def _compare(self, run: Callable[[], Window]) -> None:
        """Two equal short rollouts; different bits mean hidden state elsewhere."""
        first = run()
        traces = Traces(self._others)
        second = run()
        if same_bits(first, second):
            return
        found = traces.changes()
        local = [Path(one.path).name for one in self._images if one.thread_local]
        found += [f"{name} has thread-local variables" for name in local]
        because = "; ".join(found) if found else "no mark of it was found: an array on the heap, most likely"
        raise SolverError(f"Two equal rollouts of {self.spec.solver} gave different bits although the image was put back "
                          f"between them ({because}): set isolation = \"fork\", which covers the heap.")


def _is_own(path: Path, module: str) -> bool:
    """Whether a shared object is the solver's: none of the system's or of the interpreter's, or of another package."""
    if str(path).startswith(_SYSTEM) or path.name.startswith(_RUNTIMES) or "lib-dynload" in path.parts:
        return False
    if path.parent in (Path(sys.prefix, "lib"), Path(sys.base_prefix, "lib")):
        return False
    if "site-packages" in path.parts:
        inside = path.parts[path.parts.index("site-packages") + 1 :]
        return len(inside) == 1 or inside[0] == module.partition(".")[0]
    return True


def innermost(solver: Any) -> Any:
    """The solver inside an `ImagedSolver`; any other as it is."""
    return solver.inner if isinstance(solver, ImagedSolver) else solver


def same_bits(one: Window, other: Window) -> bool:
    """Whether two windows are the same, bit for bit."""
    pairs = [(one.states, other.states), (one.inputs, other.inputs)]
    return all((a is None and b is None) or (a is not None and b is not None and a.tobytes() == b.tobytes()) for a, b in pairs)
