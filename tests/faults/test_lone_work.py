"""Work of rank 0 alone: a signal to any rank ends it at once; a dead rank and errors are told."""

import os
import signal
import threading
import time

import pytest

from selftaught.errors import InputError
from selftaught.training.stop import Stopper, StopRun, first_rank_alone
from tests.ranks import run_ranks


def send_after(seconds, number):
    def send():
        time.sleep(seconds)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


def busy(seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    raise AssertionError("not ended")


@pytest.fixture
def stopper():
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    kept[signal.SIGUSR1] = signal.getsignal(signal.SIGUSR1)
    yield Stopper().install()
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)]
)
def test_a_signal_ends_the_work_of_one_process(stopper, number, code):
    send_after(0.2, number)
    began = time.monotonic()
    with pytest.raises(StopRun) as stopped:
        first_rank_alone(busy, stopper)
    assert stopped.value.code == code
    assert time.monotonic() - began < 5


def test_outside_of_it_a_signal_is_only_remembered(stopper):
    assert first_rank_alone(lambda: 7, stopper) == 7
    os.kill(os.getpid(), signal.SIGTERM)
    assert stopper.code == 143
    with pytest.raises(StopRun):
        first_rank_alone(lambda: 7, stopper)


def on_ranks(rank, number):
    """What first_rank_alone gives; then `number` to `rank` while rank 0 is busy."""
    from selftaught import distributed

    stopper = Stopper().install()
    given = first_rank_alone(lambda: 7, stopper)
    distributed.barrier()
    if distributed.rank() == rank:
        send_after(0.5, number)
    began = time.monotonic()
    try:
        first_rank_alone(busy, stopper)
    except StopRun as stopped:
        return given, stopped.code, time.monotonic() - began
    return given, 0, 0.0


def test_a_signal_to_any_rank_ends_the_work_of_rank_0():
    for given, expected in zip(run_ranks(2, on_ranks, 1, signal.SIGINT), (7, None), strict=True):
        result, code, seconds = given
        assert (result, code) == (expected, 130)
        assert seconds < 10


def test_an_error_of_the_work_is_raised(stopper):
    def wrong():
        raise InputError("no such image")

    with pytest.raises(InputError, match="no such image"):
        first_rank_alone(wrong, stopper)
    assert not stopper.at_once
