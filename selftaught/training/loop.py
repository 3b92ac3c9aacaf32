"""THE loop: one pass over steps that trains every stage and survives being killed at any of them.

Order of samples, augmentation and learning rate are functions of the step alone, so that a
checkpoint is weights, optimizer and `step`, and a resumed run repeats an uninterrupted one.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from selftaught import distributed
from selftaught.errors import InputError
from selftaught.training import checkpoint
from selftaught.training.bad_numbers import report_bad_numbers, split_batch
from selftaught.training.checkpoint import Checkpoint
from selftaught.training.compiling import compile_encoder
from selftaught.training.config import EngineConfig
from selftaught.training.engine import Batch, Engine
from selftaught.training.progress import Reporter
from selftaught.training.stop import Stopper, StopRun
from selftaught.training.watch import Watch

SECONDS_BETWEEN_SAVES = 60.0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast a stage learns."""

    stage: str
    epochs: int
    steps_per_epoch: int
    lr: float
    milestones: tuple[int, ...]
    accumulate: int = 1
    save_every: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole stage."""
        return self.epochs * self.steps_per_epoch

    def epoch(self, steps_done: int) -> int:
        """0-based epoch of the last of `steps_done` steps."""
        return (steps_done - 1) // self.steps_per_epoch

    def rate(self, step: int) -> float:
        """Learning rate of the 0-based `step`: a tenth less after each milestone epoch."""
        epoch = step // self.steps_per_epoch
        return self.lr * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)


class Stage(Protocol):
    """What the loop is given about one stage."""

    schedule: Schedule

    def batches(self, first_step: int) -> Iterator[Batch]:
        """This rank's batches from `first_step` on, on the device."""

    def close_epoch(self) -> dict[str, Any]:
        """Change the task between epochs (pruning); runs before the save."""

    def observe_epoch(self, epoch: int, step: int) -> dict[str, Any]:
        """Look at the task without changing it (validation, guards); runs after the save."""

    def files(self, ids: Tensor) -> list[str]:
        """Paths of samples, for messages."""


def restore(engine: Engine, folder: Path, reporter: Reporter, stage: str) -> Checkpoint | None:
    """Load the newest whole checkpoint, if any, into task and optimizer.

    Raises:
        InputError: the ranks find different ones.
    """
    found, problems = checkpoint.newest(folder)
    for problem in problems:
        reporter.warn(stage, problem)
    steps = distributed.gather_objects(found.step if found else None)
    if len(set(steps)) > 1:
        raise InputError(
            f"{folder}: rank 0 finds step {steps[0]} here, the ranks {steps}; the run folder must "
            "be on a file system that all nodes share"
        )
    if problems and distributed.is_main():
        checkpoint.put_aside_after(folder, found.step if found else -1)
    if found is not None:
        engine.task.load_state_dict(found.weights)
        engine.task.after_load()
        engine.load_state(found.optimizer)
    return found


def train(
    engine: Engine,
    stage: Stage,
    folder: Path,
    reporter: Reporter,
    stopper: Stopper,
    options: EngineConfig | None = None,
) -> None:
    """Train until the schedule's end, from the newest checkpoint in `folder` on.

    Args:
        engine: how gradients move, holding the task.
        stage: schedule, data and what happens between epochs.
        folder: the stage's checkpoints.
        reporter: metrics and progress.
        stopper: asked at every step.
        options: compile, profile and peak_tflops; none of them by default.

    Raises:
        InputError: the encoder cannot be compiled here.
        MachineError: a loss or gradient is not finite on some rank; nothing was updated with it.
            Or the device is out of memory.
        StopRun: a signal arrived; the state was saved first.
    """
    plan = stage.schedule
    found = restore(engine, folder, reporter, plan.stage)
    step = found.step if found else 0
    figures: dict[str, Any] = found.figures if found else _new_figures()
    reporter.forget_after(plan.stage, step)
    if step and step % plan.steps_per_epoch == 0:
        # A run killed between save and observation still owes the epoch's line.
        if not distributed.broadcast_object(reporter.has_epoch(plan.stage, plan.epoch(step))):
            _finish_epoch(stage, reporter, step, figures)
        figures = _new_figures()
    if step == plan.steps:
        return
    if distributed.is_main():
        checkpoint.check_room(folder, engine.task.state_dict())
    options = options or EngineConfig()
    reporter.start_bar(plan.stage, plan.steps, step)
    with Watch(engine, plan.stage, plan.steps, options, reporter) as watch:
        _steps(engine, stage, folder, reporter, stopper, watch, step, figures)
    reporter.end_bar()


def _steps(
    engine: Engine,
    stage: Stage,
    folder: Path,
    reporter: Reporter,
    stopper: Stopper,
    watch: Watch,
    step: int,
    figures: dict[str, Any],
) -> None:
    plan, device, first = stage.schedule, next(engine.task.parameters()).device, step
    saved_at, source = time.monotonic(), stage.batches(step)
    while step < plan.steps:
        logged = step < 20 or (step + 1) % max(1, plan.steps_per_epoch // 50) == 0
        batch = watch.next(source, step, timed=logged)
        if step == first:
            _prepare(engine, batch, plan, watch, step)
        loss = optimize(engine, batch, plan.rate(step), plan.accumulate, stage.files, step, watch)
        watch.done(step)
        step += 1
        figures["loss_sum"] += loss
        figures["loss_steps"] += 1
        if logged:
            _log_step(reporter, plan, step, loss, watch)

        epoch_done = step % plan.steps_per_epoch == 0
        if epoch_done:
            figures["closing"] = stage.close_epoch()
            figures["machines"] = watch.summary(distributed.gather_objects(watch.own()), True)
            if step == plan.steps:
                watch.tell(figures["machines"])
        stopping = stopper.requested(device)
        due = (
            step % plan.save_every == 0
            if plan.save_every
            else epoch_done and time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES
        )
        if distributed.any_rank(due, device) or stopping or step == plan.steps:
            save(engine, folder, step, figures)
            saved_at = time.monotonic()
        if stopping:
            raise stopper.exit()
        reporter.advance(plan.stage, step, plan.steps, loss=loss, **watch.progress())
        if epoch_done:
            engine.sync_buffers()  # all ranks look at one model
            try:
                _finish_epoch(stage, reporter, step, figures)
            except StopRun:
                save(engine, folder, step, figures)
                raise
            figures = _new_figures()
            watch.start_epoch()


def _prepare(engine: Engine, batch: Batch, plan: Schedule, watch: Watch, step: int) -> None:
    """Before the first step of this process: count its arithmetic, compile the encoder."""
    part = split_batch(batch, plan.accumulate)[0]
    watch.begin(part, step)
    if watch.options.compile:
        compile_encoder(engine, part, watch.reporter, plan.stage, step)
    watch.start_epoch(images=batch["ids"].shape[0])


def optimize(
    engine: Engine,
    batch: Batch,
    lr: float,
    parts: int,
    files: Callable[[Tensor], list[str]],
    step: int,
    watch: Watch,
) -> float:
    """One optimizer step over `parts` micro-batches.

    Returns:
        The loss averaged over micro-batches of this rank.

    Raises:
        MachineError: loss or gradient is not finite on some rank; raised before the update.
    """
    total = 0.0
    micro = split_batch(batch, parts)
    for number, piece in enumerate(micro):
        with engine.accumulate(last=number == len(micro) - 1):
            with watch.forward():
                loss = engine.forward(piece)["loss"]
            engine.backward(loss, len(micro))
        total += float(loss.detach()) / len(micro)
    norm = float(engine.gradient_norm())
    bad = not (math.isfinite(total) and math.isfinite(norm))
    if distributed.any_rank(bad, next(engine.task.parameters()).device):
        report_bad_numbers(engine, micro, total, norm, step, files)
    engine.step(lr)
    return total


def save(engine: Engine, folder: Path, step: int, figures: dict[str, Any]) -> None:
    """Write a checkpoint of `step` done steps (rank 0 writes, all ranks take part)."""
    engine.sync_buffers()
    engine.task.before_save()
    optimizer = engine.state()
    # Every rank goes on from what the first one saves, and the epoch's loss is the ranks' mean.
    sums = distributed.gather_objects(figures["loss_sum"])
    figures = figures | {"loss_sum": sum(sums) / len(sums)}
    if distributed.is_main():
        weights: dict[str, Tensor] = engine.task.state_dict()
        checkpoint.save(
            folder,
            Checkpoint(step=step, weights=weights, optimizer=optimizer, figures=figures),
        )
    distributed.barrier()


def _new_figures() -> dict[str, Any]:
    return {"loss_sum": 0.0, "loss_steps": 0}


def _log_step(reporter: Reporter, plan: Schedule, step: int, loss: float, watch: Watch) -> None:
    everyone = distributed.gather_objects((loss, watch.own()))
    reporter.log(
        kind="step",
        stage=plan.stage,
        epoch=plan.epoch(step),
        step=step,
        loss=sum(one for one, _ in everyone) / len(everyone),
        lr=plan.rate(step - 1),
        **watch.summary([own for _, own in everyone], False),
    )


def _finish_epoch(stage: Stage, reporter: Reporter, step: int, figures: dict[str, Any]) -> None:
    plan, epoch = stage.schedule, stage.schedule.epoch(step)
    observed = stage.observe_epoch(epoch, step)
    loss = figures["loss_sum"] / max(figures["loss_steps"], 1)
    mean = sum(distributed.gather_objects(loss)) / distributed.world_size()
    reporter.log(
        kind="epoch",
        stage=plan.stage,
        epoch=epoch,
        step=step,
        loss=mean,
        lr=plan.rate(step - 1),
        **figures.get("machines", {}),
        **figures.get("closing", {}),
        **observed,
    )


@torch.no_grad()
def synchronise_parameters(task: torch.nn.Module) -> None:
    """Start all ranks from rank 0's weights."""
    for tensor in [*task.parameters(), *task.buffers()]:
        distributed.broadcast_tensor(tensor.data)
