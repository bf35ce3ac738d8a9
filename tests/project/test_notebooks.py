"""Tests of the notebooks: they run from top to bottom, are committed with outputs, and define no functions."""

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
    """Return the code of the cells, without IPython's magic lines."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return [re.sub(r"^(\s*)[!%].*$", r"\1pass", source, flags=re.MULTILINE) for source in sources]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_imports_from_the_package_and_defines_no_logic(file):
    """Functions belong in `cifar`, where they are tested."""
    defines = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    trees = [ast.parse(source) for source in code(nbformat.read(file, 4))]
    assert not [node for tree in trees for node in ast.walk(tree) if isinstance(node, defines)]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_committed_with_the_outputs_of_one_whole_run(file):
    """All cells ran in order and without an error; the file is small, and contains no path of a home folder."""
    notebook = nbformat.read(file, 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) >= 4
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert file.stat().st_size < 600_000
    assert not re.search(r"/(home|root|tmp|work)/", file.read_text())


def run(name: str, **parameters: object) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom with other parameters, and return it."""
    notebook = nbformat.read(ROOT / "notebooks" / name, 4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for key, value in parameters.items():
        assert re.search(rf"^{key} = ", cell.source, re.MULTILINE), f"{name} has no parameter {key}"
        cell.source += f"\n{key} = {value!r}"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    return notebook


def printed(notebook) -> str:
    """Return all text in the outputs of the notebook."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_notebooks_lead_from_a_folder_to_a_report(tmp_path):
    """Training, export and report run on a small data set, and the live plot is one picture."""
    data = shapes_folder(tmp_path / "shapes", train=20, test=10)
    where = {"DATA": str(data), "REGISTRY": str(tmp_path / "registry"), "NAME": "shapes"}
    trained = run("01_train_and_export.ipynb", **where, RUN=str(tmp_path / "run"), TIME_BUDGET_SECONDS=9)
    pictures = [
        output
        for cell in trained.cells
        if cell.cell_type == "code" and "LivePlot()" in cell.source
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1, "one plot, updated in place"
    assert (tmp_path / "registry" / "shapes" / "1" / "manifest.json").is_file()
    read = run("02_read_the_report.ipynb", **where, REPORT=str(tmp_path / "report"), DISTURBED_IMAGES=10)
    assert (tmp_path / "report" / "report.json").is_file()
    assert "disc" in printed(read)


@pytest.mark.slow
def test_the_third_notebook_calls_a_space_over_rest_and_gradio_client(server):
    """Both ways give the same answer, and an error shows its code."""
    called = run("03_call_the_space.ipynb", ADDRESS=server)
    assert printed(called).strip().endswith("True")
    assert "unsupported_image" in printed(called)


def test_the_notebooks_are_numbered_and_their_links_exist():
    """The number says in which order to read them, the name what each is about."""
    assert [file.name for file in NOTEBOOKS] == [
        "01_train_and_export.ipynb",
        "02_read_the_report.ipynb",
        "03_call_the_space.ipynb",
    ]
    for file in NOTEBOOKS:
        for target in re.findall(r"\]\(([^)h][^)]*)\)", file.read_text()):
            assert (file.parent / Path(target)).exists(), target
