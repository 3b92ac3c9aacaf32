"""What methods share at their start: the stage before, normal images, centres."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftaught.errors import InputError
from selftaught.methods.task import Rows, Start
from selftaught.models.encoder import Encoder
from selftaught.semi_labels import KNOWN_ABNORMAL

ENCODER = "embedder.encoder."
STATISTICS_IMAGES = 512


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
    if weights and not state:
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
    momenta = [one.momentum for one in norms]
    network.eval()
    for one in norms:
        one.train()
    seen = 0
    for batch in start.batches(sample(start.rows, STATISTICS_IMAGES, start.seed)):
        if (count := len(batch["ids"])) > 1:  # one image may have no statistics
            seen += count
            for one in norms:
                one.momentum = count / seen  # the mean over images; the first values go
            network(batch["views"][:, 0])
    for one, momentum in zip(norms, momenta, strict=True):
        one.momentum = momentum
    network.train()


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
