"""Batches larger than memory whose embeddings all meet in one loss (Gao et al. 2021, GradCache).

Ordinary gradient accumulation adds the losses of small batches, each with few negatives. Here the
batch is embedded in chunks without a graph, the loss and its gradient by the embeddings are taken
over all of them at once, and the chunks are embedded again, one at a time, to carry that gradient
into the weights.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def _generators(chunk: Tensor) -> list[torch.device]:
    return [chunk.device] if chunk.device.type == "cuda" else []


def _random_state(chunk: Tensor) -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in _generators(chunk)]


@contextmanager
def _replay(chunk: Tensor, state: tuple[Tensor, list[Tensor]]) -> Iterator[None]:
    """Draw the same random numbers (dropout) as when `state` was taken, and leave none used."""
    devices = _generators(chunk)
    with torch.random.fork_rng(devices):
        torch.set_rng_state(state[0])
        for device, device_state in zip(devices, state[1], strict=True):
            torch.cuda.set_rng_state(device_state, device)
        yield


@contextmanager
def _buffers_kept(encoder: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Leave batch-norm statistics as they were, so that only the second pass moves them."""
    buffers = list(encoder.buffers()) if isinstance(encoder, nn.Module) else []
    before = [buffer.detach().clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


def _silent(encoder: Callable[[Tensor], Tensor], last: bool) -> AbstractContextManager[Any]:
    """DDP averages gradients once, on the last chunk."""
    no_sync = getattr(encoder, "no_sync", None)
    return nullcontext() if last or no_sync is None else no_sync()


def cached_backward(
    encoder: Callable[[Tensor], Tensor],
    views: Sequence[Tensor],
    loss: Callable[..., Tensor],
    *,
    chunk_size: int,
    scaler: Any = None,
) -> Tensor:
    """Add the gradient of a loss over a whole batch to `.grad`, one chunk in memory at a time.

    Equal to `loss(*[encoder(view) for view in views]).backward()` for an encoder that treats rows
    independently. Batch norm in training mode takes its statistics over a chunk and moves its
    running ones once per chunk; dropout draws the same mask in both passes. A DDP encoder averages
    gradients once. The loss may have a `group`, and parameters of its own.

    Args:
        encoder: maps (b, ...) to (b, D); an `nn.Module`, or DDP around one.
        views: tensors (B, ...), one for each argument of `loss`.
        loss: maps the embeddings, (B, D) for each view, to a 0-d loss.
        chunk_size: rows embedded at a time, 1 or more.
        scaler: a `torch.amp.GradScaler` that multiplies the loss before the backward pass.

    Returns:
        The loss, 0-d, detached and unscaled.

    Raises:
        ValueError: no views, a view without rows, or chunk_size below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size: must be 1 or more, got {chunk_size}")
    if not views or any(view.shape[0] == 0 for view in views):
        raise ValueError(f"views: need rows in every view, got {[tuple(v.shape) for v in views]}")
    chunks = [chunk for view in views for chunk in view.split(chunk_size)]
    states, embedded = [], []
    with torch.no_grad(), _buffers_kept(encoder):
        for chunk in chunks:
            states.append(_random_state(chunk))
            embedded.append(encoder(chunk))
    rows = [view.shape[0] for view in views]
    leaves = [z.requires_grad_() for z in torch.cat(embedded).split(rows)]
    value = loss(*leaves)
    (value if scaler is None else scaler.scale(value)).backward()
    grads = [grad for leaf in leaves for grad in _grad(leaf).split(chunk_size)]
    for position, (chunk, state, grad) in enumerate(zip(chunks, states, grads, strict=True)):
        with ExitStack() as stack:
            stack.enter_context(_replay(chunk, state))
            stack.enter_context(_silent(encoder, position == len(chunks) - 1))
            encoder(chunk).backward(grad)
    return value.detach()


def _grad(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
