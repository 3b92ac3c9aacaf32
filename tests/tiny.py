"""A job small enough for tests of whole runs: 48 textures of 32 px, seconds long."""

import functools
from pathlib import Path

import cv2
import numpy as np
import pandas as pd


def write_images(folder: Path, count: int = 48, seed: int = 0) -> Path:
    """Blurred noise; every third image is abnormal: it has a bright bar. Returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files(count, seed).items():
        (folder / name).write_bytes(content)
    return folder / "manifest.csv"


@functools.cache
def files(count: int, seed: int) -> dict[str, bytes]:
    """The images and their manifest, by name: hundreds of tests write the same ones."""
    generator = np.random.default_rng(seed)
    found, rows = {}, []
    for number in range(count):
        image = cv2.GaussianBlur(generator.random((48, 40)).astype(np.float32), (0, 0), 4)
        image = 60 + 100 * (image - image.min()) / (image.max() - image.min())
        if number % 3 == 0:
            image[20:26, 8:32] = 250
        found[f"{number:03d}.png"] = cv2.imencode(".png", image.astype(np.uint8))[1].tobytes()
        rows.append(
            {"path": f"{number:03d}.png", "label": int(number % 3 == 0), "patient": f"p{number}"}
        )
    return found | {"manifest.csv": pd.DataFrame(rows).to_csv(index=False).encode()}


def options(manifest: Path, out: Path, **more: object) -> list[str]:
    """Arguments of `selftaught run` for the tiny job."""
    given = {
        "preset": "eq2-quick",
        "data.manifest": manifest,
        "data.image_size": 32,
        "data.workers": 0,
        "out": out,
        "split.known_abnormal": 0.15,
        "split.known_normal": 0.15,
        "pretext.epochs": 2,
        "pretext.batch_size": 8,
        "finetune.epochs": 2,
        "finetune.batch_size": 8,
        "finetune.centers": 4,
        "score.neighbours": 3,
        "seed": 3,
        "engine.save_every": 2,
        **more,
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def write_model(folder: Path, **preprocessing: object) -> Path:
    """A model folder of random weights and three centres, for images of 32 px."""
    from selftaught.models import Calibration, Preprocessing, save_model

    task = spheres(3)
    films = Preprocessing(**{"image_size": 32, **preprocessing})
    return save_model(folder, task, films, Calibration(2.0, (1.0, 2.0)))


def spheres(
    centers: int, head: tuple[int, ...] = (256, 128), image_size: int = 32, **encoder: object
):
    """An untrained task of the method spheres with centres of random embeddings."""
    import torch

    from selftaught import methods
    from selftaught.models import EncoderConfig, Network

    network = Network(encoder=EncoderConfig(**encoder), head=head, image_size=image_size)
    task = methods.load("spheres")(methods.options("spheres", centers=centers), network)
    task.centers.copy_(torch.randn(task.centers.shape, generator=torch.Generator().manual_seed(0)))
    return task
