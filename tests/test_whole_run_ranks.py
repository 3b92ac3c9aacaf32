"""Whole runs on two ranks against one process: same split, same losses, same ranking.

In fp32 the learning rates are low: at ordinary ones a difference of rounding soon opens a ReLU that
is shut in the other run and grows tenfold in some five steps (in one process too, between one and
two threads), so that after 20 steps there is nothing left to compare. In fp64 they are ordinary.
"""

import importlib.util
import json
import os
import signal

import pandas as pd
import pytest

from tests.faults.injected import At, Recording, send
from tests.faults.ranks import start
from tests.tiny import options, write_images

STEPS = 20
pytestmark = pytest.mark.timeout(900)
STABLE = {
    "engine.precision": "fp32",
    "pretext.epochs": 7,
    "pretext.lr": 5e-7,
    "finetune.epochs": 7,
    "finetune.lr": 5e-7,
    "engine.save_every": 0,
}
USUAL = STABLE | {"engine.precision": "fp64", "pretext.lr": 1e-4, "finetune.lr": 1e-4}
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not HAS_DEEPSPEED, reason="deepspeed is not installed")


def begin(manifest, out, ranks, given=STABLE, fault=None, whole=False, **more):
    words = options(manifest, out, **(given | more))
    return start(out.with_name(f"{out.name} said"), words, ranks, fault, whole=whole)


def end(started):
    assert set(started.end()) == {0}, started.said(0)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def one_process(manifest, tmp_path_factory):
    """The reference for thin encoders."""
    run = tmp_path_factory.mktemp("one") / "run"
    end(begin(manifest, run, 1))
    return run


def losses(run, stage):
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [e["loss"] for e in entries if e["kind"] == "step" and e["stage"] == stage][:STEPS]


def assert_agree(run, reference, steps=STEPS):
    assert (run / "split.csv").read_bytes() == (reference / "split.csv").read_bytes()
    for stage in ("pretext", "finetune"):
        expected = losses(reference, stage)
        assert len(expected) == steps
        assert losses(run, stage) == pytest.approx(expected, rel=1e-4)
    ours, theirs = (pd.read_csv(place / "scores.csv") for place in (run, reference))
    assert list(ours["path"]) == list(theirs["path"])
    assert ours["score"].corr(theirs["score"], method="spearman") >= 0.99


@pytest.mark.slow
def test_ddp_agrees_with_one_process(manifest, one_process, tmp_path):
    end(begin(manifest, tmp_path / "run", 2))
    assert_agree(tmp_path / "run", one_process)


@pytest.mark.slow
def test_ddp_agrees_with_one_process_of_the_whole_encoder(manifest, tmp_path):
    for ranks in (1, 2):
        end(begin(manifest, tmp_path / f"{ranks}", ranks, whole=True))
    assert_agree(tmp_path / "2", tmp_path / "1")


class BuildingIn:
    """Has torch build its extensions in `folder`."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, rank):
        os.environ["TORCH_EXTENSIONS_DIR"] = str(self.folder)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_deepspeed_agrees_with_one_process(manifest, one_process, tmp_path, stage):
    more = {"engine.kind": "deepspeed", "engine.zero_stage": stage}
    end(begin(manifest, tmp_path / "run", 2, **more))
    assert_agree(tmp_path / "run", one_process)


def test_usual_rates_agree_in_fp64_at_first(manifest, tmp_path):
    short = {"pretext.epochs": 2, "finetune.epochs": 2}
    given = {name: Recording(tmp_path / f"given {name}") for name in ("1", "2")}
    runs = [begin(manifest, tmp_path / n, int(n), USUAL, given[n], **short) for n in given]
    if HAS_DEEPSPEED:
        kind = {"engine.kind": "deepspeed", "engine.zero_stage": 0}
        fault = BuildingIn(tmp_path / "built")
        runs.append(begin(manifest, tmp_path / "DeepSpeed", 2, USUAL, fault, **kind, **short))
    for started in runs:
        end(started)
    assert_agree(tmp_path / "2", tmp_path / "1", steps=6)
    if HAS_DEEPSPEED:
        assert_agree(tmp_path / "DeepSpeed", tmp_path / "1", steps=6)
        assert not (tmp_path / "built").exists(), "it compiled C++ when it started"
    # The same images at the same step, augmented to the same bits.
    assert given["1"].lines() == given["2"].lines()
    assert len(given["1"].lines()) == 2 * 6 * 8


@pytest.mark.slow
def test_usual_rates_agree_in_fp64_with_the_whole_encoder(manifest, tmp_path):
    runs = {"1": (1, "ddp"), "2": (2, "ddp")}
    if HAS_DEEPSPEED:
        runs["2 of DeepSpeed"] = (2, "deepspeed")
    for name, (ranks, kind) in runs.items():
        more = {"engine.kind": kind, "engine.zero_stage": 0}
        end(begin(manifest, tmp_path / name, ranks, USUAL, whole=True, **more))
    for name in list(runs)[1:]:
        assert_agree(tmp_path / name, tmp_path / "1")


@pytest.mark.slow
def test_norms_apart_do_not_agree(manifest, one_process, tmp_path):
    end(begin(manifest, tmp_path / "run", 2, **{"engine.sync_batch_norm": "off"}))
    first = [losses(run, "pretext")[0] for run in (tmp_path / "run", one_process)]
    assert first[0] != pytest.approx(first[1], rel=1e-2)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((2, "ddp"), (1, "ddp")),
        ((2, "deepspeed"), (2, "ddp")),
        ((1, "ddp"), (2, "deepspeed")),
        ((2, "deepspeed"), (4, "deepspeed")),
    ],
)
def test_a_run_goes_on_with_another_engine_or_number_of_ranks(
    manifest, one_process, tmp_path, first, then
):
    run, more = tmp_path / "run", {"engine.save_every": 5}
    stop = At(0, "pretext", 11, send, signal.SIGTERM)
    stopped = begin(manifest, run, first[0], fault=stop, **{"engine.kind": first[1]}, **more)
    assert set(stopped.end()) == {143}, stopped.said(0)
    end(begin(manifest, run, then[0], **{"engine.kind": then[1]}, **more))
    assert_agree(run, one_process)


def test_a_batch_that_does_not_divide_is_refused_in_one_line(manifest, tmp_path):
    ranks = begin(manifest, tmp_path / "run", 2, **{"pretext.batch_size": 9})
    assert ranks.end() == [2, 2]
    for rank in (0, 1):
        (line,) = ranks.said(rank).splitlines()
        assert "pretext.batch_size is 9; allowed: multiples of 2 (2 ranks)" in line
    assert not (tmp_path / "run" / "split.csv").exists()
