# SPDX-License-Identifier: MIT
"""The order of the house, held by a machine: who imports whom, lengths, licences, documents, codes that stand twice."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from trimtab.errors import STATUS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "trimtab"
PYTHON = sorted(PACKAGE.rglob("*.py"))
SOURCES = [*PYTHON, *sorted((ROOT / "bridge").rglob("*.py")), *sorted(ROOT.glob("fortran/*.f90")),
           *sorted((ROOT / "bridge").rglob("*.f90"))]

# A module imports from its own row and from the rows above it, never from below; and never in a circle.
ROWS = (
    ("errors",),
    ("networks", "provenance", "reals", "state", "sections", "config", "files", "cache", "import_path", "telling", "launch",
     "signals", "failures", "turns", "cohort", "world", "parallel"),
    ("window", "solver", "blocks", "joined", "layout", "correction", "observation", "slot_weight", "slot_response",
     "torch_stepping"),
    ("slot_correction", "repeatable"),
    ("gradient", "torch_solver", "loss", "filters", "scores", "session", "checkpoint", "production", "score_table",
     "isolation", "ensemble_scores"),
    ("written", "variables"),
    ("bridge", "targets", "reference_file", "reference_run", "reference", "phase", "position", "records", "climate", "closures"),
    ("offline", "online", "evaluation", "kalman", "crew", "learning"),
    ("trainer", "scoring", "figures", "ensemble_figures", "terminal"),
    ("deploy", "starts", "ensembles", "ensemble_file", "ensemble_scoring", "report", "gradient_report", "doctor", "coupling",
     "export"),
    ("embedded", "reproduce"),
    ("commands",),
    ("__main__",),
)
ROW = {name: number for number, row in enumerate(ROWS) for name in row}
# Those that open solvers by name do it through the face, `import trimtab`, which opens doors lazily.
MAY_USE_THE_FACE = {"reference", "reference_run", "trainer", "scoring", "deploy", "ensembles", "ensemble_file",
                    "ensemble_scoring", "report", "gradient_report", "doctor", "coupling", "export",
                    "reproduce", "commands", "__main__"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """trimtab modules that a file imports, also inside functions; "" is the face."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inside = [alias.name for alias in node.names]
            folder = PACKAGE.parent / node.module.replace(".", "/")
            found |= {f"{node.module}.{name}" if is_module(folder / name) else node.module for name in inside}
    return {name.removeprefix("trimtab").removeprefix(".") for name in found if name.split(".")[0] == "trimtab"}


def is_module(path: Path) -> bool:
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


GRAPH = {module_name(path): imports(path) for path in PYTHON if module_name(path) != "__init__"}


def test_every_module_has_its_row():
    assert {name.split(".")[0] for name in GRAPH if name} == set(ROW)


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_imports_run_one_way(name):
    home = name.split(".")[0]
    for other in GRAPH[name]:
        if not other:
            assert home in MAY_USE_THE_FACE, f"{name} must not import the face"
        else:
            assert ROW[other.split(".")[0]] <= ROW[home], f"{name} imports {other}, which stands below it"


def test_no_circle():
    list(TopologicalSorter({name: {one for one in others if one and one != name}
                            for name, others in GRAPH.items()}).static_order())


def test_learning_does_not_see_the_bridge():
    for name, others in GRAPH.items():
        if name.split(".")[0] in ("gradient", "trainer", "online", "offline"):
            assert not [one for one in others if one.startswith("bridge")], name


def test_only_config_reads_toml_and_only_the_bridge_sees_the_compiled_module():
    for path in PYTHON:
        text, name = path.read_text(), module_name(path)
        assert ("tomllib" in text) <= (name == "config"), name
        assert ("_solver_api" in text) <= name.startswith("bridge"), name


def test_only_parallel_imports_mpi4py():
    importing = [module_name(path) for path in PYTHON
                 if re.search(r"^\s*(import|from) mpi4py", path.read_text(), re.MULTILINE)]
    assert importing == ["parallel"]


def test_fortran_knows_no_python():
    for path in (ROOT / "fortran").glob("*.f90"):
        uses = re.findall(r"^\s*use\s*,?\s*(?:intrinsic\s*::)?\s*(\w+)", path.read_text(), re.MULTILINE)
        assert all(name.startswith(("trimtab_", "iso_", "ieee_")) for name in uses), (path.name, uses)


def test_only_the_program_may_stop():
    for path in [*ROOT.glob("fortran/*.f90"), *ROOT.glob("bridge/*.f90")]:
        if path.name != "main.f90":
            assert not re.search(r"^\s*(error\s+)?stop\b", path.read_text(), re.MULTILINE | re.IGNORECASE), path.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_length_and_licence(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 400
    assert "SPDX-License-Identifier: MIT" in lines[0]


def test_status_codes_are_the_same_in_both_languages():
    text = (ROOT / "fortran" / "status.f90").read_text()
    fortran = {int(code): name for name, code in re.findall(r"parameter :: STATUS_(\w+) = (\d+)", text)}
    assert fortran == {code: name for code, (name, _) in STATUS.items()}


def public(tree: ast.Module) -> list[ast.AST]:
    """Public classes, functions, and methods of public classes."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    found: list[ast.AST] = [tree]
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            found.append(node)
            if isinstance(node, ast.ClassDef):
                found += [one for one in node.body if isinstance(one, kinds) and not one.name.startswith("_")]
    return found


@pytest.mark.parametrize("path", PYTHON, ids=module_name)
def test_public_items_are_documented(path):
    missing = [getattr(node, "name", path.name) for node in public(ast.parse(path.read_text()))
               if not ast.get_docstring(node)]
    assert not missing


@pytest.mark.parametrize("path", sorted(ROOT.glob("fortran/*.f90")), ids=lambda path: path.name)
def test_public_fortran_is_documented(path):
    lines = path.read_text().splitlines()
    public = {name for line in lines if line.strip().startswith("public ::") for name in re.findall(r"\w+", line)[1:]}
    begins = re.compile(r"^\s*(?!end)(?:[\w()]+ )*?(?:subroutine|function|type(?:, [^:]+)? ::|program|module) ?(\w+)")
    for number, line in enumerate(lines):
        found = begins.match(line)
        if found and found[1] in public:
            assert lines[number - 1].strip().startswith("!"), f"{path.name}: {found[1]} has no line that says what it does"
