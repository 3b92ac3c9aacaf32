"""Checkpoints under kill -9 and damage: what is read is whole, else it is the one before."""

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from selftaught import files
from selftaught.training import checkpoint
from selftaught.training.checkpoint import Checkpoint
from tests.ranks import CONTEXT
from tests.training.test_loop import Steps
from tests.training.test_loop import run as run_loop

FILES = ("weights.safetensors", "optimizer.safetensors", "state.json")


def made(step):
    generator = torch.Generator().manual_seed(step)
    return Checkpoint(
        step=step,
        weights={"w": torch.randn(200, 30, generator=generator)},
        optimizer={"0.exp_avg": torch.randn(200, 30, generator=generator)},
        figures={"loss_sum": 1.5 * step, "closing": {"centers": 7}},
    )


def equal(found, step):
    expected = made(step)
    return (
        (found.step, found.figures) == (step, expected.figures)
        and torch.equal(found.weights["w"], expected.weights["w"])
        and torch.equal(found.optimizer["0.exp_avg"], expected.optimizer["0.exp_avg"])
    )


def save_for_ever(folder, first):
    # A kill loses nothing that was handed to the system; the wait would only hide torn files.
    checkpoint.fsync_file = checkpoint.fsync_folder = lambda path: None
    for step in itertools.count(first):
        checkpoint.save(folder, made(step))


def wait_for_step(folder, step):
    limit = time.monotonic() + 60
    while not any(path.name >= f"step-{step:08d}" for path in folder.glob("step-*")):
        assert time.monotonic() < limit
        time.sleep(0.002)


def test_killed_while_it_saves_the_newest_is_whole(tmp_path):
    generator, first = random.Random(5), 1
    for _ in range(12):
        process = CONTEXT.Process(target=save_for_ever, args=(tmp_path, first))
        process.start()
        wait_for_step(tmp_path, first)
        time.sleep(generator.uniform(0, 0.02))
        process.kill()
        process.join()
        found, problems = checkpoint.newest(tmp_path)
        assert not problems
        assert found.step >= first and equal(found, found.step)
        first = found.step + 1
    checkpoint.save(tmp_path, made(first))
    assert len(list(tmp_path.iterdir())) == 2, "a killed save left something behind"


@pytest.fixture
def two(tmp_path):
    """Checkpoints of steps 1 and 2."""
    for step in (1, 2):
        checkpoint.save(tmp_path, made(step))
    return tmp_path


@pytest.mark.parametrize("file", FILES)
def test_a_hundred_and_three_damages_of_each_file_are_seen(two, file):
    path = two / "step-00000002" / file
    whole = path.read_bytes()
    damaged = [whole[: int(len(whole) * share)] for share in (0.01, 0.5, 0.99)]
    for position in (len(whole) * place // 100 for place in range(100)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        damaged.append(bytes(flipped))
    for number, content in enumerate(damaged):
        path.write_bytes(content)
        found, problems = checkpoint.newest(two)
        assert equal(found, 1) and len(problems) == 1, number


def test_files_reach_the_disk_before_their_name_and_the_old_one_goes_last(two, monkeypatch):
    done = []

    def noted(name, function, position=0):
        def call(*arguments):
            done.append((name, Path(arguments[position]).name))
            return function(*arguments)

        return call

    monkeypatch.setattr(files, "fsync_file", noted("flush", files.fsync_file))
    monkeypatch.setattr(files, "fsync_folder", noted("flush", files.fsync_folder))
    monkeypatch.setattr(files.os, "replace", noted("name", os.replace, position=1))
    monkeypatch.setattr(checkpoint, "save_file", noted("write", checkpoint.save_file, position=1))
    checkpoint.save(two, made(3))
    new = "step-00000003"
    tensors = [(kind, file) for file in FILES[:2] for kind in ("write", "flush")]
    assert done[:5] == [*tensors, ("flush", FILES[2])]
    assert done[5:] == [("flush", f".{new}.tmp"), ("name", new), ("flush", two.name)]


class KilledInTheLastEvaluation(Steps):
    def observe_epoch(self, epoch, step):
        if step == self.schedule.steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().observe_epoch(epoch, step)


def test_an_epoch_is_saved_before_it_is_evaluated(tmp_path):
    killed = KilledInTheLastEvaluation()
    process = CONTEXT.Process(target=run_loop, args=(tmp_path / "run", killed))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    found, _ = checkpoint.newest(tmp_path / "run" / "c")
    assert found.step == killed.schedule.steps
