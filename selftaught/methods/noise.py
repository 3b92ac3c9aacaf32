"""Random numbers of a method's own: functions of seed, epoch and image, whatever ran before."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def normal(seed: int, epoch: int, ids: Tensor | Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal numbers for each image.

    Neither a resume nor the number of ranks changes them, as they depend on nothing else.

    Args:
        seed: such as `network.seed` of a task.
        epoch: from 0; or a step, for what is drawn once a step.
        ids: (B,) ids of images, from 0.
        shape: of one image's numbers.

    Returns:
        (B, *shape) float32 on the CPU; where there is a GPU, in memory that is sent there without a
        wait.
    """
    return _drawn(seed, epoch, ids, shape, lambda one: one.standard_normal(shape, np.float32))


def uniform(seed: int, epoch: int, ids: Tensor | Sequence[int], shape: Sequence[int]) -> Tensor:
    """Numbers in [0, 1) for each image; arguments as for `normal`."""
    return _drawn(seed, epoch, ids, shape, lambda one: one.random(shape, np.float32))


def _drawn(
    seed: int,
    epoch: int,
    ids: Tensor | Sequence[int],
    shape: Sequence[int],
    draw: Callable[[np.random.Generator], np.ndarray],
) -> Tensor:
    pinned, size = torch.cuda.is_available(), (len(ids), *shape)
    values = torch.empty(size, dtype=torch.float32, device="cpu", pin_memory=pinned)
    for row, image in enumerate(torch.as_tensor(ids).tolist()):
        key = np.array([seed, 0x6E6F697365], np.uint64)  # apart from the streams of the plan
        counter = np.array([0, 0, image, epoch], np.uint64)
        values.numpy()[row] = draw(np.random.Generator(np.random.Philox(key=key, counter=counter)))
    return values
