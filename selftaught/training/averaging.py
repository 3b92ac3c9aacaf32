"""Averaged weights: what is validated, kept, scored and begun from; the raw ones train on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from selftaught import distributed
from selftaught.methods import Task
from selftaught.methods.begin import NORMS, estimate_statistics, sample
from selftaught.methods.task import Start, score_images
from selftaught.training.schedule import Stage


class Averaged:
    """Exponential moving average of a task's weights, where its options ask for one.

    Parameters and floating-point buffers are averaged; all other state is the task's own: whole
    numbers, booleans, and the buffers that it names in `copied`. Every rank does the same, and no
    step communicates. With `recalibrate` alone the decay is 0, so that the average is the weights
    themselves, with statistics of their own.

    Args:
        task: on its device, its engine made.
    """

    def __init__(self, task: Task) -> None:
        self.task, options = task, task.options
        self.decay = options.average
        self.state: dict[str, Tensor] = {}
        if options.average or options.recalibrate:
            self.state = {
                name: value.clone()
                for name, value in task.state_dict().items()
                if value.is_floating_point() and name not in task.copied
            }

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Take up a checkpoint's average; without one it begins at the task's weights."""
        source = saved or self.task.state_dict()
        for name, value in self.state.items():
            value.copy_(source[name])

    def update(self, step: int) -> None:
        """After the optimizer's 0-based `step`: keep min(decay, (1 + step) / (10 + step))."""
        if self.state:
            weights = self.task.state_dict()
            kept = min(self.decay, (1 + step) / (10 + step))
            average = get_ema_multi_avg_fn(kept)
            average(list(self.state.values()), [weights[name] for name in self.state], step)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """The task holds the averaged weights meanwhile; what changes in them is kept."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        # In place: DDP, DeepSpeed and the optimizer hold the task's tensors.
        weights = self.task.state_dict()
        for name, value in self.state.items():
            raw = weights[name].clone()
            weights[name].copy_(value)
            value.copy_(raw)

    def share(self) -> None:
        """Rank 0's averaged buffers on all ranks, as `Engine.sync_buffers` does with the raw."""
        for name, _ in self.task.named_buffers():
            if name in self.state:
                distributed.broadcast_tensor(self.state[name])

    def renew(self, stage: Stage) -> None:
        """What an epoch's end renews from the images: for the raw weights, and for these."""
        stage.renew()
        if self.state:
            self.share()
            with self.scoring():
                stage.renew(scoring=True)


def recalibrate(task: Task, start: Start, images: int) -> None:
    """Estimate running statistics anew, of the batch norms that train on their batches.

    The mean over some plain training images in a fixed order, which every rank goes through alone:
    any number of ranks gives the same. Norms that scoring does not pass keep what they have.

    Args:
        task: holds the weights that score.
        start: gives the images.
        images: how many, or all where there are fewer.
    """
    modes = [(one, one.training) for one in task.modules()]
    norms: list[nn.Module] = [one for one, training in modes if training and isinstance(one, NORMS)]
    if not norms:
        return
    scorer = task.scorer()

    def compute(batch: Mapping[str, Tensor]) -> None:
        views, masks = batch["views"][:, 0], batch["masks"]
        if scorer is None:
            task.features(views)
        else:
            score_images(scorer, views, None if masks is None else masks[:, 0])

    task.eval()
    try:
        batches = start.batches(sample(start.rows, images, start.seed))
        estimate_statistics(norms, batches, compute)
    finally:
        for one, training in modes:
            one.training = training
