"""`selftaught bench`: names, arguments that are passed on, exit codes, no source tree."""

from pathlib import Path

import pytest

from selftaught.cli import bench
from selftaught.cli.main import main

SCRIPT = '''"""What it measures.

More.
"""
import sys
from benchmarks import shared

if __name__ == "__main__":
    print(shared.NAME, sys.argv[1:], flush=True)
    sys.exit(len(sys.argv) - 1)
'''


@pytest.fixture
def tree(tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "mine.py").write_text(SCRIPT)
    (folder / "shared.py").write_text("NAME = 'shared'\n")
    monkeypatch.setattr(bench, "FOLDER", folder)
    monkeypatch.chdir(tmp_path.parent)


def test_it_runs_with_what_follows_the_name(tree, capfd):
    assert main(["bench", "mine"]) == 0
    with pytest.raises(SystemExit) as end:
        main(["bench", "mine", "--ranks", "2"])
    assert end.value.code == 2
    assert capfd.readouterr().out.splitlines() == ["shared []", "shared ['--ranks', '2']"]


def test_help_lists_what_can_be_run(tree, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["  mine              What it measures."]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a name is missing; allowed: mine"),
        (["shared"], "unknown benchmark 'shared'; allowed: mine"),
    ],
)
def test_names_that_are_none(tree, capsys, words, said):
    assert main(["bench", *words]) == 2
    assert said in capsys.readouterr().err


def test_an_installed_package_says_where_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "benchmarks")
    assert main(["bench", "kmeans"]) == 2
    assert "allowed: a clone of the source" in capsys.readouterr().err


def test_every_benchmark_of_the_repository_says_what_it_measures():
    found = bench.benchmarks()
    assert {"ntxent", "kmeans", "data", "scaling"} <= set(found)
    assert all(found.values())
    assert Path(bench.FOLDER).name == "benchmarks"
