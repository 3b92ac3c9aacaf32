"""Whole runs on two ranks against one process: same split, same losses, same ranking.

In fp32 the learning rates are low: at ordinary ones a difference of rounding soon opens a ReLU that
is shut in the other run and grows tenfold in some five steps (in one process too, between one and
two threads), so that after 20 steps there is nothing left to compare. In fp64 they are ordinary.
"""

import importlib.util
import json
import subprocess
import time

import pandas as pd
import pytest

from tests.tiny import command, options, write_images

STEPS = 20
# Some ten seconds each on an idle machine; a loaded one takes its time.
pytestmark = pytest.mark.timeout(900)
STABLE = {
    "engine.precision": "fp32",
    "pretext.epochs": 8,
    "pretext.lr": 5e-7,
    "finetune.epochs": 8,
    "finetune.lr": 5e-7,
    "engine.save_every": 0,
}
USUAL = STABLE | {"engine.precision": "fp64", "pretext.lr": 1e-4, "finetune.lr": 1e-4}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
)


def begin(manifest, out, ranks, given=STABLE, **more):
    python, *rest = command("run", options(manifest, out, **(given | more)))
    launcher = TORCHRUN if ranks > 1 else []
    return subprocess.Popen(
        [python, *launcher, *rest], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process):
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    manifest = write_images(folder / "images")
    end(begin(manifest, folder / "run", 1))
    return manifest, folder / "run"


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


def test_ddp_agrees_with_one_process(one_process, tmp_path):
    manifest, reference = one_process
    end(begin(manifest, tmp_path / "run", 2))
    assert_agree(tmp_path / "run", reference)


@needs_deepspeed
def test_deepspeed_agrees_with_one_process(one_process, tmp_path):
    manifest, reference = one_process
    more = {"engine.kind": "deepspeed", "engine.zero_stage": 2}
    end(begin(manifest, tmp_path / "run", 2, **more))
    assert_agree(tmp_path / "run", reference)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("stage", [0, 1])
def test_other_zero_stages_agree_too(one_process, tmp_path, stage):
    manifest, reference = one_process
    more = {"engine.kind": "deepspeed", "engine.zero_stage": stage}
    end(begin(manifest, tmp_path / "run", 2, **more))
    assert_agree(tmp_path / "run", reference)


def test_usual_rates_agree_in_fp64_at_first(one_process, tmp_path):
    manifest, _ = one_process
    short = {"pretext.epochs": 2, "finetune.epochs": 2}
    both = [begin(manifest, tmp_path / f"{n}", n, USUAL, **short) for n in (1, 2)]
    for process in both:
        end(process)
    assert_agree(tmp_path / "2", tmp_path / "1", steps=6)


@pytest.mark.slow
def test_usual_rates_agree_in_fp64(one_process, tmp_path):
    manifest, _ = one_process
    for ranks in (1, 2):
        end(begin(manifest, tmp_path / f"{ranks}", ranks, USUAL))
    assert_agree(tmp_path / "2", tmp_path / "1")


@pytest.mark.slow
def test_norms_apart_do_not_agree(one_process, tmp_path):
    manifest, reference = one_process
    end(begin(manifest, tmp_path / "run", 2, **{"engine.sync_batch_norm": "off"}))
    first = [losses(run, "pretext")[0] for run in (tmp_path / "run", reference)]
    assert first[0] != pytest.approx(first[1], rel=1e-2)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize(
    ("first", "then"),
    [((2, "ddp"), (1, "ddp")), ((2, "deepspeed"), (2, "ddp")), ((1, "ddp"), (2, "deepspeed"))],
)
def test_a_run_goes_on_with_another_engine_or_number_of_ranks(one_process, tmp_path, first, then):
    manifest, reference = one_process
    run, more = tmp_path / "run", {"engine.save_every": 5}
    process = begin(manifest, run, first[0], **{"engine.kind": first[1]}, **more)
    while not (run / "checkpoints" / "pretext" / "step-00000010").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.terminate()
    process.communicate(timeout=300)
    assert not (run / "scores.csv").exists(), "it ended before it was stopped"
    end(begin(manifest, run, then[0], **{"engine.kind": then[1]}, **more))
    assert_agree(run, reference)


def test_a_batch_that_does_not_divide_is_refused_in_one_line(one_process, tmp_path):
    manifest, _ = one_process
    more = {"pretext.batch_size": 9}
    process = begin(manifest, tmp_path / "run", 2, **more)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    told = [line for line in errors.splitlines() if line.startswith("selftaught: ")]
    assert told and all(
        "pretext.batch_size is 9; allowed: multiples of 2 (2 ranks)" in line for line in told
    )
    assert not (tmp_path / "run" / "split.csv").exists()
