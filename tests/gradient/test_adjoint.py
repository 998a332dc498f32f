# SPDX-License-Identifier: MIT
"""The solvers' adjoints: the transpose of the tendency to round-off, and the derivative of the numbers it computes."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.core.errors import InputError, SolverError

CASES = [
    ("lorenz63", {}),
    ("lorenz63", {"beta": 8 / 3}),
    ("lorenz96", {}),
    ("lorenz96", {"n": 4}),
    ("lorenz96_two_scale", {}),
    ("lorenz96_two_scale", {"fast": 1, "coupling": 0.7}),
    ("oscillator", {}),
    ("oscillator", {"restoring": 0.0}),
    *[("qg", {"n": n, "hyperviscosity": 1e-5, "forcing_wavenumber": 3, "dealiasing": rule})
      for n in (12, 16) for rule in ("3/2", "2/3", "none")],
]


def vectors(solver, number, members=3, seed=1):
    """White noise: on a grid it also holds waves that the solver drops."""
    return np.random.default_rng(seed).standard_normal((number, members, solver.spec.size))


def derivative(solver, u, v, step):
    return (solver.tendency(u + step * v) - solver.tendency(u - step * v)) / (2 * step)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_adjoint_is_the_transpose(name, options, open_solver):
    """<lam, dF v> = <dF^T lam, v>; every F here is quadratic, so that a central difference of any step is dF v."""
    solver = open_solver(name, **options)
    assert solver.has_adjoint
    u, v, lam = vectors(solver, 3)
    forward, backward = derivative(solver, u, v, 1.0), solver.tendency_adjoint(u, lam)
    scale = np.linalg.norm(forward, axis=1) * np.linalg.norm(lam, axis=1)
    assert (np.abs((forward * lam).sum(1) - (v * backward).sum(1)) < 1e-13 * scale).all()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_adjoint_against_small_differences(name, options, open_solver):
    """The same with the step that a user would take, and every component of the gradient of <lam, F(u)>."""
    solver = open_solver(name, **options)
    u, lam = vectors(solver, 2, members=1)
    size = solver.spec.size
    units = np.eye(size)
    slopes = derivative(solver, np.repeat(u, size, axis=0), units, 1e-5) @ lam[0]
    np.testing.assert_allclose(solver.tendency_adjoint(u, lam)[0], slopes, rtol=0, atol=1e-8 * np.abs(slopes).max())


@pytest.mark.parametrize("name", ["lorenz96", "qg"])
def test_members_do_not_see_each_other(name, open_solver):
    solver = open_solver(name)
    u, lam = vectors(solver, 2)
    together = solver.tendency_adjoint(u, lam)
    for member in range(len(u)):
        one = slice(member, member + 1)
        assert np.array_equal(solver.tendency_adjoint(u[one], lam[one]), together[one])


@pytest.mark.parametrize(("name", "options"), CASES)
def test_projection_is_orthogonal_and_all_that_the_tendency_sees(name, options, open_solver):
    solver = open_solver(name, **options)
    u, v = vectors(solver, 2)
    seen = solver.project(u)
    np.testing.assert_allclose(solver.project(seen), seen, rtol=0, atol=1e-13)
    np.testing.assert_allclose((seen * v).sum(1), (u * solver.project(v)).sum(1), rtol=1e-11)
    np.testing.assert_allclose(solver.tendency(seen), solver.tendency(u), rtol=0, atol=1e-11 * np.abs(solver.tendency(u)).max())
    if name != "qg":
        assert np.array_equal(seen, u)


def test_what_is_not_finite_in_the_vector_is_handed_on(open_solver):
    solver = open_solver("lorenz63")
    answer = solver.tendency_adjoint(np.ones((2, 3)), np.array([[np.nan, 0, 0], [1.0, 0, 0]]))
    assert np.isnan(answer[0]).any()
    assert np.isfinite(answer[1]).all()


@pytest.mark.parametrize("lam", [np.ones((2, 4)), np.ones((2, 3), np.float32), np.ones(3), np.ones((0, 3))])
def test_refused_vectors(lam, open_solver):
    with pytest.raises(InputError, match=r"lam must be a \(members, 3\) float64 array"):
        open_solver("lorenz63").tendency_adjoint(np.ones((2, 3)), lam)


def test_refused_states(open_solver):
    solver = open_solver("lorenz63")
    with pytest.raises(InputError, match="NaN"):
        solver.tendency_adjoint(np.full((1, 3), np.nan), np.ones((1, 3)))
    with pytest.raises(InputError, match="must have the shape of the states"):
        solver.tendency_adjoint(np.ones((2, 3)), np.ones((3, 3)))


def test_a_closed_solver_says_so(open_solver):
    solver = open_solver("lorenz63")
    solver.close()
    for call in (lambda: solver.tendency_adjoint(np.ones((1, 3)), np.ones((1, 3))), lambda: solver.project(np.ones((1, 3)))):
        with pytest.raises(SolverError, match="closed"):
            call()
