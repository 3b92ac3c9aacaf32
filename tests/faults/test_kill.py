"""Killed at any moment and started again, a run ends with the same bits."""

import os
import random
import signal
import time

import pytest

from tests.tiny import options, start, write_images

RESULTS = (
    "model/encoder.safetensors",
    "model/centers.safetensors",
    "scores.csv",
    "embeddings.safetensors",
    "metrics.json",
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """An uninterrupted run: its files, its duration and its manifest."""
    folder = tmp_path_factory.mktemp("reference")
    manifest = write_images(folder / "images")
    began = time.monotonic()
    process = start(options(manifest, folder / "run"))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return manifest, results(folder / "run"), time.monotonic() - began


def results(run):
    return {name: (run / name).read_bytes() for name in RESULTS}


def assert_equal(found, expected):
    for name in RESULTS:
        assert found[name] == expected[name], f"{name} differs"


def finish(arguments):
    process = start(arguments)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def kill_somewhere(manifest, expected, duration, run, seed):
    """Kill one run three times at random moments, then let it end."""
    generator = random.Random(seed)
    for _ in range(3):
        process = start(options(manifest, run))
        time.sleep(generator.uniform(0.3, 1.0) * duration)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finish(options(manifest, run))
    assert_equal(results(run), expected)


def test_killed_and_started_again_ends_with_the_same_bits(reference, tmp_path):
    kill_somewhere(*reference, tmp_path / "run", seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 22))
def test_twenty_more_kills(reference, tmp_path, seed):
    kill_somewhere(*reference, tmp_path / "run", seed=seed)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_and_the_next_start_goes_on(reference, tmp_path, name):
    manifest, expected, duration = reference
    run = tmp_path / "run"
    process = start(options(manifest, run))
    checkpoints = run / "checkpoints" / "pretext"
    while not any(checkpoints.glob("step-*")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == (130 if name == "SIGINT" else 143), errors
    assert "Traceback" not in errors
    finish(options(manifest, run))
    assert_equal(results(run), expected)


def test_a_damaged_newest_checkpoint_is_passed_over(reference, tmp_path):
    manifest, expected, _ = reference
    run = tmp_path / "run"
    process = start(options(manifest, run))
    checkpoints = run / "checkpoints" / "pretext"
    while len(list(checkpoints.glob("step-*"))) < 2 and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    newest = max(checkpoints.glob("step-*"))
    content = (newest / "weights.safetensors").read_bytes()
    (newest / "weights.safetensors").write_bytes(content[: len(content) // 2])
    finish(options(manifest, run))
    assert_equal(results(run), expected)


def test_a_second_run_in_the_folder_is_refused(reference, tmp_path):
    manifest, _, _ = reference
    run = tmp_path / "run"
    first = start(options(manifest, run))
    while not any((run / "checkpoints" / "pretext").glob("step-*")) and first.poll() is None:
        time.sleep(0.02)
    second = start(options(manifest, run))
    _, errors = second.communicate()
    assert second.returncode == 2
    assert "in use by another run" in errors
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
