"""Whatever is killed, every cell is run to its end exactly once, and the table is the same."""

import fcntl
import os
import signal
import sys
import time

import pytest

from selftaught.table1.job import Job
from selftaught.table1.plan import DONE, FAILED, WAITING, read_plan, settings_of
from selftaught.table1.share import begin_from, first_stage_is_there
from selftaught.table1.status import is_done, record
from selftaught.table1.worker import Means, wait_for
from selftaught.training.stop import Stopper, StopRun
from tests.table1.tables import FORK, carry_out, lines, make, start, table

OURS, UNI, SUPCON = "ours/b050/s0001", "uni-modal/b050/s0001", "supcon/b050/s0001"


def until(what, seconds=150):
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit, "took too long"
        time.sleep(0.02)


def ends(process):
    process.join(150)
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted table of three systems and two seeds."""
    out, _ = make(tmp_path_factory.mktemp("whole"))
    carry_out(out)
    # Those that others wait for go first.
    assert {name.split("/")[0] for name in lines(out, "start")[:4]} == {"ours", "supcon"}
    return table(out)


@pytest.mark.parametrize("whom", ["worker", "group"])
def test_a_worker_killed_and_two_started(whole, tmp_path, whom):
    out, cells = make(tmp_path, orders={OURS: ["sleep"]})
    first = start(out)
    until(lambda: first_stage_is_there(out / cells[0].run))
    os.kill(first.pid, signal.SIGKILL) if whom == "worker" else os.killpg(first.pid, signal.SIGKILL)
    assert ends(first) == -signal.SIGKILL
    assert not is_done(out / cells[0].run)
    two = [start(out), start(out)]
    assert [ends(one) for one in two] == [0, 0]
    assert table(out) == whole
    finished = lines(out, "end")
    assert sorted(finished) == sorted({cell.name for cell in cells})
    assert len(lines(out, "start")) == len(cells) + 1  # the one that was killed went on


def test_a_worker_that_dies_takes_its_run_along(tmp_path):
    out, cells = make(tmp_path, ["ours"], [1], orders={OURS: ["sleep"]})
    worker = start(out)
    until(lambda: first_stage_is_there(out / cells[0].run))
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: lines(out, "stopped") == [OURS])
    assert ends(worker) == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_passed_on_and_waited_for(whole, tmp_path, number):
    out, cells = make(tmp_path, orders={OURS: ["sleep"]})
    worker = start(out, slots=2)
    until(lambda: first_stage_is_there(out / cells[0].run))
    os.kill(worker.pid, number)
    assert ends(worker) == 143
    assert OURS in lines(out, "stopped")
    assert not list((out / "work").glob("*.claim"))
    carry_out(out)
    assert table(out) == whole and len(lines(out, "end")) == len({cell.run for cell in cells})


def test_a_run_that_was_stopped_stops_everything(tmp_path):
    out, cells = make(tmp_path, ["ours", "supcon"], [1], orders={OURS: [], SUPCON: ["sleep"]})
    worker = start(out, slots=2)
    until(lambda: first_stage_is_there(out / cells[1].run))
    child = next(pid for pid in children(worker.pid) if SUPCON in commandline(pid))
    os.kill(child, signal.SIGTERM)
    assert ends(worker) == 143
    assert {cell.state for cell in record(out, lambda: None)} <= {DONE, WAITING}
    assert not any(cell.problem for cell in read_plan(out))  # which was no failure


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as handle:
        return [int(word) for word in handle.read().split()]


def commandline(pid):
    with open(f"/proc/{pid}/cmdline") as handle:
        return handle.read()


def test_wrong_input_is_reported_and_not_repeated(tmp_path):
    out, _ = make(tmp_path, ["ours", "supcon"], [1], orders={OURS: [2]})
    for _ in range(2):
        states = {cell.name: (cell.state, cell.problem) for cell in carry_out(out)}
        assert states[OURS] == (FAILED, "ordered in the second stage")
        assert states[SUPCON] == (DONE, "")
    assert lines(out, "start").count(OURS) == 1
    # Asked for by name it is tried again.
    states = {cell.name: cell.state for cell in carry_out(out, only=OURS)}
    assert states == {OURS: DONE, SUPCON: DONE}


def test_failures_of_the_machine_are_tried_again_so_many_times(tmp_path):
    orders = {OURS: [3, 3, 3], SUPCON: [3, 3, 0]}
    out, _ = make(tmp_path, ["ours", "supcon"], [1], orders=orders)
    states = {cell.name: (cell.state, cell.problem) for cell in carry_out(out, retry=2)}
    assert states == {OURS: (FAILED, "ordered in the second stage"), SUPCON: (DONE, "")}
    assert lines(out, "start").count(OURS) == 3 == lines(out, "start").count(SUPCON)
    # A new start of the command tries it again.
    assert {cell.state for cell in carry_out(out)} == {DONE}


def test_what_does_not_fit_into_memory_twice_fails_with_its_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMORY", "1")
    out, _ = make(tmp_path, ["ours"], [1], orders={OURS: [3] * 5})
    (cell,) = carry_out(out)
    assert cell.state == FAILED and "out of memory: 1 GiB" in cell.problem
    assert len(lines(out, "start")) == 2


def test_a_first_stage_is_trained_once_and_taken_by_the_others(whole, tmp_path):
    out, cells = make(tmp_path, orders={OURS: ["slow"]})
    carry_out(out, slots=6)  # room for those that wait, too
    assert table(out) == whole
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert f"start {OURS} own" in log and f"start {UNI} taken" in log
    assert f"start {SUPCON} own" in log  # another method of the first stage
    assert log.index(f"start {SUPCON} own") < log.index(f"start {UNI} taken")
    kept = out / cells[0].run / "checkpoints/pretext/step-00000001/weights.safetensors"
    taken = out / "cells" / UNI / kept.relative_to(out / cells[0].run)
    assert taken.read_text() == OURS and taken.stat().st_ino == kept.stat().st_ino
    facts = (out / "cells" / UNI / "environment.json").read_text()
    assert f'"pretext_from": {{\n  "run": "cells/{OURS}"' in facts
    assert '"stage": "pretext"' in (out / "cells" / UNI / "metrics.jsonl").read_text()


def test_where_the_donor_fails_the_next_one_trains(tmp_path):
    out, _ = make(tmp_path, ["ours", "uni-modal"], [1], orders={OURS: [14]})
    states = {cell.name: cell.state for cell in carry_out(out, slots=2)}
    assert states == {OURS: FAILED, UNI: DONE}
    assert f"start {UNI} own" in (tmp_path / "log.txt").read_text()


def test_a_run_that_goes_on_by_hand_is_left_alone(tmp_path):
    out, cells = make(tmp_path, ["ours", "supcon"], [1])
    by_hand = FORK.Process(target=hold, args=(out / cells[0].run,), daemon=True)
    by_hand.start()
    until((out / cells[0].run / ".lock").exists)
    worker = start(out)
    until(lambda: lines(out, "end") == [SUPCON])
    time.sleep(0.5)
    assert OURS not in lines(out, "start")
    by_hand.kill()  # a forked process has the signal handlers of tests before
    assert ends(worker) == 0 and lines(out, "end") == [SUPCON, OURS]


def hold(run):
    run.mkdir(parents=True)
    with (run.parent / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        os.rename(held.name, run / ".lock")
        time.sleep(600)  # ended by the test


def test_a_run_alone_waits_for_a_donor_at_work_only(tmp_path):
    out, cells = make(tmp_path, ["ours", "uni-modal"], [1])
    carry_out(out, only=UNI)  # nobody trains its donor: it does
    assert lines(out, "end") == [UNI]
    carry_out(out)
    assert f"start {OURS} taken" in (tmp_path / "log.txt").read_text()
    assert cells[1].donor == cells[0].run


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0], 0),
        ([1], 3),
        ([130], 130),
        ([0, 0], 0),
        ([0, 3], 3),
        ([3, 2], 2),
        ([0, 143], 143),
        ([-9, 3], 3),
        ([-15, 143], 143),
    ],
)
def test_how_a_run_of_one_or_more_ranks_ended(tmp_path, codes, expected):
    program = f"""
import os, sys
code = {codes}[int(os.environ["RANK"])]
assert os.environ["WORLD_SIZE"] == "{len(codes)}"
print("selftaught: rank", os.environ["RANK"], file=sys.stderr)
os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
"""
    words = [sys.executable, "-S", "-c", program]
    job = Job(words, ranks=len(codes), log=tmp_path / "log", environment=dict(os.environ))
    until(lambda: job.code() is not None)
    assert job.code() == expected
    assert job.last_words().startswith("rank ") or codes == [-9, 3]


def test_gpus_are_divided_among_slots_and_ranks(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    means = Means(slots=2, ranks=2, devices=["4", "5", "6", "7"])
    given = [means.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(2)]
    assert given == ["4,5", "6,7"]
    assert means.environment(0)["OMP_NUM_THREADS"] == "5"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert Means(slots=1000).environment(3)["OMP_NUM_THREADS"] == "1"


def test_scores_that_were_changed_are_not_done(tmp_path):
    out, (cell,) = make(tmp_path, ["ours"], [1])
    carry_out(out)
    run = out / cell.run
    assert is_done(run)
    (run / "scores.csv").write_text("path,score\n")
    assert not is_done(run)


def test_only_a_beginning_as_it_was_written_is_taken(tmp_path):
    out, cells = make(tmp_path, ["ours", "uni-modal"], [1])
    carry_out(out, only=OURS)
    source, run = cells[0].run, cells[1].run
    config = settings_of(out, cells[1])
    arguments = (out, source, run, config)
    (out / run).mkdir(parents=True)
    (out / run / "mine.txt").write_text("precious")
    assert not begin_from(*arguments, pretext=True, ranks=1)
    assert [path.name for path in (out / run).iterdir()] == ["mine.txt"]
    (out / run / "mine.txt").unlink()
    (out / source / "split.csv").write_text("path,split\nb.png,test\n")
    assert not begin_from(*arguments, pretext=True, ranks=1)
    assert not any(path.name.startswith(".") for path in (out / run).parent.iterdir())


def test_a_signal_ends_the_wait_for_others(tmp_path):
    stopper = Stopper()
    wait_for(stopper)()
    stopper.code = 143
    with pytest.raises(StopRun):
        wait_for(stopper)()


def test_a_run_is_told_once_to_stop(tmp_path):
    """A second signal, seconds after the first, ends a run before it has saved."""
    program = """
import signal, time
count = 0
def note(*_):
    global count
    count += 1
signal.signal(signal.SIGTERM, note)
print("ready", flush=True)
limit = time.monotonic() + 30
while not count and time.monotonic() < limit:
    time.sleep(0.01)
time.sleep(0.5)
print(f"selftaught: {count} signals", flush=True)
"""
    words = [sys.executable, "-S", "-c", program]
    job = Job(words, ranks=1, log=tmp_path / "log", environment=dict(os.environ))
    until(lambda: "ready" in (tmp_path / "log").read_text())
    for _ in range(5):
        job.stop()
        time.sleep(0.05)
    until(lambda: job.code() is not None)
    assert job.last_words() == "1 signals"
