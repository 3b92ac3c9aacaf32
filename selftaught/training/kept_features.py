"""A frozen part's features of the training images, computed once and kept in the run folder.

```
features/STAGE-DIGEST/
    00000.safetensors   row (N,), plain (N, W), mirrored (N, W) of up to PART training images
```
The digest is that of the weights and of all that a view depends on.
"""

import dataclasses
import hashlib
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selftaught import distributed
from selftaught.data.pipeline import Pipeline
from selftaught.data.plan import plain
from selftaught.errors import InputError
from selftaught.files import write_atomic
from selftaught.methods import Task
from selftaught.training.context import Run
from selftaught.training.frozen import Features
from selftaught.training.inference import infer
from selftaught.training.inputs import Rows

PART = 256  # images in a file: what a killed run computes again


def kept_features(run: Run, role: str, task: Task, pipeline: Pipeline) -> Features:
    """Features of a stage's training images by `task.frozen()`, computed where they are not there.

    All ranks take part. In memory, on every rank, are N x W numbers, twice where views are
    mirrored: 200 MB for 20,000 images and 1,280 features.

    Args:
        run: the run.
        role: the stage.
        task: with the weights that it trains from.
        pipeline: plain views.

    Raises:
        InputError: an image cannot be read, or where such are skipped, too many.
        StopRun: a signal arrived; the parts that are finished are kept.
    """
    module = task.frozen()
    assert module is not None, "the stage asks only where a part is frozen"
    augment, rows = run.options(role).augment, run.images.training_rows(role)
    mirror = augment.horizontal_flip > 0
    folder = _folder(run, role, module, rows)
    names = ["row", "plain", "mirrored"] if mirror else ["row", "plain"]
    parts = []
    for number, some in enumerate(np.array_split(rows, range(PART, len(rows), PART))):
        path = folder / f"{number:05d}.safetensors"
        there = distributed.is_main() and _read(path, names) is not None
        if distributed.broadcast_object(there):
            part = _read(path, names)
            if part is None:
                raise InputError(
                    f"{path}: rank 0 can read it, rank {distributed.rank()} cannot; the run "
                    "folder must be on a file system that all nodes share"
                )
        else:
            part = _computed(run, module, pipeline, some, mirror)
            if distributed.is_main():
                write_atomic(path, partial(save_file, part))
            distributed.barrier()
        parts.append(part)
    kept = {name: torch.cat([part[name] for part in parts]) for name in names}
    images = run.images
    return Features(
        kept,
        augment=augment,
        seed=images.seed,
        stage=role,
        others=partial(images.stand_ins, role, rows),
    )


def _computed(
    run: Run, module: nn.Module, pipeline: Pipeline, rows: Rows, mirror: bool
) -> dict[str, Tensor]:
    """One part, the work divided over ranks."""

    def compute(images: Tensor, _: Tensor | None) -> dict[str, Tensor]:
        views = {"plain": images, **({"mirrored": images.flip(-1)} if mirror else {})}
        return {name: module(view) for name, view in views.items()}

    outputs, read = infer(run, compute, [module], pipeline, rows, name="features", show=True)
    return {"row": torch.from_numpy(read), **{k: v.contiguous() for k, v in outputs.items()}}


def _read(path: Path, names: list[str]) -> dict[str, Tensor] | None:
    """A part's tensors; None: it is not there, or not whole."""
    try:
        part = load_file(path)
    except (OSError, SafetensorError):
        return None
    fine = sorted(part) == sorted(names) and len({len(one) for one in part.values()}) == 1
    return part if fine else None


def _folder(run: Run, role: str, module: nn.Module, rows: Rows) -> Path:
    """Where these features are kept; those of other weights or views are removed."""

    def make() -> Path:
        digest = hashlib.sha256()
        data: Any = run.config.data
        views = (
            dataclasses.asdict(plain(run.options(role).augment)),
            dataclasses.asdict(run.config.model.encoder),
            (data.image_size, data.mask, data.pipeline, str(run.kind)),
        )
        digest.update(repr(views).encode())
        digest.update(rows.tobytes())
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            # NumPy has no bfloat16; the bytes are those of the weights.
            whole = value.detach().cpu().contiguous().reshape(-1)
            digest.update(whole.view(torch.uint8).numpy().tobytes())
        folder = run.folder / "features" / f"{role}-{digest.hexdigest()[:16]}"
        for other in folder.parent.glob(f"{role}-*"):
            if other != folder:
                shutil.rmtree(other)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    folder: Path = distributed.broadcast_object(make() if distributed.is_main() else None)
    return folder
