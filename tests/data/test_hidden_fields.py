# SPDX-License-Identifier: MIT
"""A truth that knows the visible fields of a code alone: what stands for the hidden ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from trimtab.config.sections import ReferenceConfig
from trimtab.core.errors import ConfigError, DataError
from trimtab.core.spec import Field, SolverSpec
from trimtab.data.windows import Targets

H = 0.1
Q = Field("q", "vorticity", "1", ("y", "x"), (4, 6))
SPLIT = ReferenceConfig(training_runs=2, validation_runs=1, test_runs=1)
LEAPFROG = SolverSpec("leapfrog", 0.05, 2, (
    Q, replace(Q, name="q_old", hidden=True), Field("flags", "flags", "1", ("i",), (2,), hidden=True, dtype="int32")))


@pytest.fixture
def data():
    values = np.random.default_rng(0).standard_normal((4, 10, 4, 6))
    return xr.Dataset({"q": (("run", "time", "y", "x"), values)}, {"time": H * np.arange(10)})


@pytest.fixture
def saved(tmp_path):
    def save(data, name="truth.nc"):
        data.to_netcdf(tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("in_memory", [0, 2**30])
def test_hidden_fields_that_the_file_does_not_know(saved, data, in_memory):
    with pytest.raises(DataError, match=r"not its hidden ones, q_old, flags: say what .* hidden = \{"):
        Targets(saved(data), LEAPFROG, SPLIT, H)
    split = replace(SPLIT, hidden={"q_old": "q", "flags": 3})
    targets = Targets(saved(data), LEAPFROG, split, H, in_memory=in_memory)
    states, values = targets.states(2, slice(1, 4)), data.q.values[2, 1:4].reshape(3, 24)
    assert np.array_equal(states, np.concatenate([values, values, np.full((3, 2), 3.0)], 1))
    assert np.array_equal(targets.states(2, 1), states[0])
    known = replace(SPLIT, hidden={"flags": 0})
    older = data.assign(q_old=data.q.shift(time=1, fill_value=0.0))
    assert np.array_equal(Targets(saved(older, "older.nc"), LEAPFROG, known, H).states(0, 1)[24:48], data.q.values[0, 0].ravel())


@pytest.mark.parametrize("hidden, words", [
    ({"q": 0.0}, "speaks of 'q'; the hidden fields of leapfrog are q_old, flags"),
    ({"p_old": "q"}, "speaks of 'p_old'"),
    ({"flags": "q"}, "a field of the shape (2,)"),
    ({"q_old": "flags", "flags": 0}, "give a field of the shape"),
    ({"flags": float("nan")}, "a finite number"),
    ({"flags": [1, 2]}, "a finite number"),
])
def test_what_stands_for_hidden_fields_must_fit(saved, data, hidden, words):
    with pytest.raises(ConfigError) as refusal:
        Targets(saved(data), LEAPFROG, replace(SPLIT, hidden=hidden), H)
    assert words in str(refusal.value)
