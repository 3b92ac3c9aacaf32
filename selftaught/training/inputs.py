"""From a split table to batches on the device, and from images to embeddings, over all ranks."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from selftaught import distributed
from selftaught.data.images.bad_files import Problem, Skipping
from selftaught.data.pipeline import Pipeline, open_pipeline
from selftaught.data.plan import Augment, batch_at, plain, stand_ins
from selftaught.environment import local_world_size
from selftaught.errors import InputError
from selftaught.models.heads import Embedder
from selftaught.training.bad_files import BadFiles
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
        bad_files: what this run skips, where `config.bad_files` is skip.
    """

    frame: pd.DataFrame
    root: Path
    config: DataConfig
    seed: int
    unlabelled: str = "train"
    bad_files: BadFiles | None = None

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

    @property
    def used(self) -> Rows:
        """Row numbers of all sets but unused."""
        return np.flatnonzero(self.frame["split"].to_numpy() != "unused").astype(np.int64)

    def rows(self, split: str) -> Rows:
        """Row numbers of a set."""
        return np.flatnonzero(self.frame["split"].to_numpy() == split).astype(np.int64)

    @property
    def masked(self) -> bool:
        """Whether images are multiplied by masks of the manifest."""
        return self.config.mask == "auto" and bool((self.frame["mask"] != "").any())

    def files(self, rows: Rows) -> tuple[list[Path], list[Path | None] | None]:
        """Images of rows, and the mask or None of each, or no masks at all."""
        part = self.frame.iloc[rows]
        paths = [self.root / name for name in part["path"]]
        if not self.masked:
            return paths, None
        return paths, [self.root / name if name else None for name in part["mask"]]

    def open(
        self, stage: str, augment: Augment, views: int, *, training: Rows | None = None
    ) -> Pipeline:
        """A pipeline over all rows; `stage` names the stream of random numbers.

        Where bad files are skipped, those of `training`, if given, are replaced by others of these
        rows with the same known label, and any other is left out.
        """
        skipping = None
        if self.config.bad_files == "skip":
            others = None if training is None else partial(self._stand_ins, stage, training)
            skipping = Skipping(others)
        paths, masks = self.files(np.arange(len(self.frame)))
        workers = self.config.workers
        if workers == "auto" and local_world_size() > 1:
            workers = max(1, (os.cpu_count() or 1) // local_world_size())
        return open_pipeline(
            self.config.pipeline,
            paths=paths,
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
            skipping=skipping,
        )

    def _stand_ins(self, stage: str, training: Rows, epoch: int, sample: int) -> list[int]:
        known = self.frame["semi_label"].to_numpy()
        alike = training[(known[training] == known[sample]) & (training != sample)]
        pool = alike if len(alike) else training
        return stand_ins(self.seed, stage, epoch, sample, pool).tolist()

    def skipped(
        self, stage: str, step: int | None, problems: Sequence[Problem], device: torch.device
    ) -> None:
        """Take note of what a batch skipped; all ranks call it equally often.

        Raises:
            InputError: too many images are bad, over all ranks.
        """
        if self.bad_files is not None and self.config.bad_files == "skip":
            self.bad_files.note(stage, step, problems)
            self.bad_files.settle(device)


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

    Raises:
        InputError: an image cannot be read, or where such are skipped, too many.
    """
    world, rank = distributed.world_size(), distributed.rank()

    def requests() -> Iterator[tuple[int, Rows]]:
        for step in range(first_step, steps):
            epoch, chosen = batch_at(images.seed, stage, step, len(rows), batch_size)
            yield epoch, rows[chosen.reshape(accumulate, world, -1)[:, rank].ravel()]

    semi_label = images.semi_label
    low, high = input_range
    for step, batch in enumerate(pipeline.batches(requests()), first_step):
        images.skipped(stage, step, batch.problems, device)
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


class Embedded(NamedTuple):
    """Embeddings, complete on every rank, on the CPU.

    Attributes:
        h: (N, width), float64 where the weights are, else float32.
        z: (N, D), of the same type.
        rows: (N,) row numbers: those that were asked for and could be read, in their order.
    """

    h: Tensor
    z: Tensor
    rows: Rows

    def only(self, rows: Rows) -> "Embedded":
        """The part of some of its rows, in its own order."""
        kept = np.isin(self.rows, rows)
        return Embedded(self.h[kept], self.z[kept], self.rows[kept])


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
    images: Images | None = None,
) -> Embedded:
    """Embeddings of `rows` in eval mode, the work divided over ranks.

    Args:
        embedder: on its device; its mode is restored afterwards.
        pipeline: one view per image.
        rows: (N,) row numbers.
        batch_size: images in a forward pass.
        stopper: asked at every batch.
        reporter: shows the progress, if given.
        name: of the progress.
        images: told of the images that were skipped, if given.

    Raises:
        InputError: an image cannot be read, or where such are skipped, too many.
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
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    began = time.monotonic()
    for number, chunk in enumerate(chunks, 1):
        problems: tuple[Problem, ...] = ()
        if len(chunk):
            batch = next(source)
            problems = batch.problems
            if len(batch.ids):
                h, z = embedder(batch.views[:, 0].to(device))
                parts.append((h.cpu().to(kind), z.cpu().to(kind), batch.ids))
        if images is not None:
            images.skipped(name, None, problems, device)
        if stopper.requested(device):
            raise stopper.exit()
        if reporter:
            done = min(number * batch_size * distributed.world_size(), len(rows))
            speed = done / max(time.monotonic() - began, 1e-9)
            reporter.advance(name, number, steps, images_per_s=speed)
    embedder.train(training)
    if reporter:
        reporter.end_bar()
    local = (
        tuple(torch.cat(column).numpy() for column in zip(*parts, strict=True)) if parts else None
    )
    gathered = [one for one in distributed.gather_objects(local) if one is not None]
    if not gathered:
        raise InputError(f"{name}: none of {len(rows)} images can be read; allowed: at least one")
    h, z, ids = (np.concatenate(column) for column in zip(*gathered, strict=True))
    return Embedded(torch.from_numpy(h), torch.from_numpy(z), ids)


def open_plain(images: Images, augment: Augment) -> Pipeline:
    """One deterministic view per image, prepared and scaled as `augment` says."""
    return images.open("plain", plain(augment), views=1)
