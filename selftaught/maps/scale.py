"""One colour scale for a model: what heat means, fixed by films that are normal.

```
model/maps.json   format, SHA-256 of the model's tensors, and by method of maps low, high, films
```
"""

import json
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import Tensor

from selftaught.errors import InputError, require
from selftaught.files import write_atomic
from selftaught.maps.heat import Method
from selftaught.models.files import MAPS, StoredModel, read_model

FORMAT = 1
NO_SCALE = (
    "the model has no colour scale; allowed: `selftaught maps RUN` or `selftaught maps MODEL "
    "--data.normals FILMS`, which fix it by normal films that training did not see"
)
QUANTILE = 0.95  # of normal films, as of the threshold that flags


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Raw heat of a method -> heat from 0 to 1, the same on every film.

    Attributes:
        method: of the raw heat.
        low: raw heat that is 0: every second normal film has none above it.
        high: raw heat that is 1: one normal film in twenty reaches it.
        films: normal films that it was fixed by.

    Raises:
        ValueError: a value outside its range.
    """

    method: Method
    low: float
    high: float
    films: int

    def __post_init__(self) -> None:
        """Refuse what would show every film alike."""
        methods = get_args(Method)
        require("method", self.method, ", ".join(methods), self.method in methods)
        fine = all(type(one) is float and math.isfinite(one) for one in (self.low, self.high))
        require("low, high", (self.low, self.high), "0 <= low < high", fine and 0 <= self.low)
        require("high", self.high, "above low", self.low < self.high)
        fine = type(self.films) is int and self.films >= 1
        require("films", self.films, "a whole number, 1 or more", fine)

    @classmethod
    def from_normals(cls, method: Method, raw: Tensor) -> "Scale":
        """Fix the scale by raw heat (N, S, S) of normal films that training did not see.

        It is set by the largest heat of each film: what a reader looks at is the hottest place.
        With fewer than 20 films the top is the hottest place of all.

        Raises:
            InputError: no film, or all of them without any heat.
        """
        peaks = np.sort(raw.flatten(1).amax(1).double().numpy()) if len(raw) else np.zeros(0)
        if not len(peaks) or not peaks[-1] > 0:
            raise InputError(
                f"maps: {len(peaks)} normal films give no scale, as none has any heat; allowed: "
                "one normal film or more that training did not see"
            )
        rank = max(1, math.ceil(QUANTILE * len(peaks) - 1e-9))
        high, low = float(peaks[rank - 1]), float(np.median(peaks))
        # Films that are all alike, or a single one, have no spread to go by.
        return cls(method=method, low=low if low < high else 0.0, high=high, films=len(peaks))

    def share(self, raw: Tensor) -> Tensor:
        """Heat like `raw`, not cut off at the ends of the scale."""
        return (raw - self.low) / (self.high - self.low)

    def __call__(self, raw: Tensor) -> Tensor:
        """Heat like `raw`, float32 from 0 to 1."""
        return self.share(raw).clamp(0.0, 1.0).float()


def write_scale(folder: Path, scale: Scale) -> Path:
    """Keep a scale in a model folder, beside those of other methods that are there.

    Raises:
        InputError: the folder holds no model.
        MachineError: it cannot be written.
    """
    stored = read_model(folder)
    scales = {**read_scales(stored), scale.method: scale}
    facts = {name: asdict(one) for name, one in sorted(scales.items())}
    document = {"format": FORMAT, "sha256": stored.sha256, "scales": facts}
    path = stored.path.with_name(MAPS)
    write_atomic(path, json.dumps(document, indent=1, allow_nan=False) + "\n")
    return path


def read_scales(stored: StoredModel) -> dict[Method, Scale]:
    """The scales that were kept for this very model, by method.

    A file that is damaged, or of a model that was here before, gives none: it is written anew,
    and no score needs it.
    """
    path = stored.path.with_name(MAPS)
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT or document["sha256"] != stored.sha256:
            return {}
        scales = [Scale(**facts) for facts in document["scales"].values()]
    except FileNotFoundError:
        return {}
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        warnings.warn(f"{path}: damaged ({reason}); the model has no scale of maps", stacklevel=2)
        return {}
    return {one.method: one for one in scales}
