"""The notebooks run from the first cell to the last, and are committed without what they print."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
nbformat = pytest.importorskip("nbformat", reason="needs nbclient, of the extra docs")


def read(path):
    return nbformat.read(path, as_version=4)


def test_there_are_two():
    assert [path.stem for path in BOOKS] == ["find_odd_films", "swap_the_loss"]


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_they_are_committed_without_outputs(path):
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_they_run(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient, of the extra docs")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    book = read(path)
    nbclient.NotebookClient(
        book, timeout=800, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [one for cell in book.cells for one in cell.get("outputs", ())]
    assert outputs and not [one for one in outputs if one.output_type == "error"]
    pictures = [one for one in outputs if "image/png" in one.get("data", {})]
    assert len(pictures) == (2 if path.stem == "find_odd_films" else 0)
