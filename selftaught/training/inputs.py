"""From a split table to batches on the device, and from images to embeddings, over all ranks."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from selftaught import distributed
from selftaught.data.pipeline import Pipeline, open_pipeline
from selftaught.data.plan import Augment, batch_at, plain
from selftaught.errors import InputError
from selftaught.models.heads import Embedder
from selftaught.training.config import DataConfig
from selftaught.training.engine import Batch
from selftaught.training.progress import Reporter
from selftaught.training.stop import Stopper

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Images:
    """The rows of a split table as pixels.

    Args:
        frame: split table; a sample's id is its row number.
        root: folder that the table's paths start from.
        config: image size, threads, memory.
        seed: of the augmentation plan.
        unlabelled: `split.unlabelled`.
    """

    frame: pd.DataFrame
    root: Path
    config: DataConfig
    seed: int
    unlabelled: str = "train"

    @property
    def semi_label(self) -> Tensor:
        """(N,) int64, -1 known abnormal, +1 known normal, 0 unknown."""
        return torch.tensor(self.frame["semi_label"].to_numpy(np.int64))

    def training_rows(self, stage: str) -> Rows:
        """Rows that a stage trains on; `split.unlabelled` may keep blank labels to the pretext.

        Raises:
            InputError: none is left.
        """
        rows = self.rows("train")
        if stage != "pretext" and self.unlabelled == "pretext":
            rows = rows[self.frame["label"].notna().to_numpy()[rows]]
        if not len(rows):
            raise InputError(
                f"split.unlabelled is {self.unlabelled!r}: no labelled image trains; "
                "allowed: train, where the training set has no label"
            )
        return rows

    def paths(self, ids: Tensor) -> list[str]:
        """Manifest paths of samples."""
        return [str(self.frame["path"].iloc[i]) for i in ids.tolist()]

    def rows(self, split: str) -> Rows:
        """Row numbers of a set."""
        return np.flatnonzero(self.frame["split"].to_numpy() == split).astype(np.int64)

    @property
    def masked(self) -> bool:
        """Whether images are multiplied by masks of the manifest."""
        return self.config.mask == "auto" and bool((self.frame["mask"] != "").any())

    def open(self, stage: str, augment: Augment, views: int) -> Pipeline:
        """A pipeline over all rows; `stage` names the stream of random numbers."""
        masks = None
        if self.masked:
            masks = [self.root / name if name else None for name in self.frame["mask"]]
        workers = self.config.workers
        if workers == "auto" and distributed.local_world_size() > 1:
            workers = max(1, (os.cpu_count() or 1) // distributed.local_world_size())
        return open_pipeline(
            self.config.pipeline,
            paths=[self.root / name for name in self.frame["path"]],
            masks=masks,
            image_size=self.config.image_size,
            augment=augment,
            device=_device(),
            seed=self.seed,
            stage=stage,
            views=views,
            workers=workers,
            # Two pipelines live at a time: training views and plain views.
            cache_bytes=int(self.config.cache_gib * 2**30 / 2),
        )


def _device() -> torch.device:
    """Where this rank computes."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def training_batches(
    images: Images,
    pipeline: Pipeline,
    rows: Rows,
    *,
    stage: str,
    batch_size: int,
    accumulate: int,
    first_step: int,
    steps: int,
    input_range: tuple[float, float],
    device: torch.device,
) -> Iterator[Batch]:
    """This rank's share of each global batch, from `first_step` on.

    Args:
        images: labels and seed.
        pipeline: executes the plan.
        rows: training rows.
        stage: names the order of samples.
        batch_size: of the global batch; divisible by ranks times `accumulate`.
        accumulate: micro-batches; each holds the same images on any number of ranks.
        first_step: 0-based.
        steps: the stage's number of steps.
        input_range: lowest and highest value the stage declares.
        device: where the tensors go.
    """
    world, rank = distributed.world_size(), distributed.rank()

    def requests() -> Iterator[tuple[int, Rows]]:
        for step in range(first_step, steps):
            epoch, chosen = batch_at(images.seed, stage, step, len(rows), batch_size)
            yield epoch, rows[chosen.reshape(accumulate, world, -1)[:, rank].ravel()]

    semi_label = images.semi_label
    low, high = input_range
    for batch in pipeline.batches(requests()):
        # The published stages saw inputs 255 times apart; ours declare a range and keep to it.
        # On a GPU the look would wait for the step before.
        if batch.views.device.type == "cpu":
            assert low <= float(batch.views.min()) and float(batch.views.max()) <= high, input_range
        yield {
            "views": batch.views.to(device, non_blocking=True),
            "semi_label": semi_label[batch.ids].to(device, non_blocking=True),
            "ids": batch.ids,
        }


def global_batch_size(option: str, batch_size: int, samples: int, accumulate: int) -> int:
    """The batch size that a training set of `samples` images allows, checked against the ranks.

    Raises:
        InputError: the global batch cannot be divided over ranks and micro-batches.
    """
    world = distributed.world_size()
    parts = world * accumulate
    size = min(batch_size, samples) // parts * parts
    divided = f"{world} ranks" + (f" x engine.accumulate {accumulate}" if accumulate > 1 else "")
    if batch_size % parts or size < parts:
        raise InputError(
            f"{option} is {batch_size}; allowed: multiples of {parts} ({divided}) up to the "
            f"{samples} training images"
        )
    if size // parts < 2:
        raise InputError(
            f"{option} {batch_size} with {samples} training images, {world} ranks and "
            f"engine.accumulate {accumulate} leaves fewer than 2 images to a micro-batch; allowed: "
            "2 or more, as batch statistics and negatives need"
        )
    return size


@torch.no_grad()
def embed(
    embedder: Embedder,
    pipeline: Pipeline,
    rows: Rows,
    *,
    batch_size: int,
    stopper: Stopper,
    reporter: Reporter | None = None,
    name: str = "embed",
) -> tuple[Tensor, Tensor]:
    """Embeddings of `rows` in eval mode, the work divided over ranks.

    Args:
        embedder: on its device; its mode is restored afterwards.
        pipeline: one view per image.
        rows: (N,) row numbers.
        batch_size: images in a forward pass.
        stopper: asked at every batch.
        reporter: shows the progress, if given.
        name: of the progress.

    Returns:
        `h` (N, width) and `z` (N, D) on the CPU, complete on every rank; float64 where the weights
        are, else float32.

    Raises:
        StopRun: a signal arrived.
    """
    weight = next(embedder.parameters())
    device, kind = weight.device, torch.promote_types(weight.dtype, torch.float32)
    mine = np.array_split(rows, distributed.world_size())[distributed.rank()]
    # All ranks ask the stopper equally often, however uneven their shares are.
    steps = -(-len(rows) // distributed.world_size() // batch_size) + 1
    chunks = [mine[i * batch_size : (i + 1) * batch_size] for i in range(steps)]
    source = pipeline.batches((0, chunk) for chunk in chunks if len(chunk))
    training = embedder.training
    embedder.eval()
    if reporter:
        reporter.start_bar(name, steps, 0)
    parts: list[tuple[Tensor, Tensor]] = []
    for number, chunk in enumerate(chunks, 1):
        if len(chunk):
            h, z = embedder(next(source).views[:, 0].to(device))
            parts.append((h.cpu().to(kind), z.cpu().to(kind)))
        if stopper.requested(device):
            raise stopper.exit()
        if reporter:
            reporter.advance(name, number, steps)
    embedder.train(training)
    if reporter:
        reporter.end_bar()
    local = (
        tuple(torch.cat(column).numpy() for column in zip(*parts, strict=True)) if parts else None
    )
    gathered = [one for one in distributed.gather_objects(local) if one is not None]
    h, z = (torch.from_numpy(np.concatenate(column)) for column in zip(*gathered, strict=True))
    return h, z


def open_plain(images: Images, augment: Augment) -> Pipeline:
    """One deterministic view per image, prepared and scaled as `augment` says."""
    return images.open("plain", plain(augment), views=1)
