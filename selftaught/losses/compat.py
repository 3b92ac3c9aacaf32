"""The call signatures of lightly, pytorch-metric-learning and open_clip over our losses.

Each class takes the arguments its namesake takes and returns the same value with the same
gradient. An argument we cannot honour is refused, never ignored.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from selftaught import distributed
from selftaught.kernels import ops
from selftaught.kernels.reference.contrastive import unit_rows
from selftaught.losses.checks import (
    check_content,
    check_matrix,
    split_temperature,
)
from selftaught.losses.contrastive import info_nce_loss, ntxent_loss


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
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        split_temperature(temperature, ("out0", torch.empty(0)))
        size = [memory_bank_size] if isinstance(memory_bank_size, int) else [*memory_bank_size]
        if size != [0] and not (len(size) == 2 and all(n >= 1 for n in size)):
            raise ValueError(f"memory_bank_size: must be 0 or (rows, D), got {memory_bank_size}")
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        bank = unit_rows(torch.randn(size))[0] if len(size) == 2 else torch.empty(0)
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long), persistent=False)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Mean loss of two (B, D) views, 0-d."""
        group = "world" if self.gather_distributed else None
        if self.bank.ndim != 2:
            return ntxent_loss(out0, out1, self.temperature, group=group)
        check_matrix("out0", out0, ("memory_bank_size", self.bank))
        loss = info_nce_loss(
            out0,
            out1,
            negatives=self.bank.clone(),  # the queue moves on before the backward pass
            temperature=self.temperature,
            in_batch=False,
        )
        if out0.requires_grad:
            self._enqueue(unit_rows(out1.detach().float())[0])
        return loss

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        if self.gather_distributed:
            keys = distributed.gather(keys)
        start = int(self.bank_ptr)
        keys = keys[: self.bank.shape[0] - start]
        end = start + keys.shape[0]
        self.bank[start:end] = keys
        # A batch that reaches the end is cut there, and the next one starts over.
        self.bank_ptr[0] = 0 if end == self.bank.shape[0] else end


class SupConLoss(nn.Module):
    """pytorch-metric-learning's `SupConLoss` with its default distance and reducer.

    Rows of equal label are each other's positives. The mean is over the rows whose loss is above
    0, which leaves out rows without positives; a batch of one class has loss 0.

    Args:
        temperature: above 0.

    Raises:
        ValueError: a temperature not above 0.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        split_temperature(temperature, ("embeddings", torch.empty(0)))
        self.temperature = temperature

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss of (N, D) embeddings with (N,) integer labels, 0-d.

        Raises:
            ValueError: an argument is wrong, or a miner's or reference embeddings were given.
        """
        given = {"indices_tuple": indices_tuple, "ref_emb": ref_emb, "ref_labels": ref_labels}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name}: must be None, got {type(value).__name__}")
        check_matrix("embeddings", embeddings)
        check_content("embeddings", embeddings)
        if labels.shape != embeddings.shape[:1] or labels.is_floating_point():
            raise ValueError(
                f"labels: must be ({embeddings.shape[0]},) integers, got "
                f"{tuple(labels.shape)}, {labels.dtype}"
            )
        labels = labels.to(embeddings.device).long()
        loss = ops.supcon(embeddings, labels, None, self.temperature, False, True, "auto", "auto")
        counted = (loss > 0) & (labels != labels[0]).any()
        return (loss * counted).sum() / counted.sum().clamp(min=1)


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
        if isinstance(logit_scale, Tensor):
            logit_scale = logit_scale.reshape(()).to(
                torch.promote_types(logit_scale.dtype, torch.float32)
            )
        loss = info_nce_loss(
            image_features,
            text_features,
            temperature=1 / logit_scale,
            symmetric=True,
            normalize=False,
            group="world" if self.world_size > 1 else None,
        )
        if self.world_size > 1 and not self.local_loss:
            mine = loss.detach()
            everyone = distributed.sum_over_ranks(mine.clone()) / self.world_size
            loss = loss + (everyone - mine)
        if logit_bias is not None:
            loss = loss + 0 * logit_bias.sum()
        return {"contrastive_loss": loss} if output_dict else loss
