# SPDX-License-Identifier: MIT
"""Experiments: what is read is what is written, and what is wrong is refused with the key's name."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.config.experiment import (
    changed_keys,
    dump_experiment,
    load_experiment,
    namelist,
    parse_experiment,
    shipped_experiments,
    solver_namelists,
)
from trimtab.core.errors import ConfigError
from trimtab.corrections.networks import build_network

MINIMAL = '[solver]\nname = "lorenz63"\ndt = 0.01\n'


@pytest.mark.parametrize("name", sorted(shipped_experiments()))
def test_shipped_experiments_survive_writing_and_reading(name):
    experiment = load_experiment(name)
    again = parse_experiment(dump_experiment(experiment), "dump")
    assert again == experiment
    assert changed_keys(experiment, again) == []
    assert experiment.name == name and experiment.description


def test_the_papers_recipe_is_shipped():
    experiment = load_experiment("lorenz63")
    training, reference = experiment.training, experiment.reference
    assert (training.window, training.batch, training.rate, training.epochs, training.rate_drop_every) == (
        10, 32, 0.01, 600, 100)
    starts = reference.snapshots - training.window
    assert (starts - reference.validation_windows, reference.validation_windows) == (5000, 990)
    assert reference.initial == (8.0, 0.0, 30.0) and reference.spin_up == 5.0


@pytest.mark.parametrize("name, count", [("lorenz63", 36), ("qg-paper", 927_041)])
def test_the_papers_networks_have_their_number_of_parameters(name, count):
    network = load_experiment(name).network
    assert sum(one.numel() for one in build_network(network.name, **network.options).parameters()) == count


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-10**9, 10**9), st.booleans())
def test_any_option_survives(text, number, count, flag):
    experiment = parse_experiment(MINIMAL, "test")
    options = {"text": text, "number": number, "count": count, "flag": flag, "list": [1, 2.5], "a key": {"b": [text]}}
    changed = type(experiment)(name=text, solver=type(experiment.solver)("x", options))
    tree = tomllib.loads(dump_experiment(changed))
    assert tree["name"] == text
    assert {key: tree["solver"][key] for key in options} == options


def test_overrides():
    experiment = load_experiment("lorenz63", ["training.epochs=3", "training.gradient=none", "solver.dt = 0.02",
                                              "training.curriculum=[[0, 2], [1, 10]]", "reference.solver.rho=27.0"])
    assert experiment.training.epochs == 3 and experiment.training.gradient == "none"
    assert experiment.solver.options["dt"] == 0.02 and experiment.reference.solver["rho"] == 27.0
    assert [experiment.training.window_at(epoch) for epoch in range(3)] == [2, 10, 10]


def test_changed_keys_names_them():
    one, other = load_experiment("lorenz63"), load_experiment("lorenz63", ["training.batch=8", "solver.dt=0.02"])
    assert changed_keys(one, other) == ["solver.dt", "training.batch"]


@pytest.mark.parametrize("override, words", [
    ("training.epoch=3", "epoch' in [training]"),
    ("trainnig.epochs=3", "'trainnig' at the top"),
    ("training.epochs=many", "training.epochs = 'many'"),
    ("training.epochs=3.5", "a whole number"),
    ("training.epochs=true", "training.epochs = True"),
    ("training.rate=nan", "a finite number"),
    ("training.rate=0.0", "training.rate = 0.0 must be positive"),
    ("training.batch=0", "training.batch = 0 must be at least 1"),
    ("training.optimiser=lbfgs", "adam, adamw, sgd"),
    ("training.loss_at=[11]", "training.loss_at = [11]"),
    ("training.curriculum=[[3, 5], [1, 10]]", "training.curriculum"),
    ("training.gradient_options=3", "a table"),
    ("reference.filter=box", "none, gaussian, sharp"),
    ("reference.validation_runs=1", "reference.validation_windows"),
    ("correction.input_mean=[]", "correction.input_mean"),
    ("correction.dtype=float16", "float32, float64"),
    ("score.closures=[\"best\"]", "'best'"),
    ("offline.rate=-1.0", "offline.rate"),
    ("solver.start=1979-05-27", "must hold numbers"),
    ("training", "not of the form"),
    ("=3", "not of the form"),
    ("name.x=3", "name"),
])
def test_what_is_wrong_is_named(override, words):
    with pytest.raises(ConfigError) as refusal:
        load_experiment("lorenz63", [override])
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_files_that_are_no_experiments(tmp_path):
    with pytest.raises(ConfigError, match=r"no experiment 'no-such'.*lorenz63"):
        load_experiment("no-such")
    broken = tmp_path / "broken.toml"
    broken.write_text("[solver\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_experiment(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="read as text"):
        load_experiment(broken)
    broken.write_text("[training]\nepochs = 3\n")
    with pytest.raises(ConfigError, match="names no solver"):
        load_experiment(broken)


def test_a_file_gives_its_name(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(MINIMAL)
    assert load_experiment(file).name == "mine"


def test_namelists():
    options = {"n": 64, "dt": 8e-4, "integrator": "rk4", "dealiasing": "3/2", "beta": 0.5}
    stepping, physics = solver_namelists("qg", options)
    assert stepping.splitlines() == ["&solver", "  name = 'qg'", "  dt = 0.00080000000000000004d0",
                                     "  integrator = 'rk4'", "/"]
    assert physics.splitlines() == ["&qg", "  n = 64", "  dealiasing = '3/2'", "  beta = 0.5d0", "/"]
    assert "1e-30".replace("e", "d") in namelist("a", {"x": 1e-30})
    assert "it''s" in namelist("a", {"x": "it's"})


@pytest.mark.parametrize("options", [{"x": float("nan")}, {"x": None}, {"x": []}, {"x / &y": 1}, {"x": {"y": 1}}])
def test_what_no_namelist_can_hold(options):
    with pytest.raises(ConfigError):
        namelist("group", options)


@pytest.mark.parametrize("channels", [4, [4], [2, 4.5], "24"])
def test_channels_that_are_no_list_of_whole_numbers(channels):
    with pytest.raises(ConfigError, match=r"channels = .* must be a list of at least two positive whole numbers"):
        build_network("PeriodicCNN", channels=channels)


def test_a_network_says_which_arguments_it_takes():
    with pytest.raises(ConfigError, match=r"does not take these arguments: .*'width'; it takes channels, kernel, activation, "):
        build_network("PeriodicCNN", width=12)
