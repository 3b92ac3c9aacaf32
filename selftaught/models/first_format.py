"""Models of format 1, of spheres alone: read as if they had been written today.

```
model/
    encoder.safetensors   encoder and head
    centers.safetensors   `centers` (K, D) float32, those that pruning left
    model.json            architecture, preprocessing, threshold, normal_scores, training
```
They do not say how their films were prepared.
"""

import dataclasses
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


def from_embedder(
    embedder: Any, centers: Any, facts: Any
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `save_model` was given when only spheres could be saved: today's facts, and the state.

    Args:
        embedder: encoder and head.
        centers: (K, D).
        facts: `preprocessing`, and what else stood in model.json.

    Raises:
        ValueError: they are not as described.
    """
    try:
        centers = torch.as_tensor(centers, dtype=torch.float32)
        widths = embedder.head.widths
        if centers.ndim != 2 or centers.shape[1] != widths[-1]:
            raise ValueError(f"centers: shape {tuple(centers.shape)}, must be (K, {widths[-1]})")
        encoder = dataclasses.asdict(embedder.encoder.config)
        architecture = {"encoder": encoder, "head_widths": widths, "centers": len(centers)}
        known = translated({**facts, "architecture": architecture})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            "save_model of a module that is no task: allowed are an Embedder, its centres (K, D) "
            f"and facts with 'preprocessing': {error!r}"
        ) from error
    return known, state({ENCODER: embedder.state_dict(), CENTERS: {"centers": centers}})
