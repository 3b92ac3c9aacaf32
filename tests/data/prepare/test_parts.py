"""`selftaught prepare --part I/N`: one set by several machines, killed and not."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from films import stop_after, write_films

from selftaught.cli.main import main
from selftaught.data.prepare import job, survey
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.job import Part, prepare, prepare_part
from selftaught.errors import InputError
from tests.data.prepare.test_job import PLAIN, ROOT, content

FULL = PrepareConfig(size=64, workers=1, given_mask=False, sheets=1)
PROGRAM = """
import sys
from pathlib import Path
from selftaught.data.prepare import job
from selftaught.data.prepare.config import PrepareConfig
job.SHARD_IMAGES = 2
config = PrepareConfig(size=64, workers=1, given_mask=False, sheets=1)
print(job.prepare_part(Path(sys.argv[1]), Path(sys.argv[2]), config, job.Part(int(sys.argv[3]), 2)))
"""


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return write_films(tmp_path_factory.mktemp("films") / "set", 13)


@pytest.fixture(scope="module")
def whole(films, tmp_path_factory):
    """The files of a job without parts."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job, "SHARD_IMAGES", 2)
        prepare(films, out, FULL)
    return content(out)


@pytest.fixture
def worked(monkeypatch):
    """The shards that are worked on, in order."""
    numbers, real = [], job.work_shard

    def counted(places, number, rows, config):
        numbers.append(number)
        real(places, number, rows, config)

    monkeypatch.setattr(job, "SHARD_IMAGES", 2)
    monkeypatch.setattr(job, "work_shard", counted)
    return numbers


def test_parts_in_any_order_one_stopped_write_the_files_of_one_job(
    films, whole, tmp_path, monkeypatch, worked
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            prepare_part(films, out, FULL, Part(2, 3))
    worked.clear()
    assert prepare_part(films, out, FULL, Part(2, 3)).startswith("part 2 of 3: 2 of 7 shards")
    assert worked == [4]  # 1 was finished before the stop
    prepare_part(films, out, FULL, Part(1, 3))
    assert worked == [4, 0, 3, 6] and not (out / "manifest.csv").exists()
    prepare(films, out, FULL)
    assert worked == [4, 0, 3, 6, 2, 5]  # what no part has done
    assert content(out) == whole
    assert "complete" in prepare_part(films, out, FULL, Part(3, 3))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_two_at_once_and_one_killed(films, whole, tmp_path, worked):
    out, program = tmp_path / "out", tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    one, other = (
        subprocess.Popen(
            [sys.executable, str(program), str(films), str(out), number], env=environment
        )
        for number in "12"
    )
    end = time.monotonic() + 120
    while not list(out.glob("work/0000[135].json")) and time.monotonic() < end:
        assert other.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert one.wait() == 0
    done = {int(path.stem) for path in out.glob("work/0*.json")}
    assert {0, 2, 4, 6} <= done != set(range(7))
    prepare(films, out, FULL)
    assert set(worked) == set(range(7)) - done
    assert content(out) == whole


def test_who_may_work_beside_whom(films, tmp_path, worked):
    out = tmp_path / "out"
    prepare_part(films, out, PLAIN, Part(1, 2))
    with (out / "work" / "lock").open("w") as whole:
        fcntl.flock(whole, fcntl.LOCK_SH)  # another part
        with pytest.raises(InputError, match="another prepare is working in it; wait"):
            prepare(films, out, PLAIN)
        prepare_part(films, out, PLAIN, Part(2, 2))
        fcntl.flock(whole, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another prepare is working in it; wait"):
            prepare_part(films, out, PLAIN, Part(2, 2))
    with (out / "work" / "part-1-2").open("w") as own:
        fcntl.flock(own, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="part 1 of 2 is at work; wait for it"):
            prepare_part(films, out, PLAIN, Part(1, 2))
    with pytest.raises(InputError, match="size"):
        prepare_part(films, out, FULL, Part(1, 2))


def test_a_part_waits_for_the_one_that_looks_at_the_set(films, tmp_path, monkeypatch, worked):
    out, looks = tmp_path / "out", []
    real = survey._see
    monkeypatch.setattr(survey, "_see", lambda *given: looks.append(1) or real(*given))
    prepare_part(films, out, FULL, Part(1, 2))
    with (out / "work" / "survey").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        worked.clear()
        later = threading.Thread(target=prepare_part, args=(films, out, FULL, Part(2, 2)))
        later.start()
        later.join(0.5)
        assert later.is_alive() and not worked
    later.join(60)
    assert worked == [1, 3, 5] and looks == [1]


@pytest.mark.parametrize("part", ["3/2", "0/2", "1", "a/b", "1/2/3", "-1/2"])
def test_what_is_no_part(films, tmp_path, capsys, part):
    assert main(["prepare", str(films), "--out", str(tmp_path / "out"), f"--part={part}"]) == 2
    assert f"part is {part!r}; allowed: I/N" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command(films, tmp_path, capsys):
    words = ["prepare", str(films), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*words, "--part", "1/1"]) == 0
    assert "part 1 of 1: 1 of 1 shards prepared; when every part is" in capsys.readouterr().out
    assert main(words) == 0 and (tmp_path / "out" / "manifest.csv").exists()
