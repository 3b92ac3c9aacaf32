"""`selftaught prepare` that is stopped, runs out of disk, loses its source, or has two ranks."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from films import stop_after, write_films
from PIL import Image

from selftaught.cli.main import main
from selftaught.data.images import dicom_pixels, raster
from selftaught.data.prepare import job
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.job import prepare
from selftaught.errors import MachineError
from selftaught.phantoms.export import encode
from selftaught.training.stop import EXIT_CODES
from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[3]
PLAIN = PrepareConfig(carrier="none", polarity="none", mask="none", workers=1, sheets=0)
WORDS = ["--carrier", "none", "--polarity", "none", "--mask", "none", "--sheets", "0"]
PROGRAM = """
import sys
from selftaught.data.prepare import job
job.SHARD_IMAGES = 2
if __name__ == "__main__":
    from selftaught.cli.main import main
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What the command does with signals ends with the test."""
    before = {number: signal.getsignal(number) for number in EXIT_CODES}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Eight images, 4 kB each."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(8):
        image = np.random.default_rng(number).integers(0, 256, (64, 60)).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def command(source: Path, out: Path, *more: str) -> list[str]:
    return ["prepare", str(source), "--out", str(out), *WORDS, *more]


def content(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_command_within_seconds_and_it_goes_on(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    films = write_films(tmp_path / "films", 24)
    program, out = tmp_path / "program.py", tmp_path / "out"
    program.write_text(PROGRAM)
    words = ["prepare", str(films), "--out", str(out), "--size", "96", "--workers", "2"]
    start = [sys.executable, str(program), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(start, stderr=subprocess.PIPE, text=True, env=environment)
    while len(list((out / "work").glob("0*.json"))) < 3:
        assert process.poll() is None, "ended before it could be stopped"
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == EXIT_CODES[number]
    assert len(said.splitlines()) == 1 and "stopped by a signal" in said
    assert 3 <= len(list((out / "work").glob("0*.json"))) < 12
    monkeypatch.setattr(job, "SHARD_IMAGES", 2)
    for folder in (out, tmp_path / "whole"):
        prepare(films, folder, PrepareConfig(size=96, workers=1))
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["dicom", "jpeg"])
def test_a_signal_while_a_film_is_decoded_is_no_broken_film(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw").mkdir()
    image = np.random.default_rng(0).integers(0, 65536, (40, 30)).astype(np.uint16)
    name = "a.dcm" if kind == "dicom" else "a.jpg"
    (tmp_path / "raw" / name).write_bytes(encode(image, kind))
    module, inner = (dicom_pixels, "read_samples") if kind == "dicom" else (raster, "check_size")
    with monkeypatch.context() as patched:
        patched.setattr(module, inner, lambda *_: signal.raise_signal(signal.SIGTERM))
        assert main(command(tmp_path / "raw", tmp_path / "out")) == 143
    told = capsys.readouterr()
    assert told.out == "" and told.err.splitlines() == [
        "selftaught: stopped by a signal; what was done is saved, the same command goes on"
    ]
    assert main(command(tmp_path / "raw", tmp_path / "out")) == 0
    assert "1 of 1 images prepared, 0 refused" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_a_source_that_vanishes_is_no_heap_of_missing_files(
    how: str,
    noise: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(job, "SHARD_IMAGES", 3)
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        prepare(noise, tmp_path / "out", PLAIN)
    real = job.work_shard

    def vanish(*arguments: object) -> None:
        noise.rename(tmp_path / "away")
        if how == "empty":
            noise.mkdir()
        real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(job, "work_shard", vanish)
        assert main(command(noise, tmp_path / "out", "--workers", "1")) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{noise}: the images' folder is gone or empty; finished shards are kept" in line
    assert not (tmp_path / "out" / "quarantine.csv").exists()
    if how == "empty":
        noise.rmdir()
    (tmp_path / "away").rename(noise)
    worked: list[int] = []
    monkeypatch.setattr(job, "work_shard", lambda *given: worked.append(given[1]) or real(*given))
    assert main(command(noise, tmp_path / "out", "--workers", "1")) == 0
    assert worked == [1, 2]
    assert "8 of 8 images prepared, 0 refused" in capsys.readouterr().out


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 24 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(made, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def test_a_disk_that_is_full_or_read_only(
    noise: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(job, "SHARD_IMAGES", 2)
    words = command(noise, small_disk / "out", "--workers", "1")
    assert main(words) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "disk full" in line and "start the same command again" in line
    kept = {path: path.stat().st_mtime_ns for path in (small_disk / "out/work").glob("0*.json")}
    assert 1 <= len(kept) < 4
    remount(small_disk, "size=1m")
    assert main([*words, "--workers", "1"]) == 0
    done = capsys.readouterr().out
    assert "8 of 8 images prepared" in done
    remount(small_disk, "ro")
    # A complete set is read, a new one needs a disk that can be written.
    assert main(words) == 0 and capsys.readouterr().out == done
    assert main(command(noise, small_disk / "new")) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{small_disk / 'new'}: cannot be written: Read-only file system" in line


def test_a_file_in_the_place_of_the_set(
    noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(command(noise, out)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(tmp_path / "file") in line and "allowed" in line


def prepare_on_ranks(source: Path, out: Path) -> int:
    return main(command(source, out, "--workers", "1"))


@pytest.mark.slow
def test_of_two_ranks_the_first_prepares(noise: Path, tmp_path: Path) -> None:
    codes = run_ranks(2, prepare_on_ranks, noise, tmp_path / "out")
    assert codes == [0, 0]
    prepare(noise, tmp_path / "alone", PLAIN)
    assert content(tmp_path / "out") == content(tmp_path / "alone")


def test_shards_that_were_deleted_meanwhile_are_no_set(
    noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "work_shard", lambda *_: None)
    with pytest.raises(MachineError, match="no longer there"):
        prepare(noise, tmp_path / "out", PLAIN)
