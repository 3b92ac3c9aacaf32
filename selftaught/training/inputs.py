"""From a split table to batches on the device, and from images to embeddings, over all ranks."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from selftaught import distributed
from selftaught.data.images.bad_files import Problem, Skipping
from selftaught.data.pipeline import ImageBatch, Pipeline, open_pipeline
from selftaught.data.pipeline.cache import CacheBudget
from selftaught.data.plan import Augment, batch_at, plain, share_at, stand_ins, steps_per_epoch
from selftaught.environment import local_world_size
from selftaught.errors import InputError
from selftaught.methods.task import Rows
from selftaught.semi_labels import KNOWN_ABNORMAL, KNOWN_NORMAL
from selftaught.training.bad_files import BadFiles
from selftaught.training.config import DataConfig
from selftaught.training.engine import Batch

# A column that tells sets or labels apart would show what is hidden.
NO_STRATA = ("path", "split", "label", "semi_label", "mask")
TELLING = 8  # images of each kind; with fewer, values may part them by chance


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

    @cached_property
    def budget(self) -> CacheBudget:
        """Memory that all pipelines over these images share."""
        return CacheBudget(int(self.config.cache_gib * 2**30))

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

    def strata(self, stage: str, column: str) -> tuple[tuple[str, ...], Tensor]:
        """Values of a column among a stage's training images, and each image's number in them.

        Args:
            stage: whose training images.
            column: of the split table; "" = no values.

        Returns:
            The values, sorted; and (N,) int64 of all images, -1 where the cell is blank or has
            another value.

        Raises:
            InputError: there is no such column, or it is one of those that say what an image is.
        """
        if not column:
            return (), torch.full((len(self.frame),), -1)
        allowed = [name for name in self.frame.columns if name not in NO_STRATA]
        if column not in allowed:
            raise InputError(
                f"{stage}.strata is {column!r}; allowed: a column of the manifest, here "
                f"{', '.join(allowed) or 'none'}"
            )
        cells = self.frame[column].fillna("").astype(str)
        values = sorted(set(cells.iloc[self.training_rows(stage)]) - {""})
        return tuple(values), torch.from_numpy(pd.Index(values).get_indexer(cells).astype(np.int64))

    def check_strata(self, stage: str, column: str) -> None:
        """Refuse strata that are labels under another name, by the labels that a run may know.

        Args:
            stage: whose strata.
            column: of the split table; "" = none.

        Raises:
            InputError: in training and validation no value stands with both labels.
        """
        if not column:
            return
        frame, semi = self.frame, self.frame["semi_label"]
        labels = semi.map({KNOWN_ABNORMAL: 1, KNOWN_NORMAL: 0})
        labels = labels.where(frame["split"] != "val", frame["label"].astype(float))
        cells = frame[column].fillna("").astype(str)
        labels = labels[labels.notna() & (cells != "")]
        kinds = labels.groupby(cells).nunique()
        if labels.value_counts().reindex([0, 1]).min() >= TELLING and (kinds == 1).all():
            raise InputError(
                f"{stage}.strata is {column!r}, each of whose values stands with one label alone "
                f"where the label is known, as if it were the label: {len(labels)} images; "
                "allowed: a column that normal and abnormal images share, such as body_part"
            )

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
        self,
        stage: str,
        augment: Augment,
        views: int,
        *,
        training: Rows | None = None,
        masks: bool = False,
    ) -> Pipeline:
        """A pipeline over all rows.

        Args:
            stage: names the stream of random numbers.
            augment: how a view is drawn.
            views: of an image.
            training: rows; where bad files are skipped, those of them are replaced by others with
                the same known label. Any other bad file is left out.
            masks: whether batches hold the views' masks.
        """
        skipping = None
        if self.config.bad_files == "skip":
            others = None if training is None else partial(self.stand_ins, stage, training)
            skipping = Skipping(others)
        paths, covers = self.files(np.arange(len(self.frame)))
        workers = self.config.workers
        if workers == "auto" and local_world_size() > 1:
            workers = max(1, (os.cpu_count() or 1) // local_world_size())
        return open_pipeline(
            self.config.pipeline,
            paths=paths,
            masks=covers,
            return_masks=masks,
            image_size=self.config.image_size,
            augment=augment,
            device=_device(),
            seed=self.seed,
            stage=stage,
            views=views,
            workers=workers,
            cache_bytes=self.budget,
            skipping=skipping,
        )

    def stand_ins(self, stage: str, training: Rows, epoch: int, sample: int) -> list[int]:
        """Ids of `training` to take, in turn, in the place of one that cannot be read."""
        known = self.frame["semi_label"].to_numpy()
        alike = training[(known[training] == known[sample]) & (training != sample)]
        pool = alike if len(alike) else training
        return stand_ins(self.seed, stage, epoch, sample, pool).tolist()

    def note(self, stage: str, step: int | None, problems: Sequence[Problem]) -> None:
        """Remember what a batch of this rank skipped, until `share`."""
        if self.bad_files is not None and self.config.bad_files == "skip":
            self.bad_files.note(stage, step, problems)

    @property
    def pending(self) -> bool:
        """Whether this rank has noted what the others have not heard of."""
        return self.bad_files is not None and self.bad_files.pending

    def share(self) -> None:
        """Let all ranks hear of what was skipped; all call it.

        Raises:
            InputError: too many images are bad, over all ranks.
        """
        if self.bad_files is not None:
            self.bad_files.share()


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
    kind: torch.dtype = torch.float32,
    known_share: float = 0.0,
    strata: str = "",
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
        kind: of the views, that of the weights.
        known_share: share of each global batch that is known abnormal, drawn with replacement; 0 =
            images as they come.
        strata: column whose values batches hold as `stratum`; "" = none.

    Raises:
        InputError: an image cannot be read, or where such are skipped, too many.
    """
    world, rank = distributed.world_size(), distributed.rank()
    known = images.frame["semi_label"].to_numpy()[rows] == KNOWN_ABNORMAL

    def requests() -> Iterator[tuple[int, Rows]]:
        for step in range(first_step, steps):
            epoch, chosen = batch_at(images.seed, stage, step, len(rows), batch_size)
            if known_share:
                chosen = share_at(images.seed, stage, step, known, batch_size, known_share)
            yield epoch, rows[chosen.reshape(accumulate, world, -1)[:, rank].ravel()]

    semi_label, stratum = images.semi_label, images.strata(stage, strata)[1]
    low, high = input_range
    per_epoch = steps_per_epoch(len(rows), batch_size, drop_last=True)
    for step, batch in enumerate(pipeline.batches(requests()), first_step):
        images.note(stage, step, batch.problems)
        # The published stages saw inputs 255 times apart; ours declare a range and keep to it.
        # On a GPU this would wait for the step before.
        # Features in the place of views have no range.
        if batch.views.ndim == 5 and batch.views.device.type == "cpu":
            least, most = (float(value) for value in batch.views.aminmax())
            # NaN passes: the loop stops over it and names the file.
            if least < low or most > high:
                raise RuntimeError(f"views reach from {least} to {most}, declared: {input_range}")
        yield {
            **on_device(batch, semi_label, device, kind),
            "epoch": step // per_epoch,
            "step": step,
            **({"stratum": _sent(stratum[batch.ids], device)} if strata else {}),
        }


def _sent(tensor: Tensor, device: torch.device, kind: torch.dtype | None = None) -> Tensor:
    """The tensor on the device, without a wait for what that is doing: hence from pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, kind or tensor.dtype, non_blocking=True)


def on_device(
    batch: ImageBatch, semi_label: Tensor, device: torch.device, kind: torch.dtype
) -> Batch:
    """A batch as tasks take it, at epoch and step 0; its ids stay on the host."""
    return {
        "views": _sent(batch.views, device, kind),
        "masks": None if batch.masks is None else _sent(batch.masks, device, kind),
        "semi_label": _sent(semi_label[batch.ids], device),
        "ids": batch.ids,
        "epoch": 0,
        "step": 0,
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


def open_plain(images: Images, augment: Augment, *, masks: bool = False) -> Pipeline:
    """One deterministic view per image, prepared and scaled as `augment` says."""
    return images.open("plain", plain(augment), views=1, masks=masks)
