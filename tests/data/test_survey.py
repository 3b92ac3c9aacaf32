"""One pass over the files: stamps, bad files and hashes, each file read from the disk once."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from selftaught.data import survey as module
from selftaught.data.images.pack_writer import Packable, write_pack
from selftaught.data.images.stamps import NO_FILE, changes
from selftaught.data.split.duplicates import perceptual_hash
from selftaught.data.survey import survey
from selftaught.errors import InputError


def image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (40, 30)).astype(np.uint8)


@pytest.fixture
def files(tmp_path: Path) -> tuple[list[Path], list[Path | None]]:
    """Five images, the third bad, the fourth missing; one mask for two, one too small."""
    (tmp_path / "part").mkdir()
    paths = [tmp_path / "part" / f"{number}.png" for number in range(5)]
    for number in (0, 1, 4):
        cv2.imwrite(str(paths[number]), image(number))
    paths[2].write_bytes(b"no image")
    shared, small = tmp_path / "shared.png", tmp_path / "small.png"
    cv2.imwrite(str(shared), np.full((40, 30), 255, np.uint8))
    cv2.imwrite(str(small), np.full((4, 3), 255, np.uint8))
    return paths, [shared, shared, None, None, small]


@pytest.mark.parametrize("workers", [1, 4])
def test_stamps_problems_and_hashes_in_one_pass(files, tmp_path: Path, workers: int) -> None:
    paths, masks = files
    done: list[int] = []
    read = survey(paths, masks, root=tmp_path, hashes=True, workers=workers, done=done.append)
    names = [f"part/{number}.png" for number in range(5)] + ["shared.png", "small.png"]
    assert list(read.stamps) == names and done == [1, 2, 3, 4, 5]
    for name, stamp in read.stamps.items():
        path = tmp_path / name
        facts = path.stat() if path.exists() else None
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if facts else ""
        wanted = (facts.st_size, facts.st_mtime_ns, digest) if facts else NO_FILE
        assert stamp == wanted
    assert changes(tmp_path, read.stamps) == {}
    assert [(one.sample, one.file) for one in read.problems] == [
        (2, paths[2]),
        (3, paths[3]),
        (4, masks[4]),
    ]
    assert read.hashed.tolist() == [True, True, False, False, False]
    assert np.array_equal(read.hashes[1], perceptual_hash(image(1)))
    with pytest.raises(InputError, match=r"2\.png: is not an image .* \(3 of 5 images cannot"):
        read.refuse_problems()


def test_only_what_is_asked_for(files, tmp_path: Path) -> None:
    read = survey(files[0][:2])
    read.refuse_problems()
    assert read.stamps == {} and not read.hashed.any() and not read.hashes.any()
    assert survey([], root=tmp_path).stamps == {}


def test_each_file_is_stamped_once_and_a_pack_is_one_file(tmp_path, monkeypatch) -> None:
    films = [Packable(f"{n}.png", image(n), image(n) > 9, 0, 255) for n in range(20)]
    write_pack(tmp_path / "pack", films, size=40)
    paths = [tmp_path / "pack/images" / film.name for film in films]
    masks: list[Path | None] = [tmp_path / "pack/masks" / film.name for film in films]
    stamped: list[Path] = []
    real = module.stamp
    monkeypatch.setattr(module, "stamp", lambda path: stamped.append(path) or real(path))
    read = survey(paths, masks, root=tmp_path / "pack", hashes=True, workers=4)
    assert stamped == [tmp_path / "pack/pack.json"] and list(read.stamps) == ["pack.json"]
    assert read.hashed.all() and not read.problems


def test_a_stop_leaves_the_rest_unread(files, tmp_path: Path) -> None:
    paths, masks = files
    answers = iter([False, False, True, True, True])
    read = survey(paths, masks, root=tmp_path, workers=1, stop=lambda: next(answers))
    assert list(read.stamps) == ["part/0.png", "part/1.png", "shared.png"]
    assert read.problems == []
