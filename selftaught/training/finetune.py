"""Stages 2 and 3: k-means centres, then fine-tuning around them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from selftaught import distributed
from selftaught.data.plan import plain
from selftaught.errors import InputError
from selftaught.evaluation.metrics import auroc
from selftaught.files import sha256, write_atomic
from selftaught.models.heads import Embedder
from selftaught.search import kmeans, occupancy
from selftaught.training import checkpoint, guards
from selftaught.training.checkpoint import Checkpoint
from selftaught.training.config import Config
from selftaught.training.engine import make_engine
from selftaught.training.inputs import (
    Images,
    Rows,
    embed,
)
from selftaught.training.loop import synchronise_parameters, train
from selftaught.training.pretext import pretrained_embedder
from selftaught.training.progress import Reporter
from selftaught.training.stages import (
    TrainingStage,
    new_embedder,
    open_evaluation,
    place,
    total_steps,
)
from selftaught.training.stop import Stopper, first_rank_alone
from selftaught.training.tasks import KNOWN_ABNORMAL, FinetuneTask

# The fine-tuning head is drawn from a seed of its own: it must not repeat the pretext head.
FRESH_HEAD = 1_000_003


class FinetuneStage(TrainingStage[FinetuneTask]):
    """Fine-tuning: pruning between epochs, validation AUROC, the best epoch kept beside."""

    def __init__(self, *args: Any, best: Path) -> None:
        super().__init__(*args)
        self.best = best
        augmented = self.config.data.evaluation_views == "augmented"
        self.validation = (
            open_evaluation(self.config, self.images) if augmented else self.plain_views
        )
        labelled = self.images.frame["label"].notna().to_numpy()
        rows = self.images.rows("val")
        self.validation_rows = rows[labelled[rows]]
        self.labels = self.images.frame["label"].iloc[self.validation_rows].to_numpy(int)

    def close(self) -> None:
        """Stop the loader threads."""
        super().close()
        self.validation.close()

    def close_epoch(self) -> dict[str, Any]:
        """Prune; the task's figures, and how evenly the epoch's images filled the centres."""
        counts = distributed.sum_over_ranks(self.task.counts.clone())
        filled = occupancy.occupancy(counts, self.task.active)
        return {
            **super().close_epoch(),
            "occupancy_min": filled.smallest / max(filled.total, 1),
            "effective_centers": filled.effective,
        }

    def observe_epoch(self, epoch: int, step: int) -> dict[str, Any]:
        """The pretext stage's figures, centres left and the validation AUROC."""
        figures = super().observe_epoch(epoch, step)
        active, total = int(self.task.active.sum()), int(self.task.active.numel())
        for problem in guards.check_centers(active, total, epoch):
            self.reporter.warn("finetune", problem, epoch=epoch, step=step)
        every = self.config.finetune.validate_every
        last = epoch == self.schedule.epochs - 1
        if every and (last or (epoch + 1) % every == 0) and len(set(self.labels)) == 2:
            labels, scores = self._validation_scores()
            for problem in guards.check_scores(scores):
                self.reporter.warn("finetune", problem, epoch=epoch, step=step)
            if len(set(labels)) == 2:
                figures["val_auroc"] = auroc(labels, scores.numpy())
                self._keep_best(epoch, figures["val_auroc"])
        return figures

    def _validation_scores(self) -> tuple[np.ndarray, Tensor]:
        """Labels and scores of the labelled validation images that can be read."""
        found = embed(
            self.task.embedder,
            self.validation,
            self.validation_rows,
            batch_size=self.config.score.batch_size,
            stopper=self.stopper,
            name="validation",
            images=self.images,
        )
        labels = self.labels[np.isin(self.validation_rows, found.rows)]
        return labels, self.task.distance(found.z.to(self.device))[0].cpu()

    def _keep_best(self, epoch: int, value: float) -> None:
        if distributed.is_main() and value > _best_before(self.best, epoch):
            weights = {k: v.detach().cpu().contiguous() for k, v in self.task.state_dict().items()}
            self.best.mkdir(parents=True, exist_ok=True)
            write_atomic(self.best / "weights.safetensors", lambda path: save_file(weights, path))
            digest = sha256(self.best / "weights.safetensors")
            note = json.dumps({"epoch": epoch, "val_auroc": value, "sha256": digest})
            write_atomic(self.best / "best.json", note)


def check_centers(config: Config, images: Images) -> Rows:
    """Rows that k-means sees: training images not known to be abnormal.

    Raises:
        InputError: fewer such images than centres.
    """
    rows = images.training_rows("finetune")
    rows = rows[images.semi_label.numpy()[rows] != KNOWN_ABNORMAL]
    _enough(len(rows), config.finetune.centers)
    return rows


def _enough(images: int, centers: int) -> None:
    if images < centers:
        raise InputError(
            f"finetune.centers is {centers}, but only {images} training images "
            f"are not known to be abnormal; allowed: 1 to {images}"
        )


def initial_centers(
    config: Config,
    images: Images,
    embedder: Embedder,
    reporter: Reporter | None,
    stopper: Stopper,
) -> Tensor:
    """Stage 2: k-means centres of the training images not known to be abnormal.

    `reporter`, if given, shows the progress and notes how the images spread over the centres.

    Returns:
        (K, D) float32; coordinates with 0 < |c| < `finetune.center_epsilon` are pushed to it.

    Raises:
        InputError: fewer such images than centres.
    """
    options = config.finetune
    rows = check_centers(config, images)
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
            images=images,
        ).z
    _enough(len(z), options.centers)
    found = first_rank_alone(
        lambda: kmeans(z, options.centers, seed=config.seed, restarts=10), stopper
    )
    if found and reporter:
        filled = occupancy.occupancy(found.counts, found.counts >= 0)
        text = f"k-means: {occupancy.describe(filled)}; {options.centers} centres were asked for"
        reporter.log(kind="note", stage="finetune", epoch=0, step=0, message=text)
    centers = distributed.broadcast_object(found and found.centers.float())
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
        # Placed first: weights are read in the precision of what takes them up.
        place(embedder, config, device)
        embedder.encoder.load_state_dict(
            pretrained_embedder(config, images, run).encoder.state_dict()
        )
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
    place(task, config, device)
    synchronise_parameters(task)
    engine = make_engine(
        task, config.engine, optimizer=options.optimizer, weight_decay=options.weight_decay
    )
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
        train(engine, stage, folder, reporter, stopper, config.engine)
    finally:
        stage.close()


def is_damaged(run: Path) -> bool:
    """Whether the last checkpoint of stage 3 is there but damaged: its steps must be done again."""
    damaged = False
    if distributed.is_main():
        damaged = bool(checkpoint.newest(run / "checkpoints" / "finetune")[1])
    return bool(distributed.broadcast_object(damaged))


def finetuned_task(config: Config, images: Images, run: Path, which: str = "last") -> FinetuneTask:
    """The task that stage 3 left in `run`, at the last or the best validated epoch.

    Raises:
        InputError: stage 3 is not finished there, or what it kept as the best is damaged.
    """
    if which == "best":
        weights = _best_weights(run / "checkpoints" / "best")
    else:
        found, _ = checkpoint.newest(run / "checkpoints" / "finetune")
        if found is None or found.step < total_steps(
            config.finetune, "finetune", images, config.engine.accumulate
        ):
            raise InputError(f"{run}: fine-tuning is not finished; run `selftaught finetune` first")
        weights = found.weights
    embedder = new_embedder(config, config.seed)
    task = FinetuneTask(
        embedder, weights["centers"], eta=config.finetune.eta, gamma=config.finetune.gamma
    )
    place(task, config, torch.device("cpu")).load_state_dict(weights)
    return task.eval()


def _kept(folder: Path) -> tuple[int, float] | None:
    """Epoch and validation AUROC of the best epoch that was kept; None: there is none, or damaged.

    Damage is no error here: what was kept is replaced, or `_best_weights` says so.
    """
    try:
        facts = json.loads((folder / "best.json").read_text(encoding="utf-8"))
        whole = sha256(folder / "weights.safetensors") == facts["sha256"]
        return (int(facts["epoch"]), float(facts["val_auroc"])) if whole else None
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def _best_before(folder: Path, epoch: int) -> float:
    """The best validation AUROC of the epochs before `epoch`, -1 for none.

    What was kept at `epoch` or later is of steps that were lost and are done again.
    """
    kept = _kept(folder)
    return kept[1] if kept and kept[0] < epoch else -1.0


def _best_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / "weights.safetensors"
    if _kept(folder) is None:
        raise InputError(f"{path}: checksum differs from best.json: damaged file")
    return load_file(path)
