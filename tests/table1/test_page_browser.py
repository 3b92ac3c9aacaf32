"""The page in a real browser."""

import pytest

from selftaught.table1.collect import collect
from tests.evaluation.test_report_browser import BROWSER, browse

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")


@pytest.fixture
def page(table):
    attack = "A long title <img src=x onerror=\"document.title='broken'\"> " + "of many words " * 6
    for row in ("ours", "uni-modal", "ruff", *(f"extra{i}" for i in range(17))):
        table.add(row, 1, title=attack if row == "ruff" else None, extra=int("extra" in row))
    table.add("ruff", 11, run=False, state="failed", problem="x" * 300)
    return collect(table.write())


def test_console_is_clean_and_nothing_overflows(page, tmp_path):
    cv2 = pytest.importorskip("cv2")
    result = browse(page, tmp_path / "dom", "--dump-dom")
    assert "CONSOLE" not in result.stderr, result.stderr
    assert "<title>table: selftaught table</title>" in result.stdout
    assert result.stdout.count('<th scope="row">') > 20
    for width in (1280, 500):
        shot = tmp_path / f"{width}.png"
        browse(page, tmp_path / f"profile{width}", "--hide-scrollbars",
               f"--window-size={width},1500", f"--screenshot={shot}")  # fmt: skip
        image = cv2.imread(str(shot), cv2.IMREAD_GRAYSCALE)
        assert image.shape == (1500, width) and image.std() > 20
        # The dark header spans the whole width: the page is as wide as the window, not wider.
        assert image[5].max() < 80
