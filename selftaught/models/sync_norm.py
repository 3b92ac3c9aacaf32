"""Batch norm over the global batch: torch's on NCCL, and one of ours where torch's does not run."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftaught import distributed


def _across(vector: Tensor, x: Tensor) -> Tensor:
    """A vector of channels (C,) that broadcasts against `x` (B, C, ...)."""
    return vector.view(1, -1, *[1] * (x.ndim - 2))


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of `x` (B, C, ...), this rank's rows only."""
    if x.device.type == "cpu":
        # The kernel of torch's own batch norm; var_mean took 1.4 to 5 times as long.
        return torch.batch_norm_update_stats(x, None, None, 0.0)
    var, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
    return mean, var


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, mean and var taken over all ranks' rows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        mean, var = _statistics(x.to(dtype))
        rows = mean.new_full((1,), x.numel() / x.shape[1])
        # Every rank combines the same figures in the same order: the same bits everywhere.
        means, variances, counts = (
            distributed.gather(torch.cat([mean, var, rows])[None])
            .double()
            .split([x.shape[1], x.shape[1], 1], dim=1)
        )
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        var = ((variances + (means - mean) ** 2) * counts).sum(0) / total
        mean, var = mean.to(dtype), var.to(dtype)
        ctx.save_for_backward(x, weight, mean, var, total.to(dtype))
        ctx.eps = eps
        y = nn.functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
        ctx.mark_non_differentiable(mean, var, total)
        return y, mean, var, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, var, total = ctx.saved_tensors
        # Mean and variance taken as constants, then what they add: two sums over all ranks.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = distributed.sum_over_ranks(torch.stack([grad_bias, grad_weight]).to(mean.dtype))
        sum_grad, sum_product = sums / total
        scale = weight * torch.rsqrt(var + ctx.eps)
        slope = -scale * torch.rsqrt(var + ctx.eps) * sum_product
        moved = (x - _across(mean, x)) * _across(slope, x) - _across(scale * sum_grad, x)
        return (grad_x + moved).to(x.dtype), grad_weight, grad_bias, None


class SyncNorm(_BatchNorm):
    """Batch norm whose training statistics are those of the global batch, on any back-end.

    Names of parameters and buffers are torch's. Outside training it is plain batch norm.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"input: shape {tuple(input.shape)}, must be (B, C, ...)")

    # Collectives cannot be traced; a compiled network breaks its graph here.
    @torch.compiler.disable
    def forward(self, input: Tensor) -> Tensor:
        """Normalised `input` (B, C, ...); moves the running statistics while training.

        Raises:
            ValueError: fewer than two dimensions, or one value per channel to train on.
        """
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        weight, bias = self.weight, self.bias
        if weight is None:
            wide = torch.float64 if input.dtype == torch.float64 else torch.float32
            weight = torch.ones(self.num_features, dtype=wide, device=input.device)
            bias = torch.zeros_like(weight)
        y, mean, var, total = cast(
            tuple[Tensor, Tensor, Tensor, Tensor],
            _Normalise.apply(input, weight, bias, self.eps),
        )
        # The sum is read only where this rank's own rows leave it open.
        if input.numel() < 2 * self.num_features and total < 2:
            raise ValueError(f"input: {tuple(input.shape)}: need 2 or more values per channel")
        if self.track_running_stats:
            self._remember(mean, var * (total / (total - 1)).to(var.dtype))
        return y

    @torch.no_grad()
    def _remember(self, mean: Tensor, unbiased: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def synchronise_norms(module: nn.Module) -> None:
    """Replace every batch norm below `module`, in place, by one over all ranks.

    Parameters, buffers and their names stay. In one process nothing happens.
    """
    if distributed.world_size() == 1:
        return
    if distributed.backend() == "nccl":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, SyncNorm):
            setattr(module, name, _ours(child))
        else:
            synchronise_norms(child)


def _ours(norm: _BatchNorm) -> SyncNorm:
    made = SyncNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    made.train(norm.training)
    made.weight, made.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(made, name, buffer)
    return made
