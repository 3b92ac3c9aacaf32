"""Progress by a clock of the test's own: a line a minute, or in a terminal a bar with the time."""

import io
import re
import types

import pytest
from rich.console import Console

from selftaught import console as prepare_progress
from selftaught.training import progress as training_progress


class Clock:
    """Both kinds of progress, and rich's, take the time from here."""

    def __init__(self, monkeypatch):
        self.now, self.text = 1000.0, io.StringIO()
        given = types.SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(prepare_progress, "time", given)

    def terminal(self, monkeypatch):
        def console(**_):
            return Console(
                file=self.text, force_terminal=True, width=160, get_time=lambda: self.now
            )

        for module in (prepare_progress, training_progress):
            monkeypatch.setattr(module, "Console", console)

    def shown(self):
        """The last line drawn, without colours."""
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text.getvalue())
        return [line for line in re.split(r"[\r\n]", plain) if line.strip()][-1]


@pytest.fixture
def clock(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Clock(monkeypatch)


@pytest.fixture
def reporter(clock, tmp_path):
    def make():
        return training_progress.Reporter(tmp_path)

    return make


def step_through(clock, advance, seconds, steps):
    """Each step takes `seconds`; the times at which something was told."""
    for step in steps:
        clock.now += seconds
        advance(step)


def test_prepare_tells_a_line_a_minute_without_a_terminal(clock, capsys):
    bar = prepare_progress.Bar("prepare", 1000, 100)
    step_through(clock, bar.advance, 0.5, range(101, 401))
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "prepare 220/1000 2.0 images/s, 6 min left",
        "prepare 340/1000 2.0 images/s, 6 min left",
    ]


def test_no_time_is_told_before_anything_is_done(clock, capsys):
    bar = prepare_progress.Bar("table", 18, 4, unit="epochs")
    step_through(clock, lambda _: bar.advance(4, "epochs"), 60, range(2))
    step_through(clock, lambda _: bar.advance(6, "epochs"), 60, range(1))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["table 4/18 epochs", "table 4/18 epochs", "table 6/18 epochs, 18 min left"]


def test_prepare_tells_nothing_in_the_first_minute(clock, capsys):
    bar = prepare_progress.Bar("prepare", 1000)
    step_through(clock, bar.advance, 0.5, range(1, 120))
    bar.close()
    assert capsys.readouterr().err == ""


def test_before_anything_is_done_no_time_left_is_told(clock, capsys):
    bar = prepare_progress.Bar("prepare", 1000, 100)
    step_through(clock, bar.advance, 61, [100])
    assert capsys.readouterr().err == "prepare 100/1000 0.0 images/s\n"


def test_prepare_shows_the_time_left_in_a_terminal(clock, monkeypatch, capsys):
    clock.terminal(monkeypatch)
    bar = prepare_progress.Bar("prepare", 1000, 100)
    step_through(clock, bar.advance, 0.5, range(101, 401))
    bar.close()
    # 600 images at 2 a second.
    assert re.search(r"prepare .* 400/1000 2\.0 images/s 0:05:00", clock.shown())
    assert capsys.readouterr().err == ""


def advance(reporter, done):
    reporter.advance("pretext", done, 1000, loss=2.5, images_per_s=1234.0, data_wait=0.1)


def test_a_run_tells_a_line_a_minute_without_a_terminal(clock, reporter, capsys):
    with reporter() as told:
        told.start_bar("pretext", 1000, 100)
        step_through(clock, lambda step: advance(told, step), 0.5, range(101, 401))
        told.end_bar()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["pretext", "220/1000"],
        ["pretext", "340/1000"],
    ]
    for line in lines:
        assert "loss 2.5" in line and "images_per_s 1234" in line


def test_a_new_stage_has_a_minute_of_its_own(clock, reporter, capsys):
    with reporter() as told:
        for _ in range(2):
            told.start_bar("pretext", 1000, 0)
            step_through(clock, lambda step: advance(told, step), 0.5, range(1, 120))
            told.end_bar()
    assert capsys.readouterr().err == ""


def test_a_run_shows_the_time_left_in_a_terminal(clock, monkeypatch, reporter, capsys):
    clock.terminal(monkeypatch)
    with reporter() as told:
        told.start_bar("pretext", 1000, 100)
        step_through(clock, lambda step: advance(told, step), 0.5, range(101, 401))
        told.end_bar()
    shown = clock.shown()
    assert re.search(r"pretext .* 400/1000 loss 2\.5 images_per_s 1234 .* 0:05:00", shown)
    assert capsys.readouterr().err == ""


def test_other_ranks_tell_nothing(clock, monkeypatch, reporter, capsys):
    clock.terminal(monkeypatch)
    monkeypatch.setattr(training_progress.distributed, "is_main", lambda: False)
    with reporter() as told:
        told.start_bar("pretext", 1000, 0)
        step_through(clock, lambda step: advance(told, step), 30.0, range(1, 10))
        told.say("something")
    assert clock.text.getvalue() == "" and capsys.readouterr().err == ""
