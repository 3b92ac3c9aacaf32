"""A claim has one holder; one that nobody keeps up is taken over, a live one never."""

import errno
import json
import os
import time

import pytest

from selftaught.errors import MachineError
from selftaught.table1 import claim
from selftaught.table1.claim import STALE, Claim, alone, live
from tests.table1.tables import FORK


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ours.b050.s0001.claim"


def of_another_machine(path, seconds):
    path.write_text(json.dumps({"machine": "another", "process": 1, "token": "t"}))
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_one_holder_at_a_time(path):
    first, second = Claim(path), Claim(path)
    assert first.take() and not second.take()
    first.release()
    assert second.take() and not first.take()
    second.release()
    assert not path.exists()


def test_a_live_claim_of_another_machine_stays(path):
    of_another_machine(path, STALE - 60)
    assert live(path) and not Claim(path).take()
    assert json.loads(path.read_text())["token"] == "t"


def test_a_stale_claim_is_taken_over(path):
    of_another_machine(path, STALE + 1)
    mine = Claim(path)
    assert not live(path) and mine.take()
    assert json.loads(path.read_text())["token"] == mine.token and live(path)
    mine.release()
    assert [one.name for one in path.parent.iterdir()] == [path.with_suffix(".lock").name]


def test_of_many_that_take_over_one_wins_without_locks(path, monkeypatch):
    """As on a file system whose locks do not reach other machines."""

    def without_locks(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(claim.fcntl, "flock", without_locks)
    of_another_machine(path, STALE + 1)
    many = [Claim(path) for _ in range(5)]
    assert sum(one.take() for one in many) == 1
    of_another_machine(path, 0)
    assert not Claim(path).take()


def test_a_claim_of_a_process_of_this_machine_that_is_gone_is_nobodys(path):
    process = FORK.Process(target=take_and_die, args=(path,))
    process.start()
    process.join()
    assert live(path)
    mine = Claim(path)
    assert mine.take()
    mine.release()


def take_and_die(path):
    assert Claim(path).take()
    os._exit(0)


def test_a_claim_is_kept_up_and_one_that_was_lost_is_noticed(path, monkeypatch):
    monkeypatch.setattr(claim, "RENEWED", 0.02)
    mine = Claim(path)
    assert mine.take()
    os.utime(path, (0, 0))
    assert comes_true(lambda: live(path))
    of_another_machine(path, 0)
    assert comes_true(lambda: mine.lost)
    mine.release()
    assert json.loads(path.read_text())["token"] == "t"  # it is not ours to remove


def comes_true(what):
    limit = time.monotonic() + 20
    while not what() and time.monotonic() < limit:
        time.sleep(0.01)
    return what()


def test_waiting_for_another(path):
    other, waited = Claim(path), []
    assert other.take()

    def wait():
        waited.append(1)
        other.release()

    with alone(path, wait):
        assert waited == [1] and live(path)
    assert not path.exists()


def test_a_full_disk_leaves_no_claim_that_is_nobodys(path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    failed, mine = Claim(path), Claim(path)
    with monkeypatch.context() as patch:
        patch.setattr(claim.json, "dump", full)
        with pytest.raises(MachineError, match="disk full"):
            failed.take()
    assert mine.take()
    mine.release()


def test_a_folder_that_cannot_be_written_is_named(path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(type(path), "open", read_only)
    with pytest.raises(MachineError, match="cannot be written: Read-only file system"):
        Claim(path).take()
