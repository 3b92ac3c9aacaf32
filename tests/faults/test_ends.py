"""Ranks that cannot go on end in bounded time, with one line each that names rank and reason."""

import socket
import time

import pytest

from tests.faults.ranks import At, start
from tests.tiny import options, write_images

pytestmark = pytest.mark.timeout(600)


def lines_of(ranks, rank):
    said = ranks.said(rank)
    assert "Traceback" not in said
    return [line for line in said.splitlines() if line.startswith("selftaught: ")]


def cut_all(folder):
    for path in folder.glob("*.png"):
        path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("loop", ["pretext", "score"])
def test_a_file_that_breaks_in_mid_run_ends_all_ranks_and_is_named(tmp_path, loop):
    manifest = write_images(tmp_path / "images")
    more = {"data.cache_gib": 0, "pretext.epochs": 2, "finetune.epochs": 1, "score.batch_size": 2}
    fault = At(1, loop, 1, cut_all, manifest.parent)
    ranks = start(tmp_path / "ranks", options(manifest, tmp_path / "run", **more), 2, fault)
    assert ranks.end() == [2, 2], ranks.said(0) + ranks.said(1)
    lines = [line for rank in (0, 1) for line in lines_of(ranks, rank)]
    assert len(lines) == 2 and all(".png" in line for line in lines)
    for rank, line in enumerate(lines):
        if "ends too" in line:
            assert f"rank {1 - rank} ended: " in line and f"rank {rank} ends too" in line
            assert "start the same command again" not in line


def test_a_taken_port_is_named_in_bounded_time(tmp_path):
    manifest = write_images(tmp_path / "images")
    arguments = options(manifest, tmp_path / "run", **{"engine.timeout": 5})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        began = time.monotonic()
        ranks = start(tmp_path / "ranks", arguments, 2, port=port)
        assert ranks.end() == [3, 3]
    assert time.monotonic() - began < 60
    for rank in (0, 1):
        (line,) = lines_of(ranks, rank)
        assert f"rank {rank} cannot meet the others at 127.0.0.1:{port}" in line
    assert not (tmp_path / "run").exists()
