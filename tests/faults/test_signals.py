"""A second signal: the echo of a launcher is the first one again, a later one ends it at once."""

import os
import signal
import time
import types

import pytest

from selftaught.training import stop
from selftaught.training.stop import ECHO_SECONDS
from tests.faults.injected import At
from tests.faults.ranks import start
from tests.ranks import CONTEXT
from tests.tiny import options, write_images


def send(path, sent):
    """Signals to this process itself at given times of a clock of its own."""
    clock = [100.0]
    stop.time = types.SimpleNamespace(monotonic=lambda: clock[0])
    stopper = stop.Stopper().install()
    for later, name in sent:
        clock[0] = 100.0 + later
        os.kill(os.getpid(), getattr(signal, name))
        with path.open("a") as handle:
            print(name, stopper.code, file=handle)


def ends(path, *sent):
    """Exit code after signals at their seconds, and what was remembered after each."""
    process = CONTEXT.Process(target=send, args=(path, sent))
    process.start()
    process.join(60)
    return process.exitcode, [line.split() for line in path.read_text().splitlines()]


def test_an_echo_is_the_same_signal(tmp_path):
    sent = (0, "SIGTERM"), (0, "SIGTERM"), (ECHO_SECONDS, "SIGINT"), (1, "SIGUSR1")
    code, told = ends(tmp_path / "told", *sent)
    assert code == 0
    # The first one decides the exit code.
    assert [remembered for _, remembered in told] == ["143"] * 4


@pytest.mark.parametrize("first", ["SIGTERM", "SIGINT", "SIGUSR1"])
@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_later_one_ends_the_process_at_once(tmp_path, first, second):
    sent = (0, first), (ECHO_SECONDS + 0.1, second), (ECHO_SECONDS + 0.2, second)
    code, told = ends(tmp_path / "told", *sent)
    assert code == -getattr(signal, second)
    assert told == [[first, "130" if first == "SIGINT" else "143"]]


def hang(*pauses):
    """A step that hears of no signal: TERM, and again after each pause."""
    signal.raise_signal(signal.SIGTERM)
    for pause in pauses:
        time.sleep(pause)
        signal.raise_signal(signal.SIGTERM)
    print("the step is over", flush=True)


def test_a_run_that_hangs_is_ended_by_a_second_signal_and_goes_on(tmp_path):
    manifest = write_images(tmp_path / "images")
    words = options(manifest, tmp_path / "run", **{"pretext.epochs": 1})

    def begin(name, step=0, *pauses):
        fault = At(0, "pretext", step, hang, *pauses)
        return start(tmp_path / name, words, 1, fault, command="pretrain")

    began = time.monotonic()
    late = begin("late", 2, 0.5, ECHO_SECONDS, 600)
    assert late.end() == [-signal.SIGTERM], late.said(0)
    assert time.monotonic() - began < 60
    echoed = begin("echoed", 3, 0.5, 0.5)
    assert echoed.end() == [143], echoed.said(0)
    said = echoed.said(0)
    assert "the step is over" in said and "what was done is saved" in said
    went_on = begin("went on")
    assert went_on.end() == [0], went_on.said(0)
