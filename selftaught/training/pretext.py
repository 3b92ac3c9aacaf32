"""Stage 1: contrastive pre-training, or what stands in for it."""

from pathlib import Path

import torch

from selftaught import distributed
from selftaught.errors import InputError
from selftaught.models.heads import Embedder
from selftaught.models.weights import load_encoder_weights
from selftaught.training import checkpoint
from selftaught.training.checkpoint import Checkpoint
from selftaught.training.config import Config
from selftaught.training.engine import make_engine
from selftaught.training.inputs import (
    Images,
    open_plain,
)
from selftaught.training.loop import synchronise_parameters, train
from selftaught.training.progress import Reporter
from selftaught.training.stages import TrainingStage, new_embedder, place, total_steps
from selftaught.training.stop import Stopper, first_rank_alone
from selftaught.training.tasks import PretextTask


class PretextStage(TrainingStage[PretextTask]):
    """Contrastive pre-training; nothing happens between epochs but the guards."""


def pretext_task(config: Config, device: torch.device) -> PretextTask:
    """The task of stage 1 with fresh weights."""
    task = PretextTask(
        new_embedder(config, config.seed),
        temperature=config.pretext.temperature,
        method="supcon" if config.pretext.method == "supcon" else "ntxent",
    )
    return place(task, config, device)


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
        if not distributed.broadcast_object(checkpoint.newest(folder)[0] is not None):
            untrained = first_rank_alone(lambda: _untrained(config, images, device), stopper)
            if untrained:
                checkpoint.save(folder, untrained)
        distributed.barrier()
        return
    task = pretext_task(config, device)
    synchronise_parameters(task)
    engine = make_engine(
        task,
        config.engine,
        optimizer=config.pretext.optimizer,
        weight_decay=config.pretext.weight_decay,
    )
    if config.engine.accumulate > 1:
        reporter.warn(
            "pretext",
            f"engine.accumulate is {config.engine.accumulate}: each view sees "
            "only the negatives of its own micro-batch",
        )
    stage = PretextStage(config, config.pretext, "pretext", images, task, reporter, stopper)
    try:
        train(engine, stage, folder, reporter, stopper, config.engine)
    finally:
        stage.close()


def _untrained(config: Config, images: Images, device: torch.device) -> Checkpoint:
    task = pretext_task(config, device)
    if config.pretext.method == "imagenet":
        load_encoder_weights(task.embedder.encoder, Path(config.model.weights))
    else:
        # Random weights have no batch statistics yet; eval mode would see statistics of nothing.
        rows = images.rows("train")[:512]
        with torch.no_grad(), open_plain(images, config.finetune.augment) as pipeline:
            task.train()
            for batch in pipeline.batches((0, rows[i : i + 32]) for i in range(0, len(rows), 32)):
                if len(batch.ids) > 1:  # one image may have no statistics
                    task.embedder(batch.views[:, 0].to(device))
    return Checkpoint(step=0, weights=task.state_dict(), optimizer={}, figures={})


def pretrained_embedder(config: Config, images: Images, run: Path) -> Embedder:
    """The embedder that stage 1 left in `run`.

    Raises:
        InputError: stage 1 is not finished there.
    """
    found, _ = checkpoint.newest(run / "checkpoints" / "pretext")
    if found is None or found.step < total_steps(
        config.pretext, "pretext", images, config.engine.accumulate
    ):
        raise InputError(f"{run}: pre-training is not finished; run `selftaught pretrain` first")
    task = pretext_task(config, torch.device("cpu"))
    task.load_state_dict(found.weights)
    return task.embedder
