# SPDX-License-Identifier: MIT
"""Solvers in processes of their own: what a code remembers, how it ends, and where it writes becomes its own affair.

`open_isolated(opener, options, isolation=..., snapshot=...)` opens any solver, Fortran or not, behind the `Solver` protocol.

Two things are wanted of a rollout: that it is a function of its initial state alone (get and set of the state may miss what
else the code remembers), and that nothing of it harms the program. Who gives what:

    isolation              "none"       "none"          "process"     "process"     "fork"
    snapshot               "none"       "image"         "none"        "image"       (is one)
    ------------------------------------------------------------------------------------------------------------
    a rollout begins with
      SAVE, COMMON, module as the last  as opened       as the last   as opened     as opened
        variables (static)   one left it                  one left it
      ALLOCATABLE, heap    as left      refused*        as left       refused*      as opened
      gfortran's random    as left      as opened       as left       as opened     as opened
        numbers
      other generators,    as left      refused*        as left       refused*      as opened
        other libraries
      open files: position as left      refused*        as left       refused*      as opened
      open files: content  as left      as left         as left       as left       as opened (each child has a copy)
      files opened by name as left      as left         as left       as left       as opened (a copied folder)
      clock, network,      cannot be put back: two equal rollouts are compared, and refused when their bits differ
        files elsewhere
    STOP, abort, crash     end Python   end Python      SolverStopped                             SolverStopped
    then                                                a new worker opens the solver again       nothing is lost
    a hang                 hangs        hangs           `timeout`                                 `timeout`
    several instances      no           no              `instances` processes                     `instances` children
    costs a rollout        0            image (0.1 ms   about 1 ms    both          a fork (5 to 15 ms), a copy of the
                                          a MB)                                       working folder
    systems                all          Linux           Unix          Linux         Linux

    * when it shows: an address into the heap that changes in static memory is seen after every rollout; anything else by
      comparing two short equal rollouts before the first one (`verify`).

A rollout that begins "as opened" is a function of u0 alone, whatever ran before and whatever `instances` is; so repeated,
resumed and distributed runs have the same bits, and the two halves of a rollout that was cut differ from the whole wherever
the code remembers more than its state. A long production run therefore is one rollout, or runs without a snapshot.

"fork": the process is opened once and stays as it is; each group of members runs in a copy of it that the system makes
page by page as they are written. It must have one thread when it is copied, which is checked.

A solver may offer, to be told or to tell:

    on_step     an attribute; a worker sets it to a function, to be called with the number of outer steps done
    restored()  called after static memory was put back: forget what was believed to stand in the library, a filled slot

`load_private_copy` loads a library several times into one process.
"""

from __future__ import annotations

import importlib
from typing import Any

# Imported when first used: a worker imports this package, too, and may do without torch.
_HOME = {
    "open_isolated": "trimtab.isolation.process_solver",
    "IsolatedSolver": "trimtab.isolation.process_solver",
    "ImagedSolver": "trimtab.isolation.snapshot_solver",
    "LibraryImage": "trimtab.isolation.static_memory",
    "load_private_copy": "trimtab.isolation.copies",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trimtab.isolation' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
