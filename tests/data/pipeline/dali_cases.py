"""Images and packs that the tests of the DALI executor share, and ways to run it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught.data.augment import Augment, finetune_augment, plain, pretext_augment
from selftaught.data.images.contrast import contrast_limits
from selftaught.data.images.pack_writer import Packable, write_pack
from selftaught.data.pipeline import ImageBatch
from selftaught.data.pipeline.opencv import OpenCVPipeline

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed (Linux x86-64, extra gpu)")

from selftaught.data.pipeline import dali

REPO = Path(__file__).resolve().parents[3]
SIZE = 96
SHAPES = [(96, 96), (150, 101), (80, 96), (96, 60), (240, 200), (40, 55), (96, 96), (130, 130)]
N = len(SHAPES)
Files = tuple[list[Path], list[Path | None]]


def film(shape: tuple[int, int], phase: float, dtype: type = np.uint8) -> np.ndarray:
    """Smooth, without symmetry, black at the top and bottom, full range."""
    y, x = np.mgrid[: shape[0], : shape[1]] / max(shape)
    image = 0.4 + 0.3 * x + 0.2 * np.sin(7 * y + 4 * x + phase) + 0.1 * np.cos(15 * x * y)
    image = (image - image.min()) / (image.max() - image.min())
    image[: shape[0] // 9] = image[-shape[0] // 9 :] = 0
    return np.rint(image * np.iinfo(dtype).max).astype(dtype)


def disc(shape: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]] / max(shape)
    return np.where((x - 0.4) ** 2 + (y - 0.45) ** 2 < 0.13, 255, 0).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """PNG of 8 and 16 bits, JPEG, TIFF and a palette; every second one has a mask."""
    folder = tmp_path_factory.mktemp("films")
    names = ["0.png", "1.png", "2.jpg", "3.tif", "4.png", "5.png", "6.png", "7.jpg"]
    paths, masks = [], []
    for i, (shape, name) in enumerate(zip(SHAPES, names, strict=True)):
        picture = Image.fromarray(film(shape, i, np.uint16 if i in (1, 3, 6) else np.uint8))
        if i == 5:
            picture = picture.convert("P")
        if i == 7:
            picture = picture.convert("RGB")
        picture.save(folder / name, **({"quality": 95} if name.endswith("jpg") else {}))
        Image.fromarray(disc(shape)).save(folder / f"mask{i}.png")
        paths.append(folder / name)
        masks.append(folder / f"mask{i}.png" if i % 2 else None)
    return paths, masks


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A pack of both depths at the size of the views, all with masks."""
    folder = tmp_path_factory.mktemp("packed") / "pack"
    items = []
    for i, shape in enumerate([(96, 96), (96, 61), (70, 96), (96, 96)]):
        image = film(shape, i, np.uint16 if i % 2 else np.uint8)
        items.append(Packable(f"{i}", image, disc(shape) > 0, *contrast_limits(image, 1.0)))
    write_pack(folder, items, size=SIZE)
    numbers = range(len(items))
    return [folder / f"images/{i}" for i in numbers], [folder / f"masks/{i}" for i in numbers]


def settings(files: Files, **options: Any) -> dict[str, Any]:
    return {
        "paths": files[0],
        "masks": files[1],
        "image_size": SIZE,
        "augment": pretext_augment("default"),
        "seed": 1,
        "stage": "pretext",
        "views": 2,
        "workers": 1,
        "return_masks": True,
    } | options


def opened(files: Files, **options: Any) -> dali.DaliPipeline:
    return dali.DaliPipeline(**settings(files, **options))


def requests(*batches: tuple[int, list[int]]) -> list[tuple[int, np.ndarray]]:
    return [(epoch, np.array(ids, np.int64)) for epoch, ids in batches]


def all_of(files: Files, epoch: int = 0, **options: Any) -> ImageBatch:
    with opened(files, **options) as pipeline:
        (batch,) = pipeline.batches(requests((epoch, list(range(len(files[0]))))))
    return batch


def both(files: Files, **options: Any) -> tuple[ImageBatch, ImageBatch]:
    """Everything once, by DALI and by OpenCV."""
    with OpenCVPipeline(**settings(files, **options)) as pipeline:
        (other,) = pipeline.batches(requests((0, list(range(len(files[0]))))))
    return all_of(files, **options), other


def rows(batches: Iterator[ImageBatch], epochs: list[int]) -> dict[tuple[int, int], torch.Tensor]:
    found = {}
    for epoch, batch in zip(epochs, batches, strict=True):
        assert batch.masks is not None
        for i, sample in enumerate(batch.ids.tolist()):
            found[epoch, sample] = torch.cat([batch.views[i], batch.masks[i]])
    return found


OPERATORS = {
    "decode, autocontrast, resize, pad": Augment(),
    "no autocontrast": Augment(autocontrast=0.0),
    "strong autocontrast": Augment(autocontrast=20.0),
    "flips": Augment(horizontal_flip=0.5, vertical_flip=0.5),
    "scale": Augment(scale=(0.7, 1.4)),
    "scale about the corner": Augment(scale=(0.7, 1.4), scale_pivot="corner"),
    "rotation": Augment(rotation=(-180.0, 180.0)),
    "crop": Augment(crop_area=(0.3, 0.9), crop_ratio=(0.8, 1.25)),
    "brightness": Augment(brightness=(0.6, 1.4)),
    "color": Augment(color=1.0, color_brightness=(0.6, 1.4), color_contrast=(0.5, 1.6)),
    "blur": Augment(blur=0.7, blur_sigma=(0.1, 2.0)),
    "mask to 255": Augment(mask_scale=255, rotation=(-30.0, 30.0)),
    "all of the pretext": pretext_augment("default"),
    "all of the fine-tuning": finetune_augment("default"),
    "none of the pretext": plain(pretext_augment("default")),
}
