"""Killed with -9 at any moment and started again, a run ends with the same bits.

Those of a run that nothing interrupted and that had other workers.
"""

import json
import random

import pytest

from tests.faults.injected import PARTS, KillIn, Timed
from tests.faults.ranks import start
from tests.tiny import options, write_images

RESULTS = (
    "prepared/manifest.csv",
    "prepared/pack/pack.json",
    "split.csv",
    "model/weights.safetensors",
    "model-best/weights.safetensors",
    "scores.csv",
    "embeddings.safetensors",
    "metrics.json",
)
SMALL = {
    "data.prepare": "always",
    "prepare.size": 48,
    "prepare.workers": 1,
    "pretext.epochs": 1,
    "finetune.epochs": 1,
}
# Neither these nor a kill may change a bit.
OTHER_WORKERS = {"data.workers": 3, "data.cache_gib": 0}
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run of other workers that nothing interrupts: manifest, files and seconds of its parts."""
    folder = tmp_path_factory.mktemp("reference")
    manifest = write_images(folder / "images")
    arguments = options(manifest, folder / "run", **SMALL, **OTHER_WORKERS)
    finish(folder, arguments, Timed(folder / "seconds.json"))
    seconds = json.loads((folder / "seconds.json").read_text())
    assert all(seconds.values()), seconds
    return manifest, results(folder / "run"), seconds


def results(run):
    return {name: (run / name).read_bytes() for name in RESULTS}


def finish(folder, arguments, fault=None):
    started = start(folder, arguments, 1, fault)
    assert started.end() == [0], started.said(0)


def kill_in(part, seconds, folder, arguments):
    started = start(folder, arguments, 1, KillIn(part, seconds))
    assert started.end() == [-9], started.said(0)


def assert_ends_with_the_same_bits(arguments, run, folder, expected):
    finish(folder, arguments)
    found = results(run)
    for name in RESULTS:
        assert found[name] == expected[name], f"{name} differs"


def test_one_run_killed_in_part_after_part_ends_with_the_same_bits(reference, tmp_path):
    manifest, expected, seconds = reference
    arguments = options(manifest, tmp_path / "run", **SMALL)
    generator = random.Random(1)
    for part in ("prepare", "split", "pretrain", "finetune", "score"):
        moment = generator.uniform(0, 1) * seconds[part]
        kill_in(part, moment, tmp_path / "process", arguments)
    assert_ends_with_the_same_bits(arguments, tmp_path / "run", tmp_path / "process", expected)


# Every part twice, the two that learn three times.
KILLS = [*PARTS, *PARTS, "pretrain", "finetune"]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(KILLS)), ids=lambda n: f"{n + 1}-{KILLS[n]}")
def test_a_kill_at_a_random_moment_of_any_part(reference, tmp_path, number):
    manifest, expected, seconds = reference
    part, process = KILLS[number], tmp_path / "process"
    moment = random.Random(100 + number).uniform(0, 1) * seconds[part]
    arguments = options(manifest, tmp_path / "run", **SMALL)
    kill_in(part, moment, process, arguments)
    assert_ends_with_the_same_bits(arguments, tmp_path / "run", process, expected)
