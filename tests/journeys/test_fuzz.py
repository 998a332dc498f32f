# SPDX-License-Identifier: MIT
"""Whatever is given, an exception of trimtab's own or a result: no crash, no other exception, no hang.

A few dozen cases a test; TRIMTAB_FUZZ=5000 asks for so many, as `make fuzz` does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trimtab
from trimtab.config.experiment import dump_experiment, parse_experiment, shipped_experiments
from trimtab.config.sections import ReferenceConfig
from trimtab.core.errors import BlowUpError, TrimtabError
from trimtab.data.windows import Targets

CASES = int(os.environ.get("TRIMTAB_FUZZ") or 60)
fuzz = settings(max_examples=CASES, deadline=None, derandomize="TRIMTAB_FUZZ" not in os.environ, database=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large])
TREES = [tomllib.loads(path.read_text()) for path in shipped_experiments().values()]
NUMBERS = st.one_of(st.integers(-3, 3), st.integers(), st.floats(), st.sampled_from([0, 2**31 - 1, 2**31, 2**63, 10**400, 1e308]))
WORDS = st.sampled_from(["", "/", "&", "'", "\n", "é", "\0", "qg", "static"])
SCALARS = st.one_of(NUMBERS, st.booleans(), st.text(max_size=12), WORDS)
VALUES = st.recursive(SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4),
                                                       st.dictionaries(st.text(max_size=5), inner, max_size=3)), max_leaves=6)


def toml(value: Any) -> str:
    """TOML of a value, made by nobody's code but this test's."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(one if one.isalnum() and one.isascii() else f"\\U{ord(one):08x}" for one in value) + '"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(one)}" for key, one in value.items()) + "}"
    return f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else repr(value)


def document(tree: dict[str, Any]) -> str:
    return "\n".join(f"{toml(key)} = {toml(value)}" for key, value in tree.items())


def survives(text: str, overrides: list[str]) -> None:
    try:
        experiment = parse_experiment(text, "fuzz.toml", overrides, "fuzz")
    except TrimtabError as error:
        assert str(error)
        return
    assert parse_experiment(dump_experiment(experiment), "again") == experiment


@fuzz
@given(st.data())
def test_a_changed_experiment_is_read_or_refused(data: Any) -> None:
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in data.draw(st.sampled_from(TREES)).items()}
    for _ in range(data.draw(st.integers(1, 3))):
        section = data.draw(st.sampled_from(sorted(tree)))
        if isinstance(tree[section], dict) and tree[section] and data.draw(st.integers(0, 5)):
            key = data.draw(st.one_of(st.sampled_from(sorted(tree[section])), st.text(max_size=6)))
            tree[section][key] = data.draw(VALUES)
        else:
            tree[data.draw(st.one_of(st.just(section), st.text(max_size=6)))] = data.draw(VALUES)
    survives(document(tree), data.draw(st.lists(st.text(max_size=20), max_size=1)))


@fuzz
@given(st.text(max_size=200), st.lists(st.one_of(st.text(max_size=20), st.sampled_from(
    ["training.window=3", "solver=1", "a.b.c=[", "score.leads=[1,", "training.=1", "=", "network.name=x", "training.rate=nan"])),
    max_size=2))
def test_any_text_is_read_or_refused(text: str, overrides: list[str]) -> None:
    survives(text, overrides)
    survives('[solver]\nname = "lorenz63"\ndt = 0.01\n' + text, overrides)


@fuzz
@given(st.binary(max_size=100), st.integers(0, 4000), st.integers(0, 255))
def test_any_file_is_read_or_refused(tmp_path: Path, content: bytes, place: int, byte: int) -> None:
    whole = bytearray(shipped_experiments()["lorenz63"].read_bytes())
    whole[place % len(whole)] = byte
    for case in (content, bytes(whole), bytes(whole[: place % len(whole)])):
        (tmp_path / "any.toml").write_bytes(case)
        try:
            trimtab.load_experiment(tmp_path / "any.toml")
        except TrimtabError as error:
            assert str(error)


KEYS = st.sampled_from(["dt", "integrator", "order", "correction_at", "n", "fast", "sigma", "forcing", "viscosity", "dealiasing",
                        "forcing_wavenumber", "hyperviscosity", "hyperviscosity_order", "beta", "name_", "a b"])


@fuzz
@given(st.sampled_from(["lorenz63", "lorenz96", "lorenz96_two_scale", "oscillator", "qg", "none", "qg /"]),
       st.dictionaries(KEYS, SCALARS, max_size=3))
def test_any_parameters_open_a_solver_or_are_refused(name: str, options: dict[str, Any]) -> None:
    if name == "qg" and isinstance(options.get("n"), int):
        options["n"] = min(options["n"], 64)  # larger ones are right, and take long
    try:
        with trimtab.open_solver(name, **{"dt": 0.01, **options}) as solver:
            solver.advance(np.full((1, solver.spec.size), 0.1), 1)
    except TrimtabError as error:
        assert str(error)


SHAPES = st.one_of(st.just((2, 3)), st.just((1, 3)), st.lists(st.integers(0, 4), max_size=4).map(tuple))
DTYPES = st.one_of(st.just("f8"), st.sampled_from(["f4", "f2", "i8", "u1", ">f8", "c16", "?", "O", "S3", "U3", "M8[s]", "g"]))
FILLS = st.sampled_from([0.0, 1.0, -5.0, 1e-320, 1e99, 1e101, 1e308, np.inf, -np.inf, np.nan])


@st.composite
def arrays(draw: Any) -> Any:
    shape, dtype = draw(SHAPES), draw(DTYPES)
    with np.errstate(all="ignore"):
        base = np.ones((*shape,)) * draw(FILLS) + np.arange(int(np.prod(shape))).reshape(shape) * 0.1
        try:
            array = np.nan_to_num(base).astype(dtype) if dtype[0] in "iuM?" else base.astype(dtype)
        except (TypeError, ValueError, OverflowError):
            array = np.zeros(shape, dtype)
    array = np.asarray(array)  # of shape () it is a scalar
    kind = draw(st.sampled_from(["plain", "plain", "reversed", "fortran", "broadcast", "readonly", "torch", "list", "offset"]))
    if kind == "reversed" and array.ndim:
        return array[::-1]
    if kind == "fortran":
        return np.asfortranarray(array)
    if kind == "broadcast" and array.ndim > 1:
        return np.broadcast_to(array[:1], array.shape)
    if kind == "readonly":
        array.flags.writeable = False
        return array
    if kind == "torch" and array.dtype.kind in "fiu" and array.dtype.isnative and array.dtype.char != "g":
        other = draw(st.sampled_from([torch.float64, torch.bfloat16, torch.int32]))
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(other)
        return tensor.to_sparse() if draw(st.integers(0, 4)) == 4 else tensor
    if kind == "offset" and array.dtype == np.float64:  # numbers that do not begin at a multiple of their size
        raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
        odd = raw.view(np.float64).reshape(array.shape)
        odd[...] = array
        return odd
    return array.tolist() if kind == "list" else array


class Answers(torch.nn.Module):
    """A correction that returns one fixed thing."""

    dtype = torch.float64

    def __init__(self, answer: Any):
        super().__init__()
        self.answer = answer

    def forward(self, u: torch.Tensor) -> Any:
        return self.answer if not isinstance(self.answer, float) else torch.full_like(u, self.answer)


ANSWERS = st.one_of(FILLS, st.sampled_from([None, 3, "x", torch.zeros(0), torch.zeros(2, 3, dtype=torch.int64),
                                            torch.zeros(2, 3).to_sparse(), torch.zeros(3, 2).T, torch.zeros(2, 3, device="meta"),
                                            torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(1, 3).expand(2, 3)]))
LIVING = st.one_of(st.none(), st.integers(0, 3), ANSWERS.map(Answers))
COUNTS = st.one_of(st.integers(1, 3), st.sampled_from([0, -1, 2**31, 2**62, 2**63, 10**30, 1.5, "1", None, True]))


@fuzz
@given(arrays(), COUNTS, COUNTS, LIVING, st.one_of(st.just(0.0), NUMBERS, st.sampled_from(["", None, 1j])),
       st.sampled_from(["raise", "mark", "", None]))
def test_the_bridge_takes_any_arguments(u0: Any, steps: Any, stride: Any, correction: Any, time: Any, mode: Any) -> None:
    if isinstance(stride, int) and isinstance(steps, int) and 3 < abs(stride) * abs(steps) < 2**60:
        steps, stride = min(steps, 3), min(stride, 3)  # those would be right, and take for ever
    with trimtab.open_solver("lorenz63", dt=0.01) as solver:
        before = solver.advance(np.ones((2, 3)), 3).states
        try:
            window = solver.advance(u0, steps, correction=correction, stride=stride, time=time, on_blow_up=mode)
            assert window.states.shape == (int(steps) + 1, len(u0), 3) and mode in ("raise", "mark")
            assert np.isfinite(window.states[:, window.alive]).all()
        except BlowUpError as error:
            assert mode == "raise" and error.steps.any()
        except TrimtabError as error:
            assert str(error)
        for ask in (solver.tendency, solver.project, lambda u: solver.tendency_adjoint(np.ones((2, 3)), u)):
            try:
                assert ask(u0).shape == np.shape(u0)
            except TrimtabError as error:
                assert str(error)
        assert np.array_equal(solver.advance(np.ones((2, 3)), 3).states, before)  # and it is whole


def valid_file(path: Path) -> None:
    states = np.random.default_rng(0).standard_normal((3, 20, 3))
    xr.Dataset({"u": (("run", "time", "component"), states)},
               {"time": ("time", 0.01 * np.arange(20)), "component": [1.0, 2.0, 3.0]}).to_netcdf(path)


def read_all(path: Path) -> None:
    """Everything of a file of targets, or a refusal."""
    reference = ReferenceConfig(training_runs=1, validation_runs=1, test_runs=1)
    with trimtab.open_solver("lorenz63", dt=0.01) as solver:
        for limit in (0, 2**20):
            try:
                targets = Targets(path, solver.spec, reference, 0.01, in_memory=limit)
                try:
                    assert np.isfinite(targets.runs("test")[0, :]).all()
                    windows = targets.windows("training", 3)
                    assert windows.batch(np.arange(len(windows)), [0, 3]).shape[1:] == (len(windows), 3)
                finally:
                    targets.close()
            except TrimtabError as error:
                assert str(error)


@fuzz
@given(st.data())
def test_any_netcdf_is_read_or_refused(tmp_path: Path, data: Any) -> None:
    """The file is whole, what is in it is not."""
    dims = data.draw(st.sampled_from([("run", "time", "component"), ("time", "component"), ("component", "time"), ("time",), (),
                                      ("run", "time", "component", "x"), ("time", "run", "component")]))
    sizes = {"run": data.draw(st.integers(0, 4)), "time": data.draw(st.integers(0, 12)), "x": 2,
             "component": data.draw(st.sampled_from([3, 3, 2]))}
    dtype = data.draw(st.sampled_from(["f8", "f4", "i4", "u1", "S1", "U4"]))
    values = np.ones([sizes[dim] for dim in dims]).astype(dtype)
    if values.size and values.dtype.kind == "f":
        values.flat[data.draw(st.integers(0, values.size - 1))] = data.draw(FILLS.filter(lambda x: abs(x) < 1e30 or x != x))
    coords = {}
    if data.draw(st.integers(0, 4)) and "time" in dims:
        times = data.draw(st.sampled_from([0.01, 0.02, 0.0, -0.01, 1e-300, np.nan])) * np.arange(sizes["time"])
        coords["time"] = ("time", times.astype(data.draw(st.sampled_from(["f8", "f4", "U4", "i8"]))
                                               if np.isfinite(times).all() else "f8"))
    file = xr.Dataset({data.draw(st.sampled_from(["u", "u", "u", "q"])): (dims, values)}, coords)
    if "time" in coords and data.draw(st.booleans()):
        file["time"].attrs["units"] = data.draw(st.sampled_from(["1", "days since 2000-01-01", "s", "µ"]))
    path = tmp_path / "any.nc"
    path.unlink(missing_ok=True)
    file.to_netcdf(path)
    read_all(path)


def test_any_damage_to_a_netcdf_is_read_or_refused(tmp_path: Path) -> None:
    """In a process of its own: the library that reads these files may crash on some, and then so must this test."""
    script = "import sys, test_fuzz; test_fuzz.damage(sys.argv[1], int(sys.argv[2]))"
    done = subprocess.run([sys.executable, "-X", "faulthandler", "-c", script, str(tmp_path), str(CASES)],
                          cwd=Path(__file__).parent, capture_output=True, text=True, timeout=1800 + 3 * CASES)
    assert done.returncode == 0 and done.stdout.strip() == f"{CASES} cases", f"{done.returncode}: {done.stderr[-3000:]}"


def damage(folder: str, cases: int) -> None:
    """Cut a file short, or change some of its bytes, many times over."""
    valid_file(Path(folder) / "valid.nc")
    whole, generator = (Path(folder) / "valid.nc").read_bytes(), np.random.default_rng(0)
    for case in range(cases):
        content = bytearray(whole)
        if case % 2:
            content = content[: int(generator.integers(len(content)))]
        else:
            for place in generator.integers(len(content), size=int(generator.integers(1, 9))):
                content[int(place)] = int(generator.integers(256))
        path = Path(folder) / f"{case}.nc"  # the library keeps files by name
        path.write_bytes(content)
        read_all(path)
        path.unlink()
    print(f"{cases} cases")


@pytest.mark.parametrize("content", [b"", b"\0", b"CDF\x01", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + b"\xff" * 500])
def test_stubs_of_netcdf_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "stub.nc").write_bytes(content)
    with trimtab.open_solver("lorenz63", dt=0.01) as solver, pytest.raises(TrimtabError, match=r"stub\.nc"):
        Targets(tmp_path / "stub.nc", solver.spec, ReferenceConfig(), 0.01)
