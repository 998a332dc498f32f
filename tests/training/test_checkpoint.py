# SPDX-License-Identifier: MIT
"""Checkpoints: what is put in comes out, whole or not at all, and what is no checkpoint is refused in one sentence."""

from __future__ import annotations

import os
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch

from trimtab.config.experiment import dump_experiment, parse_experiment
from trimtab.core.atomic_files import only_writer, replacing
from trimtab.core.errors import CheckpointError, DataError
from trimtab.core.provenance import provenance
from trimtab.corrections.factory import build_correction
from trimtab.training import checkpoint
from trimtab.training.checkpoint import (
    load_correction,
    random_states,
    read_checkpoint,
    restore_random_states,
    save_checkpoint,
    state_of,
)
from trimtab.training.run_folder import load_run

TEXT = """
[solver]
name = "lorenz63"
dt = 0.01
[network]
name = "MLP"
sizes = [3, 4, 3]
"""


@pytest.fixture
def spec(open_solver):
    return open_solver("lorenz63").spec


@pytest.fixture
def content(spec):
    experiment = parse_experiment(TEXT, "test")
    correction = build_correction(experiment, spec)
    correction.fit_normalisation(np.random.default_rng(0).standard_normal((20, 3)))
    return {"experiment": dump_experiment(experiment), "state": state_of(spec), "correction": correction.state_dict(),
            "best": None, "optimiser": torch.optim.Adam(correction.parameters()).state_dict(),
            "random": random_states(), "progress": {"epoch": 3}, "history": [["online", 1, float("nan")]],
            **provenance()}


def test_weights_and_normalisation_come_back(tmp_path, content, spec):
    save_checkpoint(tmp_path / "last.pt", content)
    correction = load_correction(tmp_path / "last.pt", spec)
    assert not correction.training and correction.input_scale.min() > 0.5
    for name, value in correction.state_dict().items():
        assert torch.equal(value, content["correction"][name])
    again = read_checkpoint(tmp_path / "last.pt")
    assert again["progress"] == {"epoch": 3} and again["versions"]["torch"] == torch.__version__
    assert os.listdir(tmp_path) == ["last.pt"]


def test_random_states_come_back(tmp_path, content):
    def draw():
        numbers = [*np.random.rand(2), np.random.randn()]  # noqa: NPY002
        return [*torch.rand(2).tolist(), *torch.randn(2).tolist(), *numbers, random.random()]

    draw()
    save_checkpoint(tmp_path / "last.pt", content | {"random": random_states()})
    expected = draw()
    draw()
    restore_random_states(read_checkpoint(tmp_path / "last.pt")["random"])
    assert draw() == expected


def test_a_save_that_dies_leaves_the_old_file(tmp_path, content, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, content)
    before = path.read_bytes()
    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            def fail(*arguments):
                raise KeyboardInterrupt

            patch.setattr(os, function, fail)
            with pytest.raises(KeyboardInterrupt):
                save_checkpoint(path, content | {"progress": {"epoch": 4}})
        assert path.read_bytes() == before
    with pytest.raises(ValueError), replacing(path):  # nothing was written
        raise ValueError
    assert path.read_bytes() == before


def refusal_of(path, spec=None):
    with pytest.raises(CheckpointError) as refusal:
        load_correction(path, spec) if spec else read_checkpoint(path)
    assert "\n" not in str(refusal.value) and path.name in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_cut_short(tmp_path, content, share):
    path = tmp_path / "last.pt"
    save_checkpoint(path, content)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "damaged" in refusal_of(path)


def test_a_flipped_bit_in_the_weights(tmp_path, content):
    path = tmp_path / "last.pt"
    save_checkpoint(path, content)
    with zipfile.ZipFile(path) as archive:
        record = next(one for one in archive.infolist() if "/data/" in one.filename and one.file_size >= 16)
        at = record.header_offset + 30 + len(record.filename)
        at += int.from_bytes(path.read_bytes()[record.header_offset + 28 : record.header_offset + 30], "little")
    data = bytearray(path.read_bytes())
    data[at + 5] ^= 1
    path.write_bytes(data)
    assert "damaged" in refusal_of(path)


def test_files_of_others(tmp_path, spec):
    path = tmp_path / "mine.pt"
    assert "There is no checkpoint" in refusal_of(path)
    assert "is a folder: give a checkpoint in it" in refusal_of(tmp_path)
    path.write_text("weights")
    assert "not a checkpoint" in refusal_of(path)
    torch.save({"weight": torch.zeros(3)}, path)
    assert "no checkpoint of trimtab" in refusal_of(path)
    torch.save({"format": checkpoint.FORMAT, "version": 99}, path)
    assert "version 99" in refusal_of(path)
    torch.save(torch.nn.Linear(2, 2), path)  # would run code to be read
    assert "not a checkpoint" in refusal_of(path)


class Malice:
    """What a pickle can do to who reads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_reading_never_runs_code_of_a_file(tmp_path, content):
    for number, place in enumerate(("correction", "history", "experiment")):
        path, crime = tmp_path / f"{number}.pt", tmp_path / f"crime{number}"
        torch.save({"format": checkpoint.FORMAT, "version": 1, **content, place: Malice(crime)}, path)
        assert "not a checkpoint or is damaged" in refusal_of(path)
        assert not crime.exists()
    pickle.loads(pickle.dumps(Malice(tmp_path / "done")))
    assert (tmp_path / "done").exists()  # so it could have


def test_a_solver_it_was_not_trained_for(tmp_path, content, open_solver):
    path = tmp_path / "last.pt"
    save_checkpoint(path, content)
    assert "do not fit" in refusal_of(path, open_solver("oscillator").spec)
    save_checkpoint(path, content | {"state": [{"name": "q"}]})
    assert "a state of q" in refusal_of(path, open_solver("lorenz63").spec)


def test_load_run(tmp_path, content):
    with pytest.raises(CheckpointError, match="not a run folder"):
        load_run(tmp_path)
    (tmp_path / "experiment.toml").write_text(content["experiment"])
    save_checkpoint(tmp_path / "best.pt", content)
    run = load_run(tmp_path)
    assert run.experiment.network.options["sizes"] == [3, 4, 3]
    assert run.checkpoints == {"best": tmp_path / "best.pt"}


def test_one_writer_at_a_time(tmp_path):
    with only_writer(tmp_path), pytest.raises(DataError, match="Another process"), only_writer(tmp_path):
        pass
    with only_writer(tmp_path):
        pass
