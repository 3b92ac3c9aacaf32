"""What a loop goes on with, what it saves, and what it writes at an epoch's end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from selftaught import distributed
from selftaught.errors import InputError
from selftaught.training import checkpoint
from selftaught.training.averaging import Averaged
from selftaught.training.checkpoint import Checkpoint
from selftaught.training.engine import Engine
from selftaught.training.progress import Reporter
from selftaught.training.schedule import Stage


def restore(
    engine: Engine, averaged: Averaged, stage: Stage, folder: Path, reporter: Reporter
) -> tuple[int, dict[str, Any]]:
    """Steps done and running figures of the newest whole checkpoint, which the task takes up.

    Raises:
        InputError: the ranks find different ones.
    """
    plan = stage.schedule
    latest, problems = checkpoint.newest(folder)
    for problem in problems:
        reporter.warn(plan.stage, problem)
    steps = distributed.gather_objects(latest.step if latest else None)
    if len(set(steps)) > 1:
        raise InputError(
            f"{folder}: rank 0 finds step {steps[0]} here, the ranks {steps}; the run folder must "
            "be on a file system that all nodes share"
        )
    if problems and distributed.is_main():
        checkpoint.put_aside_after(folder, latest.step if latest else -1)
    step, figures = 0, new_figures()
    if latest is not None:
        engine.task.load_state_dict(latest.weights)
        engine.task.after_load()
        averaged.load(latest.average)
        engine.load_state(latest.optimizer)
        step, figures = latest.step, new_figures() | latest.figures
    reporter.forget_after(plan.stage, step)
    if step and step % plan.steps_per_epoch == 0:
        # A run killed between save and observation still owes the epoch's line.
        if not distributed.broadcast_object(reporter.has_epoch(plan.stage, plan.epoch(step))):
            finish_epoch(stage, averaged, reporter, step, figures)
        figures = new_figures()
    return step, figures


def save(
    engine: Engine, averaged: Averaged, folder: Path, step: int, figures: dict[str, Any]
) -> None:
    """Write a checkpoint of `step` done steps (rank 0 writes, all ranks take part)."""
    engine.sync_buffers()
    averaged.share()
    engine.task.before_save()
    optimizer = engine.state()
    # Every rank goes on from what the first one saves, and the epoch's loss is the ranks' mean.
    sums = distributed.gather_objects(figures["loss_sum"])
    figures = figures | {"loss_sum": sum(sums) / len(sums), **_outputs_of_ranks(figures)}
    if distributed.is_main():
        weights: dict[str, Tensor] = engine.task.state_dict()
        checkpoint.save(
            folder,
            Checkpoint(
                step=step,
                weights=weights,
                optimizer=optimizer,
                figures=figures,
                average=averaged.state,
            ),
        )
    distributed.barrier()


def new_figures() -> dict[str, Any]:
    """Of an epoch that begins."""
    return {"loss_sum": 0.0, "loss_steps": 0, "outputs": {}, "output_counts": {}}


def add_outputs(figures: dict[str, Any], outputs: Mapping[str, Tensor]) -> None:
    """Add a micro-batch's figures to those of the epoch, without waiting for the device."""
    sums, counts = figures["outputs"], figures["output_counts"]
    for name, value in outputs.items():
        sums[name] = sums.get(name, 0.0) + value.double()
        counts[name] = counts.get(name, 0) + 1


def _outputs_of_ranks(figures: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Sums and counts of the outputs over all ranks, some of which may lack one, a rank's share."""
    kinds = ("outputs", "output_counts")
    own = [{name: float(one) for name, one in figures[kind].items()} for kind in kinds]
    everyone = distributed.gather_objects(own)
    names = sorted({name for sums, _ in everyone for name in sums})
    return {
        kind: {name: sum(o[i].get(name, 0.0) for o in everyone) / len(everyone) for name in names}
        for i, kind in enumerate(kinds)
    }


def finish_epoch(
    stage: Stage, averaged: Averaged, reporter: Reporter, step: int, figures: dict[str, Any]
) -> None:
    """Observe the weights that score after the epoch's last step, and write the epoch's line."""
    plan, epoch = stage.schedule, stage.schedule.epoch(step)
    with averaged.scoring():
        observed = stage.observe_epoch(epoch, step)
    loss = figures["loss_sum"] / max(figures["loss_steps"], 1)
    mean = sum(distributed.gather_objects(loss)) / distributed.world_size()
    outputs, counts = _outputs_of_ranks(figures).values()
    line = {
        **{name: one / counts[name] for name, one in outputs.items()},
        **figures.get("machines", {}),
        **figures.get("closing", {}),
        **observed,
        "loss": mean,
        "lr": plan.rate(step - 1),
    }
    reporter.log(**{**line, "kind": "epoch", "stage": plan.stage, "epoch": epoch, "step": step})
