"""The notebooks: they run from top to bottom, show what they did, and have no logic of their own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support.pictures import shapes_folder

from cifar.settings import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code(notebook) -> list[str]:
    """The cells' Python, without what is IPython's."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return [re.sub(r"^(\s*)[!%].*$", r"\1pass", source, flags=re.MULTILINE) for source in sources]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_imports_from_the_package_and_defines_no_logic(file):
    """What is worth defining is worth testing, in `cifar`."""
    defines = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    trees = [ast.parse(source) for source in code(nbformat.read(file, 4))]
    assert not [node for tree in trees for node in ast.walk(tree) if isinstance(node, defines)]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_committed_with_the_outputs_of_one_whole_run(file):
    """Run in order, to the end, without an error; small enough to read on the web, and with no path of anybody's home."""
    notebook = nbformat.read(file, 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) >= 4
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert file.stat().st_size < 600_000
    assert not re.search(r"/(home|root|tmp|work)/", file.read_text())


def run(name: str, **parameters: object) -> nbformat.NotebookNode:
    """The notebook, run from top to bottom with other parameters."""
    notebook = nbformat.read(ROOT / "notebooks" / name, 4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for key, value in parameters.items():
        assert re.search(rf"^{key} = ", cell.source, re.MULTILINE), f"{name} has no parameter {key}"
        cell.source += f"\n{key} = {value!r}"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    return notebook


def printed(notebook) -> str:
    """All text that the notebook's outputs show."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_notebooks_lead_from_a_folder_to_a_report(tmp_path):
    """On a small setting: train, export, report; the live plot is a picture."""
    data = shapes_folder(tmp_path / "shapes", train=20, test=10)
    where = {"DATA": str(data), "REGISTRY": str(tmp_path / "registry"), "NAME": "shapes"}
    trained = run("01_train_and_export.ipynb", **where, RUN=str(tmp_path / "run"), TIME_BUDGET_SECONDS=15)
    pictures = [
        output
        for cell in trained.cells
        if cell.cell_type == "code" and "LivePlot()" in cell.source
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1, "one plot, drawn again in its place"
    assert (tmp_path / "registry" / "shapes" / "1" / "manifest.json").is_file()
    read = run("02_read_the_report.ipynb", **where, REPORT=str(tmp_path / "report"), DISTURBED_IMAGES=10)
    assert (tmp_path / "report" / "report.json").is_file()
    assert "disc" in printed(read)


@pytest.mark.slow
def test_the_notebook_calls_a_space_and_gets_the_same_answer_twice(server):
    """REST and gradio_client, by its address."""
    called = run("03_call_the_space.ipynb", ADDRESS=server)
    assert printed(called).strip().endswith("True")
    assert "unsupported_image" in printed(called)


def test_the_notebooks_follow_one_another():
    """Train, read, call: each is named by what it does, and the links between them lead somewhere."""
    assert [file.name for file in NOTEBOOKS] == [
        "01_train_and_export.ipynb",
        "02_read_the_report.ipynb",
        "03_call_the_space.ipynb",
    ]
    for file in NOTEBOOKS:
        for target in re.findall(r"\]\(([^)h][^)]*)\)", file.read_text()):
            assert (file.parent / Path(target)).exists(), target
