"""Patches: features of a frozen encoder's inner layers at places of an image."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate

from selftaught.errors import InputError
from selftaught.methods.frozen import Frozen
from selftaught.methods.task import Rows, Start
from selftaught.models.encoder import Encoder


class Patches(nn.Module):
    """Images -> features of places, from the second and third layers of an encoder.

    Each is the mean of 3x3 neighbours; the third layer's map is brought to the second's side.

    Args:
        encoder: stays where it is, in its mode.
        image_size: S.

    Attributes:
        side: s of the map.
        width: C, features of a place.
    """

    def __init__(self, encoder: Encoder, image_size: int) -> None:
        super().__init__()
        encoder.need_layers("of patches")
        self.encoder = encoder
        self.side = -(-image_size // (8 if encoder.config.stem == "imagenet" else 2))
        self.width = encoder.width // 4 + encoder.width // 2

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, s * s, C) of places, row by row, and the pooled ones (B, W)."""
        maps: list[Tensor] = []
        layers = dict(self.encoder.layers.named_children())
        hooks = [
            layers[name].register_forward_hook(lambda _layer, _inputs, made: maps.append(made))
            for name in ("layer2", "layer3")
        ]
        try:
            h = self.encoder.pooled(images)
        finally:
            for hook in hooks:
                hook.remove()
        two, three = (avg_pool2d(one, 3, 1, 1, count_include_pad=False) for one in maps)
        three = interpolate(three, two.shape[-2:], mode="bilinear", align_corners=False)
        joined = torch.cat([two, three], 1)
        kind = torch.promote_types(joined.dtype, torch.float32)
        return joined.flatten(2).transpose(1, 2).to(kind), h

    def inside(self, masks: Tensor) -> Tensor:
        """Places (B, s * s) of which the mask covers half or more, booleans."""
        return adaptive_avg_pool2d(masks, self.side).flatten(1) >= 0.5


class OfPatches(Frozen):
    """What is remembered of places inside the masks."""

    masks = True

    def frozen(self) -> None:
        """None is kept: patches are features of inner layers, not of the whole encoder."""

    def patches(self) -> Patches:
        """Features of places, by the task's own encoder."""
        return Patches(self.encoder, self.network.image_size)

    def seen(self, start: Start, rows: Rows) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Features (B, P, C) of places, which are inside (B, P), and ids (B,) of the rows.

        Raises:
            InputError: no place of any image is inside its mask.
        """
        patches, places = self.patches(), 0
        for batch in start.batches(rows):
            inside = patches.inside(batch["masks"][:, 0])
            places += int(inside.sum())
            yield patches(batch["views"][:, 0])[0], inside, batch["ids"]
        if not places:
            raise InputError(
                f"{self.options.method}: no training image's mask covers half of a patch of its "
                f"{patches.side} x {patches.side}; allowed: masks of larger parts, or "
                "data.mask none"
            )


def worst_place(distances: Tensor, inside: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The largest distance (B,) of those inside, and its place; of all known where none is."""
    counted = torch.where(inside.any(1, keepdim=True), inside, known)
    worst = distances.masked_fill(~counted, -math.inf).max(1)
    return worst.values, worst.indices
