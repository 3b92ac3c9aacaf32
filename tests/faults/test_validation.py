"""A signal to one rank of two in the validation after an epoch: the epoch is kept and told once."""

import json
import signal

import pytest

from selftaught.training import checkpoint
from tests.faults.injected import InValidation
from tests.faults.ranks import start
from tests.tiny import options, write_images

RESULTS = (
    "checkpoints/best/weights.safetensors",
    "checkpoints/best/best.json",
    "model/weights.safetensors",
    "model-best/weights.safetensors",
    "scores.csv",
    "metrics.json",
)
# Nothing is saved in mid-epoch; one image a forward pass, so that a validation has several.
SHORT = {
    "pretext.method": "none",
    "finetune.epochs": 3,
    "score.batch_size": 1,
    "engine.save_every": 100,
}
SAID = ("epoch", "step", "lr", "centers", "spread", "effective_rank", "val_auroc")
pytestmark = pytest.mark.timeout(600)


def go(manifest, run, code=0, fault=None):
    ranks = start(run.with_name(f"{run.name} said"), options(manifest, run, **SHORT), 2, fault)
    assert ranks.end() == [code, code], ranks.said(0) + ranks.said(1)
    return ranks


def lines(run):
    """What was told of each epoch."""
    told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in told if line["kind"] == "epoch" and line["stage"] == "finetune"]


def epochs(run):
    return [{name: line[name] for name in SAID} for line in lines(run)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Manifest and folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    manifest = write_images(folder / "images")
    go(manifest, folder / "run")
    assert len(epochs(folder / "run")) == 3
    return manifest, folder / "run"


def stop_and_go_on(whole, run, rank, epoch, number, code):
    manifest, expected = whole
    ranks = go(manifest, run, code, InValidation(number, rank, epoch))
    assert "sent at" in ranks.said(rank)
    for one in (0, 1):
        said = ranks.said(one)
        assert "what was done is saved" in said and "Traceback" not in said
    found, problems = checkpoint.newest(run / "checkpoints" / "finetune")
    assert (found.step, problems) == ((epoch + 1) * epochs(expected)[0]["step"], [])
    assert epochs(run) == epochs(expected)[:epoch]
    go(manifest, run)
    return run


@pytest.fixture(scope="module")
def stopped(whole, tmp_path_factory):
    """Stopped on rank 1 in the first validation, and gone on."""
    place = tmp_path_factory.mktemp("stopped") / "run"
    return stop_and_go_on(whole, place, 1, 0, signal.SIGTERM, 143)


def assert_same(run, expected):
    assert epochs(run) == epochs(expected)
    for name in RESULTS:
        assert (run / name).read_bytes() == (expected / name).read_bytes(), f"{name} differs"


def test_a_signal_in_a_validation(whole, stopped):
    assert_same(stopped, whole[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "epoch", "number", "code"), [(0, 1, signal.SIGINT, 130), (1, 2, signal.SIGUSR1, 143)]
)
def test_other_signals_in_other_validations(whole, tmp_path, rank, epoch, number, code):
    run = stop_and_go_on(whole, tmp_path / "run", rank, epoch, number, code)
    assert_same(run, whole[1])


def test_the_epochs_loss_is_that_of_all_ranks(whole, stopped):
    found, expected = ([line["loss"] for line in lines(run)] for run in (stopped, whole[1]))
    assert found == pytest.approx(expected)
