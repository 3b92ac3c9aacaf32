"""What a task is offered at its start: weights of the stage before, views and features of rows."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
from torch import Tensor

from selftaught import distributed
from selftaught.data.pipeline import Pipeline
from selftaught.data.plan import plain
from selftaught.methods import Task
from selftaught.training.config import STAGES
from selftaught.training.context import Run
from selftaught.training.engine import Batch
from selftaught.training.inference import infer
from selftaught.training.inputs import Rows, global_batch_size, on_device
from selftaught.training.kept_features import open_views
from selftaught.training.tasks import finished_weights

Result = TypeVar("Result")
BATCH = 32


class Beginning:
    """What a task is offered at its start (`methods.Start`)."""

    def __init__(self, run: Run, role: str, task: Task) -> None:
        self.run, self.role, self.task = run, role, task
        self.seed = run.config.seed
        self.rows = run.images.training_rows(role)
        self.labels = run.images.semi_label

    @property
    def batch_size(self) -> int:
        """Images in a global batch."""
        size, parts = self.run.options(self.role).batch_size, self.run.config.engine.accumulate
        return global_batch_size(f"{self.role}.batch_size", size, len(self.rows), parts)

    def weights(self) -> Mapping[str, Tensor]:
        """State of the stage before; empty in the first."""
        before = list(STAGES)[: list(STAGES).index(self.role)]
        return finished_weights(self.run, before[-1]) if before else {}

    def _open(self, rows: Rows, random: bool, mirrored: bool | None = None) -> Pipeline:
        augment = self.run.options(self.role).augment
        if not random:
            augment = replace(plain(augment), horizontal_flip=float(mirrored or False))
        one_side = random or mirrored is not None
        return open_views(self.run, self.task, "centers", augment, rows, one_side=one_side)

    def batches(self, rows: Rows, *, random: bool = False) -> Iterator[Batch]:
        """Batches of all rows, on every rank, on the device."""
        chunks = np.array_split(rows, range(BATCH, len(rows), BATCH))
        with self._open(rows, random) as pipeline:
            for batch in pipeline.batches((0, chunk) for chunk in chunks):
                self.run.images.note("begin", None, batch.problems)
                if len(batch.ids):
                    yield on_device(batch, self.labels, self.run.device, self.run.kind)
        self.run.images.share()

    def features(self, rows: Rows, *, random: bool = False, mirrored: bool | None = None) -> Tensor:
        """Z (N, D) of rows in eval mode, on the CPU."""
        with self._open(rows, random, mirrored) as pipeline:
            outputs, _ = infer(
                self.run,
                lambda images, _: {"z": self.task.features(images)[1]},  # type: ignore[index]
                [self.task],
                pipeline,
                rows,
                name="centres",
                show=True,
            )
        return outputs["z"]

    def alone(self, work: Callable[[], Result]) -> Result:
        """Let rank 0 do `work`; its result on all ranks."""
        result: Result = distributed.broadcast_object(self.run.alone("begin", work))
        return result

    def note(self, text: str) -> None:
        """A line for the log."""
        self.run.reporter.log(kind="note", stage=self.role, epoch=0, step=0, message=text)

    def warn(self, text: str) -> None:
        """A warning of the run."""
        self.run.reporter.warn(self.role, text)
