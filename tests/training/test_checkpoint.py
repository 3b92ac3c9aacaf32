"""Checkpoints: round trip, retention, and every kind of damage is seen."""

import errno
import os

import pytest
import torch

from selftaught import files
from selftaught.errors import InputError, MachineError
from selftaught.training import checkpoint
from selftaught.training.checkpoint import Checkpoint


def make(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    return Checkpoint(
        step=step,
        weights={"w": torch.randn(40, 3, generator=generator), "n": torch.tensor(step)},
        optimizer={"0.exp_avg": torch.randn(40, 3, generator=generator)},
        figures={"loss_sum": 1.5},
    )


def equal(a: Checkpoint, b: Checkpoint) -> bool:
    return (
        a.step == b.step
        and a.figures == b.figures
        and all(torch.equal(a.weights[k], b.weights[k]) for k in a.weights | b.weights)
        and all(torch.equal(a.optimizer[k], b.optimizer[k]) for k in a.optimizer | b.optimizer)
    )


def test_round_trip_keeps_every_bit_and_two_checkpoints(tmp_path):
    for step in (0, 5, 9, 10):
        checkpoint.save(tmp_path, make(step))
    found, problems = checkpoint.newest(tmp_path)
    assert equal(found, make(10))
    assert not problems
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000009", "step-00000010"]


def test_nothing_there_is_none(tmp_path):
    assert checkpoint.newest(tmp_path / "none") == (None, [])


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_cut_file_is_seen_and_the_previous_checkpoint_used(tmp_path, file, share):
    checkpoint.save(tmp_path, make(1))
    path = checkpoint.save(tmp_path, make(2)) / file
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    found, problems = checkpoint.newest(tmp_path)
    assert equal(found, make(1))
    assert len(problems) == 1
    assert "step-00000002" in problems[0]
    assert "\n" not in problems[0]


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors"])
def test_one_flipped_bit_anywhere_is_seen(tmp_path, file):
    checkpoint.save(tmp_path, make(1))
    path = checkpoint.save(tmp_path, make(2)) / file
    whole = path.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 40)):
        broken = bytearray(whole)
        broken[position] ^= 1 << (position % 8)
        path.write_bytes(bytes(broken))
        found, problems = checkpoint.newest(tmp_path)
        assert equal(found, make(1)), position
        assert problems


def test_a_missing_file_is_named(tmp_path):
    path = checkpoint.save(tmp_path, make(1))
    (path / "optimizer.safetensors").unlink()
    with pytest.raises(InputError, match="step-00000001.*damaged checkpoint"):
        checkpoint.read(path)


def test_a_full_disk_leaves_the_previous_checkpoint_and_no_rest(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, make(1))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_file", full)
    size = sum(t.nbytes for one in (make(2).weights, make(2).optimizer) for t in one.values())
    figures = rf"disk full \({size:,} bytes needed, [\d,]+ bytes free\)"
    with pytest.raises(MachineError, match=figures):
        checkpoint.save(tmp_path, make(2))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert equal(checkpoint.newest(tmp_path)[0], make(1))


def test_a_stage_does_not_begin_without_room_for_its_weights(tmp_path, monkeypatch):
    weights = {"w": torch.zeros(3, 5), "n": torch.zeros((), dtype=torch.int64)}
    folder = tmp_path / "not" / "there" / "yet"
    checkpoint.check_room(folder, weights)
    for free, refused in ((68, False), (67, True), (-1, False)):
        monkeypatch.setattr(checkpoint, "free_bytes", lambda path, free=free: free)
        if refused:
            with pytest.raises(MachineError, match="68 bytes needed"):
                checkpoint.check_room(folder, weights)
        else:
            checkpoint.check_room(folder, weights)


def test_a_save_that_was_killed_leaves_no_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, make(1))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, make(2))
    assert checkpoint.newest(tmp_path)[0].step == 1
