"""The structure of the code: which module may import which, and what is imported only when it is needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from cifar.settings import ROOT

FLOORS = [
    {"cifar.errors", "cifar.console", "cifar.cpus", "cifar.dependency", "cifar.files", "cifar.format"}
    | {"cifar", "cifar.statistics"},
    {"cifar.environment", "cifar.profile"},
    {"cifar.settings"},
    {"cifar.images"},
    {"cifar.models"},
    {"cifar.records", "cifar.bulk"},
    {"cifar.analytics"},
    {"cifar.training.data", "cifar.training.network", "cifar.training.measures", "cifar.training.libraries"}
    | {"cifar.serving.asgi", "cifar.serving.routes"},
    {"cifar.training.run", "cifar.serving.process"},
    {"cifar.training.distributed", "cifar.training.export", "cifar.training.report", "cifar.serving.auth"},
    {"cifar.serving.front", "cifar.serving.inference"},
    {"cifar.serving.rest", "cifar.serving.gradio"},
    {"cifar.serving.page"},
    {"cifar.cli", "cifar.notebook", "app"},
    {"cifar.__main__", "gunicorn.conf"},
]
FACADE = ("cifar", "cifar.notebook")
"""The one import that goes up: `cifar.show` imports its module on first use."""
GRADIO_INTERNALS = re.compile(
    "component_meta|create_or_modify_pyi|state_session_capacity|has_launched|GRADIO_CACHE|save_file_to_cache|data_model"
    r"|x-gradio-server|unexpected_error|event_id|fn_index|session_hash|gradio_config|i18n_translations|event\._data"
)
FILES = [*sorted((ROOT / "cifar").rglob("*.py")), ROOT / "app.py", ROOT / "gunicorn.conf.py"]


@cache
def trees() -> dict[Path, ast.Module]:
    return {file: ast.parse(file.read_text()) for file in sorted((ROOT / "tests").rglob("*.py"))}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): ast.parse(file.read_text()) for file in FILES}


def imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(module: str) -> set[str]:
    """Return the modules of this project that `module` imports, at its top or inside a function."""
    names = set(imported_names(MODULES[module]))
    names |= {name.rpartition(".")[0] for name in names - MODULES.keys()}  # the module of an imported function or class
    return {name for name in names & MODULES.keys() - {module} if (module, name) != FACADE}


def room(module: str) -> str:
    """Return the room of a module: `cifar.models` for `cifar.models.registry`, one level deeper in training and serving."""
    parts = module.split(".")
    return ".".join(parts[: 3 if parts[1:2] in (["training"], ["serving"]) else 2])


def test_a_module_imports_only_from_its_own_room_or_from_lower_floors():
    """Dependencies go one way, so a room can be read and changed without those above it."""
    floors = {name: level for level, names in enumerate(FLOORS) for name in names}
    for module in MODULES:
        for name in imports(module):
            if room(name) != room(module):
                assert floors[room(name)] < floors[room(module)], f"{module} imports {name}"


def test_no_modules_import_each_other_in_a_circle():
    """The modules of a circle cannot be understood, tested or moved one by one."""
    list(TopologicalSorter({module: imports(module) for module in MODULES}).static_order())  # raises CycleError


def test_training_and_serving_do_not_import_each_other():
    """They share only the exported version; a server needs neither TensorFlow nor a data set."""
    for one, other in (("cifar.training", "cifar.serving"), ("cifar.serving", "cifar.training")):
        for module in MODULES:
            if module.startswith(one):
                assert not [name for name in imports(module) if name.startswith(other)], module


def test_no_module_of_this_project_is_imported_by_a_string():
    """An import by string is invisible to the tests above."""
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and re.search(r"import_module$|__import__$", ast.unparse(node.func)):
                assert not re.search(r"\b(cifar|app)\b", ast.unparse(node)), module


def test_only_one_module_reads_the_environment():
    """All configuration is in `cifar.settings`, which reads it there. Other modules may only set variables that a library reads."""
    name = r"'(?!CIFAR_)\w+'"
    allowed = re.compile(rf"os\.environ\[{name}\] = |os\.environ\.setdefault\({name}, |del os\.environ\[{name}\]")
    for module in MODULES.keys() - {"cifar.environment"}:
        code = allowed.sub("", ast.unparse(MODULES[module]))
        assert not re.search(r"\b(environ|getenv|dotenv_values)\b", code), module
    assert "os.environ" in ast.unparse(MODULES["cifar.environment"])


def test_gradio_is_imported_by_two_rooms_only():
    """REST, MCP and the command line work without the page's framework, which takes seconds to import."""
    users = {
        room(module) for module in MODULES if any(re.match(r"gradio\b", n) for n in imported_names(MODULES[module]))
    }
    assert users == {"cifar.serving.gradio", "cifar.serving.page"}


def test_the_internals_of_gradio_are_named_in_one_room_and_in_the_scripts_only():
    """They can change with each release of Gradio, and an upgrade must find them in one place."""
    files = [file for file in [*FILES, *(ROOT / "cifar").rglob("*.js")] if GRADIO_INTERNALS.search(file.read_text())]
    folders = (ROOT / "cifar/serving/gradio", ROOT / "cifar/serving/page/static")
    assert files
    assert [file for file in files if not any(file.is_relative_to(folder) for folder in folders)] == []


def test_no_folder_has_more_than_a_dozen_modules():
    """A larger folder should be divided into rooms, so that files that belong together are found together."""
    for folder in {file.parent for file in FILES}:
        files = [file.name for file in folder.glob("*.py") if file.name != "__init__.py"]
        assert len(files) <= 12, f"{folder.relative_to(ROOT)}: {len(files)}"


def test_no_file_has_more_than_400_lines():
    """A longer file has more than one subject and should be divided."""
    files = [*FILES, *(ROOT / "docs").glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert {str(file.relative_to(ROOT)) for file in files if len(file.read_text().splitlines()) > 400} == set()


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
def test_importing_a_module_does_not_import_heavy_libraries_that_it_may_not_need(module, heavy):
    """Commands start fast and servers stay small. A fresh interpreter shows what is imported."""
    code = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_a_test_states_its_promise_in_its_name_and_the_reason_in_its_docstring():
    """A failure then says what broke and why it matters. A docstring that repeats the name says nothing."""
    for node in [node for file, tree in trees().items() if file.name.startswith("test_") for node in ast.walk(tree)]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            promise, reason = node.name.split("_")[1:], ast.get_docstring(node) or ""
            assert len(promise) >= 4, node.name
            assert re.search(r"[.?!]$", reason), node.name
            assert len(set(re.findall(r"[a-z]+", reason.lower())) - set(promise)) >= 2, f"{node.name}: {reason}"


def test_no_test_imports_another_test_module_or_the_conftest():
    """Shared helpers live in `tests/support`, so that a test module can be changed or removed alone."""
    for file, tree in trees().items():
        for name in imported_names(tree):
            module = name.rpartition(".")[0] or name
            assert not re.search(r"(^|\.)(test_\w+|conftest)(\.|$)", module), f"{file} imports {name}"
