"""A stage of a run: its task begins, trains and is observed. Knows no method."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught import distributed
from selftaught.data.pipeline import Pipeline
from selftaught.data.plan import plain
from selftaught.evaluation.metrics import auroc
from selftaught.methods import Task
from selftaught.models.sync_norm import synchronise_norms
from selftaught.training import checkpoint, guards
from selftaught.training.averaging import recalibrate
from selftaught.training.bank import score_rows
from selftaught.training.begin import Beginning
from selftaught.training.checkpoint import Checkpoint
from selftaught.training.config import STAGES, EngineConfig
from selftaught.training.context import FINETUNE, Run
from selftaught.training.contract import check_scorer, check_trained
from selftaught.training.ddp import TorchEngine
from selftaught.training.engine import Batch, Engine
from selftaught.training.events import part
from selftaught.training.inference import infer
from selftaught.training.inputs import (
    Rows,
    global_batch_size,
    training_batches,
)
from selftaught.training.kept_features import open_evaluation, open_views
from selftaught.training.loop import train
from selftaught.training.resume import new_figures
from selftaught.training.schedule import Schedule
from selftaught.training.tasks import new_task, place, total_steps


def make_engine(task: Task, config: EngineConfig, *, optimizer: Any, weight_decay: float) -> Engine:
    """The engine that `config` names, around a task that is on its device.

    The task's batch norms are replaced by synchronised ones where several ranks train.

    Raises:
        InputError: DeepSpeed is asked for and cannot be had, or cannot run this task.
    """
    if config.sync_batch_norm == "auto":
        synchronise_norms(task)
    settings = {
        "weight_decay": weight_decay,
        "optimizer": optimizer,
        "precision": config.precision,
        "clip": config.clip,
    }
    if config.kind == "deepspeed":
        from selftaught.training.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(
            task, accumulate=config.accumulate, zero_stage=config.zero_stage, **settings
        )
    return TorchEngine(task, **settings)


def train_stage(run: Run, role: str) -> None:
    """Train a stage's method to its last step, or go on with it.

    Leaves `checkpoints/ROLE` with the last step done and, of the stage that scores, the best
    validated epoch in `checkpoints/best`.
    """
    folder, options = run.checkpoints(role), run.options(role)
    task = place(new_task(run.config, run.images, role), run.device)
    _warn(run, role, task)
    steps = total_steps(run.config, run.images, role)
    begins = steps == 0 or type(task).begin is not Task.begin
    begun = distributed.is_main() and checkpoint.newest(folder)[0] is not None
    if begins and not distributed.broadcast_object(begun):
        with part(run.reporter.on_event, "begin"):
            task.begin(Beginning(run, role, task))
        if distributed.is_main():
            # Step 0 holds what began: a run killed later never draws it again.
            weights = task.state_dict()
            start = Checkpoint(step=0, weights=weights, optimizer={}, figures=new_figures())
            checkpoint.save(folder, start)
        distributed.barrier()
    if role == FINETUNE:
        check_scorer(task, run.device, run.kind)
    if steps == 0:
        return
    check_trained(task)
    engine = make_engine(
        task,
        run.config.engine,
        optimizer=options.optimizer,
        weight_decay=options.weight_decay,
    )
    with closing(TrainingStage(run, role, task)) as stage:
        train(engine, stage, folder, run.reporter, run.stopper, run.config.engine)


def _warn(run: Run, role: str, task: Task) -> None:
    """What a person should know before a stage learns."""
    parts = run.config.engine.accumulate
    if parts > 1 and task.whole_batch:
        run.reporter.warn(
            role,
            f"engine.accumulate is {parts}: method {task.options.method} has a loss over a whole "
            "batch, of which each micro-batch gives its own (negatives, or what a mean is over)",
        )
    if (by := run.config.score.by) != "model" and task.frozen() is not None:
        run.reporter.warn(
            role,
            f"score.by is {by!r}, which compares features, and method {task.options.method} holds "
            "still what they come from: nothing that it learns changes the score",
        )
    options, trains = run.options(role), len(run.images.training_rows(role))
    if options.epochs and options.batch_size > trains:
        size = global_batch_size(f"{role}.batch_size", options.batch_size, trains, parts)
        run.reporter.warn(
            role,
            f"{role}.batch_size is {options.batch_size}, but {trains} images train: each batch "
            f"holds {size}",
        )
    first, here = (run.options(name).augment.input_range for name in (next(iter(STAGES)), role))
    if first != here:
        run.reporter.warn(
            role,
            f"pre-training saw inputs in {first}, fine-tuning sees {here}: batch "
            "statistics do not carry over (preset paper does this on purpose)",
        )


class TrainingStage:
    """What the loop is given: schedule, batches, and what is observed between epochs."""

    def __init__(self, run: Run, role: str, task: Task) -> None:
        self.run, self.role, self.task = run, role, task
        self.options = options = run.options(role)
        images, parts = run.images, run.config.engine.accumulate
        self.rows = images.training_rows(role)
        self.batch_size = global_batch_size(
            f"{role}.batch_size", options.batch_size, len(self.rows), parts
        )
        self.schedule = Schedule(
            stage=role,
            epochs=options.epochs,
            steps_per_epoch=total_steps(run.config, images, role) // options.epochs,
            lr=options.lr,
            milestones=tuple(options.milestones),
            accumulate=parts,
            save_every=run.config.engine.save_every,
        )
        # The last stage scores; it is validated on what it will be scored on.
        self.scores = role == list(STAGES)[-1] and task.scorer() is not None
        labelled = images.frame["label"].notna().to_numpy()
        rows = images.rows("val")
        self.validation_rows = rows[labelled[rows]]
        self.labels = images.frame["label"].iloc[self.validation_rows].to_numpy(int)
        self.first_spread: float | None = None
        self._open: dict[str, Pipeline] = {}

    def _views(self, name: str) -> Pipeline:
        """Views for training, probes ("plain") or validation; all ranks open them when first used.

        Only then has the task the weights whose features may be kept.
        """
        run, task, augment = self.run, self.task, self.options.augment
        if name == "validation" and run.config.data.evaluation_views == "plain":
            name = "plain"
        if name not in self._open:
            every = np.union1d(self.rows, self.validation_rows)
            if name == "training":
                self._open[name] = open_views(
                    run, task, self.role, augment, self.rows, views=task.views, training=True
                )
            elif name == "validation":
                self._open[name] = open_evaluation(run, task, every)
            else:
                self._open[name] = open_views(run, task, name, plain(augment), every)
        return self._open[name]

    def close(self) -> None:
        """Stop the loader threads."""
        for pipeline in self._open.values():
            pipeline.close()

    def batches(self, first_step: int) -> Iterator[Batch]:
        """This rank's batches from `first_step` on."""
        if first_step == 0 and (z := self._plain_features()) is not None:
            spread = guards.spread(z)
            self.run.reporter.log(kind="note", stage=self.role, epoch=0, step=0, spread=spread)
        return training_batches(
            self.run.images,
            self._views("training"),
            self.rows,
            stage=self.role,
            batch_size=self.batch_size,
            accumulate=self.schedule.accumulate,
            first_step=first_step,
            steps=self.schedule.steps,
            input_range=self.options.augment.input_range,
            device=self.run.device,
            kind=self.run.kind,
            known_share=self.task.known_share,
            strata=self.options.strata,
        )

    def renew(self, *, scoring: bool = False) -> None:
        """Let the task change what needs the images; costs nothing where it does not."""
        if scoring and (images := self.options.recalibrate):
            recalibrate(self.task, Beginning(self.run, self.role, self.task), images)
        if type(self.task).renew is not Task.renew:
            self.task.renew(Beginning(self.run, self.role, self.task))

    @property
    def pending(self) -> bool:
        """Whether this rank skipped files that the others have not heard of."""
        return self.run.images.pending

    def share(self) -> None:
        """Let all ranks hear of skipped files; all call it."""
        self.run.images.share()

    def files(self, ids: Tensor) -> list[str]:
        """Paths of samples."""
        return self.run.images.paths(ids)

    def observe_epoch(self, epoch: int, step: int) -> dict[str, Any]:
        """Spread and rank of fixed training images' embeddings, validation AUROC, all guards."""
        figures, problems = self._observe_features(epoch, step)
        problems += self.task.check_epoch(epoch)
        every, last = self.options.validate_every, epoch == self.schedule.epochs - 1
        if self.scores and every and (last or (epoch + 1) % every == 0):
            figures |= self._validate(epoch, problems)
        for problem in problems:
            self.run.reporter.warn(self.role, problem, epoch=epoch, step=step)
        return figures

    def _validate(self, epoch: int, problems: list[str]) -> dict[str, float]:
        """AUROC of the labelled validation images that can be read; the best epoch is kept.

        Where the score compares with training images, these are embedded anew each time: a forward
        pass of them all, some tenth of an epoch's work at one view an image.
        """
        if len(set(self.labels)) < 2:
            return {}
        _, outputs, rows = score_rows(
            self.run,
            self.task,
            self._views("validation"),
            self.validation_rows,
            name="validation",
            bank=self.run.config.score.by != "model",
        )
        scores = outputs["score"]
        problems += guards.check_scores(scores)
        labels = self.labels[np.isin(self.validation_rows, rows)]
        if len(set(labels)) < 2:
            return {}
        value = auroc(labels, scores.numpy())
        if distributed.is_main():
            checkpoint.keep_best(self.run.checkpoints("best"), self.task.state_dict(), epoch, value)
        return {"val_auroc": value}

    def _observe_features(self, epoch: int, step: int) -> tuple[dict[str, Any], list[str]]:
        z = self._plain_features()
        if z is None:
            return {}, []
        now = guards.spread(z)
        if self.first_spread is None:
            self.first_spread = self._logged_spread(now)
        problems = guards.check_spread(now, self.first_spread)
        # Running statistics need some tens of steps before they can agree with anything.
        if step >= 100 and (
            epoch == self.schedule.epochs - 1 or step < 100 + self.schedule.steps_per_epoch
        ):
            problems += guards.check_batch_statistics(self._with_batch_statistics(), z)
        return {"spread": now, "effective_rank": guards.effective_rank(z)}, problems

    @property
    def _probe(self) -> Rows:
        return self.rows[: min(128, max(32, len(self.rows) // 8))]

    def _plain_features(self) -> Tensor | None:
        """Z of the probe images without augmentation in eval mode; None: no features."""
        if type(self.task).features is Task.features:
            return None
        outputs, _ = infer(
            self.run,
            lambda images, _: {"z": self.task.features(images)[1]},  # type: ignore[index]
            [self.task],
            self._views("plain"),
            self._probe,
            name=self.role,
        )
        return outputs["z"]

    def _logged_spread(self, now: float) -> float:
        for line in self.run.reporter.lines():
            if line["stage"] == self.role and "spread" in line:
                return float(line["spread"])
        return now

    @torch.no_grad()
    def _with_batch_statistics(self) -> Tensor:
        kept = {name: buffer.clone() for name, buffer in self.task.named_buffers()}
        views = [b.views[:, 0] for b in self._views("plain").batches([(0, self._probe)])]
        self.task.train()
        features = self.task.features(torch.cat(views).to(self.run.device, self.run.kind))
        self.task.load_state_dict(kept, strict=False)
        assert features is not None
        return features[1].float().cpu()
