"""The report in a real browser."""

import shutil
import subprocess

import pytest

from selftaught.evaluation.report import write_report

BROWSER = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--v=0",
)  # fmt: skip


def browse(page, folder, *flags):
    """Open `page` in a fresh profile; returns what the browser printed."""
    return subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={folder}", *flags, page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


def test_console_is_clean_and_headline_is_there(make_run, tmp_path):
    attack = "<img src=x onerror=\"document.title='broken'\">"
    run = make_run(60, full=True, parts=("WRIST", attack))
    result = browse(write_report(run), tmp_path / "profile", "--dump-dom")
    assert "Test AUROC" in result.stdout and 'id="headline"' in result.stdout
    assert "<title>run: selftaught report</title>" in result.stdout
    assert "CONSOLE" not in result.stderr, result.stderr


def test_the_console_check_would_notice(make_run, tmp_path):
    page = write_report(make_run(40, images=False))
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</main>", '<img alt="x" src="file:///x.png"></main>'))
    result = browse(page, tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" in result.stderr


def test_nothing_overflows_and_something_is_painted(make_run, tmp_path):
    cv2 = pytest.importorskip("cv2")
    page = write_report(make_run(60))
    for width in (1280, 500):
        shot = tmp_path / f"{width}.png"
        browse(page, tmp_path / f"profile{width}", "--hide-scrollbars",
               f"--window-size={width},2000", f"--screenshot={shot}")  # fmt: skip
        image = cv2.imread(str(shot), cv2.IMREAD_GRAYSCALE)
        assert image.shape == (2000, width)
        assert image.std() > 20
        # The dark header spans the whole width: the page is as wide as the window, not wider.
        assert image[5].max() < 80
