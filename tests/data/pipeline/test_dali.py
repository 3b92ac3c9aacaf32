"""The DALI executor on the CPU: the views are those of the OpenCV executor."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught.data.augment import PLAIN, Augment, pretext_augment
from selftaught.data.images.contrast import autocontrast
from selftaught.data.images.pack_writer import Packable, write_pack
from selftaught.data.pipeline import composed
from selftaught.data.plan import PARAMETERS, draw
from tests.data.pipeline.dali_cases import (
    OPERATORS,
    REPO,
    SIZE,
    Files,
    N,
    all_of,
    both,
    disc,
    files,
    film,
    packed,
)
from tests.data.pipeline.slow import view as slow_view

__all__ = ["files", "packed"]


KNEES = REPO / ".." / "shared" / "data" / "knee" / "images"


@pytest.mark.parametrize("name", OPERATORS)
def test_views_and_masks_agree_with_opencv(files: Files, name: str) -> None:
    """Within one grey level on average, view by view; the geometry of masks too."""
    augment = OPERATORS[name]
    made, expected = both(files, augment=augment)
    assert made.ids.tolist() == expected.ids.tolist() and made.masks is not None
    assert made.views.shape == expected.views.shape and made.views.is_contiguous()
    levels = 255 / augment.mask_scale
    error = (made.views - expected.views).abs().mean((2, 3, 4)) * levels
    assert error.max() < 1.0, error
    assert expected.masks is not None
    assert ((made.masks - expected.masks).abs().mean((2, 3, 4)) * 255).max() < 0.6
    low, high = augment.input_range
    assert made.views.min() >= low and 0.9 * high < made.views.max() <= high * 1.000001


@pytest.mark.parametrize("corner", [False, True])
def test_matrices_are_those_of_the_composed_order(corner: bool) -> None:
    from selftaught.data.pipeline.dali_source import matrices

    augment = replace(pretext_augment("default"), vertical_flip=0.5)
    plan = draw(augment, seed=1, stage="t", epoch=0, samples=range(9), views=2).astype(float)
    column = {name: plan[..., i] for i, name in enumerate(PARAMETERS)}
    made = matrices(column, SIZE, corner=corner)
    for i, v in np.ndindex(9, 2):
        row = dict(zip(PARAMETERS, plan[i, v].tolist(), strict=True))
        expected = composed.matrix(row, SIZE, corner=corner)
        expected[:, 2] += 0.5 - 0.5 * expected[:, :2].sum(1)
        np.testing.assert_allclose(made[i, v], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["flips", "crop", "color", "all of the fine-tuning"])
def test_packs_agree_with_opencv(packed: Files, name: str) -> None:
    """Nothing is resized, so only the rounding of 8-bit steps is left."""
    made, expected = both(packed, augment=OPERATORS[name])
    error = (made.views - expected.views).abs().mean((2, 3, 4)) * 255
    assert error.max() < 0.7 and error[1::2].max() < 0.1


def test_views_agree_with_the_slow_reference(packed: Files) -> None:
    """In float64, without OpenCV's steps of 8 bits and of 1/32 pixel."""
    augment = pretext_augment("default")
    made = all_of(packed)
    ids = range(len(packed[0]))
    plan = draw(augment, seed=1, stage="pretext", epoch=0, samples=ids, views=2)
    for i, shape in enumerate([(96, 96), (96, 61), (70, 96), (96, 96)]):
        image = autocontrast(film(shape, i, np.uint16 if i % 2 else np.uint8), 1.0)
        base = composed.canvas(composed.Sample(image, disc(shape)), SIZE, frame=True)
        for v in range(2):
            row = dict(zip(PARAMETERS, plan[i, v].astype(float).tolist(), strict=True))
            expected = slow_view(base.image, base.mask, row)
            error = np.abs(made.views[i, v, 0].numpy() - expected)
            # At the frame, DALI's blur mirrors the image; the others repeat its last pixel, which
            # may be the brightest one that everything is divided by.
            assert error.mean() * 255 < (0.5 if row["blur_sigma"] > 0 else 0.01)


@pytest.mark.parametrize("source", ["png", "pack"])
def test_16_bits_are_exact(tmp_path: Path, source: str) -> None:
    """Every stored level comes out; 8 bits would leave 256 of 9216."""
    levels = np.random.default_rng(0).permutation(65536)[: SIZE * SIZE].astype(np.uint16)
    levels[:2] = 0, 65535
    image = levels.reshape(SIZE, SIZE)
    if source == "png":
        path = tmp_path / "deep.png"
        Image.fromarray(image).save(path)
    else:
        write_pack(tmp_path / "pack", [Packable("deep", image, None, 0, 65535)], size=SIZE)
        path = tmp_path / "pack/images/deep"
    augment = Augment(autocontrast=0.0)
    batch = all_of(([path], [None]), augment=augment, views=1, return_masks=False)
    assert batch.masks is None
    got = batch.views[0, 0, 0].numpy().astype(np.float64) * (1 + 1e-6) * 65535
    np.testing.assert_array_equal(np.rint(got), image)
    turned = all_of(([path], [None]), augment=OPERATORS["rotation"], views=1, return_masks=False)
    assert turned.views.unique().numel() > 2000


def test_returning_masks_does_not_change_views(files: Files) -> None:
    assert torch.equal(all_of(files).views, all_of(files, return_masks=False).views)


def test_masks_hide_everything_outside_and_only_where_there_is_one(files: Files) -> None:
    batch = all_of(files, augment=PLAIN)
    assert batch.masks is not None
    outside = batch.masks[1::2] == 0
    assert outside.any() and not batch.views[1::2][outside].any()
    frame = batch.masks[3 - 1, 0, 0]  # 80 x 96 pixels, without a mask
    assert frame.unique().tolist() == [0.0, 1.0] and frame.sum() == 80 * 96
    for augment in (PLAIN, pretext_augment("default")):
        batch = all_of(files, augment=augment)
        bare = all_of((files[0], [None] * N), augment=augment, return_masks=False)
        torch.testing.assert_close(bare.views[::2], batch.views[::2], rtol=0, atol=1e-6)
        assert (bare.views[1] - batch.views[1]).abs().max() > 0.1


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    """One-pixel stripes average out; plain subsampling would keep or lose them."""
    stripes = np.zeros((SIZE * 5, SIZE * 5), np.uint16)
    stripes[:, ::2] = 60_000
    stripes[: SIZE * 2], stripes[SIZE * 4 :] = 0, 60_000
    Image.fromarray(stripes).save(tmp_path / "a.png")
    batch = all_of(([tmp_path / "a.png"], [None]), augment=PLAIN, views=1)
    middle = batch.views[0, 0, 0, SIZE * 2 // 5 + 4 : SIZE * 4 // 5 - 4, 4:-4]
    assert (middle - 0.5).abs().max() < 0.05


def test_what_dali_decodes_and_what_the_host_does(files: Files, tmp_path: Path) -> None:
    from selftaught.data.pipeline.dali_source import decodable

    assert [decodable(path) for path in files[0]] == [
        *(True, True, True, False, True, False, True, True)
    ]
    others = {"a.jpg": "CMYK", "b.png": "RGB", "c.png": "LA", "d.png": "1"}
    for name, mode in others.items():
        Image.fromarray(film((20, 20), 0)).convert(mode).save(tmp_path / name)
        assert not decodable(tmp_path / name)
    Image.fromarray(film((20, 20), 0)).save(tmp_path / "e.png", transparency=7)
    assert not decodable(tmp_path / "e.png")


def test_what_decoders_turn_and_mix_differently_is_left_to_the_host(tmp_path: Path) -> None:
    from selftaught.data.pipeline.dali_source import decodable

    turned = Image.Exif()
    turned[0x0112] = 6
    grey, color = (Image.fromarray(film((20, 20), 0)).convert(mode) for mode in ("L", "RGB"))
    grey.save(tmp_path / "exif.jpg", exif=turned)
    grey.save(tmp_path / "exif.png", exif=turned)
    color.save(tmp_path / "rgb.jpg", keep_rgb=True)
    note = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    grey.save(tmp_path / "xmp.jpg", xmp=note)
    behind = (tmp_path / "exif.png").read_bytes()
    chunk = behind[behind.index(b"eXIf") - 4 :][: 12 + behind[behind.index(b"eXIf") - 1]]
    moved = behind.replace(chunk, b"")
    end = moved.index(b"IEND") - 4
    (tmp_path / "late.png").write_bytes(moved[:end] + chunk + moved[end:])
    for path in sorted(tmp_path.iterdir()):
        assert not decodable(path), path
    color.save(tmp_path / "plain.jpg")
    assert decodable(tmp_path / "plain.jpg")


def test_files_and_the_pack_of_them_give_the_same_views(packed: Files, tmp_path: Path) -> None:
    paths: list[Path] = []
    for i, shape in enumerate([(96, 96), (96, 61), (70, 96), (96, 96)]):
        Image.fromarray(film(shape, i, np.uint16 if i % 2 else np.uint8)).save(
            tmp_path / f"{i}.png"
        )
        paths.append(tmp_path / f"{i}.png")
    from_files, from_pack = all_of((paths, packed[1])), all_of(packed)
    torch.testing.assert_close(from_files.views, from_pack.views, rtol=0, atol=1e-4)
    torch.testing.assert_close(from_files.masks, from_pack.masks, rtol=0, atol=1e-6)


@pytest.mark.skipif(not KNEES.is_dir(), reason="the real radiographs are not beside the repo")
@pytest.mark.real_data
def test_real_knees_agree_with_opencv() -> None:
    paths = sorted(KNEES.iterdir())[::150]
    made, expected = both((paths, [None] * len(paths)), image_size=128, return_masks=False)
    assert ((made.views - expected.views).abs().mean((2, 3, 4)) * 255).max() < 1.0
