"""The pack: written, mapped, checked; a manifest of it reads like one of files."""

import json
import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from selftaught.data.augment import finetune_augment, pretext_augment
from selftaught.data.images.contrast import contrast_limits
from selftaught.data.images.decode import check_header, read_grey
from selftaught.data.images.limits import BadImage
from selftaught.data.images.pack import Pack, locate
from selftaught.data.images.pack_writer import Packable, write_pack
from selftaught.data.manifest import read_manifest
from selftaught.data.pipeline import open_pipeline
from selftaught.data.survey import survey
from selftaught.errors import InputError

SHAPES = [(40, 31), (64, 64), (1, 64), (64, 3), (33, 57), (64, 50)]


def pictures() -> list[tuple[np.ndarray, np.ndarray | None]]:
    random = np.random.default_rng(3)
    made = []
    for number, (height, width) in enumerate(SHAPES):
        deep = number % 2 == 1
        image = random.integers(0, 65536 if deep else 256, (height, width))
        mask = random.random((height, width)) < 0.7 if number != 4 else None
        made.append((image.astype(np.uint16 if deep else np.uint8), mask))
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    items = [
        Packable(f"part/a {i}, x.png", image, mask, *contrast_limits(image, 1.0))
        for i, (image, mask) in enumerate(pictures())
    ]
    write_pack(tmp_path / "pack", items, size=64)
    return tmp_path / "pack"


def test_images_and_masks_come_back(folder: Path) -> None:
    pack = Pack(folder)
    assert (len(pack), pack.size, pack.cutoff) == (6, 64, 1.0)
    for slot, (image, mask) in enumerate(pictures()):
        read = pack.image(slot)
        assert read.dtype == image.dtype and not read.flags.writeable
        np.testing.assert_array_equal(read, image)
        kept = pack.mask(slot)
        assert (kept is None) == (mask is None)
        if mask is not None and kept is not None:
            assert kept.dtype == np.uint8
            np.testing.assert_array_equal(kept, mask * 255)
        assert pack.limits(slot) == contrast_limits(image, 1.0)
    pack.verify()


def test_blocks_are_aligned_and_apart(folder: Path) -> None:
    records = Pack(folder).records
    assert (records["offset"] % 64 == 0).all()
    blocks: list[tuple[int, int]] = []
    for record in records:
        pixels = int(record["height"]) * int(record["width"])
        blocks.append((int(record["offset"]), pixels * int(record["bits"]) // 8))
        if record["mask_offset"] >= 0:
            blocks.append((int(record["mask_offset"]), (pixels + 7) // 8))
    for (first, length), (second, _) in pairwise(sorted(blocks)):
        assert first + length <= second


def test_a_path_names_a_slot(folder: Path) -> None:
    found = locate(folder / "images" / "part/a 3, x.png")
    assert found is not None and (found.slot, found.is_mask) == (3, False)
    found = locate(folder / "masks" / "part/a 3, x.png")
    assert found is not None and (found.slot, found.is_mask) == (3, True)
    assert locate(folder / "masks" / "part/a 4, x.png") is None  # has no mask
    assert locate(folder / "images" / "part/other.png") is None
    assert locate(folder.parent / "images" / "part/a 3, x.png") is None
    assert locate(Path("pack")) is None and locate(Path("pack/images")) is None


def test_the_decoder_reads_it(folder: Path) -> None:
    for number, (image, _) in enumerate(pictures()):
        path = folder / "images" / f"part/a {number}, x.png"
        read = read_grey(path)
        np.testing.assert_array_equal(read, image)
        assert read.flags.writeable and check_header(path) == image.shape
    with pytest.raises(BadImage, match="is missing"):
        read_grey(folder / "images" / "nothing.png")


def manifest_of(folder: Path, tmp_path: Path) -> Path:
    lines = ["path,label,mask"]
    for number, (_, mask) in enumerate(pictures()):
        name = f"part/a {number}, x.png"
        covered = "" if mask is None else f'"pack/masks/{name}"'
        lines.append(f'"pack/images/{name}",0,{covered}')
    path = folder.parent / "manifest.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_manifest_of_a_pack_is_one_of_files(folder: Path, tmp_path: Path) -> None:
    path = manifest_of(folder, tmp_path)
    manifest = read_manifest(path)
    names = [*manifest.table["path"], *(name for name in manifest.table["mask"] if name)]
    survey([manifest.root / name for name in names], workers=2)
    path.write_text(path.read_text().replace("a 5, x", "a 6, x"))
    with pytest.raises(InputError, match="row 7: path .* was not found"):
        read_manifest(path)


@pytest.fixture
def files(folder: Path, tmp_path: Path) -> Iterator[tuple[list[Path], list[Path | None]]]:
    """The same pixels as PNG files."""
    paths, masks = [], []
    (tmp_path / "plain").mkdir()
    for number, (image, mask) in enumerate(pictures()):
        paths.append(tmp_path / "plain" / f"{number}.png")
        cv2.imwrite(str(paths[-1]), image)
        masks.append(None if mask is None else tmp_path / "plain" / f"m{number}.png")
        if mask is not None:
            cv2.imwrite(str(masks[-1]), mask.astype(np.uint8))
    yield paths, masks


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("cutoff", [1.0, 2.0])
@pytest.mark.parametrize("order", ["composed", "published"])
def test_batches_equal_those_of_files(
    folder: Path, files: tuple, workers: int, cutoff: float, order: str
) -> None:
    import dataclasses

    preset = "paper" if order == "published" else "default"
    augment = dataclasses.replace(pretext_augment(preset), autocontrast=cutoff)
    paths, masks = files
    packed = [folder / "images" / f"part/a {i}, x.png" for i in range(6)]
    covers = [folder / "masks" / p.relative_to(folder / "images") for p in packed]
    covers = [None if masks[i] is None else cover for i, cover in enumerate(covers)]
    kept = []
    for images, regions, threads in ((paths, masks, 0), (packed, covers, workers)):
        with open_pipeline(
            "opencv", paths=images, masks=regions, image_size=64, augment=augment,
            seed=1, stage="pretext", views=2, workers=threads, return_masks=True,
        ) as pipeline:  # fmt: skip
            requests = [(0, np.array([0, 3, 5])), (1, np.array([4, 2, 1]))]
            kept.append(list(pipeline.batches(requests)))
    for a, b in zip(*kept, strict=True):
        assert torch.equal(a.views, b.views) and torch.equal(a.masks, b.masks)


def test_a_later_start_continues_bit_equally(folder: Path) -> None:
    def batches(steps: range) -> list[torch.Tensor]:
        paths = [folder / "images" / f"part/a {i}, x.png" for i in range(6)]
        with open_pipeline(
            "auto", paths=paths, image_size=64, augment=finetune_augment(), seed=1, stage="a"
        ) as pipeline:
            order = np.random.default_rng(0).permutation(60).reshape(20, 3) % 6
            return [b.views for b in pipeline.batches((s // 4, order[s]) for s in steps)]

    whole, rest = batches(range(20)), batches(range(13, 20))
    assert all(torch.equal(a, b) for a, b in zip(whole[13:], rest, strict=True))


def test_a_changed_byte_is_found(folder: Path) -> None:
    pack = Pack(folder)
    shard = folder / "shards/00000.bin"
    content = bytearray(shard.read_bytes())
    content[int(pack.records[2]["offset"])] ^= 1
    content[int(pack.records[3]["mask_offset"])] ^= 1
    shard.write_bytes(content)
    pack = Pack(folder)
    with pytest.raises(BadImage, match=r"a 2, x\.png: slot 2 .* checksum"):
        pack.image(2)
    with pytest.raises(BadImage, match="slot 3"):
        pack.mask(3)
    pack.image(1)
    with pytest.raises(InputError, match="changed shard"):
        pack.verify()


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda p: (p / "shards/00000.bin").write_bytes(b"x"), "lacks"),
        (lambda p: (p / "shards/00000.bin").unlink(), "lacks"),
        (lambda p: (p / "index.csv").write_text("name\n"), "not what pack.json"),
        (lambda p: (p / "index.csv").unlink(), "cannot be read"),
        (lambda p: (p / "pack.json").write_text("{"), "cannot be read"),
        (lambda p: (p / "pack.json").write_text("[]"), "cannot be read"),
    ],
)
def test_a_damaged_pack_is_refused(folder: Path, harm, message: str) -> None:
    harm(folder)
    with pytest.raises(InputError, match=message):
        Pack(folder)


@pytest.mark.parametrize(
    "column, value",
    [("offset", "-64"), ("offset", "1"), ("height", "0"), ("height", "9999"), ("bits", "12"),
     ("shard", "1"), ("shard", "-1"), ("mask_offset", "99999999")],
)  # fmt: skip
def test_records_that_lead_out_of_a_shard_are_refused(
    folder: Path, column: str, value: str
) -> None:
    import csv
    import hashlib

    rows = list(csv.reader((folder / "index.csv").open()))
    rows[2][rows[0].index(column)] = value
    with (folder / "index.csv").open("w", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerows(rows)
    facts = json.loads((folder / "pack.json").read_text())
    facts["index_sha256"] = hashlib.sha256((folder / "index.csv").read_bytes()).hexdigest()
    (folder / "pack.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="do not fit"):
        Pack(folder)


@pytest.mark.parametrize("change", [{"version": 2}, {"format": "other"}])
def test_another_version_is_refused(folder: Path, change: dict) -> None:
    facts = json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(json.dumps(facts | change))
    with pytest.raises(InputError, match="version"):
        Pack(folder)


def test_shards_stay_inside_the_pack(folder: Path) -> None:
    shutil.copy(folder / "shards/00000.bin", folder.parent / "x.bin")
    facts = json.loads((folder / "pack.json").read_text())
    facts["shards"][0]["file"] = "../x.bin"
    (folder / "pack.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="inside the pack"):
        Pack(folder)


def test_a_pack_written_again_is_seen(folder: Path) -> None:
    path = folder / "images" / "part/a 0, x.png"
    read_grey(path)
    image = np.full((9, 9), 7, np.uint8)
    write_pack(folder, [Packable("part/a 0, x.png", image, None, 7, 7)], size=9)
    np.testing.assert_array_equal(read_grey(path), image)


def test_a_shard_that_is_cut_while_it_is_open_is_a_bad_image(folder: Path) -> None:
    pack = Pack(folder)
    whole = [pack.image(slot).copy() for slot in range(len(pack))]
    (shard,) = (folder / "shards").iterdir()
    data = shard.read_bytes()
    os.truncate(shard, 8)
    for slot in range(len(pack)):
        masked = int(pack.records[slot]["mask_offset"] >= 0)
        for read in (pack.image, *[pack.mask] * masked):
            with pytest.raises(BadImage, match="was cut while it was read"):
                read(slot)
    shard.write_bytes(data)
    assert all(np.array_equal(pack.image(slot), one) for slot, one in enumerate(whole))
