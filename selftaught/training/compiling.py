"""torch.compile of the backbone's training pass, and what it gained."""

import statistics
import time

import torch
from torch import Tensor

from selftaught.errors import InputError
from selftaught.training.engine import Batch, Engine
from selftaught.training.progress import Reporter

TIMED = 5


def _passes(engine: Engine, batch: Batch, count: int) -> list[float]:
    """Seconds of `count` forward and backward passes that leave no trace in the task."""
    task = engine.task
    kept = [buffer.clone() for buffer in task.buffers()]
    parameters = [p for p in task.parameters() if p.requires_grad]
    device = parameters[0].device
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=engine.bf16):
            loss: Tensor = task(batch, task.players[0])["loss"]
        # Gradients go nowhere: neither DDP nor DeepSpeed hears of them.
        torch.autograd.grad(loss, parameters, allow_unused=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    with torch.no_grad():
        for buffer, value in zip(task.buffers(), kept, strict=True):
            buffer.copy_(value)
    return seconds


def compile_backbone(
    engine: Engine, batch: Batch, reporter: Reporter, stage: str, step: int
) -> None:
    """Compile the task's backbone for training; evaluation, whose shapes vary, stays as it is.

    Both ways are timed on `batch` first; the medians go to the log. All ranks take part.

    Args:
        engine: holds the task.
        batch: one micro-batch of this stage.
        reporter: where the gain is noted.
        stage: its name.
        step: 0-based, the first of this process.

    Raises:
        InputError: torch.compile does not work here, such as for want of a C++ compiler.
    """
    backbone = engine.task.backbone()
    if backbone is None or engine.task.frozen() is not None:
        what = "names no backbone to compile" if backbone is None else "holds its backbone still"
        reporter.warn(stage, f"engine.compile is true, but this method {what}")
        return
    eager = backbone.forward
    before = statistics.median(_passes(engine, batch, 1 + TIMED)[1:])
    # One shape: kernels for any size, which a second stage would get, round in another way than
    # those of a run that goes on with that stage.
    compiled = torch.compile(eager, dynamic=False)

    def forward(x: Tensor) -> Tensor:
        training = backbone.training and torch.is_grad_enabled()
        return compiled(x) if training else eager(x)

    backbone.forward = forward
    try:
        first, *rest = _passes(engine, batch, 1 + TIMED)
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"engine.compile is true, but torch.compile does not work here: {reason}; "
            "allowed: false"
        ) from error
    after = statistics.median(rest)
    reporter.say(
        f"{stage}: torch.compile of the backbone: forward and backward {before:.4f} s before, "
        f"{after:.4f} s after, {before / after:.2f} times as fast; compiling took {first:.1f} s"
    )
    reporter.log(
        kind="note",
        stage=stage,
        step=step,
        pass_s_before_compile=before,
        pass_s_after_compile=after,
        compile_s=first,
    )
