"""What lies between a film and a network's input; travels with the model, which executes it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Any

from selftaught.data.augment import Augment
from selftaught.data.images.pack import locate
from selftaught.data.prepare.claim import settings_of, shaping
from selftaught.data.prepare.config import PrepareConfig
from selftaught.errors import InputError, require

LARGEST = 8192
VIEW = ("autocontrast", "order", "mask_scale")
UNSAID: dict[str, Any] = {}  # settings of a pack that does not say how it was prepared


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What films went through before the network saw them: `selftaught prepare`, then one view.

    Attributes:
        image_size: side of the square input, in pixels.
        autocontrast, order, mask_scale: of the view, as in `Augment`.
        input_range: lowest and highest value of the input.
        masked: images were multiplied by masks where they have one.
        prepared: settings of `selftaught prepare` that the films went through; None = the model
            was trained on films as they came.
        known: whether `prepared` is known; models of the first format do not say.

    Raises:
        TypeError: `prepared` has a setting that does not exist, or one of another kind.
        ValueError: a value outside its range.
    """

    image_size: int
    autocontrast: float = 1.0
    order: str = "composed"
    mask_scale: int = 1
    input_range: tuple[float, float] = (0.0, 1.0)
    masked: bool = False
    prepared: Mapping[str, Any] | None = None
    known: bool = True

    def __post_init__(self) -> None:
        size = self.image_size
        fine = isinstance(size, Integral) and type(size) is not bool and 1 <= size <= LARGEST
        require("preprocessing.image_size", size, f"1 to {LARGEST}", fine)
        object.__setattr__(self, "image_size", int(size))
        low, high = (float(value) for value in self.input_range)
        fine = math.isfinite(low) and math.isfinite(high) and low < high
        require("preprocessing.input_range", self.input_range, "low and a higher value", fine)
        object.__setattr__(self, "input_range", (low, high))
        for name in ("masked", "known"):
            value = getattr(self, name)
            require(f"preprocessing.{name}", value, "true or false", isinstance(value, bool))
        self._view()
        if self.prepared is not None:
            object.__setattr__(self, "prepared", shaping(PrepareConfig(**self.prepared)))

    @classmethod
    def of(cls, augment: Augment, image_size: int, masked: bool, source: Path) -> "Preprocessing":
        """The preprocessing of a training.

        Args:
            augment: of the stage that scores; only what is deterministic in it counts.
            image_size: side of the square input, in pixels.
            masked: images were multiplied by masks.
            source: manifest or folder that training read; of a prepared set, or of a list of films
                in one, the set's settings are taken.

        Raises:
            InputError: the set is damaged.
        """
        settings = _settings(source)
        known = len(settings) == 1 and settings[0] != UNSAID
        return cls(
            image_size=image_size,
            **{name: getattr(augment, name) for name in VIEW},
            input_range=augment.input_range,
            masked=masked,
            prepared=settings[0] if known else None,
            known=known,
        )

    def augment(self) -> Augment:
        """The view, without randomness.

        Raises:
            InputError: the stored range is not the one that the view gives.
        """
        view = self._view()
        if view.input_range != self.input_range:
            raise InputError(
                f"model: input_range {self.input_range}, but its preprocessing gives "
                f"{view.input_range}; pass tensors instead of paths"
            )
        return view

    def _view(self) -> Augment:
        return Augment(**{name: getattr(self, name) for name in VIEW})

    def facts(self) -> dict[str, Any]:
        """What a model stores, as JSON values."""
        return {**asdict(self), "input_range": list(self.input_range)}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Preprocessing":
        """What `facts` gave.

        Raises:
            TypeError: something is missing, too many, or of another kind.
            ValueError: a value outside its range.
        """
        if absent := [field.name for field in fields(cls) if field.name not in facts]:
            raise TypeError(f"preprocessing lacks {absent[0]}")
        return cls(**facts)


def _settings(source: Path) -> list[dict[str, Any] | None]:
    """The different settings that the films of a list were prepared with; None: as they came."""
    beside = settings_of(source) if source.is_dir() else None
    if beside is not None:
        return [beside]
    from selftaught.data.manifest import read_manifest

    listed = read_manifest(source, allow_outside=True, check_files=False)
    different: list[dict[str, Any] | None] = []
    known: dict[Path, dict[str, Any] | None] = {}
    for path in listed.table["path"]:
        packed = locate(listed.root / path)
        if packed is None:
            settings = None
        else:
            home = packed.pack.folder.parent
            if home not in known:
                stated = settings_of(home)
                known[home] = UNSAID if stated is None else stated
            settings = known[home]
        if settings not in different:
            different.append(settings)
    return different or [None]
