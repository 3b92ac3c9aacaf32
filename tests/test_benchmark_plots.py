"""Each benchmark's picture is drawn from its CSV alone, and lies beside it."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from PIL import Image

from benchmarks import plot, record
from benchmarks.plot import PICTURES, draw, main

COMMITTED = Path(record.__file__).with_name("results")


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record.torch.cuda, "is_available", lambda: False)
    return tmp_path


def test_every_csv_has_its_picture():
    tables = {path.stem.removesuffix("_cuda") for path in COMMITTED.glob("*.csv")}
    assert tables == set(PICTURES)
    for path in COMMITTED.glob("*.csv"):
        assert path.with_suffix(".png").exists(), f"python -m benchmarks.plot {path.stem}"


# Of a dozen panels each: seconds to lay out.
LARGE = {"nearest_center", "neighbours"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[pytest.mark.slow] if one in LARGE else []) for one in PICTURES],
)
def test_a_picture_is_drawn_from_the_csv(results, name):
    shutil.copy(COMMITTED / f"{name}.csv", results)
    path = draw(name)
    assert path == results / f"{name}.png"
    with Image.open(path) as drawn, Image.open(COMMITTED / f"{name}.png") as committed:
        # Of the same panels; fonts may differ by a pixel.
        assert drawn.size == pytest.approx(committed.size, abs=2)
        assert len(drawn.convert("L").getcolors()) > 20


def test_rows_end_in_the_panel_and_order_that_they_should(monkeypatch):
    rows = [
        {"kernel": "k", "provider": name, "mode": mode, "shape": "2x3", "dtype": "fp32"}
        | {"ms_p20": "1", "ms_median": "2.5", "ms_p80": "40"}
        for mode in ("groups", "offset")
        for name in ("theirs", "selftaught")
    ]
    figure = PICTURES["neighbours"](rows)
    assert [axes.get_title() for axes in figure.axes] == ["2x3, groups", "2x3, offset"]
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_yticklabels()] == ["selftaught", "theirs"]
        assert [text.get_text() for text in axes.texts] == ["2.5", "2.5"]
    plot._pyplot().close(figure)


def test_what_cannot_be_drawn_is_named(results, monkeypatch, capsys):
    shutil.copy(COMMITTED / "kmeans.csv", results)
    monkeypatch.setattr("sys.argv", ["plot"])
    main()
    assert capsys.readouterr().out.split() == [str(results / "kmeans.png")]
    for name in ("polarity", "data"):
        monkeypatch.setattr("sys.argv", ["plot", name])
        with pytest.raises(SystemExit):
            main()
        assert f"no picture of '{name}'; allowed: kmeans" in capsys.readouterr().err
