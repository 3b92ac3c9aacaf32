"""Workers of `selftaught prepare`: one is killed, all are signalled."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught.data.prepare import job
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.job import prepare

ROOT = Path(__file__).resolve().parents[3]
WORDS = ["--carrier", "none", "--polarity", "none", "--mask", "none", "--sheets", "0"]
PLAIN = PrepareConfig(carrier="none", polarity="none", mask="none", workers=1, sheets=0)
# The workers import it too, as another module: there the shards from the third on do something.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from selftaught.data.prepare import shard_work
if __name__ == "__main__":
    from selftaught.cli.main import main
    from selftaught.data.prepare import job
    job.SHARD_IMAGES = 2
    sys.exit(main(sys.argv[1:]))
work = shard_work.work_shard
def work_shard(places, number, rows, config):
    if number >= 2:
        while len(list(places.work.glob("0*.json"))) < 2:
            time.sleep(0.01)
        {does}
    work(places, number, rows, config)
shard_work.work_shard = work_shard
"""


@pytest.fixture
def begun(tmp_path):
    """The command on five shards, begun by two workers that do something in the third."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(10):
        image = np.random.default_rng(number).integers(0, 256, (64, 60)).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")

    def begin(does):
        (tmp_path / "program.py").write_text(PROGRAM.format(does=does))
        words = ["prepare", str(folder), "--out", str(tmp_path / "out"), *WORDS, "--workers", "2"]
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py"), *words],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return begin


def notes(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / "work").glob("0*.json")}


def end(process, code):
    """What it said, after its end within seconds."""
    try:
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, said
    return said


def assert_goes_on(tmp_path, monkeypatch):
    """What is finished is kept, and the set is that of a job which nothing happened to."""
    kept, worked, out = notes(tmp_path / "out"), [], tmp_path / "out"
    assert set(kept) == {"00000.json", "00001.json"}
    real = job.work_shard
    monkeypatch.setattr(job, "SHARD_IMAGES", 2)
    monkeypatch.setattr(job, "work_shard", lambda *given: worked.append(given[1]) or real(*given))
    prepare(tmp_path / "raw", out, PLAIN)
    assert worked == [2, 3, 4]
    prepare(tmp_path / "raw", tmp_path / "whole", PLAIN)
    files = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        assert (out / path).read_bytes() == (tmp_path / "whole" / path).read_bytes(), path


def test_a_killed_worker_ends_the_job_with_3_in_one_line(begun, tmp_path, monkeypatch):
    (line,) = end(begun("os.kill(os.getpid(), signal.SIGKILL)"), 3).splitlines()
    assert line.startswith(f"selftaught: {tmp_path / 'out/pack/shards'}: a worker was killed ")
    assert "finished shards are kept: start again, with fewer workers" in line
    assert_goes_on(tmp_path, monkeypatch)


STOPPED = "selftaught: stopped by a signal; what was done is saved, the same command goes on"


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to the command", "to all"])
def test_usr1_ends_a_job_in_one_line_and_it_goes_on(begun, tmp_path, monkeypatch, send):
    busy = tmp_path / "busy"
    busy.mkdir()
    process = begun(f"(Path({str(busy)!r}) / str(os.getpid())).touch(); time.sleep(600)")
    limit = time.monotonic() + 60
    while not any(busy.iterdir()) and time.monotonic() < limit:
        time.sleep(0.02)
    # The workers ignore it: the command alone decides.
    os.kill(int(next(busy.iterdir()).name), signal.SIGUSR1)
    time.sleep(0.5)
    assert process.poll() is None
    began = time.monotonic()
    send(process.pid, signal.SIGUSR1)
    said = end(process, 143).splitlines()
    assert time.monotonic() - began < 10
    assert said == [STOPPED]
    assert_goes_on(tmp_path, monkeypatch)
