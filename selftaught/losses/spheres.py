"""Losses on the squared distance to the nearest of a set of fixed centres."""

from typing import NamedTuple

import torch
from torch import Tensor

from selftaught.kernels import ops
from selftaught.losses.checks import (
    check_content,
    check_labels,
    check_matrix,
    check_options,
    check_positive,
    reduce,
    values_readable,
)
from selftaught.losses.module import LossModule
from selftaught.semi_labels import SEMI_LABELS


class Assignment(NamedTuple):
    """A MAD loss with what was found on the way; only `loss` carries a gradient."""

    loss: Tensor
    squared_distance: Tensor
    center: Tensor


def _check(x: Tensor, centers: Tensor, active: Tensor | None, values: bool) -> None:
    check_matrix("x", x)
    check_matrix("centers", centers, ("x", x))
    check_content("x", x, values)
    check_content("centers", centers, values)
    if active is None:
        return
    if active.dtype != torch.bool or active.shape != centers.shape[:1]:
        raise ValueError(
            f"active: must be ({centers.shape[0]},) booleans, one for each centre, got "
            f"{tuple(active.shape)}, {active.dtype}"
        )
    if active.device != x.device:
        raise ValueError(f"active: is on {active.device}, but x is on {x.device}")
    if values and values_readable(active) and not active.any():
        raise ValueError("active: at least one centre must be active, got none")


def nearest_center(
    x: Tensor,
    centers: Tensor,
    *,
    active: Tensor | None = None,
    backend: str | None = None,
    precision: str = "auto",
    check_values: bool = True,
) -> tuple[Tensor, Tensor]:
    """Squared distance to the nearest centre, and its index; ties go to the smallest index.

    The distance is exact to rounding even where points sit on their centres. It is differentiable
    by `x` and by `centers`.

    Args:
        x: (N, D) points; fp64, fp32, bf16 or fp16.
        centers: (K, D) centres; of any float dtype, used in that of the result.
        active: (K,) booleans; a centre that is not active is never nearest. None: all are.
        backend: one of `selftaught.kernels.BACKENDS`; None: SELFTAUGHT_BACKEND or the best.
        precision: lowest precision of the products that choose the index.
        check_values: False: values are not checked on the CPU either.

    Returns:
        (N,) squared distances, float32 (float64 for float64 x), and (N,) int64 indices.

    Raises:
        ValueError: an argument is wrong (N = 0, K = 0, no active centre, widths that differ,
            integers, non-finite entries, an unknown option); the message names it. Values are
            checked on the CPU in eager mode only; elsewhere a row with a non-finite entry gets
            distance NaN and index -1.
    """
    backend = check_options(backend, precision)
    _check(x, centers, active, check_values)
    if torch.compiler.is_exporting():  # an exported program cannot hold our operators
        distances = (x[:, None] - centers.to(x)).square().sum(2)
        if active is not None:
            distances = torch.where(active, distances, torch.inf)
        nearest = distances.min(1)
        return nearest.values, nearest.indices
    squared, index = ops.nearest_center(x, centers, active, precision, backend)
    return squared, index


def mad_loss_with_assignment(
    x: Tensor,
    centers: Tensor,
    semi_labels: Tensor,
    *,
    eta: float = 1.0,
    eps: float = 1e-6,
    active: Tensor | None = None,
    reduction: str = "mean",
    backend: str | None = None,
    precision: str = "auto",
    check_values: bool = True,
) -> Assignment:
    """`mad_loss` and, from the same pass, every row's squared distance and nearest centre.

    Args:
        x: as in `mad_loss`.
        centers: as in `mad_loss`.
        semi_labels: as in `mad_loss`.
        eta: as in `mad_loss`.
        eps: as in `mad_loss`.
        active: as in `mad_loss`.
        reduction: as in `mad_loss`; the distances and indices are never reduced.
        backend: as in `mad_loss`.
        precision: as in `mad_loss`.
        check_values: as in `mad_loss`; a row without a finite distance has centre -1.

    Returns:
        `Assignment(loss, squared_distance, center)`: 0-d or (N,), then (N,) float and (N,) int64.

    Raises:
        ValueError: as in `mad_loss`.
    """
    backend = check_options(backend, precision, reduction)
    eta, eps = check_positive("eta", eta), check_positive("eps", eps)
    _check(x, centers, active, check_values)
    labels = check_labels(
        "semi_labels", semi_labels, x.shape[0], ("x", x), SEMI_LABELS, check_values
    )
    loss, squared, index = ops.mad(x, centers, labels, active, eta, eps, precision, backend)
    return Assignment(reduce(loss, reduction), squared, index)


def mad_loss(
    x: Tensor,
    centers: Tensor,
    semi_labels: Tensor,
    *,
    eta: float = 1.0,
    eps: float = 1e-6,
    active: Tensor | None = None,
    reduction: str = "mean",
    backend: str | None = None,
    precision: str = "auto",
    check_values: bool = True,
) -> Tensor:
    """Multi-modal anomaly detection loss (paper, Eq. 2).

    With d2 the squared distance to the nearest centre and y the semi-label, the loss of a row is
    d2 for y = 0 (unknown) and eta * (d2 + eps)^y for y = +1 (known normal) or -1 (known abnormal).

    Args:
        x: (N, D) embeddings; fp64, fp32, bf16 or fp16.
        centers: (K, D) centres.
        semi_labels: (N,) integers 0, +1 or -1.
        eta: weight of the known rows, above 0.
        eps: added to d2 of the known rows, above 0.
        active: (K,) booleans; a centre that is not active is never nearest. None: all are.
        reduction: "mean", "sum" or "none".
        backend: one of `selftaught.kernels.BACKENDS`; None: SELFTAUGHT_BACKEND or the best.
        precision: lowest precision of the products that choose the index.
        check_values: False, for a training loop that stops at a NaN loss: entries and
            semi-labels are not checked, and wrong ones give a NaN loss.

    Returns:
        0-d or (N,) tensor, float32 (float64 for float64 x).

    Raises:
        ValueError: as in `nearest_center`, and eta or eps not above 0, or semi-labels that are
            not (N,) integers of -1, 0, +1; where values are not checked a wrong one gives NaN.
    """
    return mad_loss_with_assignment(
        x,
        centers,
        semi_labels,
        eta=eta,
        eps=eps,
        active=active,
        reduction=reduction,
        backend=backend,
        precision=precision,
        check_values=check_values,
    ).loss


class MADLoss(LossModule):
    """`mad_loss` as a module that keeps the centres, and keywords of that as attributes.

    Args:
        centers: (K, D) centres, kept as the buffer `centers`; the buffer `active` (K,) starts
            all True, and a centre is pruned by setting its entry to False.
        eta: as in `mad_loss`.
        eps: as in `mad_loss`.
        reduction: as in `mad_loss`.
        backend: as in `mad_loss`.
        precision: as in `mad_loss`.
        check_values: as in `mad_loss`.

    Raises:
        ValueError: an argument is wrong; the message names it.
    """

    centers: Tensor
    active: Tensor

    def __init__(
        self,
        centers: Tensor,
        *,
        eta: float = 1.0,
        eps: float = 1e-6,
        reduction: str = "mean",
        backend: str | None = None,
        precision: str = "auto",
        check_values: bool = True,
    ) -> None:
        super().__init__(
            eta=eta,
            eps=eps,
            reduction=reduction,
            backend=backend,
            precision=precision,
            check_values=check_values,
        )
        check_matrix("centers", centers)
        check_content("centers", centers)
        self.register_buffer("centers", centers.detach().clone())
        all_active = torch.ones(centers.shape[0], dtype=torch.bool, device=centers.device)
        self.register_buffer("active", all_active)

    def forward(self, x: Tensor, semi_labels: Tensor) -> Tensor:
        """Loss of (N, D) embeddings with (N,) semi-labels; see `mad_loss`."""
        return mad_loss(x, self.centers, semi_labels, active=self.active, **self.settings())


class DeepSADLoss(MADLoss):
    """The loss of Deep SAD (Ruff et al. 2020, Eq. 8): `MADLoss` with one centre.

    Args:
        center: (D,) centre.
        eta: as in `mad_loss`.
        eps: as in `mad_loss`.
        reduction: as in `mad_loss`.
        backend: as in `mad_loss`.
        precision: as in `mad_loss`.
        check_values: as in `mad_loss`.

    Raises:
        ValueError: an argument is wrong; the message names it.
    """

    def __init__(
        self,
        center: Tensor,
        *,
        eta: float = 1.0,
        eps: float = 1e-6,
        reduction: str = "mean",
        backend: str | None = None,
        precision: str = "auto",
        check_values: bool = True,
    ) -> None:
        if center.ndim != 1:
            raise ValueError(f"center: must have shape (D,), got {tuple(center.shape)}")
        super().__init__(
            center[None],
            eta=eta,
            eps=eps,
            reduction=reduction,
            backend=backend,
            precision=precision,
            check_values=check_values,
        )
