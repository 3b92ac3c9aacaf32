"""NT-Xent, SupCon and InfoNCE over the batch, on one process or on all of a group.

With a group, every rank returns the loss of its own rows against the embeddings of all ranks.
Averaged over ranks, as DDP averages gradients, a mean is the mean over the global batch, in value
and in gradient; a sum is 1 / ranks of the global sum. See `global_batch`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from selftaught import distributed
from selftaught.kernels import ops
from selftaught.losses.agreement import Pair, agreed, group_of
from selftaught.losses.checks import (
    check_content,
    check_labels,
    check_matrix,
    check_options,
    check_same_rows,
    reduce,
    split_temperature,
)
from selftaught.losses.global_batch import InfoNCE, NTXent, Settings, SupCon, run


def _pair(
    names: tuple[str, str],
    first: Tensor,
    second: Tensor,
    temperature: float | Tensor,
    backend: str | None,
    precision: str,
    reduction: str,
    exchange: str = "gather",
) -> Pair:
    """Refuse wrong arguments; the matrices in their common dtype."""
    chosen = check_options(backend, precision, reduction, exchange)
    check_matrix(names[0], first)
    check_matrix(names[1], second, (names[0], first))
    check_same_rows(names[1], second, names[0], first)
    check_content(names[0], first)
    check_content(names[1], second)
    scale, fixed = split_temperature(temperature, (names[0], first))
    dtype = torch.promote_types(first.dtype, second.dtype)
    return Pair(first.to(dtype), second.to(dtype), scale, fixed, chosen)


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
) -> Tensor:
    """NT-Xent, the InfoNCE loss over two views of every image (paper, Eq. 1; SimCLR).

    Every view has one positive, the other view of its image; all other views of the batch are
    negatives. The denominator holds the positive and the negatives, not the view itself.

    Args:
        z1: (B, D) embeddings of the first views; fp64, fp32, bf16 or fp16, of any length.
        z2: (B, D) embeddings of the second views.
        temperature: number or 0-d tensor above 0; a tensor may require grad.
        normalize: divide every row by its length; a zero row stays zero and gets no gradient.
        reduction: "mean" or "sum" over the 2B rows, or "none": (2B,), view 1 then view 2.
        group: process group, or "world", whose embeddings all act as negatives; None: this
            process alone.
        exchange: "gather": every rank holds the embeddings of all, and two ranks share the work
            on their block; "ring": embeddings travel from rank to rank, for a group whose
            embeddings do not fit on one.
        backend: one of `selftaught.kernels.BACKENDS`; None: SELFTAUGHT_BACKEND or the best.
        precision: lowest precision of matrix products: auto (the input's own), fp32, fp16, bf16.

    Returns:
        0-d or (2B,) tensor, float32 (float64 for float64 input).

    Raises:
        ValueError: an argument is wrong (no rows, widths that differ, integers, non-finite
            entries, temperature not above 0, an unknown option); the message names it. Entries
            are checked on the CPU in eager mode only, elsewhere they give a NaN loss.
    """

    def check() -> Pair:
        return _pair(("z1", "z2"), z1, z2, temperature, backend, precision, reduction, exchange)

    if group is None:
        a, b, scale, fixed, chosen, _ = check()
        loss = ops.ntxent(a, b, scale, fixed, normalize, precision, chosen)
    else:
        group = group_of(group)
        words = f"normalize={normalize}, exchange={exchange}"
        a, b, scale, fixed, chosen, _ = agreed(group, "ntxent", words, check)
        settings = Settings("ntxent", fixed, normalize, precision, chosen, exchange, group)
        loss = run(NTXent.apply, a, b, scale, settings)
    return reduce(loss, reduction)


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

    Returns:
        0-d or (2B,) tensor, float32 (float64 for float64 input).

    Raises:
        ValueError: as in `ntxent_loss`, and labels that are not (B,) integers of -1 or above.
    """
    own = 0 if group is None else distributed.rank(group_of(group))

    def check() -> Pair:
        pair = _pair(("z1", "z2"), z1, z2, temperature, backend, precision, reduction)
        images = check_labels("labels", labels, z1.shape[0], ("z1", z1), None)
        return pair._replace(more=_classes(images, own))

    if group is None:
        a, b, scale, fixed, chosen, classes = check()
        assert classes is not None
        z = torch.cat([a, b])
        loss = ops.supcon(z, classes, scale, fixed, True, normalize, precision, chosen)
    else:
        group, words = group_of(group), f"normalize={normalize}"
        a, b, scale, fixed, chosen, classes = agreed(group, "supcon", words, check)
        settings = Settings("supcon", fixed, normalize, precision, chosen, "gather", group)
        loss = run(SupCon.apply, a, b, classes, scale, settings)
    return reduce(loss, reduction)


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

    Returns:
        0-d, (B,) or (2B,) tensor, float32 (float64 for float64 input).

    Raises:
        ValueError: as in `ntxent_loss`; `negatives` together with `symmetric`; no `negatives`, or
            `symmetric`, together with `in_batch=False`.
    """

    def check() -> Pair:
        names = ("query", "key")
        pair = _pair(names, query, key, temperature, backend, precision, reduction, exchange)
        if not in_batch and (negatives is None or symmetric):
            raise ValueError("in_batch: False needs `negatives` and symmetric=False")
        if negatives is None:
            return pair
        if symmetric:
            raise ValueError("negatives: must be None where symmetric=True, they have no queries")
        check_matrix("negatives", negatives, ("query", query))
        check_content("negatives", negatives)
        return pair._replace(more=negatives.to(pair.first.dtype))

    if group is None or not in_batch:  # without the keys of the batch no rank needs another's
        q, k, scale, fixed, chosen, more = check()
        loss = ops.info_nce(
            q, k, more, scale, fixed, symmetric, in_batch, normalize, precision, chosen
        )
    else:
        group = group_of(group)
        words = f"normalize={normalize}, exchange={exchange}, symmetric={symmetric}"
        q, k, scale, fixed, chosen, more = agreed(group, "info_nce", words, check)
        settings = Settings("info_nce", fixed, normalize, precision, chosen, exchange, group)
        loss = run(InfoNCE.apply, q, k, more, scale, symmetric, settings)
    return reduce(loss, reduction)


class _Contrastive(nn.Module):
    """The settings the three losses share.

    A `temperature` that is an `nn.Parameter` becomes a parameter of the module.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        *,
        normalize: bool = True,
        reduction: str = "mean",
        group: Any = None,
        backend: str | None = None,
        precision: str = "auto",
    ) -> None:
        super().__init__()
        check_options(backend, precision, reduction)
        if not isinstance(temperature, Tensor):
            split_temperature(temperature, ("z1", torch.empty(0)))
        self.temperature = temperature
        self.normalize = normalize
        self.reduction = reduction
        self.group = group
        self.backend = backend
        self.precision = precision

    def _settings(self) -> dict[str, Any]:
        names = ("temperature", "normalize", "reduction", "group", "backend", "precision")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """Settings in the module's printed form."""
        return f"temperature={float(self.temperature):g}, reduction={self.reduction!r}"


class NTXentLoss(_Contrastive):
    """`ntxent_loss` as a module; the settings are that function's keywords."""

    def __init__(
        self, temperature: float | Tensor = 0.5, *, exchange: str = "gather", **settings: Any
    ) -> None:
        super().__init__(temperature, **settings)
        check_options(None, self.precision, exchange=exchange)
        self.exchange = exchange

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Loss of two (B, D) views; see `ntxent_loss`."""
        return ntxent_loss(z1, z2, exchange=self.exchange, **self._settings())


class SupConLoss(_Contrastive):
    """`supcon_loss` as a module; the settings are that function's keywords."""

    def forward(self, z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
        """Loss of two (B, D) views with (B,) labels; see `supcon_loss`."""
        return supcon_loss(z1, z2, labels, **self._settings())


class InfoNCELoss(_Contrastive):
    """`info_nce_loss` as a module; the settings are that function's keywords."""

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        symmetric: bool = False,
        in_batch: bool = True,
        exchange: str = "gather",
        **settings: Any,
    ) -> None:
        super().__init__(temperature, **settings)
        check_options(None, self.precision, exchange=exchange)
        self.symmetric = symmetric
        self.in_batch = in_batch
        self.exchange = exchange

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Loss of (B, D) queries and keys; see `info_nce_loss`."""
        own = {name: getattr(self, name) for name in ("symmetric", "in_batch", "exchange")}
        return info_nce_loss(query, key, negatives=negatives, **own, **self._settings())
