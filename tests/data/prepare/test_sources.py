"""Source files that change while a set is being prepared, or afterwards, are noticed and named."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from films import stop_after

from selftaught.cli.main import main
from selftaught.data.images.pack import Pack
from selftaught.data.prepare import job
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.job import prepare
from selftaught.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
PLAIN = PrepareConfig(
    carrier="none", polarity="none", mask="none", workers=1, sheets=0, given_mask=True
)


def noise(path: Path, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (50, 40)).astype(np.uint8)
    cv2.imwrite(str(path), image)


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Nine images, the last of them broken; the first has a mask."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(9):
        noise(folder / f"{number}.png", number)
    (folder / "8.png").write_bytes(b"broken")
    cv2.imwrite(str(folder / "mask.png"), np.full((50, 40), 255, np.uint8))
    lines = ["path,mask", "0.png,mask.png", *(f"{number}.png," for number in range(1, 9))]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def begun(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of three shards that was stopped after the second."""
    monkeypatch.setattr(job, "SHARD_IMAGES", 3)
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        prepare(films, tmp_path / "out", PLAIN)
    return tmp_path / "out"


def packed(out: Path) -> list[bytes]:
    pack = Pack(out / "pack")
    return [pack.image(slot).tobytes() for slot in range(len(pack))]


def test_a_file_that_changed_between_kill_and_resume_is_named_and_prepared_again(
    films: Path, begun: Path, tmp_path: Path
) -> None:
    noise(films / "1.png", 77)
    with pytest.warns(UserWarning, match="^1.png has changed since it was prepared"):
        summary = prepare(films, begun, PLAIN)
    assert (summary.images, summary.refused) == (8, 1)
    prepare(films, tmp_path / "fresh", PLAIN)
    assert packed(begun) == packed(tmp_path / "fresh")


def test_files_of_another_time_but_the_same_bytes_are_the_same(films: Path, begun: Path) -> None:
    for path in films.iterdir():
        os.utime(path, ns=(1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepare(films, begun, PLAIN) is not None
        assert prepare(films, begun, PLAIN) is not None


def test_a_finished_set_says_what_is_no_longer_as_it_was(films: Path, begun: Path) -> None:
    summary = prepare(films, begun, PLAIN)
    noise(films / "5.png", 78)
    with pytest.raises(InputError, match=r"5.png has changed since this set was prepared"):
        prepare(films, begun, PLAIN)
    (films / "mask.png").unlink()
    noise(films / "8.png", 8)
    with pytest.raises(InputError, match=r"mask.png is gone \(and 2 more files\) since"):
        prepare(films, begun, PLAIN)
    shutil.copy(films / "0.png", films / "mask.png")
    assert summary.manifest.is_file()


def test_a_missing_file_that_appeared_is_taken_in(films: Path, begun: Path) -> None:
    broken = films / "8.png"
    noise(broken, 8)
    assert prepare(films, begun, PLAIN).images == 9
    (films / "more.csv").write_text("path\n0.png\nlater.png\n")
    out = begun.parent / "more"
    assert prepare(films / "more.csv", out, PLAIN).refused == 1
    noise(films / "later.png", 9)
    with pytest.raises(InputError, match="later.png has appeared"):
        prepare(films / "more.csv", out, PLAIN)


def test_a_link_that_leads_out_is_refused_each_time_and_never_read(
    films: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes((films / "0.png").read_bytes())
    (films / "out.png").symlink_to(tmp_path / "secret.png")
    (films / "link.csv").write_text("path\n1.png\nout.png\n")
    for _ in range(2):
        assert prepare(films / "link.csv", tmp_path / "set", PLAIN).refused == 1
    assert "out.png" not in (tmp_path / "set" / "sources.csv").read_text()


def test_the_folder_above_a_mura_tree_is_not_taken_for_a_heap_of_images(tmp_path: Path) -> None:
    study = tmp_path / "MURA-v1.1/train/XR_HAND/patient00001/study1_negative"
    study.mkdir(parents=True)
    noise(study / "image1.png", 1)
    with pytest.raises(InputError, match="holds the MURA tree MURA-v1.1"):
        prepare(tmp_path, tmp_path / "out", PLAIN)


def test_a_set_is_not_written_among_the_images_it_is_made_of(tmp_path: Path) -> None:
    noise(tmp_path / "0.png", 0)
    with pytest.raises(InputError, match="lies inside"):
        prepare(tmp_path, tmp_path / "out", PLAIN)
    assert not (tmp_path / "out").exists()
    (tmp_path / "manifest.csv").write_text("path\n0.png\n")
    assert prepare(tmp_path, tmp_path / "out", PLAIN).images == 1


def test_a_file_that_may_not_grow_ends_with_a_machine_error_and_the_job_goes_on_later(
    films: Path, tmp_path: Path
) -> None:
    code = (
        "import resource, signal, sys\n"
        "from selftaught.cli.main import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["prepare", str(films), "--out", str(tmp_path / "out"), "--bad_limit", "1"]
    words += ["--workers", "1", "--carrier", "none", "--mask", "none", "--polarity", "none"]
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 3, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "File too large" in done.stderr
    assert main(words) == 0 and (tmp_path / "out" / "manifest.csv").is_file()
