"""What a network gives for images in eval mode, the work divided over ranks."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from selftaught import distributed, sent
from selftaught.data.images.bad_files import Problem
from selftaught.data.pipeline import Pipeline
from selftaught.errors import InputError
from selftaught.training.context import Run
from selftaught.training.inputs import Rows
from selftaught.training.stop import StopRun


@torch.no_grad()
def infer(
    run: Run,
    compute: Callable[[Tensor, Tensor | None], dict[str, Tensor]],
    modules: Sequence[nn.Module],
    pipeline: Pipeline,
    rows: Rows,
    *,
    name: str,
    show: bool = False,
) -> tuple[dict[str, Tensor], Rows]:
    """What `compute` gives for one view of each of `rows`, the work divided over ranks.

    Args:
        run: device, batch size of scoring, signals, and who hears of images that were skipped.
        compute: images (B, 1, S, S) on the device, and their masks where the pipeline gives them
            -> tensors (B, ...) by name.
        modules: in eval mode meanwhile.
        pipeline: one view per image.
        rows: (N,) row numbers.
        name: of the progress.
        show: whether to show it.

    Returns:
        The tensors, complete on every rank, on the CPU, floats of at least float32; and the row
        numbers of those that could be read, in their order.

    Raises:
        InputError: an image cannot be read, or where such are skipped, too many.
        StopRun: a signal arrived.
    """
    world, batch_size = distributed.world_size(), run.config.score.batch_size
    mine = np.array_split(rows, world)[distributed.rank()]
    # All ranks ask the stopper equally often, however uneven their shares are.
    steps = -(-len(rows) // world // batch_size) + 1
    chunks = [mine[i * batch_size : (i + 1) * batch_size] for i in range(steps)]
    source = pipeline.batches((0, chunk) for chunk in chunks if len(chunk))
    training = [[one.training for one in module.modules()] for module in modules]
    for module in modules:
        module.eval()
    if show:
        run.reporter.start_bar(name, steps, 0)
    parts: list[dict[str, Tensor]] = []
    began = time.monotonic()
    for number, chunk in enumerate(chunks, 1):
        run.reporter.on_event("batch", name=name, number=number - 1)
        problems: tuple[Problem, ...] = ()
        if len(chunk):
            batch = next(source)
            problems = batch.problems
            if len(batch.ids):
                masks = None if batch.masks is None else batch.masks[:, 0]
                outputs = compute(
                    batch.views[:, 0].to(run.device, run.kind),
                    None if masks is None else masks.to(run.device, run.kind),
                )
                parts.append({"row": batch.ids, **{k: _to_cpu(v) for k, v in outputs.items()}})
        run.images.note(name, None, problems)
        # The one look at each other of a batch.
        words = sent.gather_row([run.stopper.code, run.images.pending], run.device)
        if code := max(int(code) for code, _ in words):
            raise StopRun(code)
        if any(pending for _, pending in words):
            run.images.share()
        if show:
            speed = min(number * batch_size * world, len(rows)) / (time.monotonic() - began + 1e-9)
            run.reporter.advance(name, number, steps, images_per_s=speed)
    for module, modes in zip(modules, training, strict=True):
        for one, mode in zip(module.modules(), modes, strict=True):
            one.training = mode
    if show:
        run.reporter.end_bar()
    local = (
        {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]} if parts else {}
    )
    gathered = [one for one in distributed.gather_objects(local) if one]
    if not gathered:
        raise InputError(f"{name}: none of {len(rows)} images can be read; allowed: at least one")
    whole = {key: np.concatenate([one[key] for one in gathered]) for key in gathered[0]}
    readable = whole.pop("row")
    return {key: torch.from_numpy(value) for key, value in whole.items()}, readable


def _to_cpu(values: Tensor) -> Tensor:
    if values.is_floating_point():
        return values.cpu().to(torch.promote_types(values.dtype, torch.float32))
    return values.cpu()
