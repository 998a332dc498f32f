# SPDX-License-Identifier: MIT
"""The compiled module's procedures with Python's manners: an exception instead of a status code."""

from __future__ import annotations

import numpy as np

from trimtab.bridge.solver_api import solver_api
from trimtab.core.errors import STATUS, TrimtabError

_CODES = {name: code for code, (name, _) in STATUS.items()}


def open_handle(stepping: str, physics: str) -> int:
    """Open a solver from its two namelist groups; the handle is a positive number.

    Raises:
        ConfigError: the solver's own sentence.
    """
    handle, code = solver_api.solver_open(stepping, physics)
    _check(code)
    return int(handle)


def close_handle(handle: int) -> None:
    """Close a solver and free all it holds.

    Raises:
        SolverError: it is closed already.
    """
    _check(solver_api.solver_close(handle))


def describe(handle: int) -> str:
    """The solver's JSON description of itself.

    Raises:
        SolverError: it is closed.
    """
    text, length, code = solver_api.solver_describe(handle)
    _check(code)
    return _text(text, length)


def set_correction(handle: int, address: int, context: int, size: int) -> None:
    """Fill the slot with the C function at an address, in numbers of 4 or 8 bytes; address 0 empties it.

    Raises:
        SolverError: the solver is closed.
    """
    _check(solver_api.solver_set_correction(handle, address, context, size))


def set_interrupt(handle: int, address: int) -> None:
    """Have a C function asked once a step whether to go on.

    Raises:
        SolverError: the solver is closed.
    """
    _check(solver_api.solver_set_interrupt(handle, address))


def tendency(handle: int, u: np.ndarray) -> np.ndarray:
    """Physics tendency of (B, N) float64 C-contiguous states, (B, N).

    Raises:
        SolverError: the solver is closed.
    """
    answer = np.empty_like(u)
    _check(solver_api.solver_tendency(handle, u.T, answer.T))
    return answer


def tendency_adjoint(handle: int, u: np.ndarray, lam: np.ndarray) -> np.ndarray:
    """(dF/du)^T lam of the physics at (B, N) float64 C-contiguous states, (B, N).

    Raises:
        SolverError: the solver is closed, or has no adjoint.
    """
    answer = np.empty_like(u)
    _check(solver_api.solver_tendency_adjoint(handle, u.T, lam.T, answer.T))
    return answer


def influence(handle: int, u: np.ndarray, coefficient: np.ndarray) -> np.ndarray:
    """What a (B, M) coefficient adds to the tendency of (B, N) float64 C-contiguous states, (B, N).

    Raises:
        SolverError: the solver is closed, or its slot takes no coefficient.
    """
    answer = np.empty_like(u)
    _check(solver_api.solver_influence(handle, u.T, coefficient.T, answer.T))
    return answer


def influence_adjoint(handle: int, u: np.ndarray, lam: np.ndarray, outputs: int) -> np.ndarray:
    """(dN/dP)^T lam at (B, N) float64 C-contiguous states, (B, outputs).

    Raises:
        SolverError: as in `influence`.
    """
    answer = np.empty((len(u), outputs))
    _check(solver_api.solver_influence_adjoint(handle, u.T, lam.T, answer.T))
    return answer


def influence_state_adjoint(handle: int, u: np.ndarray, coefficient: np.ndarray, lam: np.ndarray) -> np.ndarray:
    """The derivative by the state of what a coefficient adds, transposed and applied to lam, (B, N).

    Raises:
        SolverError: as in `influence`.
    """
    answer = np.empty_like(u)
    _check(solver_api.solver_influence_state_adjoint(handle, u.T, coefficient.T, lam.T, answer.T))
    return answer


def project(handle: int, u: np.ndarray) -> np.ndarray:
    """What the solver holds of (B, N) float64 C-contiguous states or tendencies, (B, N).

    Raises:
        SolverError: the solver is closed.
    """
    answer = np.empty_like(u)
    _check(solver_api.solver_project(handle, u.T, answer.T))
    return answer


def advance(handle: int, steps: int, stride: int, time: float, states: np.ndarray, failed: np.ndarray) -> str:
    """Run inner steps in place.

    Args:
        handle: of the solver.
        steps: inner steps.
        stride: inner steps between two records.
        time: of the first state.
        states: (steps // stride + 1, B, N) float64 C-contiguous; the first is the initial state, the others are written.
        failed: (B,) int64; the inner step at which a member blew up, 0 for none. A blow-up raises nothing here.

    Returns:
        Why the integrator could not make a step, when that is how a member was lost; else "".

    Raises:
        SolverError, CorrectionError, InputError: the solver's own sentence.
    """
    code = solver_api.solver_advance(handle, steps, stride, time, states.T, failed)
    if code == _CODES["STEP_FAILED"]:
        return _text(*solver_api.solver_message())
    if code != _CODES["BLOW_UP"]:
        _check(code)
    return ""


def substeps(handle: int, u: np.ndarray) -> np.ndarray:
    """Lengths of the steps that one inner step from (B, N) float64 C-contiguous states is made of, (S, B); zeros are none.

    Raises:
        SolverError, CorrectionError, InputError: the solver's own sentence.
    """
    most = 16
    while True:
        sizes, counts = np.zeros((u.shape[0], most)), np.zeros(u.shape[0], dtype=np.int64)
        _check(solver_api.solver_substeps(handle, u.T, sizes.T, counts))
        if counts.max() <= most:
            return np.ascontiguousarray(sizes[:, : max(1, counts.max())].T)
        most = int(counts.max())


def _check(code: int) -> None:
    if code == 0:
        return
    text, length = solver_api.solver_message()
    name, kind = STATUS.get(int(code), (f"status {code}", TrimtabError))
    sentence = _text(text, length) or name
    raise (kind or TrimtabError)(sentence if sentence.endswith(".") else f"{sentence}.")


def _text(text: bytes | str, length: int) -> str:
    return (text.decode() if isinstance(text, bytes) else str(text))[: int(length)].rstrip()
