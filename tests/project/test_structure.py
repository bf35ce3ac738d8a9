"""The floors of the house: who may import whom, and what waits until it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cifar.settings import ROOT

FLOORS = [
    {"cifar", "cifar.errors", "cifar.settings", "cifar.files", "cifar.format", "cifar.statistics", "cifar.dependency", "cifar.cpus", "cifar.console"},
    {"cifar.images"},
    {"cifar.models"},
    {"cifar.records", "cifar.bulk"},
    {"cifar.analytics"},
    {"cifar.training", "cifar.serving"},
    {"cifar.cli", "cifar.notebook"},
    {"cifar.__main__", "app"},
]
MODULES = sorted([*(ROOT / "cifar").rglob("*.py"), ROOT / "app.py"])
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    """`cifar.training.data.dataset` lives in `cifar.training`."""
    return ".".join(module.split(".")[:2])


def floor(module: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if room(module) in rooms)


@pytest.mark.parametrize("file", MODULES, ids=module_name)
def test_a_module_imports_only_from_its_own_room_or_floors_below(file):
    """Data flows one way; training and serving do not know each other."""
    name = module_name(file)
    for imported in imports(file):
        if room(imported) in set().union(*FLOORS) and room(imported) != room(name):
            assert floor(imported) < floor(name) or floor(imported) == 0, f"{name} imports {imported}"


def test_only_settings_reads_the_environment():
    """Whoever wants to know what can be configured reads one file."""
    readers = [module_name(file) for file in MODULES if {"environ", "getenv"} & set(_names(file))]
    assert readers == ["cifar.settings"]


def test_only_app_brings_api_and_page_together():
    """The API can be had without the page, and the page's framework stays in two files."""
    using = [module_name(file) for file in MODULES if "gradio" in {name.split(".")[0] for name in imports(file)}]
    users = sorted({".".join(name.split(".")[:3]) for name in using})
    assert users == [
        "cifar.serving.gradio",
        "cifar.serving.page",
    ]


def _names(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("cifar", ["numpy", "PIL", "tensorflow", "gradio"]),
        ("cifar.cli.main", ["numpy", "tensorflow", "gradio", "fastapi", "matplotlib"]),
        ("cifar.images.decode", ["tensorflow", "keras", "gradio"]),
        ("cifar.serving.rest.app", ["tensorflow", "keras", "gradio", "matplotlib"]),
        ("app", ["tensorflow", "keras", "matplotlib"]),
        ("cifar.training.export.write", ["gradio", "fastapi"]),
    ],
)
def test_importing_a_module_does_not_import_what_it_may_never_need(module, heavy):
    """A fresh interpreter tells: heavy libraries wait until they are used."""
    code = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_every_test_says_the_promise_it_keeps(file):
    """A test's name is a sentence, and its docstring says why anybody cares."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            assert ast.get_docstring(node), node.name
            assert node.name.count("_") >= 4, node.name


def test_no_file_needs_a_table_of_contents():
    """A file of more than 400 lines is two files."""
    assert [module_name(file) for file in MODULES if len(file.read_text().splitlines()) > 400] == []
