"""Batch norm whose statistics are those of a group of rows, not of the whole batch.

Momentum contrast needs it: where a query and its key share a batch's statistics, these tell which
key it is, and the loss falls without learning (He et al. 2020, arXiv:1911.05722, Sec. 3.3,
"shuffling BN"). There the keys are sent to other GPUs in a random order. Here rows stay where they
are and only their groups are drawn, which is the same: nothing else in the network joins rows. Sums
are taken over ranks, so that groups are those of the global batch on any number of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.modules.batchnorm import _BatchNorm

from selftaught import distributed


class Groups:
    """Which rows share statistics in the forward passes of some norms; all do, outside `split`."""

    def __init__(self) -> None:
        self._members: Tensor | None = None

    @contextmanager
    def split(self, places: Tensor, size: int) -> Iterator[None]:
        """Divide the rows of all ranks into groups of neighbouring places.

        Args:
            places: (N,) a permutation of 0..N-1 on the rows' device, where N rows come in rank
                order, equally many from each rank; the same on all ranks.
            size: rows of a group; some hold more where it does not divide N. There are two groups
                at least, of two rows at least.
        """
        total = len(places)
        count = max(total // size, min(2, total // 2), 1)
        own = places.chunk(distributed.world_size())[distributed.rank()]
        groups = torch.arange(count, device=own.device)
        self._members = (own[:, None] * count // total == groups).double()
        try:
            yield
        finally:
            self._members = None

    def members(self, x: Tensor) -> Tensor:
        """(B, groups) float64, 1 where a row of `x` (B, ...) is in a group, else 0."""
        if self._members is None:
            return torch.ones(len(x), 1, dtype=torch.float64, device=x.device)
        return self._members


class _SumOverRanks(torch.autograd.Function):
    """Sum over the ranks, of the gradients too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return distributed.sum_over_ranks(tensor.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return distributed.sum_over_ranks(grad.contiguous().clone())


class GroupedNorm(nn.Module):
    """Batch norm with the parameters and buffers of `norm`, whose training statistics are by group.

    The running statistics are those of a mean group. Outside training it is plain batch norm.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: _BatchNorm, groups: Groups) -> None:
        super().__init__()
        assert norm.momentum is not None
        self.eps, self.momentum, self.groups = norm.eps, norm.momentum, groups
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)

    # Collectives cannot be traced; a compiled network breaks its graph here. Unlike the public
    # torch.compiler.disable it imports the compiler (2 s) when it is called, not with this file.
    @_disable_dynamo
    def forward(self, input: Tensor) -> Tensor:
        """Normalised `input` (B, C, ...); moves the running statistics while training.

        Raises:
            ValueError: a group with one value per channel.
        """
        if not self.training:
            statistics = self.running_mean, self.running_var
            return nn.functional.batch_norm(
                input, *statistics, self.weight, self.bias, False, 0.0, self.eps
            )
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        var, mean = torch.var_mean(x, [*range(2, x.ndim)], correction=0)  # of each row
        # From here on all is small; float64 lets the squares be summed.
        mean, var = mean.double(), var.double()
        members, size = self.groups.members(x), x[0, 0].numel()
        if len(x) * distributed.world_size() // members.shape[1] * size < 2:
            raise ValueError(f"input: {tuple(input.shape)}: need 2 or more values per channel")
        rows = torch.cat([mean, var + mean**2, torch.ones_like(mean[:, :1])], dim=1)
        sums = _SumOverRanks.apply(members.T @ rows)
        mean, square, held = sums.tensor_split([x.shape[1], 2 * x.shape[1]], dim=1)
        mean = mean / held
        var = square / held - mean**2
        self._remember(mean, var, held * size)
        scale = (var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        across = (len(x), x.shape[1], *[1] * (x.ndim - 2))
        scale, shift = ((members @ one).to(x.dtype).view(across) for one in (scale, shift))
        return torch.addcmul(shift, x, scale).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor, values: Tensor) -> None:
        unbiased = var * values / (values - 1)
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.mean(0).to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.mean(0).to(self.running_var.dtype), self.momentum)


def group_norms(module: nn.Module, groups: Groups) -> None:
    """Replace every batch norm below `module`, in place, by one with statistics by group.

    Parameters, buffers and their names stay.
    """
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, GroupedNorm(child, groups))
        else:
            group_norms(child, groups)
