"""What a task's networks are built from; travels with every model."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selftaught.models.encoder import EncoderConfig
from selftaught.models.heads import EMBEDDING_WIDTHS, Embedder, build_embedder

MEASURED = "measured"  # fact of a stored network: `Encoder.facts`


@dataclass(frozen=True, kw_only=True)
class Network:
    """Encoder, head and the sizes that a task needs to know before it sees data.

    Attributes:
        encoder: the encoder.
        head: widths of the projection head after the encoder's own.
        image_size: side of the square input, in pixels.
        images: training images of this stage.
        seed: of fresh weights.
        weights: a state dict on this disk that some methods start from, "" = none.
        strata: values of the column that the stage's options name as `strata`, in the training set.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    head: Sequence[int] = EMBEDDING_WIDTHS
    image_size: int = 512
    images: int = 0
    seed: int = 0
    weights: str = ""
    strata: Sequence[str] = ()

    def embedder(self, *, bias: bool = True) -> Embedder:
        """Encoder and head with fresh weights from `seed`, in training mode, on the CPU.

        Args:
            bias: whether the head's layers have biases.
        """
        return build_embedder(
            self.encoder, self.seed, head=self.head, bias=bias, image_size=self.image_size
        )

    def facts(self) -> dict[str, Any]:
        """What a model stores: all but the seed and the path of weights, which it brings itself."""
        stored = dataclasses.asdict(self)
        names = ("encoder", "head", "image_size", "images", *(["strata"] if self.strata else []))
        return {key: stored[key] for key in names}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Network":
        """What `facts` gave.

        What a model measured of its encoder is not needed to build it.

        Raises:
            TypeError: facts of another kind.
            ValueError: an encoder that does not exist.
        """
        given = {name: value for name, value in facts.items() if name != MEASURED}
        return cls(**{**given, "encoder": EncoderConfig(**facts["encoder"])})
