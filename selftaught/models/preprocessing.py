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
from selftaught.data.prepare.reference import Reference, joined, read_reference
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
        reference: of polarity, the films of the prepared set that others are compared with, as
            text; "" = there are none.
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
    reference: str = ""
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
        Reference.from_text(self.reference)

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
        sets = _sets(source)
        first = next(iter(sets.values()), None)
        known = first != UNSAID and all(settings == first for settings in sets.values())
        homes = [home for home in sets if home is not None] if known else []
        references = [read_reference(home) for home in homes]
        return cls(
            image_size=image_size,
            **{name: getattr(augment, name) for name in VIEW},
            input_range=augment.input_range,
            masked=masked,
            prepared=first if known else None,
            reference=joined(references).text(),
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
        # Models of format 2 had no reference before films were judged against their set.
        needed = [field.name for field in fields(cls) if field.name != "reference"]
        if absent := [name for name in needed if name not in facts]:
            raise TypeError(f"preprocessing lacks {absent[0]}")
        return cls(**facts)


def _sets(source: Path) -> dict[Path | None, dict[str, Any] | None]:
    """The prepared sets that the films of a list are in, with their settings; None: in none."""
    beside = settings_of(source) if source.is_dir() else None
    if beside is not None:
        return {source: beside}
    from selftaught.data.manifest import read_manifest

    listed = read_manifest(source, allow_outside=True, check_files=False)
    sets: dict[Path | None, dict[str, Any] | None] = {}
    for path in listed.table["path"]:
        packed = locate(listed.root / path)
        home = None if packed is None else packed.pack.folder.parent
        if home not in sets:
            stated = None if home is None else settings_of(home)
            sets[home] = UNSAID if home is not None and stated is None else stated
    return sets
