# SPDX-License-Identifier: MIT
"""Namelists changed for a run: Fortran reads the new values, all else is as it was, and what cannot be changed is refused."""

from __future__ import annotations

import subprocess

import f90nml
import pytest

from trimtab.core.errors import ConfigError
from trimtab.isolation.workdir.namelist import patch_namelist
from trimtab.isolation.workdir.surroundings import Surroundings

READER = """
program reader
  real :: a = 7.0, b = 8.0, c = 9.0, v(4) = 0.0
  character(20) :: name = ''
  logical :: flag = .false.
  namelist /control/ a, b, c, v, name, flag
  open (11, file='code.nml', status='old')
  read (11, control)
  print '(7(es12.4), 1x, a, l2)', a, b, c, v, name, flag
end program reader
"""
BARE = "a line, which isn't of the namelist /\n&CONTROL\n  A = ,\n  B = 1.0   ! don't / look\n  C = ,\n/\n&other x = 1 /\n"


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    (folder / "reader.f90").write_text(READER)
    subprocess.run(["gfortran", "-o", "reader", "reader.f90"], cwd=folder, check=True)
    return folder / "reader"


def patched(tmp_path, text, groups):
    path = tmp_path / "code.nml"
    path.write_text(text)
    patch_namelist(path, groups)
    return path


@pytest.mark.parametrize("text, values, expected", [
    (BARE, {"B": 2e17}, "7.0 2e17 9.0 0 0 0 0  F"),
    (BARE, {"C": 2.5, "flag": True}, "7.0 1.0 2.5 0 0 0 0  T"),
    (BARE, {"a": -1, "v": [1, 2, 3, 4], "name": "it's /"}, "-1 1.0 9.0 1 2 3 4 it's / F"),
    ("&control name='a''/', b=3.0, v = 2*5.0 /\n", {"c": 1}, "7.0 3.0 1.0 5 5 0 0 a'/ F"),
    ("$control b = 3.0,, v(2) = 1.0\n$end\n", {"v": [4, 4]}, "7.0 3.0 9.0 4 4 0 0  F"),
    ("&control b=3.0\n&end\n", {"b": 1e-30}, "7.0 1e-30 9.0 0 0 0 0  F"),
])
def test_fortran_reads_what_was_asked_for(tmp_path, reader, text, values, expected):
    patched(tmp_path, text, {"control": values})
    said = subprocess.run([reader], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    numbers, words = said.split()[:7], said.split()[7:]
    assert [float(one) for one in numbers] == pytest.approx([float(one) for one in expected.split()[:7]], rel=1e-4)
    assert words == expected.split()[7:]


def test_all_else_stays_as_it_was(tmp_path):
    path = patched(tmp_path, BARE, {"control": {"b": 2.0}, "OTHER": {"y": [1.5]}})
    assert path.read_text() == BARE.replace("  C = ,\n", "  C = ,\n    b = 2.0\n").replace("x = 1 /", "x = 1 \n    y = 1.5\n/")
    found = f90nml.read(path)
    assert found["control"].todict() == {"a": None, "b": 2.0, "c": None} and found["other"]["x"] == 1


def test_components_of_a_derived_type(tmp_path):
    path = patched(tmp_path, "&c t%x = 1.0, t%y = 2.0 /\n", {"c": {"t": {"x": 4.5}}})
    assert "t%x = 4.5" in path.read_text() and "t%y = 2.0" in path.read_text()


@pytest.mark.parametrize("text, groups, sentence", [
    ("&control v = 1, 2, 3 /\n", {"control": {"v": 9}}, "control.v 1 values, .* 3, .*give all of them"),
    ("&control v(2) = 3.0 /\n", {"control": {"v": 9.0}}, "read back, control.v is .* should be 9.0"),
    ("&control v = 1 /\n", {"control": {"v(2)": 9.0}}, "is no variable: .*whole array"),
    ("&control v = 1 /\n", {"control": {"v": "two\nlines"}}, "no namelist can hold"),
    ("&control v = 1 /\n", {"control": {"v": []}}, "no namelist can hold"),
    ("&control v = 1 /\n", {"control": 3}, "give variables and values"),
    ("&control v = 1 /\n", 3, "group -> variable"),
    ("&control v = 1 /\n", {"contrl": {"v": 1}}, "no group 'contrl'; it has control"),
    ("x &control v = 1 /\n", {"control": {"v": 2}}, "read back, control.v is 1 and should be 2"),
    ("&control v = 1\n", {"control": {"v": 1}}, "cannot be read as a namelist"),
])
def test_what_cannot_be_changed_is_refused(tmp_path, text, groups, sentence):
    with pytest.raises(ConfigError, match=sentence):
        patched(tmp_path, text, groups)
    assert (tmp_path / "code.nml").read_text() == text


def test_a_code_gets_the_changed_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.nml").write_text(BARE)
    surroundings = Surroundings("code", ["code.nml"], "", {"code.nml": {"control": {"c": 2.0}}})
    assert f90nml.read(surroundings.folder / "code.nml")["control"]["c"] == 2.0
    assert (tmp_path / "code.nml").read_text() == BARE
    surroundings.close()
