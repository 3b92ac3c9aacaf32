"""Who is named when ranks end, are silent or late; over a real store, without processes."""

import time

import pytest
import torch.distributed as dist

from selftaught import peers
from selftaught.peers import Peers


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(peers, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(peers, "GRACE_SECONDS", 0.05)


@pytest.fixture
def three(quick):
    store, codes = dist.HashStore(), {}
    made = [
        Peers(store, rank, 3, lambda code, r=rank: codes.update({r: code})) for rank in range(3)
    ]
    for one in made:
        one.start()
    yield made, codes
    for one in made:
        one.stop()


def wait_for(condition):
    limit = time.monotonic() + 20
    while not condition() and time.monotonic() < limit:
        time.sleep(0.01)
    assert condition()


def test_nothing_happens_while_all_live(three):
    _, codes = three
    time.sleep(0.3)
    assert codes == {}


def test_a_silent_rank_ends_the_others_and_is_named(three, capfd):
    made, codes = three
    made[1].stop()
    wait_for(lambda: set(codes) == {0, 2})
    assert set(codes.values()) == {3}
    said = capfd.readouterr().err
    assert "rank 1 gave no sign of life" in said
    assert "rank 2 ends too" in said


def test_what_a_rank_told_is_what_the_others_say(three, capfd):
    made, codes = three
    made[2].tell("rank 2 ended: disk full")
    made[2].stop()
    assert made[0].explain(5) == "rank 2 ended: disk full"
    made[0].stop()
    wait_for(lambda: 1 in codes)
    assert "rank 2 ended: disk full; rank 1 ends too" in capfd.readouterr().err


def test_wrong_input_of_one_rank_ends_all_with_its_exit_code(three, capfd):
    made, codes = three
    made[2].tell("rank 2 ended: no such file", 2)
    made[2].stop()
    assert made[0].explain(5) == "rank 2 ended: no such file"
    assert made[0].code == 2
    made[0].stop()
    wait_for(lambda: codes == {1: 2})
    assert capfd.readouterr().err == "selftaught: rank 2 ended: no such file; rank 1 ends too\n"


def test_after_a_failed_collective_the_one_without_signs_is_named(three):
    made, _ = three
    made[2].stop()
    time.sleep(0.1)
    assert made[0].explain(0.3).startswith("rank 2 ended without a word")


def test_with_all_alive_the_one_behind_is_named(three):
    made, _ = three
    made[0].arrivals, made[1].arrivals, made[2].arrivals = 9, 8, 9
    time.sleep(0.1)
    assert made[2].explain(0.3) == "rank 1 did not arrive within the time limit"
    # The first diagnosis counts for all.
    assert made[0].explain(0.3) == "rank 1 did not arrive within the time limit"


def test_a_store_that_is_gone_is_blamed_on_who_held_it(quick, capfd):
    server = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    client = dist.TCPStore("127.0.0.1", server.port, 1, is_master=False)
    codes = []
    one = Peers(client, 1, 2, codes.append)
    one.start()
    del server
    wait_for(lambda: codes == [3])
    assert "rank 0, or the launcher" in capfd.readouterr().err
    assert one.explain(0.1).startswith("rank 0, or the launcher")
