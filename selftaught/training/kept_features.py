"""Features of an encoder that is held still: each image passes it once, for any number of runs.

```
features/DIGEST/
    plain-KEY.safetensors      image (N, 32) uint8, h (N, W) of up to PART images
    mirrored-KEY.safetensors   the same of their mirror images
```
The digest is that of the weights and of all that a view depends on; `image` is that of an image's
path, its bytes and its mask's, KEY that of the file's images. Files are only added, so that runs
may share the folder, on several machines too.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from selftaught import distributed
from selftaught.data.images.stamps import read_stamps, stamp, stamp_name
from selftaught.data.pipeline import ImageBatch, Pipeline, Request
from selftaught.data.plan import PARAMETERS, Augment, draw, plain
from selftaught.errors import InputError
from selftaught.files import write_atomic
from selftaught.methods import Task
from selftaught.models.encoder import Encoder
from selftaught.training.context import Run
from selftaught.training.inference import infer
from selftaught.training.inputs import Rows, open_plain
from selftaught.training.intake import SOURCES

PART = 256  # images in a file: what a killed run computes again
MIRROR = PARAMETERS.index("horizontal_flip")
PLAIN, MIRRORED = "plain", "mirrored"


def open_views(
    run: Run,
    task: Task,
    stage: str,
    augment: Augment,
    rows: Rows,
    *,
    views: int = 1,
    training: bool = False,
    one_side: bool = False,
) -> Pipeline:
    """Views of images as a task takes them: their kept features where its encoder is frozen.

    Args:
        run: the images.
        task: with the weights it has by now; all ranks call alike.
        stage: names the stream of random numbers.
        augment: how a view is drawn.
        rows: (N,) row numbers that may be asked for.
        views: of an image; features have one.
        training: whether another image stands in for one that cannot be read.
        one_side: whether kept features are those of one side even where the model's are of both.

    Raises:
        InputError, StopRun: as `KeptViews` does.
    """
    module = task.frozen()
    if module is None:
        return run.images.open(
            stage, augment, views, training=rows if training else None, masks=task.masks
        )
    return KeptViews(run, stage, module, augment, rows, training=training, one_side=one_side)


def open_evaluation(run: Run, task: Task, rows: Rows) -> Pipeline:
    """Images as evaluation sees them: plain, or one random view of each in preset paper."""
    augment = run.config.finetune.augment
    if run.config.data.evaluation_views == "plain":
        return open_views(run, task, "evaluation", plain(augment), rows)
    return run.images.open("evaluation", augment, views=1, masks=task.masks)


class KeptViews(Pipeline):
    """A pipeline whose views are features (B, 1, W), plain or mirrored as images would be.

    Where model.mirror is set, they are the mean of both, but in training.

    An `Encoder` passes features through, so that they stand for images wherever it comes first.

    Args:
        run: says where features are kept, and whose seed draws the mirror.
        stage: names the stream of random numbers.
        module: the encoder, with the weights that it keeps.
        augment: draws the mirror; all else in it has no effect.
        rows: (N,) row numbers that may be asked for. What is not kept of them is computed now, by
            all ranks together; in memory, on every rank, are N x W numbers, twice where views are
            mirrored: 200 MB for 20,000 images and 1,280 features.
        training: whether another image stands in for one that cannot be read, as in training.
        one_side: whether they are never the mean of both.

    Raises:
        InputError: an image cannot be read, or where such are skipped, too many.
        StopRun: a signal arrived; what was computed is kept.
    """

    def __init__(
        self,
        run: Run,
        stage: str,
        module: Encoder,
        augment: Augment,
        rows: Rows,
        *,
        training: bool = False,
        one_side: bool = False,
    ) -> None:
        self.augment, self.seed, self.stage = augment, run.images.seed, stage
        self.others: Callable[[int, int], list[int]] = lambda epoch, row: []
        if training:
            self.others = partial(run.images.stand_ins, stage, rows)
        mean = module.config.mirror and not (training or one_side)
        rows = np.unique(rows)
        names = _names(run, rows)
        folder = _folder(run, module, augment)
        self.plain, read = _features(run, module, augment, rows, names, folder, PLAIN)
        self.mirrored = self.plain
        if mean or augment.horizontal_flip > 0:
            self.mirrored, too = _features(run, module, augment, rows, names, folder, MIRRORED)
            read &= too
        if mean:
            self.plain = self.mirrored = (self.plain + self.mirrored) / 2
        self.rows, self.readable = rows, set(rows[read].tolist())

    def batches(self, requests: Iterable[Request]) -> Iterator[ImageBatch]:
        """Batches in the order of the requests."""
        for epoch, asked in requests:
            ids = self._readable(epoch, asked)
            drawn = draw(
                self.augment, seed=self.seed, stage=self.stage, epoch=epoch, samples=ids, views=1
            )
            turned = torch.from_numpy(drawn[:, 0, MIRROR] == 1)[:, None]
            places = torch.from_numpy(np.searchsorted(self.rows, ids))
            h = torch.where(turned, self.mirrored[places], self.plain[places])
            yield ImageBatch(h[:, None], None, torch.from_numpy(ids))

    def _readable(self, epoch: int, asked: Rows) -> Rows:
        """The ids asked for, another in the place of each that could not be read, or none."""
        ids: list[int] = []
        for one in asked.tolist():
            tried = [one] if one in self.readable else self.others(epoch, one)
            ids += [other for other in tried if other in self.readable][:1]
        return np.array(ids, np.int64)

    def close(self) -> None:
        """Nothing to stop."""


def _features(
    run: Run,
    module: Encoder,
    augment: Augment,
    rows: Rows,
    names: Sequence[bytes],
    folder: Path,
    kind: str,
) -> tuple[Tensor, NDArray[np.bool_]]:
    """H (N, W) of rows, 0 where it is missing; and which of them are there (N,)."""
    first = run.alone("kept features", lambda: _whole_parts(folder, kind)) or {}
    kept: dict[bytes, Tensor] = {}
    for path in distributed.broadcast_object(list(first)):
        part = first.get(path) or _read(path)
        if part is None:
            raise InputError(
                f"{path}: rank 0 can read it, rank {distributed.rank()} cannot; the folder of "
                "data.features must be on a file system that all nodes share"
            )
        kept |= part
    bad, paths = run.images.bad_files, run.images.frame["path"]
    todo = [
        place
        for place, row in enumerate(rows)
        if names[place] not in kept and not (bad and bad.reason(str(paths.iloc[row])))
    ]
    if todo:
        with open_plain(run.images, augment) as pipeline:
            for some in (todo[i : i + PART] for i in range(0, len(todo), PART)):
                h, read = _computed(run, module, pipeline, rows[some], kind)
                own = [names[place] for place in np.searchsorted(rows, read)]
                part = dict(zip(own, h, strict=True))
                run.alone("kept features", partial(_write, folder, kind, part))
                kept |= part
    there = np.array([name in kept for name in names], bool)
    blank = torch.zeros(len(next(iter(kept.values()))) if kept else 1)
    return torch.stack([kept.get(name, blank) for name in names]), there


def _computed(
    run: Run, module: Encoder, pipeline: Pipeline, rows: Rows, kind: str
) -> tuple[Tensor, Rows]:
    """H (N, W) of one part, and the rows it is of; the work is divided over ranks."""

    def compute(images: Tensor, _: Tensor | None) -> dict[str, Tensor]:
        return {"h": module.pooled(images.flip(-1) if kind == MIRRORED else images)}

    outputs, read = infer(run, compute, [module], pipeline, rows, name="features", show=True)
    return outputs["h"], read


def _names(run: Run, rows: Rows) -> list[bytes]:
    """What each image is kept under: a digest of its path, its bytes and its mask's."""
    images, stamps = run.images, read_stamps(run.folder / SOURCES)
    paths, masks = images.files(rows)
    names = []
    for files in zip(paths, masks or [None] * len(paths), strict=True):
        digest = hashlib.sha256()
        for path in files:
            if path is not None:
                name = stamp_name(path, images.root)
                was = stamps.get(name) or stamp(images.root / name)
                # What is too large to be read whole for a checksum has size and time.
                content = was.sha256 or (was.bytes, was.mtime_ns)
                digest.update(repr((str(path.relative_to(images.root)), content)).encode())
            digest.update(b";")
        names.append(digest.digest())
    return names


def _write(folder: Path, kind: str, part: dict[bytes, Tensor]) -> None:
    image = torch.tensor([list(name) for name in part], dtype=torch.uint8)
    tensors = {"image": image, "h": torch.stack(list(part.values()))}
    key = hashlib.sha256(b"".join(sorted(part))).hexdigest()[:16]
    facts = {"sha256": _digest(tensors)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}-{key}.safetensors"
    write_atomic(path, partial(save_file, tensors, metadata=facts))


def _read(path: Path) -> dict[bytes, Tensor] | None:
    """Features of a part by image; None: it is not there, or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            part = {name: file.get_tensor(name) for name in ("image", "h")}
            if (file.metadata() or {}).get("sha256") != _digest(part):
                return None
        return dict(zip(map(bytes, part["image"].tolist()), part["h"], strict=True))
    except (OSError, SafetensorError, ValueError):
        return None


def _digest(part: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in ("image", "h"):
        digest.update(repr((tuple(part[name].shape), part[name].dtype)).encode())
        digest.update(part[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _folder(run: Run, module: Encoder, augment: Augment) -> Path:
    """Where features of these weights and views are kept."""
    data: Any = run.config.data
    views = (
        dataclasses.asdict(plain(augment)),
        # With the SHA-256 of a program, whose constants are no state. Files are of one side.
        {k: v for k, v in dataclasses.asdict(module.config).items() if k != "mirror"},
        (data.image_size, data.mask, data.pipeline, str(run.kind), str(run.device.type)),
    )
    digest = hashlib.sha256(repr(views).encode())
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        # NumPy has no bfloat16; the bytes are those of the weights.
        whole = value.detach().cpu().contiguous().reshape(-1)
        digest.update(whole.view(torch.uint8).numpy().tobytes())
    return Path(data.features or run.folder / "features") / digest.hexdigest()[:16]


def _whole_parts(folder: Path, kind: str) -> dict[Path, dict[bytes, Tensor]]:
    """What is there, by file; damaged files are passed over."""
    parts = {path: _read(path) for path in sorted(folder.glob(f"{kind}-*.safetensors"))}
    return {path: part for path, part in parts.items() if part is not None}
