"""What all reference formulas share: dtypes of the arithmetic and of gradients."""

import torch
from torch import Tensor


def compute_dtype(z: Tensor) -> torch.dtype:
    """float64 for float64 input, else float32: dtype of the arithmetic and of every result."""
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def cast(grads: list[Tensor], like: list[Tensor | None], needs: list[bool]) -> list[Tensor]:
    """Gradients in their input's dtype; an empty tensor where none is needed."""
    return [
        grad.to(source.dtype).clone() if need and source is not None else grad.new_empty(0)
        for grad, source, need in zip(grads, like, needs, strict=True)
    ]
