"""What both learning stages share: network, schedule, training rows and plain probe images."""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from selftaught.data.pipeline import Pipeline
from selftaught.data.plan import plain, steps_per_epoch
from selftaught.models.encoder import EncoderConfig
from selftaught.models.heads import Embedder, build_embedder
from selftaught.training import guards
from selftaught.training.config import Config, FinetuneConfig, PretextConfig
from selftaught.training.engine import Batch
from selftaught.training.inputs import (
    Embedded,
    Images,
    Rows,
    embed,
    global_batch_size,
    open_plain,
    training_batches,
)
from selftaught.training.loop import Schedule
from selftaught.training.progress import Reporter
from selftaught.training.stop import Stopper
from selftaught.training.tasks import Task

ENCODER_WIDTH = {"resnet18": 512, "resnet50": 2048}


ModuleType = TypeVar("ModuleType", bound=torch.nn.Module)


TaskType = TypeVar("TaskType", bound=Task)


def place(module: ModuleType, config: Config, device: torch.device) -> ModuleType:
    """Move a module to its device, in its precision and the memory format that is fastest."""
    if config.engine.precision == "fp64":
        module.double()
    # On a CPU channels-last took 11.2 ms a 64 px view in fp32 where the default took 7.1 ms.
    if device.type == "cpu":
        return module.to(device)
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def new_embedder(config: Config, seed: int) -> Embedder:
    """Encoder and head with fresh weights from `seed`."""
    model = config.model
    encoder = EncoderConfig(
        architecture=model.architecture, stem=model.stem, batch_norm=model.batch_norm
    )
    widths = (ENCODER_WIDTH[model.architecture], *model.head)
    return build_embedder(encoder, seed, head_widths=widths)


def open_evaluation(config: Config, images: Images) -> Pipeline:
    """Images as evaluation sees them: plain, or one random view of each in preset paper."""
    augment = config.finetune.augment
    if config.data.evaluation_views == "plain":
        augment = plain(augment)
    return images.open("evaluation", augment, views=1)


def total_steps(
    options: PretextConfig | FinetuneConfig, name: str, images: Images, accumulate: int
) -> int:
    """Optimizer steps of a whole stage; 0 where the pretext method trains nothing."""
    if isinstance(options, PretextConfig) and options.method in ("imagenet", "none"):
        return 0
    rows = len(images.training_rows(name))
    size = global_batch_size(f"{name}.batch_size", options.batch_size, rows, accumulate)
    return options.epochs * steps_per_epoch(rows, size, drop_last=True)


class TrainingStage(Generic[TaskType]):
    """What both stages share: training rows, the plain probe images and the schedule."""

    def __init__(
        self,
        config: Config,
        options: PretextConfig | FinetuneConfig,
        name: str,
        images: Images,
        task: TaskType,
        reporter: Reporter,
        stopper: Stopper,
    ) -> None:
        self.config, self.options, self.images, self.task = config, options, images, task
        self.reporter, self.stopper = reporter, stopper
        self.rows = images.training_rows(name)
        accumulate = config.engine.accumulate
        self.batch_size = global_batch_size(
            f"{name}.batch_size", options.batch_size, len(self.rows), accumulate
        )
        self.device = next(task.parameters()).device
        self.schedule = Schedule(
            stage=name,
            epochs=options.epochs,
            steps_per_epoch=total_steps(options, name, images, accumulate) // options.epochs,
            lr=options.lr,
            milestones=tuple(options.milestones),
            accumulate=config.engine.accumulate,
            save_every=config.engine.save_every,
        )
        self.training_views = images.open(
            name, options.augment, views=2 if name == "pretext" else 1, training=self.rows
        )
        self.plain_views = open_plain(images, options.augment)
        self.first_spread: float | None = None

    def close(self) -> None:
        """Stop the loader threads."""
        self.training_views.close()
        self.plain_views.close()

    def batches(self, first_step: int) -> Iterator[Batch]:
        """This rank's batches from `first_step` on."""
        if first_step == 0:
            first = guards.spread(self.embed_plain(self._probe()).z)
            stage = self.schedule.stage
            self.reporter.log(kind="note", stage=stage, epoch=0, step=0, spread=first)
        return training_batches(
            self.images,
            self.training_views,
            self.rows,
            stage=self.schedule.stage,
            batch_size=self.batch_size,
            accumulate=self.schedule.accumulate,
            first_step=first_step,
            steps=self.schedule.steps,
            input_range=self.options.augment.input_range,
            device=self.device,
        )

    def files(self, ids: Tensor) -> list[str]:
        """Paths of samples."""
        return self.images.paths(ids)

    def embed_plain(self, rows: Rows) -> Embedded:
        """Embeddings of rows without augmentation, in eval mode."""
        return embed(
            self.task.embedder,
            self.plain_views,
            rows,
            batch_size=self.config.score.batch_size,
            stopper=self.stopper,
            name=self.schedule.stage,
            images=self.images,
        )

    def close_epoch(self) -> dict[str, Any]:
        """Let the task change between epochs."""
        return dict(self.task.close_epoch())

    def observe_epoch(self, epoch: int, step: int) -> dict[str, Any]:
        """Spread and rank of a fixed set of training images' embeddings, with their guards."""
        probe = self._probe()
        z = self.embed_plain(probe).z
        now = guards.spread(z)
        if self.first_spread is None:
            self.first_spread = self._logged_spread(now)
        problems = guards.check_spread(now, self.first_spread)
        # Running statistics need some tens of steps before they can agree with anything.
        if step >= 100 and (
            epoch == self.schedule.epochs - 1 or step < 100 + self.schedule.steps_per_epoch
        ):
            problems += guards.check_batch_statistics(self._with_batch_statistics(probe), z)
        for problem in problems:
            self.reporter.warn(self.schedule.stage, problem, epoch=epoch, step=step)
        return {"spread": now, "effective_rank": guards.effective_rank(z)}

    def _probe(self) -> Rows:
        return self.rows[: min(128, max(32, len(self.rows) // 8))]

    def _logged_spread(self, now: float) -> float:
        for line in self.reporter.lines():
            if line["stage"] == self.schedule.stage and "spread" in line:
                return float(line["spread"])
        return now

    @torch.no_grad()
    def _with_batch_statistics(self, probe: Rows) -> Tensor:
        embedder = self.task.embedder
        kept = {name: buffer.clone() for name, buffer in embedder.named_buffers()}
        views = [b.views[:, 0] for b in self.plain_views.batches([(0, probe)])]
        embedder.train()
        z = embedder(torch.cat(views).to(self.device))[1].float().cpu()
        embedder.load_state_dict(kept, strict=False)
        return z
