"""Models of format 1, of spheres alone: read as if they had been written today.

```
model/
    encoder.safetensors   encoder and head
    centers.safetensors   `centers` (K, D) float32, those that pruning left
    model.json            architecture, preprocessing, threshold, normal_scores, training
```
They do not say how their films were prepared.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FORMAT = 1
ENCODER, CENTERS = TENSORS = "encoder.safetensors", "centers.safetensors"
FILES = (*TENSORS, "model.json")
VIEW = ("image_size", "input_range", "autocontrast", "order", "mask_scale", "masked")


def translated(document: Mapping[str, Any]) -> dict[str, Any]:
    """What model.json says, in the keys of today's.

    Raises:
        KeyError: something is missing.
        TypeError, ValueError: something is of another kind.
    """
    architecture, view = document["architecture"], dict(document["preprocessing"])
    centers, (_, *head) = architecture["centers"], architecture["head_widths"]
    if type(centers) is not int or centers < 1:
        raise ValueError(f"centers={centers!r}: must be a whole number >= 1")
    known = {name: view[name] for name in VIEW if name in view}
    defaults = {"autocontrast": 1.0, "order": "composed", "mask_scale": 1, "masked": False}
    return {
        "method": "spheres",
        "options": {"centers": centers},
        "network": {
            "encoder": architecture["encoder"],
            "head": head,
            "image_size": view["image_size"],
            "images": 0,
        },
        "preprocessing": {**defaults, **known, "prepared": None, "known": False},
        "calibration": {
            "threshold": document.get("threshold"),
            "normal_scores": document.get("normal_scores"),
        },
        "training": document.get("training", {}),
    }


def state(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The state of the task from the tensors of both files; none of the centres is pruned."""
    named = {f"embedder.{name}": tensor for name, tensor in parts[ENCODER].items()}
    centers = parts[CENTERS].get("centers", torch.empty(0))
    count = len(centers) if centers.ndim else 0
    return {
        **named,
        **parts[CENTERS],
        "active": torch.ones(count, dtype=torch.bool),
        "counts": torch.zeros(count, dtype=torch.int64),
    }
