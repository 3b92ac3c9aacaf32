"""The page in a real browser, by its keys: 50 films, one undone, a kill, and the run after it."""

import json
import re
import subprocess
import sys

import pytest

from selftaught.data.reader_labels import current, read_rows
from tests.web.chromium import BROWSER, Browser
from tests.web.conftest import write_run

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine"),
    pytest.mark.timeout(900),
]
ATTACK = "images/<img src=x onerror=\"document.title='broken'\">.png"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


def start(run, *options):
    """The command, and the address that it prints."""
    command = [sys.executable, "-m", "selftaught", "look", str(run), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if found := re.search(r"http://\S+", line):
            return process, found[0]
    raise AssertionError("it ended before it served")


@pytest.mark.slow
def test_fifty_films_by_keyboard_a_kill_and_nothing_lost(browser, tmp_path):
    run, labels = write_run(tmp_path / "run", 240), tmp_path / "labels.csv"
    process, address = start(run, "--labels", str(labels))
    keys, expected = {"1": "normal", "2": "abnormal", "3": "unsure"}, {}

    def film():
        browser.wait("loaded && document.getElementById('name').textContent.endsWith('.png')")
        return browser.run("films.number[at]")

    try:
        browser.open(address)
        assert "token" not in browser.run("location.href")
        for count in range(50):
            key = "123"[count % 3]
            expected[film()] = keys[key]
            browser.press(key)
        browser.wait("saving === 0")
        assert len(expected) == 50
        last, kept = list(expected)[-1], browser.run("document.getElementById('said').textContent")
        assert kept.endswith("saved.")
        browser.press("u")
        browser.wait(f"saving === 0 && films.number[at] === {last}")
        del expected[last]
        assert browser.run("films.label.filter(Boolean).length") == 49
        browser.press("ArrowRight")
        browser.press("ArrowLeft")
        assert film() == last
    finally:
        process.kill()
        process.wait()
    paths = {f"images/{number:04d}.png": label for number, label in expected.items()}
    assert current(read_rows(labels)) == paths
    process, address = start(run, "--labels", str(labels))
    try:
        browser.open(address)
        film()
        shown = browser.run("Object.fromEntries(films.number.map((n, i) => [n, films.label[i]]))")
        assert {int(n): word for n, word in shown.items() if word} == expected
        # Without the token, as another program of this machine would come.
        browser.open(address.partition("/?")[0].replace("127.0.0.1", "localhost"))
        assert "token is missing" in browser.run("document.body.textContent")
    finally:
        process.kill()
        process.wait()
    assert not [one for one in browser.complaints() if "403" not in json.dumps(one)]


def test_names_are_text_and_nothing_comes_from_outside(browser, tmp_path, open_look):
    def edit(scores):
        first = scores.index[scores["split"] == "test"][0]
        scores.loc[first, ["path", "score"]] = [ATTACK, 99.0]
        return scores.assign(body_part="<b>hand</b>")

    run = write_run(tmp_path / "run", 40, edit)
    with open_look(run) as client:
        browser.open(f"http://127.0.0.1:{client.port}/?token=secret")
        browser.wait("loaded && document.getElementById('like').children.length === 3")
        assert browser.run("document.getElementById('name').textContent") == ATTACK
        assert browser.run("document.title") == "run: selftaught look"
        # By its keys, what the slider says is what the numbers say.
        browser.run("document.getElementById('threshold').focus()")
        for _ in range(3):
            browser.press("ArrowLeft")
        told = browser.run("document.getElementById('sensitivity').textContent")
        level = browser.run("Number(document.getElementById('threshold').value)")
        scores = client.look.films.table.query("split == 'test'")
        abnormal = scores[scores["label"] == 1]
        assert f"({(abnormal['score'] > level).sum()} of {len(abnormal)})" in told
        high, text = (scores["score"] > level).mean(), "document.getElementById('read').textContent"
        assert browser.run(text) == str(round(100 * high))
        browser.run("document.activeElement.blur()")
        browser.press("h")
        browser.wait("hidden && loaded && films.score.length === 0 && at >= 0")
        assert "score" not in browser.run("document.getElementById('cell0').ariaLabel")
        browser.wait("document.getElementById('name').textContent === 'Film 1'")
        shown = "getComputedStyle(document.querySelector('aside')).display"
        assert browser.run(shown) == "none"
        own = f"http://127.0.0.1:{client.port}/"
        addresses = browser.addresses()
        assert len(addresses) > 10 and all(one.startswith(own) for one in addresses)
        assert not any("images" in one or ".png" in one for one in addresses)
        assert not browser.complaints()


def test_ten_thousand_films_are_no_burden(browser, tmp_path, open_look):
    def many(scores):
        return scores.assign(split="test", path=[f"images/{i % 50:04d}.png" for i in range(10_000)])

    run = write_run(tmp_path / "run", 10_000, many, films=50)
    with open_look(run) as client:
        browser.open(f"http://127.0.0.1:{client.port}/?token=secret")
        browser.wait("loaded")
        assert browser.run("films.number.length") == 10_000
        script = """(async () => {
          const list = document.getElementById('list');
          const frame = () => new Promise(requestAnimationFrame);
          let worst = 0, cells = 0;
          for (let i = 0; i < 100; i++) {
            list.scrollTop += 3000;
            const began = performance.now();
            draw();
            worst = Math.max(worst, performance.now() - began);
            cells = Math.max(cells, document.querySelectorAll('.cell').length);
            await frame();
          }
          list.scrollTop = list.scrollHeight;
          await new Promise((done) => setTimeout(done, 400));
          return {worst, cells, last: document.getElementById('cell9999') !== null};
        })()"""
        seen = browser.run(script)
        # The last film is reached, and never more is built than a few screens' worth.
        assert seen["last"] and seen["cells"] < 120, seen
        asked = sum("/small/" in one for one in browser.addresses())
        assert asked < 300 and not browser.complaints()


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_nothing_overflows_and_all_has_names(width, height, browser, run, open_look):
    browser.size(width, height)
    with open_look(run) as client:
        browser.open(f"http://127.0.0.1:{client.port}/?token=secret")
        browser.wait("loaded && document.getElementById('like').children.length === 3")
        assert browser.run("document.documentElement.scrollWidth") == width
        nameless = """[...document.querySelectorAll('button, input, select, [role=option]')].filter(
          (one) => !(one.ariaLabel || one.textContent.trim() || one.labels?.length)).length"""
        assert browser.run(nameless) == 0
        # The first press of the tabulator shows the way past the toolbar.
        browser.press("Tab")
        assert browser.run("document.activeElement.className") == "skip"
    browser.size(1280, 800)
