"""Ranks that cannot go on end in bounded time, with one line each that names rank and reason."""

import socket
import time

import pandas as pd
import pytest

from tests.faults.injected import At
from tests.faults.ranks import start
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
    more = {"data.cache_gib": 0, "finetune.epochs": 1, "score.batch_size": 2}
    if loop == "score":
        more["pretext.method"] = "none"
    fault = At(1, loop, 1, cut_all, manifest.parent)
    ranks = start(tmp_path / "ranks", options(manifest, tmp_path / "run", **more), 2, fault)
    assert ranks.end() == [2, 2], ranks.said(0) + ranks.said(1)
    lines = [line for rank in (0, 1) for line in lines_of(ranks, rank)]
    assert len(lines) == 2 and all(".png" in line for line in lines)
    for rank, line in enumerate(lines):
        if "ends too" in line:
            assert f"rank {1 - rank} ended: " in line and f"rank {rank} ends too" in line
            assert "start the same command again" not in line


def break_loaders():
    from selftaught.data.pipeline import opencv

    def broken(*_, **__):
        raise RuntimeError("the loader broke")

    opencv.load = broken


def test_a_loader_that_dies_on_one_rank_ends_the_other(tmp_path):
    manifest = write_images(tmp_path / "images")
    more = {"data.cache_gib": 0, "data.workers": 2, "data.pipeline": "opencv"}
    fault = At(1, "pretext", 2, break_loaders)
    ranks = start(tmp_path / "ranks", options(manifest, tmp_path / "run", **more), 2, fault)
    assert ranks.end(timeout=60) == [3, 1]
    assert "RuntimeError: the loader broke" in ranks.said(1)
    (line,) = lines_of(ranks, 0)
    assert "rank 1 ended: " in line and ".png: no view could be made; rank 0 ends too" in line


def test_shares_that_are_not_even_give_the_scores_of_one_process(tmp_path):
    manifest = write_images(tmp_path / "images", 47)
    more = {"engine.precision": "fp64", "score.batch_size": 4}
    more |= {"pretext.method": "none", "finetune.epochs": 1}
    runs = {ranks: tmp_path / f"run{ranks}" for ranks in (1, 2)}
    for ranks, run in runs.items():
        started = start(tmp_path / f"{ranks}", options(manifest, run, **more), ranks)
        assert started.end() == [0] * ranks, started.said(0)
    alone, shared = (pd.read_csv(run / "scores.csv") for run in runs.values())
    assert len(alone) % 2 and shared["path"].tolist() == alone["path"].tolist()
    assert shared["score"].tolist() == pytest.approx(alone["score"].tolist(), rel=1e-4)


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
