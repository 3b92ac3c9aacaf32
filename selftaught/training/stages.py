"""The two learning stages: what each starts from, feeds the loop and does between epochs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from selftaught import distributed
from selftaught.data.pipeline import Pipeline
from selftaught.data.plan import plain, steps_per_epoch
from selftaught.errors import InputError
from selftaught.evaluation.metrics import auroc
from selftaught.files import write_atomic
from selftaught.models.encoder import EncoderConfig
from selftaught.models.heads import Embedder, build_embedder
from selftaught.models.weights import load_encoder_weights
from selftaught.search import kmeans
from selftaught.training import checkpoint, guards
from selftaught.training.checkpoint import Checkpoint
from selftaught.training.config import Config, FinetuneConfig, PretextConfig
from selftaught.training.engine import Batch, TorchEngine
from selftaught.training.inputs import (
    Images,
    Rows,
    embed,
    global_batch_size,
    open_plain,
    training_batches,
)
from selftaught.training.loop import Schedule, synchronise_parameters, train
from selftaught.training.progress import Reporter
from selftaught.training.stop import Stopper
from selftaught.training.tasks import KNOWN_ABNORMAL, FinetuneTask, PretextTask, Task

# The fine-tuning head is drawn from a seed of its own: it must not repeat the pretext head.
FRESH_HEAD = 1_000_003
ENCODER_WIDTH = {"resnet18": 512, "resnet50": 2048}


def new_embedder(config: Config, seed: int) -> Embedder:
    """Encoder and head with fresh weights from `seed`."""
    model = config.model
    encoder = EncoderConfig(
        architecture=model.architecture, stem=model.stem, batch_norm=model.batch_norm
    )
    widths = (ENCODER_WIDTH[model.architecture], *model.head)
    return build_embedder(encoder, seed, head_widths=widths)


TaskType = TypeVar("TaskType", bound=Task)


class _Stage(Generic[TaskType]):
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
        self.batch_size = global_batch_size(
            f"{name}.batch_size", options.batch_size, len(self.rows)
        )
        self.device = next(task.parameters()).device
        self.schedule = Schedule(
            stage=name,
            epochs=options.epochs,
            steps_per_epoch=total_steps(options, name, images) // options.epochs,
            lr=options.lr,
            milestones=tuple(options.milestones),
            accumulate=config.engine.accumulate,
            save_every=config.engine.save_every,
        )
        self.training_views = images.open(
            name, options.augment, views=2 if name == "pretext" else 1
        )
        self.plain_views = open_plain(images, options.augment)
        self.first_spread: float | None = None

    def close(self) -> None:
        """Stop the loader threads."""
        self.training_views.close()
        self.plain_views.close()

    def batches(self, first_step: int) -> Iterator[Batch]:
        """This rank's batches from `first_step` on."""
        return training_batches(
            self.images,
            self.training_views,
            self.rows,
            stage=self.schedule.stage,
            batch_size=self.batch_size,
            first_step=first_step,
            steps=self.schedule.steps,
            input_range=self.options.augment.input_range,
            device=self.device,
        )

    def files(self, ids: Tensor) -> list[str]:
        """Paths of samples."""
        return self.images.paths(ids)

    def embed_plain(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Embeddings of rows without augmentation, in eval mode."""
        size = self.config.score.batch_size
        return embed(
            self.task.embedder, self.plain_views, rows, batch_size=size, stopper=self.stopper
        )

    def close_epoch(self) -> dict[str, Any]:
        """Let the task change between epochs."""
        return dict(self.task.close_epoch())

    def observe_epoch(self, epoch: int, step: int) -> dict[str, Any]:
        """Spread and rank of a fixed set of training images' embeddings, with their guards."""
        probe = self.rows[: min(128, max(32, len(self.rows) // 8))]
        z = self.embed_plain(probe)[1]
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


class PretextStage(_Stage[PretextTask]):
    """Contrastive pre-training; nothing happens between epochs but the guards."""


class FinetuneStage(_Stage[FinetuneTask]):
    """Fine-tuning: pruning between epochs, validation AUROC, the best epoch kept beside."""

    def __init__(self, *args: Any, best: Path) -> None:
        super().__init__(*args)
        self.best = best
        self.validation = open_evaluation(self.config, self.images)
        labelled = self.images.frame["label"].notna().to_numpy()
        rows = self.images.rows("val")
        self.validation_rows = rows[labelled[rows]]
        self.labels = self.images.frame["label"].iloc[self.validation_rows].to_numpy(int)

    def close(self) -> None:
        """Stop the loader threads."""
        super().close()
        self.validation.close()

    def observe_epoch(self, epoch: int, step: int) -> dict[str, Any]:
        """The pretext stage's figures, centres left and the validation AUROC."""
        figures = super().observe_epoch(epoch, step)
        active, total = int(self.task.active.sum()), int(self.task.active.numel())
        for problem in guards.check_centers(active, total, epoch):
            self.reporter.warn("finetune", problem, epoch=epoch, step=step)
        every = self.config.finetune.validate_every
        last = epoch == self.schedule.epochs - 1
        if every and (last or (epoch + 1) % every == 0) and len(set(self.labels)) == 2:
            scores = self._validation_scores()
            for problem in guards.check_scores(scores):
                self.reporter.warn("finetune", problem, epoch=epoch, step=step)
            figures["val_auroc"] = auroc(self.labels, scores.numpy())
            self._keep_best(epoch, figures["val_auroc"])
        return figures

    def _validation_scores(self) -> Tensor:
        z = embed(
            self.task.embedder,
            self.validation,
            self.validation_rows,
            batch_size=self.config.score.batch_size,
            stopper=self.stopper,
        )[1]
        return self.task.distance(z.to(self.device))[0].cpu()

    def _keep_best(self, epoch: int, value: float) -> None:
        earlier = [
            line["val_auroc"]
            for line in self.reporter.lines()
            if line["stage"] == "finetune" and line.get("val_auroc") is not None
        ]
        if distributed.is_main() and value > max(earlier, default=-1.0):
            weights = {k: v.detach().cpu().contiguous() for k, v in self.task.state_dict().items()}
            self.best.mkdir(parents=True, exist_ok=True)
            write_atomic(self.best / "weights.safetensors", lambda path: save_file(weights, path))
            note = json.dumps({"epoch": epoch, "val_auroc": value})
            write_atomic(self.best / "best.json", note)


ModuleType = TypeVar("ModuleType", bound=torch.nn.Module)


def place(module: ModuleType, device: torch.device) -> ModuleType:
    """Move a module to its device, in the memory format that is fastest there."""
    # On a CPU channels-last took 11.2 ms a 64 px view in fp32 where the default took 7.1 ms.
    if device.type == "cpu":
        return module.to(device)
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def open_evaluation(config: Config, images: Images) -> Pipeline:
    """Images as evaluation sees them: plain, or one random view of each in preset paper."""
    augment = config.finetune.augment
    if config.data.evaluation_views == "plain":
        augment = plain(augment)
    return images.open("evaluation", augment, views=1)


def pretext_task(config: Config, device: torch.device) -> PretextTask:
    """The task of stage 1 with fresh weights."""
    task = PretextTask(
        new_embedder(config, config.seed),
        temperature=config.pretext.temperature,
        method="supcon" if config.pretext.method == "supcon" else "ntxent",
    )
    return place(task, device)


def pretrain(
    config: Config,
    images: Images,
    run: Path,
    reporter: Reporter,
    stopper: Stopper,
    device: torch.device,
) -> None:
    """Stage 1: contrastive pre-training, or initial weights where `pretext.method` has no training.

    Leaves `checkpoints/pretext` with its last step done.
    """
    folder = run / "checkpoints" / "pretext"
    if config.pretext.method in ("imagenet", "none"):
        if distributed.is_main() and checkpoint.newest(folder)[0] is None:
            checkpoint.save(folder, _untrained(config, images, reporter, stopper, device))
        distributed.barrier()
        return
    task = pretext_task(config, device)
    synchronise_parameters(task)
    engine = TorchEngine(
        task, weight_decay=config.pretext.weight_decay, precision=config.engine.precision
    )
    if config.engine.accumulate > 1:
        reporter.warn(
            "pretext",
            f"engine.accumulate is {config.engine.accumulate}: each view sees "
            "only the negatives of its own micro-batch",
        )
    stage = PretextStage(config, config.pretext, "pretext", images, task, reporter, stopper)
    try:
        train(engine, stage, folder, reporter, stopper)
    finally:
        stage.close()


def _untrained(
    config: Config, images: Images, reporter: Reporter, stopper: Stopper, device: torch.device
) -> Checkpoint:
    task = pretext_task(config, device)
    if config.pretext.method == "imagenet":
        load_encoder_weights(task.embedder.encoder, Path(config.model.weights))
    else:
        # Random weights have no batch statistics yet; eval mode would see statistics of nothing.
        rows = images.rows("train")[:512]
        with torch.no_grad(), open_plain(images, config.finetune.augment) as pipeline:
            task.train()
            for batch in pipeline.batches((0, rows[i : i + 32]) for i in range(0, len(rows), 32)):
                task.embedder(batch.views[:, 0].to(device))
    return Checkpoint(step=0, weights=task.state_dict(), optimizer={}, figures={})


def total_steps(options: PretextConfig | FinetuneConfig, name: str, images: Images) -> int:
    """Optimizer steps of a whole stage; 0 where the pretext method trains nothing."""
    if isinstance(options, PretextConfig) and options.method in ("imagenet", "none"):
        return 0
    rows = len(images.training_rows(name))
    size = global_batch_size(f"{name}.batch_size", options.batch_size, rows)
    return options.epochs * steps_per_epoch(rows, size, drop_last=True)


def pretrained_embedder(config: Config, images: Images, run: Path) -> Embedder:
    """The embedder that stage 1 left in `run`.

    Raises:
        InputError: stage 1 is not finished there.
    """
    found, _ = checkpoint.newest(run / "checkpoints" / "pretext")
    if found is None or found.step < total_steps(config.pretext, "pretext", images):
        raise InputError(f"{run}: pre-training is not finished; run `selftaught pretrain` first")
    task = pretext_task(config, torch.device("cpu"))
    task.load_state_dict(found.weights)
    return task.embedder


def initial_centers(
    config: Config,
    images: Images,
    embedder: Embedder,
    reporter: Reporter,
    stopper: Stopper,
) -> Tensor:
    """Stage 2: k-means centres of the training images not known to be abnormal.

    Returns:
        (K, D) float32; coordinates with 0 < |c| < `finetune.center_epsilon` are pushed to it.

    Raises:
        InputError: fewer such images than centres.
    """
    options = config.finetune
    rows = images.training_rows("finetune")
    rows = rows[images.semi_label.numpy()[rows] != KNOWN_ABNORMAL]
    if len(rows) < options.centers:
        raise InputError(
            f"finetune.centers is {options.centers}, but only {len(rows)} training images are not "
            f"known to be abnormal; allowed: 1 to {len(rows)}"
        )
    augment = options.augment if options.center_views == "augmented" else plain(options.augment)
    with images.open("centers", augment, views=1) as pipeline:
        z = embed(
            embedder,
            pipeline,
            rows,
            batch_size=config.score.batch_size,
            stopper=stopper,
            reporter=reporter,
            name="centres",
        )[1]
    found = kmeans(z, options.centers, seed=config.seed, restarts=10)
    centers = distributed.broadcast_object(found.centers.float())
    epsilon = options.center_epsilon
    small = (centers.abs() < epsilon) & (centers != 0)
    return torch.where(small, centers.sign() * epsilon, centers)


def finetune(
    config: Config,
    images: Images,
    run: Path,
    reporter: Reporter,
    stopper: Stopper,
    device: torch.device,
) -> None:
    """Stages 2 and 3: centres, then fine-tuning around them.

    Leaves `checkpoints/finetune` with its last step done and the best validated epoch beside it.
    """
    folder = run / "checkpoints" / "finetune"
    found, _ = checkpoint.newest(folder)
    options = config.finetune
    embedder = new_embedder(config, config.seed + FRESH_HEAD)
    if found is None:
        embedder.encoder.load_state_dict(
            pretrained_embedder(config, images, run).encoder.state_dict()
        )
        place(embedder, device)
        centers = initial_centers(config, images, embedder, reporter, stopper)
    else:
        centers = found.weights["centers"]
    ranges = [stage.augment.input_range for stage in (config.pretext, options)]
    if ranges[0] != ranges[1]:
        reporter.warn(
            "finetune",
            f"pre-training saw inputs in {ranges[0]}, fine-tuning sees {ranges[1]}: batch "
            "statistics do not carry over (preset paper does this on purpose)",
        )
    task = FinetuneTask(embedder, centers, eta=options.eta, gamma=options.gamma)
    place(task, device)
    synchronise_parameters(task)
    engine = TorchEngine(task, weight_decay=options.weight_decay, precision=config.engine.precision)
    if found is None and distributed.is_main():
        # Step 0 holds the centres: a run killed later never draws them again.
        start = {"loss_sum": 0.0, "loss_steps": 0}
        weights = task.state_dict()
        checkpoint.save(folder, Checkpoint(step=0, weights=weights, optimizer={}, figures=start))
    distributed.barrier()
    stage = FinetuneStage(
        config,
        options,
        "finetune",
        images,
        task,
        reporter,
        stopper,
        best=run / "checkpoints" / "best",
    )
    try:
        train(engine, stage, folder, reporter, stopper)
    finally:
        stage.close()


def finetuned_task(config: Config, images: Images, run: Path, which: str = "last") -> FinetuneTask:
    """The task that stage 3 left in `run`, at the last or the best validated epoch.

    Raises:
        InputError: stage 3 is not finished there.
    """
    if which == "best":
        weights = load_file(run / "checkpoints" / "best" / "weights.safetensors")
    else:
        found, _ = checkpoint.newest(run / "checkpoints" / "finetune")
        if found is None or found.step < total_steps(config.finetune, "finetune", images):
            raise InputError(f"{run}: fine-tuning is not finished; run `selftaught finetune` first")
        weights = found.weights
    embedder = new_embedder(config, config.seed)
    task = FinetuneTask(
        embedder, weights["centers"], eta=config.finetune.eta, gamma=config.finetune.gamma
    )
    task.load_state_dict(weights)
    return task.eval()
