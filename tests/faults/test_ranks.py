"""Faults on one rank of two: signals in every loop, a dead and a late rank, bad numbers, damaged
checkpoints, another number of ranks, divided optimizers; the run ends as promised and goes on."""

import importlib.util
import os
import signal
import time

import pandas as pd
import pytest
from scipy.stats import spearmanr

from selftaught.training import checkpoint
from tests.faults.injected import LONE_WORK, At, BadGradient, BadLoss, BadPixels, SignalDuring, send
from tests.faults.ranks import start
from tests.tiny import options, write_images

RESULTS = (
    "model/weights.safetensors",
    "scores.csv",
    "embeddings.safetensors",
    "metrics.json",
)
pytestmark = pytest.mark.timeout(900)
# Two images a forward pass, so that there are several passes to be stopped between.
SHORT = {"score.batch_size": 2, "pretext.epochs": 2, "finetune.epochs": 2}
# Fine-tuning begins at once; two micro-batches of two images to a rank.
UNTRAINED = {"pretext.method": "none"}
HALVES = {"engine.accumulate": 2}
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
SLOW_DEEPSPEED = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_DEEPSPEED, reason="deepspeed is not installed"),
]


def zero(stage):
    return {"engine.kind": "deepspeed", "engine.zero_stage": stage}


def results(run):
    return {name: (run / name).read_bytes() for name in RESULTS}


def assert_equal(found, expected):
    for name in RESULTS:
        assert found[name] == expected[name], f"{name} differs"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Manifest and results of an uninterrupted run on two ranks."""
    folder = tmp_path_factory.mktemp("whole")
    manifest = write_images(folder / "images")
    ranks = start(folder, options(manifest, folder / "run", **SHORT), 2)
    assert ranks.end() == [0, 0], ranks.said(0) + ranks.said(1)
    return manifest, folder / "run"


def go_on(ranks_folder, arguments, world=2):
    ranks = start(ranks_folder, arguments, world)
    assert ranks.end() == [0] * world, ranks.said(0)


# In the order of a run. What is in LONE_WORK is done by rank 0 while the other waits.
LOOPS = [
    "split",
    "pretext",
    "centres",
    "begin",
    "finetune",
    "score",
    "scores",
    "metrics",
    "report",
]


def send_in(loop, rank, done, number, folder, arguments, world=2):
    """Ranks of which `rank` gets a signal in a loop, their exit codes, and seconds from it on."""
    folder.mkdir(exist_ok=True)
    if loop in LONE_WORK:
        fault = SignalDuring(number, rank, loop, folder)
    else:
        fault = At(rank, loop, done, send, number)
    ranks = start(folder, arguments, world, fault)
    codes = ranks.end()
    return ranks, codes, time.time() - float(ranks.said(rank).split("sent at ")[1].split()[0])


def stop_with(number, rank, loop, done, folder, arguments, world=2):
    """A signal to `rank`, and what rank 0 said; all ranks must end as promised."""
    number = getattr(signal, number)
    ranks, codes, seconds = send_in(loop, rank, done, number, folder, arguments, world)
    assert codes == [130 if number == signal.SIGINT else 143] * world, ranks.said(0)
    assert seconds < 20, loop
    for one in range(world):
        assert "Traceback" not in ranks.said(one)
        assert "what was done is saved" in ranks.said(one)
    return " ".join(ranks.said(0).split())


def damage(folder, flip):
    """Flip a bit of the newest checkpoint, or cut it in half."""
    newest = max(folder.glob("step-*")) / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    if flip:
        content[len(content) // 2] ^= 16
    else:
        content = content[: len(content) // 2]
    newest.write_bytes(bytes(content))


def set_clock_back(run):
    """Newer files become the older ones, as after a clock was set back."""
    for path in run.rglob("*"):
        os.utime(path, (4e9 - path.stat().st_mtime,) * 2)


def test_one_run_stopped_in_every_way_ends_with_the_same_bits(whole, tmp_path):
    manifest, expected = whole
    run, ranks = tmp_path / "run", tmp_path / "ranks"
    arguments = options(manifest, run, **SHORT)
    stop_with("SIGTERM", 1, "pretext", 5, ranks, arguments)
    damage(run / "checkpoints" / "pretext", flip=True)
    said = stop_with("SIGUSR1", 0, "centres", 2, ranks, arguments)
    assert "checksum differs" in said and "using the one before" in said
    end_by_kill(ranks, arguments, 1, "finetune", 3)
    stop_with("SIGINT", 1, "finetune", 5, ranks, arguments)
    set_clock_back(run)
    stop_with("SIGTERM", 0, "score", 4, ranks, arguments)
    stop_with("SIGUSR1", 1, "scores", 0, ranks, arguments)
    go_on(ranks, arguments)
    assert_equal(results(run), results(expected))


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_any_signal_in_every_loop(whole, tmp_path, number):
    manifest, expected = whole
    arguments = options(manifest, tmp_path / "run", **SHORT)
    first = ("SIGTERM", "SIGINT", "SIGUSR1").index(number)
    for turn, loop in enumerate(LOOPS, first):
        stop_with(number, turn % 2, loop, 2, tmp_path / "ranks", arguments)
    go_on(tmp_path / "ranks", arguments)
    assert_equal(results(tmp_path / "run"), results(expected))


def end_by_kill(folder, arguments, rank, loop, done):
    """Kill -9 of one rank: the other one ends soon and names it."""
    ranks, codes, seconds = send_in(loop, rank, done, signal.SIGKILL, folder, arguments)
    said = ranks.said(1 - rank)
    assert seconds < 30, loop
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 3, said
    (line,) = [one for one in said.splitlines() if one.startswith("selftaught: ")]
    assert line.startswith(f"selftaught: rank {rank}"), line
    assert f"rank {1 - rank} ends too" in line
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_in_every_loop(whole, tmp_path, rank):
    manifest, expected = whole
    arguments = options(manifest, tmp_path / "run", **SHORT)
    for loop in LOOPS:
        end_by_kill(tmp_path / "ranks", arguments, rank, loop, 2)
    go_on(tmp_path / "ranks", arguments)
    assert_equal(results(tmp_path / "run"), results(expected))


@pytest.mark.slow
def test_a_frozen_rank_is_missed_and_named(whole, tmp_path):
    manifest, _ = whole
    arguments = options(manifest, tmp_path / "run", **SHORT)
    ranks = start(tmp_path / "ranks", arguments, 2, At(1, "pretext", 2, send, signal.SIGSTOP))
    frozen, other = ranks.processes[1], ranks.processes[0]
    other.join(120)
    seconds = time.time() - float(ranks.said(1).split("sent at ")[1].split()[0])
    frozen.kill()
    assert ranks.end() == [3, -signal.SIGKILL]
    assert seconds < 30
    assert "rank 1 gave no sign of life for 20 beats; rank 0 ends too" in ranks.said(0)


def test_a_late_rank_is_named_when_time_is_up(whole, tmp_path):
    manifest, _ = whole
    arguments = options(manifest, tmp_path / "run", **SHORT, **{"engine.timeout": 4})
    ranks = start(tmp_path / "ranks", arguments, 2, At(1, "pretext", 2, time.sleep, 600))
    codes = ranks.end()
    assert codes[0] == 3, ranks.said(0)
    assert "rank 1 did not arrive within the time limit" in ranks.said(0)
    # The late rank's main thread sleeps on; the thread beside it ends it.
    assert codes[1] == 3
    assert "rank 1 ends too" in ranks.said(1)


@pytest.mark.parametrize(
    ("fault", "more"),
    [
        pytest.param(BadPixels(1, 2), {}, id="pixels"),
        pytest.param(BadGradient(1, 2), {}, id="gradient", marks=pytest.mark.slow),
        pytest.param(BadLoss(1, 2), {}, id="loss", marks=pytest.mark.slow),
        pytest.param(
            BadPixels(1, 2, "finetune"),
            UNTRAINED,
            id="pixels in fine-tuning",
            marks=pytest.mark.slow,
        ),
        pytest.param(BadGradient(1, 2, "finetune", 1, 2), UNTRAINED | HALVES, id="fine-tuning"),
        pytest.param(
            BadLoss(1, 2, "pretext", 1, 2), HALVES, id="loss, second half", marks=pytest.mark.slow
        ),
        pytest.param(
            BadPixels(1, 2, "pretext", 1, 2),
            HALVES,
            id="pixels, second half",
            marks=pytest.mark.slow,
        ),
        pytest.param(BadLoss(1, 2), zero(0), id="ZeRO 0", marks=SLOW_DEEPSPEED),
        pytest.param(BadPixels(1, 2), zero(1), id="ZeRO 1", marks=SLOW_DEEPSPEED),
        pytest.param(BadGradient(1, 2), zero(2), id="ZeRO 2", marks=SLOW_DEEPSPEED),
        pytest.param(
            BadGradient(1, 2, "finetune", 1, 2),
            UNTRAINED | HALVES | zero(2),
            id="ZeRO 2, second half",
            marks=SLOW_DEEPSPEED,
        ),
    ],
)
def test_a_bad_number_on_one_rank_stops_all_before_the_update(whole, tmp_path, fault, more):
    manifest, _ = whole
    run = tmp_path / "run"
    ranks = start(tmp_path / "ranks", options(manifest, run, **SHORT, **more), 2, fault)
    assert ranks.end() == [3, 3], ranks.said(0) + ranks.said(1)
    for rank in (0, 1):
        said = ranks.said(rank)
        (line,) = [line for line in said.splitlines() if "not finite" in line]
        assert "step 2: not finite, stopped before the update" in line
        assert "rank 1: loss" in line
        assert "rank 0: loss" not in line
        assert ".png" in line
    images = ranks.said(1).split("images ")[1].splitlines()[0].split()
    assert len(images) == 4 // fault.parts
    if isinstance(fault, BadPixels):
        bad = ranks.said(1).split("bad file ")[1].split()[0]
        assert line.endswith(f"pixels of files: {bad}")
    if isinstance(fault, BadGradient):
        named = line.split("parameters with a bad gradient when computed again, files: ")[1]
        assert sorted(named.split(", ")) == sorted(images)
    found, problems = checkpoint.newest(run / "checkpoints" / fault.stage)
    assert (found.step, problems) == (2, [])
    assert all(value.isfinite().all() for value in found.weights.values())


@pytest.mark.slow
def test_a_torn_checkpoint_is_passed_over_by_both_ranks(whole, tmp_path):
    manifest, expected = whole
    arguments = options(manifest, tmp_path / "run", **SHORT)
    stop_with("SIGTERM", 0, "finetune", 5, tmp_path / "ranks", arguments)
    damage(tmp_path / "run" / "checkpoints" / "finetune", flip=False)
    go_on(tmp_path / "ranks", arguments)
    assert_equal(results(tmp_path / "run"), results(expected))


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (2, 4), (4, 1)])
def test_another_number_of_ranks_goes_on_at_the_same_global_batch(whole, tmp_path, first, then):
    manifest, expected = whole
    run = tmp_path / "run"
    # In fp32 rounding, which the number of ranks changes, decides the order of so few images.
    double = {"engine.precision": "fp64"}
    arguments = options(manifest, run, **SHORT, **double)
    stop_with("SIGTERM", 0, "finetune", 3, tmp_path / "ranks", arguments, first)
    go_on(tmp_path / "ranks", arguments, then)
    alone = tmp_path / "alone"
    go_on(tmp_path / "ranks", options(manifest, alone, **SHORT, **double), 1)
    scores = [pd.read_csv(one / "scores.csv")["score"] for one in (run, alone)]
    assert spearmanr(*scores).statistic > 0.99
    assert (run / "split.csv").read_bytes() == (expected / "split.csv").read_bytes()


@pytest.mark.parametrize("stage", [pytest.param(n, marks=SLOW_DEEPSPEED) for n in (1, 2)])
def test_divided_optimizers_go_on_with_the_same_bits(whole, tmp_path, stage):
    manifest, _ = whole
    ranks = tmp_path / "ranks"
    unharmed = options(manifest, tmp_path / "unharmed", **SHORT, **zero(stage))
    go_on(ranks, unharmed)
    arguments = options(manifest, tmp_path / "run", **SHORT, **zero(stage))
    stop_with("SIGTERM", 1, "pretext", 3, ranks, arguments)
    end_by_kill(ranks, arguments, 0, "finetune", 3)
    go_on(ranks, arguments)
    assert_equal(results(tmp_path / "run"), results(tmp_path / "unharmed"))
