"""NT-Xent, SupCon and InfoNCE over the batch, on one process or on all of a group.

With a group, every rank returns the loss of its own rows against the embeddings of all ranks.
Averaged over ranks, as DDP averages gradients, a mean is the mean over the global batch, in value
and in gradient; a sum is 1 / ranks of the global sum.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftaught.kernels import contrastive as formulas
from selftaught.kernels import dispatch, ops, ranks
from selftaught.losses.checks import (
    check_content,
    check_labels,
    check_matrix,
    check_options,
    check_same_rows,
    reduce,
    split_temperature,
    values_readable,
)
from selftaught.losses.group import Arguments, agree, peers_of
from selftaught.losses.module import LossModule


class _Settings(NamedTuple):
    """Arguments that the three losses share; see `ntxent_loss`."""

    temperature: float | Tensor
    normalize: bool
    reduction: str
    group: Any
    exchange: str
    backend: str | None
    precision: str
    check_values: bool


def _evaluate(
    loss: formulas.Loss,
    first: tuple[str, Tensor],
    second: tuple[str, Tensor],
    more: Callable[[], Tensor | None],
    settings: _Settings,
    **flags: bool,
) -> Tensor:
    """Check the arguments, on all ranks of a group, and evaluate.

    Args:
        loss: which one.
        first: name of an argument, and (B, D) first views or queries.
        second: name of an argument, and (B, D) second views or keys.
        more: checks and gives the labels or the negatives.
        settings: other arguments.
        flags: settings of this loss only.
    """
    temperature, normalize, reduction, group, exchange, _, precision, values = settings
    peers = peers_of(group)

    def check() -> Arguments:
        backend = check_options(settings.backend, precision, reduction, exchange)
        check_matrix(*first)
        check_matrix(*second, first)
        check_same_rows(*second, *first)
        check_content(*first, values and peers.ranks > 1)
        check_content(*second, values and peers.ranks > 1)
        scale, fixed = split_temperature(temperature, first, values)
        dtype = torch.promote_types(first[1].dtype, second[1].dtype)
        pair = first[1].to(dtype), second[1].to(dtype)
        return Arguments(*pair, more(), scale, fixed, backend)

    agreed = {"normalize": normalize, "exchange": exchange, "check_values": values, **flags}
    words = ", ".join(f"{name}={value}" for name, value in agreed.items())
    a, b, other, scale, fixed, backend = agree(peers, loss.name, words, check)
    alone = peers.ranks == 1
    if alone and a.shape[1] <= dispatch.widest_views(loss.name, a.device, a.dtype, backend):
        options = [fixed, normalize, reduction, precision]
        result = ops.views(a, b, other, scale, *options, backend)[0]
    else:
        tensors: list[Tensor | None] = [a, b, other, scale]
        if loss is not formulas.INFO_NCE:
            classes = [] if other is None else [_classes(other, peers.rank)]
            tensors = [torch.cat([a, b]), *classes, scale]
        options = [fixed, *(flags[name] for name in loss.flags), normalize, precision]
        if alone:
            rows = getattr(ops, loss.name)(*tensors, *options, backend)
        else:
            over_ranks = getattr(ops, f"{loss.name}_over_ranks")
            name = ranks.group_name(peers.group)
            rows, *_ = over_ranks(*tensors, *options, exchange == "ring", name, backend)
        result = reduce(rows, reduction)
    # An entry that is not finite shows in the loss: where that is finite none is looked for.
    if alone and values and values_readable(result) and not math.isfinite(result.detach().sum()):
        check_content(*first)
        check_content(*second)
    return result


def ntxent_loss(
    z1: Tensor,
    z2: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    group: Any = None,
    exchange: str = "gather",
    backend: str | None = None,
    precision: str = "auto",
    check_values: bool = True,
) -> Tensor:
    """NT-Xent, the InfoNCE loss over two views of every image (paper, Eq. 1; SimCLR).

    Every view has one positive, the other view of its image; all other views of the batch are
    negatives. The denominator holds the positive and the negatives, not the view itself.

    Args:
        z1: (B, D) embeddings of the first views; fp64, fp32, bf16 or fp16, of any length.
        z2: (B, D) embeddings of the second views.
        temperature: number, or tensor of one element, above 0; a tensor may require grad.
        normalize: divide every row by its length; a zero row stays zero and gets no gradient.
        reduction: "mean" or "sum" over the 2B rows, or "none": (2B,), view 1 then view 2.
        group: process group, or "world", whose embeddings all act as negatives; None: this
            process alone.
        exchange: "gather": every rank holds the embeddings of all, in the dtype that they come
            in; "ring": they travel from rank to rank, for a group whose embeddings do not fit on
            one.
        backend: one of `selftaught.kernels.BACKENDS`; None: SELFTAUGHT_BACKEND or the best.
        precision: lowest precision of matrix products: auto (the input's own), fp32, fp16, bf16.
        check_values: False, for a training loop that stops at a NaN loss: entries, labels and
            the temperature are not checked and give a NaN loss.

    Returns:
        0-d or (2B,) tensor, float32 (float64 for float64 input).

    Raises:
        ValueError: an argument is wrong (no rows, widths that differ, integers, non-finite
            entries, temperature not above 0, an unknown option); the message names it. Values
            are checked on the CPU in eager mode only, elsewhere they give a NaN loss.
    """
    settings = _Settings(
        temperature, normalize, reduction, group, exchange, backend, precision, check_values
    )
    return _evaluate(formulas.NTXENT, ("z1", z1), ("z2", z2), lambda: None, settings)


def supcon_loss(
    z1: Tensor,
    z2: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    group: Any = None,
    backend: str | None = None,
    precision: str = "auto",
    check_values: bool = True,
) -> Tensor:
    """Supervised contrastive loss over two views of every image (Khosla et al. 2020, L_out).

    The positives of a view are the other view of its image and all views of images of the same
    class. Its loss is minus the mean over positives of the log-probability, whose denominator
    holds all other views, positives included.

    Args:
        z1: (B, D) embeddings of the first views.
        z2: (B, D) embeddings of the second views.
        labels: (B,) integer classes; -1: no class, only its own other view is positive.
        temperature: as in `ntxent_loss`.
        normalize: as in `ntxent_loss`.
        reduction: as in `ntxent_loss`.
        group: as in `ntxent_loss`; images of one class on different ranks are positives too.
        backend: as in `ntxent_loss`.
        precision: as in `ntxent_loss`.
        check_values: as in `ntxent_loss`.

    Returns:
        0-d or (2B,) tensor, float32 (float64 for float64 input).

    Raises:
        ValueError: as in `ntxent_loss`, and labels that are not (B,) integers of -1 or above.
    """

    def more() -> Tensor:
        return check_labels("labels", labels, z1.shape[0], ("z1", z1), None, check_values)

    settings = _Settings(
        temperature, normalize, reduction, group, "gather", backend, precision, check_values
    )
    return _evaluate(formulas.SUPCON, ("z1", z1), ("z2", z2), more, settings, paired=True)


def _classes(labels: Tensor, rank: int) -> Tensor:
    """(2B,) classes of both views; an image without class is one of its own, unlike any rank's."""
    alone = -1 - (rank * labels.shape[0] + torch.arange(labels.shape[0], device=labels.device))
    return torch.where(labels < 0, alone, labels).repeat(2)


def info_nce_loss(
    query: Tensor,
    key: Tensor,
    *,
    negatives: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    symmetric: bool = False,
    in_batch: bool = True,
    normalize: bool = True,
    reduction: str = "mean",
    group: Any = None,
    exchange: str = "gather",
    backend: str | None = None,
    precision: str = "auto",
    check_values: bool = True,
) -> Tensor:
    """InfoNCE between queries and keys; `symmetric=True` is the CLIP loss.

    Key i is the positive of query i; all other keys, and all `negatives`, are its negatives. The
    denominator holds all keys and negatives. Queries are not compared with queries.

    Args:
        query: (B, D) embeddings.
        key: (B, D) embeddings.
        negatives: (M, D) further keys, such as a queue. With a group they are used as they are,
            so they should be the same on every rank.
        temperature: as in `ntxent_loss`.
        symmetric: the mean of the loss of queries against keys and of keys against queries.
        in_batch: the keys of the other queries are negatives; False: only `negatives` are, as in
            MoCo, and the ranks of a group need nothing of each other.
        normalize: as in `ntxent_loss`, for the negatives too.
        reduction: over the B rows, 2B if symmetric (queries, then keys), as in `ntxent_loss`.
        group: as in `ntxent_loss`.
        exchange: as in `ntxent_loss`.
        backend: as in `ntxent_loss`.
        precision: as in `ntxent_loss`.
        check_values: as in `ntxent_loss`.

    Returns:
        0-d, (B,) or (2B,) tensor, float32 (float64 for float64 input).

    Raises:
        ValueError: as in `ntxent_loss`; `negatives` together with `symmetric`; no `negatives`, or
            `symmetric`, together with `in_batch=False`.
    """

    def more() -> Tensor | None:
        if not in_batch and (negatives is None or symmetric):
            raise ValueError("in_batch: False needs `negatives` and symmetric=False")
        if negatives is None:
            return None
        if symmetric:
            raise ValueError("negatives: must be None where symmetric=True, they have no queries")
        check_matrix("negatives", negatives, ("query", query))
        check_content("negatives", negatives, check_values)
        return negatives.to(torch.promote_types(query.dtype, key.dtype))

    # Without the keys of the batch no rank needs another's.
    group = group if in_batch else None
    settings = _Settings(
        temperature, normalize, reduction, group, exchange, backend, precision, check_values
    )
    flags = {"symmetric": symmetric, "in_batch": in_batch}
    return _evaluate(formulas.INFO_NCE, ("query", query), ("key", key), more, settings, **flags)


class NTXentLoss(LossModule):
    """`ntxent_loss` as a module; the arguments are that function's keywords, kept as attributes."""

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        *,
        normalize: bool = True,
        reduction: str = "mean",
        group: Any = None,
        exchange: str = "gather",
        backend: str | None = None,
        precision: str = "auto",
        check_values: bool = True,
    ) -> None:
        super().__init__(
            temperature=temperature,
            normalize=normalize,
            reduction=reduction,
            group=group,
            exchange=exchange,
            backend=backend,
            precision=precision,
            check_values=check_values,
        )

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Loss of two (B, D) views; see `ntxent_loss`."""
        return ntxent_loss(z1, z2, **self.settings())


class SupConLoss(LossModule):
    """`supcon_loss` as a module; the arguments are that function's keywords, kept as attributes."""

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        *,
        normalize: bool = True,
        reduction: str = "mean",
        group: Any = None,
        backend: str | None = None,
        precision: str = "auto",
        check_values: bool = True,
    ) -> None:
        super().__init__(
            temperature=temperature,
            normalize=normalize,
            reduction=reduction,
            group=group,
            backend=backend,
            precision=precision,
            check_values=check_values,
        )

    def forward(self, z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
        """Loss of two (B, D) views with (B,) labels; see `supcon_loss`."""
        return supcon_loss(z1, z2, labels, **self.settings())


class InfoNCELoss(LossModule):
    """`info_nce_loss` as a module; its arguments are keywords of that, kept as attributes."""

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        symmetric: bool = False,
        in_batch: bool = True,
        normalize: bool = True,
        reduction: str = "mean",
        group: Any = None,
        exchange: str = "gather",
        backend: str | None = None,
        precision: str = "auto",
        check_values: bool = True,
    ) -> None:
        super().__init__(
            temperature=temperature,
            symmetric=symmetric,
            in_batch=in_batch,
            normalize=normalize,
            reduction=reduction,
            group=group,
            exchange=exchange,
            backend=backend,
            precision=precision,
            check_values=check_values,
        )

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Loss of (B, D) queries and keys; see `info_nce_loss`."""
        return info_nce_loss(query, key, negatives=negatives, **self.settings())
