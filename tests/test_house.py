# SPDX-License-Identifier: MIT
"""The order of the house, held by a machine: who imports whom, lengths, licences, documents, codes that stand twice."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from helpers import ROOT
from trimtab.core.errors import STATUS

PACKAGE = ROOT / "python" / "trimtab"
PYTHON = sorted(PACKAGE.rglob("*.py"))
FORTRAN = [*sorted((ROOT / "fortran").glob("*.f90")), *sorted((ROOT / "bridge").rglob("*.f90"))]
C = sorted((ROOT / "bridge").rglob("*.[ch]"))
SOURCES = [*PYTHON, *sorted((ROOT / "bridge").rglob("*.py")), *FORTRAN, *C]

# A package imports from itself and from the packages before it, never from one after it; CONTRIBUTING.md says what each is for.
PACKAGES = ("core", "config", "parallel", "isolation", "corrections", "gradient", "bridge", "data", "training", "coupling",
            "evaluation", "forecast", "production", "reproduce", "cli")
FILES, LINES, FUNCTION = 15, 400, 80  # most files of a package, lines of a file, lines of a function
# The compiled module and the Python that f90wrap writes for it.
GENERATED = {"_solver_api", "bridge.solver_api"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def is_module(path: Path) -> bool:
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def lazy_homes() -> dict[str, str]:
    """Name of the face -> the module that it is taken from, when it is first used."""
    text = (PACKAGE / "__init__.py").read_text()
    return {name: home.removeprefix("trimtab.") for name, home in re.findall(r'"(\w+)": "(trimtab\.[\w.]+)"', text)}


def imports(path: Path) -> set[str]:
    """trimtab modules that a file imports, also inside functions, and also through the lazy face."""
    found, tree, face = set(), ast.parse(path.read_text()), lazy_homes()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name != "trimtab"}
        elif isinstance(node, ast.ImportFrom) and node.module == "trimtab":
            found |= {f"trimtab.{face.get(alias.name, alias.name)}" for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            folder = PACKAGE.parent / node.module.replace(".", "/")
            found |= {f"{node.module}.{alias.name}" if is_module(folder / alias.name) else node.module for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trimtab":
            found |= {f"trimtab.{face[node.attr]}"} if node.attr in face else set()
    return {name.removeprefix("trimtab.") for name in found if name.split(".")[0] == "trimtab"} - GENERATED - {"trimtab"}


GRAPH = {module_name(path): imports(path) for path in PYTHON if module_name(path) not in ("__init__", "__main__")}


def test_every_module_has_its_package():
    assert {name.split(".")[0] for name in GRAPH} == set(PACKAGES)


def test_imports_run_one_way():
    order = {name: number for number, name in enumerate(PACKAGES)}
    assert not [f"{name} imports {other}" for name, others in GRAPH.items() for other in sorted(others)
                if order[other.split(".")[0]] > order[name.split(".")[0]]]


def test_no_circle():
    list(TopologicalSorter({name: {other for other in others if other != name} for name, others in GRAPH.items()}).static_order())


def test_no_package_is_crowded():
    for folder in {path.parent for path in PYTHON}:
        assert len(list(folder.glob("*.py"))) <= FILES, folder.name


def test_only_config_reads_toml_and_only_the_bridge_sees_the_compiled_module():
    for path in PYTHON:
        text, name = path.read_text(), module_name(path)
        assert ("tomllib" in text) <= name.startswith("config"), name
        assert ("_solver_api" in text) <= name.startswith("bridge"), name


def test_only_parallel_imports_mpi4py():
    importing = {module_name(path).split(".")[0] for path in PYTHON
                 if re.search(r"^\s*(import|from) mpi4py", path.read_text(), re.MULTILINE)}
    assert importing == {"parallel"}


def test_fortran_knows_no_python():
    for path in (ROOT / "fortran").glob("*.f90"):
        uses = re.findall(r"^\s*use\s*,?\s*(?:intrinsic\s*::)?\s*(\w+)", path.read_text(), re.MULTILINE)
        assert all(name.startswith(("trimtab_", "iso_", "ieee_")) for name in uses), (path.name, uses)


def test_the_build_runs_one_way():
    """fortran/ names no file of bridge/: the bridge stands on it."""
    assert "bridge" not in (ROOT / "fortran" / "meson.build").read_text()


def test_only_the_program_may_stop():
    for path in FORTRAN:
        if path.name != "main.f90" and path.parent.name != "adapter":
            assert not re.search(r"^\s*(error\s+)?stop\b", path.read_text(), re.MULTILINE | re.IGNORECASE), path.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_length_and_licence(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= LINES
    assert "SPDX-License-Identifier: MIT" in lines[0]


def test_no_function_is_long():
    long = []
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= FUNCTION:
                long.append(f"{module_name(path)}.{node.name}: {node.end_lineno - node.lineno + 1} lines")
    assert not long


def test_status_codes_are_the_same_in_both_languages():
    text = (ROOT / "fortran" / "status.f90").read_text()
    fortran = {int(code): name for name, code in re.findall(r"parameter :: STATUS_(\w+) = (\d+)", text)}
    assert fortran == {code: name for code, (name, _) in STATUS.items()}


def test_no_test_imports_from_a_test():
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert not re.search(r"^\s*(from|import) test_", path.read_text(), re.MULTILINE), path.name


def test_contributing_lists_the_packages_in_their_order():
    table = re.findall(r"^\| `(\w+)/` \| ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert tuple(name for name in table if name in PACKAGES) == PACKAGES


def public(tree: ast.Module) -> list[ast.AST]:
    """Public classes, functions, and methods of public classes."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    found: list[ast.AST] = [tree]
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            found.append(node)
            if isinstance(node, ast.ClassDef):
                found += [method for method in node.body if isinstance(method, kinds) and not method.name.startswith("_")]
    return found


@pytest.mark.parametrize("path", PYTHON, ids=module_name)
def test_public_items_are_documented(path):
    missing = [getattr(node, "name", path.name) for node in public(ast.parse(path.read_text()))
               if not ast.get_docstring(node)]
    assert not missing


@pytest.mark.parametrize("path", FORTRAN, ids=lambda path: path.name)
def test_public_fortran_is_documented(path):
    lines = path.read_text().splitlines()
    public = {name for line in lines if line.strip().startswith("public ::") for name in re.findall(r"\w+", line)[1:]}
    begins = re.compile(r"^\s*(?!end)(?:[\w()]+ )*?(?:subroutine|function|type(?:, [^:]+)? ::|program|module) ?(\w+)")
    for number, line in enumerate(lines):
        found = begins.match(line)
        if found and found[1] in public:
            assert lines[number - 1].strip().startswith("!"), f"{path.name}: {found[1]} has no line that says what it does"
