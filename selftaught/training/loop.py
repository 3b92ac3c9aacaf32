"""THE loop: one pass over steps that trains every method and survives being killed at any of them.

    selftaught run --data.manifest images.csv --out my-run              # one process
    launch/torchrun.sh run --data.manifest images.csv --out my-run      # all GPUs of a machine
    sbatch --nodes 8 launch/slurm.sbatch run --config launch/configs/cluster.yaml ...

Order of samples, augmentation and learning rate are functions of the step alone, so that a
checkpoint is weights, optimizer and `step`, and a resumed run repeats an uninterrupted one.
"""

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftaught import distributed
from selftaught.methods.task import loss_of
from selftaught.training import checkpoint
from selftaught.training.averaging import Averaged
from selftaught.training.bad_numbers import report_bad_numbers
from selftaught.training.compiling import compile_backbone
from selftaught.training.config import EngineConfig
from selftaught.training.engine import Batch, Engine, split_batch
from selftaught.training.progress import Reporter
from selftaught.training.resume import add_outputs, finish_epoch, new_figures, restore, save
from selftaught.training.schedule import Stage
from selftaught.training.stop import Stopper, StopRun
from selftaught.training.watch import Watch

SECONDS_BETWEEN_SAVES = 60.0


class Word(NamedTuple):
    """What all ranks hear of one rank in a step, all of it numbers.

    Its loss and gradient, what it asks for (exit code of a signal, a save, to list skipped files)
    and what its machine does.
    """

    loss: float
    norm: float
    stop: float
    save: float
    skipped: float
    images_per_s: float
    data_wait: float
    own_s: float
    peak_memory_gib: float


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
        stage: schedule, data and what is observed between epochs.
        folder: the stage's checkpoints.
        reporter: metrics and progress.
        stopper: asked at every step.
        options: compile, profile and peak_tflops; none of them by default.

    Raises:
        InputError: the backbone cannot be compiled here.
        MachineError: a loss or gradient is not finite on some rank; nothing was updated with it.
            Or the device is out of memory.
        StopRun: a signal arrived; the state was saved first.
    """
    plan, task, options = stage.schedule, engine.task, options or EngineConfig()
    averaged = Averaged(task)
    step, figures = restore(engine, averaged, stage, folder, reporter)
    if step == plan.steps:
        return
    if distributed.is_main():
        checkpoint.check_room(folder, task.state_dict(), averaged.state)
    reporter.start_bar(plan.stage, plan.steps, step)
    with Watch(engine, plan.stage, plan.steps, options, reporter) as watch:
        batches, saved_at, first = stage.batches(step), time.monotonic(), step
        while step < plan.steps:
            batch = watch.next(batches, step)
            parts = split_batch(batch, plan.accumulate)
            if step == first:
                watch.begin(parts[0], step)
                if options.compile:
                    compile_backbone(engine, parts[0], reporter, plan.stage, step)
                watch.start_epoch(images=batch["ids"].shape[0])
            epoch_done = (step + 1) % plan.steps_per_epoch == 0
            due = (
                (step + 1) % plan.save_every == 0
                if plan.save_every
                else epoch_done and time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES
            )
            reporter.on_event(
                "step", stage=plan.stage, step=step, engine=engine, batch=batch, files=stage.files
            )
            task.before_step(step)
            for player in task.turns(step):
                loss = _gradient(engine, parts, player, watch, figures)
                learnt = torch.stack([loss, engine.gradient_norm(player).double()])
                facts = [stopper.code, due, stage.pending, *watch.figures().values()]
                # The only wait of a step, for the device and for the other ranks.
                rows = distributed.gather_row(facts, learnt.device, learnt)
                words = [Word(*row) for row in rows]
                mine = words[distributed.rank()]
                if not all(math.isfinite(word.loss + word.norm) for word in words):
                    report_bad_numbers(
                        engine, parts, mine.loss, mine.norm, step, stage.files, player
                    )
                if any(word.skipped for word in words):
                    stage.share()
                engine.step(plan.rate(step), player)
            averaged.update(step)
            watch.done(step)
            step += 1
            stopping = max(int(word.stop) for word in words)
            figures["loss_sum"] += mine.loss
            figures["loss_steps"] += 1
            if plan.logged(step - 1):
                reporter.log(
                    kind="step",
                    stage=plan.stage,
                    epoch=plan.epoch(step),
                    step=step,
                    loss=sum(word.loss for word in words) / len(words),
                    lr=plan.rate(step - 1),
                    **watch.summary(words, False),
                )
            if epoch_done:
                figures["closing"] = task.close_epoch()
                engine.sync_buffers()  # all ranks observe one model
                averaged.renew(stage)
                figures["machines"] = watch.summary(words, True)
                if step == plan.steps:
                    watch.report(figures["machines"])
            if any(word.save for word in words) or stopping or step == plan.steps:
                save(engine, averaged, folder, step, figures)
                saved_at = time.monotonic()
            if stopping:
                raise StopRun(stopping)
            reporter.advance(
                plan.stage, step, plan.steps, loss=words[0].loss, **watch.progress(words)
            )
            if epoch_done:
                try:
                    finish_epoch(stage, averaged, reporter, step, figures)
                except StopRun:
                    save(engine, averaged, folder, step, figures)
                    raise
                figures = new_figures()
                watch.start_epoch()
    reporter.end_bar()


def _gradient(
    engine: Engine, parts: list[Batch], player: str, watch: Watch, figures: dict[str, Any]
) -> Tensor:
    """Add up one player's gradient over micro-batches; their mean loss, float64, not waited for."""
    total = torch.zeros((), dtype=torch.float64, device=next(engine.task.parameters()).device)
    for number, part in enumerate(parts):
        with engine.accumulate(last=number == len(parts) - 1):
            with watch.forward():
                loss, outputs = loss_of(engine.forward(part, player))
            add_outputs(figures, outputs)
            engine.backward(loss, len(parts))
        total += loss.detach().double() / len(parts)
    return total
