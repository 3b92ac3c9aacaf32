"""The call signatures of lightly, pytorch-metric-learning and open_clip over our losses.

Each class takes the arguments its namesake takes and returns the same value with the same
gradient; as there, a NaN or infinity is no error but gives a NaN loss. An argument we cannot honour
is refused, never ignored. Every difference is in the table of docs/losses.md.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from selftaught import distributed
from selftaught.kernels import ops
from selftaught.kernels.reference.contrastive import unit_rows
from selftaught.losses.checks import (
    check_matrix,
    check_positive,
    split_temperature,
)
from selftaught.losses.contrastive import info_nce_loss, ntxent_loss
from selftaught.losses.module import shown

NAN_BITS = 0x7FF8_0000_0000_0000


def _float32_or_better(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class NTXentLoss(nn.Module):
    """lightly's `NTXentLoss`, with its memory bank.

    With a bank, only the queue's rows are negatives (MoCo): a batch's other keys are not, and
    only the first view has a loss. The bank takes the keys of every call whose first view
    requires grad.

    Args:
        temperature: above 0.
        memory_bank_size: 0 for none, or (rows, D).
        gather_distributed: negatives, and what enters the bank, come from all ranks.

    Raises:
        ValueError: a temperature not above 0, or a size that is not 0 or (rows, D).
    """

    bank: Tensor
    bank_ptr: Tensor

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(temperature, Tensor):
            check_positive("temperature", temperature)
        size = [memory_bank_size] if isinstance(memory_bank_size, int) else [*memory_bank_size]
        none = size == [0] or (len(size) == 2 and size[0] == 0)
        if not none and not (len(size) == 2 and all(n >= 1 for n in size)):
            raise ValueError(f"memory_bank_size: must be 0 or (rows, D), got {memory_bank_size}")
        self.temperature = temperature
        self.memory_bank_size = memory_bank_size
        self.gather_distributed = gather_distributed
        # float32 like lightly's, whatever the default dtype is.
        bank = torch.empty(0) if none else unit_rows(torch.randn(size, dtype=torch.float32))[0]
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long), persistent=False)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Mean loss of two (B, D) views, 0-d."""
        group = "world" if self.gather_distributed else None
        if self.bank.ndim != 2:
            ranks = distributed.world_size() if self.gather_distributed else 1
            return ntxent_loss(out0, out1, self.temperature, group=group, check_values=ranks > 1)
        check_matrix("out0", out0)
        # The queue moves on before the backward pass.
        negatives = ops.copy(self.bank).to(out0.device)
        check_matrix("out0", out0, ("memory_bank_size", negatives))
        loss = info_nce_loss(
            out0,
            out1,
            negatives=negatives,
            temperature=self.temperature,
            in_batch=False,
            check_values=False,
        )
        if out0.requires_grad:
            self._enqueue(unit_rows(_float32_or_better(out1.detach()))[0])
        return loss

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        """Without reading `bank_ptr`: that would end a graph, and wait for the device."""
        if self.gather_distributed and distributed.world_size() > 1:
            keys = ops.gather(keys)
        rows = self.bank.shape[0]
        end = self.bank_ptr + keys.shape[0]
        keys = keys[:rows].to(self.bank)
        place = self.bank_ptr + torch.arange(keys.shape[0], device=self.bank.device)
        # A batch that reaches the end is cut there, and the next one starts over.
        fits, place = place[:, None] < rows, place % rows
        self.bank.index_copy_(0, place, torch.where(fits, keys, self.bank[place]))
        self.bank_ptr.copy_(end.masked_fill(end >= rows, 0))

    def extra_repr(self) -> str:
        """Settings in the module's printed form."""
        return (
            f"temperature={shown(self.temperature)}, memory_bank_size={self.memory_bank_size}, "
            f"gather_distributed={self.gather_distributed}"
        )


class SupConLoss(nn.Module):
    """pytorch-metric-learning's `SupConLoss` with its default distance and reducer.

    Rows of equal label are each other's positives. The mean is over the rows whose loss is above
    0, which leaves out rows without positives; a batch of one class, of one row or of none has
    loss 0.

    Args:
        temperature: above 0.

    Raises:
        ValueError: a temperature not above 0.
    """

    def __init__(self, temperature: float | Tensor = 0.1) -> None:
        super().__init__()
        if not isinstance(temperature, Tensor):
            check_positive("temperature", temperature)
        self.temperature = temperature

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss of (N, D) embeddings with (N,) labels of any real or boolean dtype, 0-d.

        Raises:
            ValueError: an argument is wrong, or a miner's or reference embeddings were given.
        """
        given = {"indices_tuple": indices_tuple, "ref_emb": ref_emb, "ref_labels": ref_labels}
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{name}: must be None, got {type(value).__name__}; keep "
                    "pytorch_metric_learning's SupConLoss for miners and reference embeddings"
                )
        check_matrix("embeddings", embeddings)
        classes = _classes(labels, embeddings)
        if embeddings.shape[0] == 0:
            return _float32_or_better(embeddings).sum()
        scale, fixed = split_temperature(self.temperature, ("embeddings", embeddings), False)
        loss = ops.supcon(embeddings, classes, scale, fixed, False, True, "auto", "")
        counted = (loss > 0) & (classes != classes[0]).any()
        return (loss * counted).sum() / counted.sum().clamp(min=1)

    def extra_repr(self) -> str:
        """Settings in the module's printed form."""
        return f"temperature={shown(self.temperature)}"


def _classes(labels: Tensor | None, embeddings: Tensor) -> Tensor:
    """(N,) int64 numbers that are equal where the labels are."""
    if not isinstance(labels, Tensor) or labels.is_complex():
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels: must be a tensor of real numbers, got {kind}")
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"labels: must have shape ({embeddings.shape[0]},), got {tuple(labels.shape)}"
        )
    labels = labels.to(embeddings.device)
    if not labels.is_floating_point():
        return labels.long()
    # The bits of float64 are equal where the numbers are, once -0 is 0; a NaN equals nothing.
    alone = NAN_BITS + torch.arange(labels.shape[0], device=labels.device)
    return torch.where(labels.isnan(), alone, (labels.double() + 0.0).view(torch.int64))


class ClipLoss(nn.Module):
    """open_clip's `ClipLoss`.

    The features are used as they are, so normalise them as open_clip's models do. Over several
    ranks the gradient is that of the global batch after DDP's averaging. `gather_with_grad=False`
    is refused there, because it drops or shrinks gradients; `local_loss` decides, as in open_clip,
    whether the returned value is the mean over this rank's rows or over all.

    Args:
        local_loss: return the mean over this rank's rows.
        gather_with_grad: must be True where `world_size` is above 1.
        cache_labels: accepted; there are no labels to cache.
        rank: this process's rank.
        world_size: number of ranks.
        use_horovod: must be False.

    Raises:
        ValueError: an argument has a value that cannot be honoured.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise ValueError("use_horovod: must be False, torch.distributed is used")
        if world_size > 1 and not gather_with_grad:
            raise ValueError(
                "gather_with_grad: must be True where world_size > 1, got False: without it the "
                "gradients are not those of the global batch"
            )
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.use_horovod = use_horovod

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Mean of both directions' losses of (B, D) features, 0-d, or a dict holding it.

        `logit_bias` changes no softmax; it gets a gradient of 0.

        Raises:
            ValueError: an argument is wrong, or the ranks present are not `world_size`.
        """
        if self.world_size > 1 and distributed.world_size() != self.world_size:
            present = distributed.world_size()
            raise ValueError(f"world_size: got {self.world_size}, but {present} are present")
        scale: float | Tensor
        if isinstance(logit_scale, Tensor):
            scale = _float32_or_better(logit_scale.reshape(()).to(image_features.device))
        else:
            scale = check_positive("logit_scale", logit_scale)
        loss = info_nce_loss(
            image_features,
            text_features,
            temperature=1 / scale,
            symmetric=True,
            normalize=False,
            group="world" if self.world_size > 1 else None,
            check_values=self.world_size > 1,
        )
        if self.world_size > 1 and not self.local_loss:
            mine = loss.detach()
            loss = loss + (ops.gather(mine[None]).mean() - mine)
        if logit_bias is not None:
            loss = loss + 0 * logit_bias.sum()
        return {"contrastive_loss": loss} if output_dict else loss

    def extra_repr(self) -> str:
        """Settings in the module's printed form."""
        return (
            f"local_loss={self.local_loss}, gather_with_grad={self.gather_with_grad}, "
            f"rank={self.rank}, world_size={self.world_size}"
        )
