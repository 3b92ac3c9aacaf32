"""NT-Xent, SupCon and InfoNCE written out, forward and backward.

Shapes: G images of the global batch, N rows of it, R rows whose loss is wanted, C columns, D width.

The losses are built on similarities relative to the positive pair,
t_ij = (s_ij - s_i+) / temperature. The loss of a row is then log(1 + sum over negatives of
exp(t_ij)), so that small losses keep their digits, exp(t_ij - loss_i) is the softmax weight of a
negative, and expm1(-loss_i) the positive's coefficient, with no cancellation and no other state.
"""

import torch
from torch import Tensor

from selftaught.kernels.reference.common import cast, compute_dtype

MINUS_INFINITY = float("-inf")


def unit_rows(z_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Rows divided by their length, and the (N, 1) inverse lengths.

    A row whose largest entry is below the smallest normal number counts as zero: it stays zero,
    and its inverse length is given as 0, so that no gradient reaches it.
    """
    # Dividing by the largest entry first keeps squares from under- and overflowing; lengths do
    # not depend on the divisor, so it is no part of the derivative.
    largest = z_ND.detach().abs().amax(1, keepdim=True)
    zero = largest < torch.finfo(z_ND.dtype).tiny
    largest = largest.masked_fill(zero, 1)
    scaled = (z_ND / largest).masked_fill(zero, 0)
    length = scaled.square().sum(1, keepdim=True).masked_fill(zero, 1).sqrt()
    return scaled / length, (1 / (length * largest)).masked_fill(zero, 0)


def _unit_rows_backward(grad_ND: Tensor, unit_ND: Tensor, inverse_N1: Tensor | None) -> Tensor:
    if inverse_N1 is None:
        return grad_ND
    along = (grad_ND * unit_ND).sum(1, keepdim=True)
    return (grad_ND - along * unit_ND) * inverse_N1


def _prepare(z_ND: Tensor, normalize: bool) -> tuple[Tensor, Tensor | None]:
    z_ND = z_ND.to(compute_dtype(z_ND))
    return unit_rows(z_ND) if normalize else (z_ND, None)


def _scale(temperature: Tensor | None, fixed: float, z: Tensor) -> Tensor | float:
    return fixed if temperature is None else temperature.to(compute_dtype(z))


def _mark(like: Tensor, *columns_R: Tensor) -> Tensor:
    mask = torch.zeros_like(like, dtype=torch.bool)
    for column_R in columns_R:
        mask = mask.scatter(1, column_R[:, None], True)
    return mask


def _pair_logits(
    rows_RD: Tensor, columns_CD: Tensor, positive_R: Tensor, tau: Tensor | float
) -> Tensor:
    positive_R1 = (rows_RD * columns_CD[positive_R]).sum(1, keepdim=True)
    return (rows_RD @ columns_CD.T - positive_R1) / tau


def _pair_loss(logits_RC: Tensor, excluded_RC: Tensor) -> Tensor:
    negatives_R = logits_RC.masked_fill(excluded_RC, MINUS_INFINITY).logsumexp(1)
    return torch.logaddexp(negatives_R, torch.zeros_like(negatives_R))


def _pair_weights(
    grad_R: Tensor, loss_R: Tensor, logits_RC: Tensor, excluded_RC: Tensor, positive_R: Tensor
) -> Tensor:
    """Derivative of sum(grad * loss) by temperature times similarity."""
    negative_RC = torch.exp(logits_RC.masked_fill(excluded_RC, MINUS_INFINITY) - loss_R[:, None])
    weights_RC = negative_RC.scatter(1, positive_R[:, None], torch.expm1(-loss_R)[:, None])
    return grad_R[:, None] * weights_RC


def _images(first: int, count: int, device: torch.device) -> Tensor:
    return torch.arange(first, first + count, device=device)


def _ntxent_parts(
    z1: Tensor, z2: Tensor, tau: Tensor | float, first: int, count: int, normalize: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    z_ND, inverse_N1 = _prepare(torch.cat([z1, z2]), normalize)
    image = _images(first, count, z1.device)
    own_R = torch.cat([image, image + z1.shape[0]])
    positive_R = torch.cat([image + z1.shape[0], image])
    logits_RN = _pair_logits(z_ND[own_R], z_ND, positive_R, tau)
    excluded_RN = _mark(logits_RN, own_R, positive_R)
    return z_ND, inverse_N1, own_R, positive_R, logits_RN, excluded_RN


def ntxent(
    z1: Tensor,
    z2: Tensor,
    temperature: Tensor | None,
    fixed_temperature: float,
    first: int,
    count: int,
    normalize: bool,
    precision: str,
) -> Tensor:
    """NT-Xent of some images of a batch against the whole batch (paper, Eq. 1).

    Args:
        z1: (G, D) first views of the global batch.
        z2: (G, D) second views, same dtype.
        temperature: 0-d tensor, or None where `fixed_temperature` counts.
        fixed_temperature: the temperature where `temperature` is None.
        first: first image whose loss is wanted.
        count: number of images whose loss is wanted.
        normalize: divide rows by their length first.
        precision: lowest precision of matrix products a backend may use.

    Returns:
        (2 * count,) losses, the images' first views then their second views.
    """
    tau = _scale(temperature, fixed_temperature, z1)
    *_, logits_RN, excluded_RN = _ntxent_parts(z1, z2, tau, first, count, normalize)
    return _pair_loss(logits_RN, excluded_RN)


def ntxent_backward(
    grad: Tensor,
    z1: Tensor,
    z2: Tensor,
    temperature: Tensor | None,
    fixed_temperature: float,
    first: int,
    count: int,
    normalize: bool,
    precision: str,
    loss: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of sum(grad * ntxent(...)) by z1, z2 and temperature."""
    tau = _scale(temperature, fixed_temperature, z1)
    z_ND, inverse_N1, own_R, positive_R, logits_RN, excluded_RN = _ntxent_parts(
        z1, z2, tau, first, count, normalize
    )
    weights_RN = _pair_weights(grad, loss, logits_RN, excluded_RN, positive_R)
    grad_ND = (weights_RN.T @ z_ND[own_R]).index_add(0, own_R, weights_RN @ z_ND) / tau
    grad_ND = _unit_rows_backward(grad_ND, z_ND, inverse_N1)
    grad_tau = -(weights_RN * logits_RN.masked_fill(excluded_RN, 0)).sum() / tau
    grad_z1, grad_z2 = grad_ND.split(z1.shape[0])
    return cast([grad_z1, grad_z2, grad_tau], [z1, z2, temperature], needs)


def _supcon_parts(
    z: Tensor, classes: Tensor, tau: Tensor | float, first: int, count: int, normalize: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    z_ND, inverse_N1 = _prepare(z, normalize)
    own_R = _images(first, count, z.device)
    similarity_RN = z_ND[own_R] @ z_ND.T
    same_RN = classes[own_R][:, None] == classes
    positive_RN = same_RN & ~_mark(similarity_RN, own_R)
    many_R1 = positive_RN.sum(1, keepdim=True)
    mean_R1 = (similarity_RN * positive_RN).sum(1, keepdim=True) / many_R1.clamp(min=1)
    # A row's similarity to itself, and everything in a row without positives, is left out.
    left_out_RN = (same_RN & ~positive_RN) | (many_R1 == 0)
    logits_RN = ((similarity_RN - mean_R1) / tau).masked_fill(left_out_RN, MINUS_INFINITY)
    return z_ND, inverse_N1, own_R, positive_RN, many_R1, logits_RN


def supcon(
    z: Tensor,
    classes: Tensor,
    temperature: Tensor | None,
    fixed_temperature: float,
    first: int,
    count: int,
    normalize: bool,
    precision: str,
) -> Tensor:
    """Supervised contrastive loss of some rows of a batch against the whole batch.

    Args:
        z: (N, D) embeddings of the global batch, views and images alike.
        classes: (N,) int64; rows of equal value are each other's positives.
        temperature: 0-d tensor, or None where `fixed_temperature` counts.
        fixed_temperature: the temperature where `temperature` is None.
        first: first row whose loss is wanted.
        count: number of rows whose loss is wanted.
        normalize: divide rows by their length first.
        precision: lowest precision of matrix products a backend may use.

    Returns:
        (count,) losses; 0 for a row without positives.
    """
    tau = _scale(temperature, fixed_temperature, z)
    *_, positive_RN, many_R1, logits_RN = _supcon_parts(z, classes, tau, first, count, normalize)
    some_R = many_R1[:, 0] > 0
    positive_R = logits_RN.masked_fill(~positive_RN, MINUS_INFINITY).logsumexp(1)
    positive_R = torch.where(some_R, positive_R, 0)
    negative_R = logits_RN.masked_fill(positive_RN, MINUS_INFINITY).logsumexp(1)
    return positive_R + torch.logaddexp(negative_R - positive_R, torch.zeros_like(positive_R))


def supcon_backward(
    grad: Tensor,
    z: Tensor,
    classes: Tensor,
    temperature: Tensor | None,
    fixed_temperature: float,
    first: int,
    count: int,
    normalize: bool,
    precision: str,
    loss: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of sum(grad * supcon(...)) by z and temperature."""
    tau = _scale(temperature, fixed_temperature, z)
    z_ND, inverse_N1, own_R, positive_RN, many_R1, logits_RN = _supcon_parts(
        z, classes, tau, first, count, normalize
    )
    many_R1 = many_R1.clamp(min=1).to(loss.dtype)
    log_share_RN = logits_RN - loss[:, None]
    # softmax - 1/n, written so that it is exact where the softmax is close to 1/n.
    positive_weight_RN = torch.expm1(log_share_RN + many_R1.log()) / many_R1
    weights_RN = torch.where(positive_RN, positive_weight_RN, log_share_RN.exp())
    weights_RN = torch.where(logits_RN == MINUS_INFINITY, 0, grad[:, None] * weights_RN)
    grad_ND = (weights_RN.T @ z_ND[own_R]).index_add(0, own_R, weights_RN @ z_ND) / tau
    grad_ND = _unit_rows_backward(grad_ND, z_ND, inverse_N1)
    finite_RN = logits_RN.masked_fill(logits_RN == MINUS_INFINITY, 0)
    grad_tau = -(weights_RN * finite_RN).sum() / tau
    return cast([grad_ND, grad_tau], [z, temperature], needs)


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    temperature: Tensor | None,
    fixed_temperature: float,
    first: int,
    count: int,
    symmetric: bool,
    normalize: bool,
    precision: str,
) -> Tensor:
    """InfoNCE of some queries of a batch against all keys; symmetric: keys against queries too.

    Args:
        query: (G, D) queries of the global batch.
        key: (G, D) keys; row i is the positive of query i.
        negatives: (M, D) further keys, nobody's positive, or None.
        temperature: 0-d tensor, or None where `fixed_temperature` counts.
        fixed_temperature: the temperature where `temperature` is None.
        first: first row whose loss is wanted.
        count: number of rows whose loss is wanted.
        symmetric: add the losses of keys against queries (without `negatives`).
        normalize: divide rows by their length first.
        precision: lowest precision of matrix products a backend may use.

    Returns:
        (count,) losses of queries, then, if symmetric, (count,) losses of keys.
    """
    tau = _scale(temperature, fixed_temperature, query)
    losses = []
    positive_R = _images(first, count, query.device)
    for rows, others in _directions(query, key, negatives, symmetric):
        rows_RD, columns_CD = _prepare(rows, normalize)[0], _prepare(others, normalize)[0]
        logits_RC = _pair_logits(rows_RD[positive_R], columns_CD, positive_R, tau)
        losses.append(_pair_loss(logits_RC, _mark(logits_RC, positive_R)))
    return torch.cat(losses)


def _directions(
    query: Tensor, key: Tensor, negatives: Tensor | None, symmetric: bool
) -> list[tuple[Tensor, Tensor]]:
    keys = key if negatives is None else torch.cat([key, negatives])
    return [(query, keys), (key, query)] if symmetric else [(query, keys)]


def info_nce_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    temperature: Tensor | None,
    fixed_temperature: float,
    first: int,
    count: int,
    symmetric: bool,
    normalize: bool,
    precision: str,
    loss: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of sum(grad * info_nce(...)) by query, key, negatives and temperature."""
    tau = _scale(temperature, fixed_temperature, query)
    positive_R = _images(first, count, query.device)
    of_rows, of_columns, grad_tau = [], [], loss.new_zeros(())
    directions = _directions(query, key, negatives, symmetric)
    parts = zip(directions, grad.split(count), loss.split(count), strict=True)
    for (rows, others), grad_R, loss_R in parts:
        rows_GD, rows_inverse = _prepare(rows, normalize)
        columns_CD, columns_inverse = _prepare(others, normalize)
        logits_RC = _pair_logits(rows_GD[positive_R], columns_CD, positive_R, tau)
        excluded_RC = _mark(logits_RC, positive_R)
        weights_RC = _pair_weights(grad_R, loss_R, logits_RC, excluded_RC, positive_R)
        grad_rows = torch.zeros_like(rows_GD).index_add(0, positive_R, weights_RC @ columns_CD)
        grad_columns = weights_RC.T @ rows_GD[positive_R]
        of_rows.append(_unit_rows_backward(grad_rows / tau, rows_GD, rows_inverse))
        of_columns.append(_unit_rows_backward(grad_columns / tau, columns_CD, columns_inverse))
        grad_tau = grad_tau - (weights_RC * logits_RC.masked_fill(excluded_RC, 0)).sum() / tau
    grad_query, grad_key = of_rows[0], of_columns[0][: key.shape[0]]
    grad_negatives = of_columns[0][key.shape[0] :]
    if symmetric:
        grad_query, grad_key = grad_query + of_columns[1], grad_key + of_rows[1]
    grads = [grad_query, grad_key, grad_negatives, grad_tau]
    return cast(grads, [query, key, negatives, temperature], needs)
