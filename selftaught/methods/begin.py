"""What methods share at their start: the stage before, normal images, centres."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from selftaught.errors import InputError
from selftaught.methods.task import Rows, Start
from selftaught.models.encoder import Encoder
from selftaught.models.grouped_norm import GroupedNorm
from selftaught.semi_labels import KNOWN_ABNORMAL

ENCODER = "embedder.encoder."
STATISTICS_IMAGES = 512
NORMS = (_BatchNorm, GroupedNorm)


def part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The state below a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def take_encoder(method: str, start: Start, encoder: Encoder) -> Mapping[str, Tensor]:
    """Load the encoder of the stage before, if there was one; all that the stage left.

    Raises:
        InputError: the stage before has no encoder where `Network.embedder` has it.
    """
    weights = start.weights()
    state = part(weights, ENCODER)
    if weights and not state and encoder.state_dict():  # a frozen program has none
        raise InputError(
            f"{method} starts from the state `{ENCODER[:-1]}` of the stage before, which has "
            "none; allowed: a pretext.method with an embedder of `Network`"
        )
    if state:
        encoder.load_state_dict(state)
    return weights


@torch.no_grad()
def fill_statistics(start: Start, network: nn.Module, fresh: nn.Module) -> None:
    """Give fresh batch norms the mean statistics of some images: eval mode would see those of none.

    Args:
        start: gives the images.
        network: takes images; left in training mode.
        fresh: the part of it whose norms have seen nothing; all others keep their statistics.
    """
    norms = [one for one in fresh.modules() if isinstance(one, _BatchNorm)]
    network.eval()
    batches = start.batches(sample(start.rows, STATISTICS_IMAGES, start.seed))
    passed = estimate_statistics(norms, batches, lambda batch: network(batch["views"][:, 0]))
    for one in norms:
        if one.num_batches_tracked is not None:
            one.num_batches_tracked.add_(passed)
    network.train()


@torch.no_grad()
def estimate_statistics(
    norms: Iterable[nn.Module],
    batches: Iterable[Mapping[str, Any]],
    compute: Callable[[Mapping[str, Any]], object],
) -> int:
    """Give batch norms, of any kind, the mean statistics of some batches, weighted by images.

    They normalise with a batch's own statistics meanwhile, of this rank alone, in any mode.

    Args:
        norms: those without running statistics, or that `compute` does not pass, stay as they are.
        batches: those of one image are left out, as it may have no statistics.
        compute: passes a batch through the norms, all else in eval mode.

    Returns:
        Batches that counted.
    """
    tracked = [one for one in norms if one.running_mean is not None]
    seen = dict.fromkeys(tracked, 0)

    def forward(norm: Any, x: Tensor) -> Tensor:
        seen[norm] += len(x)
        share = len(x) / seen[norm]  # the mean over images; the first values go
        statistics = norm.running_mean, norm.running_var
        return functional.batch_norm(x, *statistics, norm.weight, norm.bias, True, share, norm.eps)

    passed = 0
    try:
        for one in tracked:
            one.forward = partial(forward, one)
        for batch in batches:
            if len(batch["ids"]) > 1:
                compute(batch)
                passed += 1
    finally:
        for one in tracked:
            one.__dict__.pop("forward", None)
    return passed


def sample(rows: Rows, count: int, seed: int) -> Rows:
    """Up to `count` of the rows, in their order, always the same of one seed."""
    drawn = np.random.default_rng(seed).permutation(len(rows))[:count]
    return rows[np.sort(drawn)]


def normal_rows(start: Start) -> Rows:
    """Training images that are not known to be abnormal."""
    return start.rows[start.labels.numpy()[start.rows] != KNOWN_ABNORMAL]


def away_from_zero(centers: Tensor, epsilon: float) -> Tensor:
    """Coordinates closer to 0 than `epsilon` pushed to +-epsilon; 0 stays."""
    small = (centers.abs() < epsilon) & (centers != 0)
    return centers.where(~small, centers.sign() * epsilon)
