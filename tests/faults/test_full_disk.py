"""A file system that is really full during a save: exit 3, one line, earlier work intact."""

import shutil
import subprocess

import pytest

from selftaught.training import checkpoint
from tests.faults import ranks
from tests.tiny import options, write_images


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 4 MB: room for one checkpoint of the thin encoder (2.7 MB), not for two."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_full_disk_ends_with_3_and_leaves_the_checkpoint(small_disk, tmp_path):
    manifest = write_images(tmp_path / "images")
    started = ranks.start(tmp_path / "ranks", options(manifest, small_disk / "run"), 1)
    assert started.end() == [3], started.said(0)
    (line,) = [one for one in started.said(0).splitlines() if "selftaught: " in one]
    assert "disk full" in line
    assert "Traceback" not in started.said(0)
    found, problems = checkpoint.newest(small_disk / "run" / "checkpoints" / "pretext")
    assert found is not None
    assert not problems


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_disk_that_is_full_at_the_start_ends_before_the_first_step(small_disk, tmp_path):
    (small_disk / "rest").write_bytes(bytes((4 << 20) - 400_000))
    manifest = write_images(tmp_path / "images")
    run = small_disk / "run"
    started = ranks.start(tmp_path / "ranks", options(manifest, run), 1)
    assert started.end() == [3], started.said(0)
    (line,) = [one for one in started.said(0).splitlines() if "selftaught: " in one]
    assert "disk full" in line and "bytes needed" in line and "bytes free" in line
    assert not (run / "metrics.jsonl").exists() and (run / "split.csv").exists()


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_full_disk_under_two_ranks_ends_both_with_3_and_one_line(small_disk, tmp_path):
    manifest = write_images(tmp_path / "images")
    started = ranks.start(tmp_path / "ranks", options(manifest, small_disk / "run"), 2)
    assert started.end() == [3, 3], started.said(0) + started.said(1)
    for rank in (0, 1):
        lines = [one for one in started.said(rank).splitlines() if "selftaught: " in one]
        assert len(lines) == 1, lines
        assert "disk full" in lines[0]
        assert "Traceback" not in started.said(rank)
    assert lines[0].startswith("selftaught: rank 0 ended: ")
    found, problems = checkpoint.newest(small_disk / "run" / "checkpoints" / "pretext")
    assert found is not None
    assert not problems
