"""The public ops in `torch.ops.selftaught`: their schemas and fake results; no arithmetic.

How they are registered, and what they do under autograd, vmap and torch.compile: `registration`.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from selftaught.kernels import dispatch, ranks
from selftaught.kernels.contrastive import INFO_NCE, NTXENT, SUPCON, Loss
from selftaught.kernels.reference.common import compute_dtype
from selftaught.kernels.registration import OVER_RANKS, Family, define, register


def _rows(z: Tensor, count: int) -> Tensor:
    return z.new_empty(count, dtype=compute_dtype(z))


def _fake_nearest_center(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _rows(x, x.shape[0]), x.new_empty(x.shape[0], dtype=torch.int64)


def _fake_views(z1: Tensor, z2: Tensor, labels: Tensor | None, *more: Any) -> tuple[Tensor, ...]:
    reduction, precision, backend = more[-3:]
    losses = dispatch.implementation(VIEWS.request(z1), backend).losses
    return losses.keep_views(z1, labels, reduction, precision)


def _rows_of_info_nce(
    query: Tensor, key: Tensor, negatives: Any, t: Any, fixed: float, symmetric: bool, *_: Any
) -> Tensor:
    return _rows(query, query.shape[0] * (2 if symmetric else 1))


_SCALE = "Tensor? temperature, float fixed_temperature"
_NTXENT = f"Tensor z, {_SCALE}, bool normalize, str precision"
_SUPCON = f"Tensor z, Tensor classes, {_SCALE}, bool paired, bool normalize, str precision"
_INFO_NCE = (
    f"Tensor query, Tensor key, Tensor? negatives, {_SCALE}, bool symmetric, bool in_batch, "
    "bool normalize, str precision"
)

VIEWS = Family(
    name="views",
    inputs="Tensor z1, Tensor z2, Tensor? labels, Tensor? temperature, float fixed_temperature, "
    "bool normalize, str reduction, str precision",
    outputs=("Tensor loss", "Tensor operands", "Tensor vectors", "Tensor classes"),
    differentiable=(0, 1, 3),
    fake=_fake_views,
    like="ntxent",
)
FAMILIES = (
    Family(
        name="ntxent",
        inputs=_NTXENT,
        outputs=("Tensor loss",),
        differentiable=NTXENT.differentiable,
        fake=lambda z, *_: _rows(z, z.shape[0]),
    ),
    Family(
        name="supcon",
        inputs=_SUPCON,
        outputs=("Tensor loss",),
        differentiable=SUPCON.differentiable,
        fake=lambda z, *_: _rows(z, z.shape[0]),
    ),
    Family(
        name="info_nce",
        inputs=_INFO_NCE,
        outputs=("Tensor loss",),
        differentiable=INFO_NCE.differentiable,
        fake=_rows_of_info_nce,
    ),
    Family(
        name="nearest_center",
        inputs="Tensor x, Tensor centers, Tensor? active, str precision",
        outputs=("Tensor squared", "Tensor index"),
        differentiable=(0, 1),
        fake=_fake_nearest_center,
    ),
    Family(
        name="mad",
        inputs="Tensor x, Tensor centers, Tensor semi_labels, Tensor? active, float eta, "
        "float eps, str precision",
        outputs=("Tensor loss", "Tensor squared", "Tensor index"),
        differentiable=(0, 1),
        fake=lambda x, *_: (_rows(x, x.shape[0]), *_fake_nearest_center(x)),
    ),
)

ntxent, supcon, info_nce, nearest_center, mad = map(register, FAMILIES)
# NT-Xent and, with labels, SupCon, of a process alone and on backends that have kernels for it.
views = register(VIEWS)


def _over_ranks(loss: Loss, inputs: str, gathered: str) -> Any:
    return register(
        Family(
            name=f"{loss.name}{OVER_RANKS}",
            inputs=f"{inputs}, bool travel, str group",
            outputs=("Tensor loss", *gathered.split(", "), "Tensor losses"),
            differentiable=loss.differentiable,
            fake=partial(ranks.fake_over_ranks, loss),
            on_passes=partial(ranks.over_ranks, loss),
        )
    )


ntxent_over_ranks = _over_ranks(NTXENT, _NTXENT, "Tensor all_z")
supcon_over_ranks = _over_ranks(SUPCON, _SUPCON, "Tensor all_z, Tensor all_classes")
info_nce_over_ranks = _over_ranks(INFO_NCE, _INFO_NCE, "Tensor queries, Tensor keys")
gather = define("gather(Tensor local) -> Tensor", ranks.gather, ranks.fake_gather)
# Unlike clone(), no compiler leaves it out or takes it again once the tensor has changed.
copy = define("copy(Tensor tensor) -> Tensor", torch.clone, torch.empty_like)
