# SPDX-License-Identifier: MIT
"""A training that mpirun starts, in which one thing happens on one rank at one step; with "whole", no window is lost.

    train.py WHAT RANK STEP FOLDER TOML [CHANGES ...]
"""

from __future__ import annotations

import os
import signal
import sys

import numpy as np
from advection import Ring

import trimtab
from trimtab.__main__ import main
from trimtab.config.experiment import load_experiment
from trimtab.core.errors import BlowUpError
from trimtab.core.window import Window
from trimtab.parallel.mpi import get_world
from trimtab.training.microbatches import Crew
from trimtab.training.trainer import Trainer


class Fragile:
    """A solver that loses some windows, the same ones wherever they are computed."""

    def __init__(self, solver):
        self.solver, self.spec = solver, solver.spec

    def advance(self, u0, steps, *, correction=None, on_blow_up="raise", **options):
        window = self.solver.advance(u0, steps, correction=correction, **options)
        failed = (window.states[0, :, 0] > 12).astype(np.int64) * (correction is not None)
        states = window.states.copy()
        states[1:, failed > 0] = np.nan
        if failed.any() and on_blow_up == "raise":
            raise BlowUpError("It blew up.", failed)
        return Window(states, window.times, window.h, failed)

    def close(self):
        self.solver.close()


def open_solver(name, **options):
    """Solvers of this test, by name."""
    return Ring(**options) if name == "ring" else Fragile(trimtab.open_solver(name, **options))


def loops(where, rank):
    """An endless loop on this rank where it is said: in the reference run, in a validation, in the scores, in an ensemble."""
    from trimtab.data import reference
    from trimtab.evaluation import score_run as scoring
    from trimtab.forecast.ensemble import Ensemble
    from trimtab.training.online import Online

    places = {"reference": (reference, "make_run"), "validation": (Online, "judge"), "scoring": (scoring, "evaluate"),
              "ensemble": (Ensemble, "_start")}
    module, name = places[where]
    original = getattr(module, name)

    def endless(*arguments, **options):
        while get_world().rank in rank:
            pass
        return original(*arguments, **options)

    setattr(module, name, endless)


def meddle(what, rank, step):
    """Have it happen in a step of this process, counted from 1."""
    original, calls = Crew._hand_out, 0

    def meddled(self, number):
        nonlocal calls
        calls += 1
        if calls == step and get_world().rank == rank:
            if what == "raise":
                raise ZeroDivisionError("made by the test")
            if what == "loop":
                while True:
                    pass
            if what.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, what))
        return original(self, number)

    Crew._hand_out = meddled


if __name__ == "__main__":
    what, rank, step, folder, file, *changes = sys.argv[1:]
    if what.startswith("loop in "):
        loops(what.removeprefix("loop in "), {int(one) for one in rank.split("+")})
        if what == "loop in ensemble":
            sys.exit(main(["ensemble", file, "--solver-only", "--members", "16", "--steps", "20", "--out", folder]))
        sys.exit(main(["train", file, "--out", folder, "--set", *changes]))
    meddle(what, int(rank), int(step))
    experiment = load_experiment(file, changes)
    opener = None if what == "whole" else open_solver
    sys.exit(Trainer(experiment, folder, resume=True, open_solver=opener).fit().exit_code)
