"""THE loop: one pass over steps that trains every method and survives being killed at any of them.

    selftaught run --data.manifest images.csv --out my-run              # one process
    launch/torchrun.sh run --data.manifest images.csv --out my-run      # all GPUs of a machine
    sbatch --nodes 8 launch/slurm.sbatch run --config launch/configs/cluster.yaml ...

Order of samples, augmentation and learning rate are functions of the step alone, so that a
checkpoint is weights, optimizer and `step`, and a resumed run repeats an uninterrupted one.
"""

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selftaught import distributed
from selftaught.methods.task import loss_of
from selftaught.training import checkpoint
from selftaught.training.averaging import Averaged
from selftaught.training.bad_numbers import buffers_kept, report_bad_numbers
from selftaught.training.compiling import compile_backbone
from selftaught.training.config import EngineConfig
from selftaught.training.engine import Batch, Engine, split_batch
from selftaught.training.progress import Reporter
from selftaught.training.resume import add_outputs, finish_epoch, new_figures, restore, save
from selftaught.training.schedule import Stage
from selftaught.training.stop import Stopper, StopRun
from selftaught.training.watch import Watch
from selftaught.training.words import Exchange, Turn, Word

SECONDS_BETWEEN_SAVES = 60.0


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
        MachineError: a loss or gradient is not finite on some rank; nothing was updated with it or
            after it. The host learns of it a turn later.
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
        exchange, words = Exchange(watch.device), list[Word]()

        def hear(newest: bool) -> list[Word]:
            return _hear(exchange.read(newest), engine, stage, watch, figures) or words

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
            with buffers_kept(task, exchange.bad):
                task.before_step(step)
                for player in task.turns(step):
                    loss = _gradient(engine, parts, player, watch, figures)
                    learnt = torch.stack([loss, engine.gradient_norm(player).double()])
                    facts = [stopper.code, due, stage.pending, *watch.figures().values()]
                    exchange.send(Turn(step, player, parts), learnt, facts)
                    # Of the turn before: the device has this one to do meanwhile.
                    words = hear(engine.waits)
                    engine.step(plan.rate(step), player, exchange.bad)
            averaged.update(step)
            watch.done(step)
            step += 1
            if epoch_done or due:
                words = hear(True)
            if epoch_done:
                figures["closing"] = task.close_epoch()
                engine.sync_buffers()  # all ranks observe one model
                averaged.renew(stage)
                figures["machines"] = watch.summary(words, True)
                if step == plan.steps:
                    watch.report(figures["machines"])
            stopping = max((int(word.stop) for word in words), default=0)
            if any(word.save for word in words) or stopping or step == plan.steps:
                words = hear(True)  # nothing is saved before it is known to be good
                save(engine, averaged, folder, step, figures)
                saved_at, words = time.monotonic(), [word._replace(save=0) for word in words]
            if stopping:
                raise StopRun(stopping)
            shown = {"loss": words[0].loss, **watch.progress(words)} if words else {}
            reporter.advance(plan.stage, step, plan.steps, **shown)
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


def _hear(
    turns: Iterable[tuple[Turn, list[Word]]],
    engine: Engine,
    stage: Stage,
    watch: Watch,
    figures: dict[str, Any],
) -> list[Word]:
    """Log what all ranks said in some turns, or raise where it is not finite; the last's words."""
    plan, words = stage.schedule, list[Word]()
    for turn, words in turns:
        mine = words[distributed.rank()]
        if not all(math.isfinite(word.loss + word.norm) for word in words):
            report_bad_numbers(engine, turn, mine.loss, mine.norm, stage.files)
        if any(word.skipped for word in words):
            stage.share()
        if turn.player != engine.task.turns(turn.step)[-1]:
            continue
        figures["loss_sum"] += mine.loss
        figures["loss_steps"] += 1
        if plan.logged(turn.step):
            watch.reporter.log(
                kind="step",
                stage=plan.stage,
                epoch=plan.epoch(turn.step + 1),
                step=turn.step + 1,
                loss=sum(word.loss for word in words) / len(words),
                lr=plan.rate(turn.step),
                **watch.summary(words, False),
            )
    return words
