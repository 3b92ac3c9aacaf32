"""NT-Xent, SupCon and InfoNCE written out, forward and backward.

Shapes: B images, N rows, R rows with a loss, C columns, D width.

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


def _pair_loss(logits_RC: Tensor, excluded_RC: Tensor, positive_R: Tensor) -> Tensor:
    negatives_R = logits_RC.masked_fill(excluded_RC, MINUS_INFINITY).logsumexp(1)
    # The positive's own logit: 0, but NaN where its pair holds a NaN.
    zero_R = 0 * logits_RC.detach().gather(1, positive_R[:, None])[:, 0]
    return torch.logaddexp(negatives_R, zero_R)


def _pair_weights(
    grad_R: Tensor, loss_R: Tensor, logits_RC: Tensor, excluded_RC: Tensor, positive_R: Tensor
) -> Tensor:
    """Derivative of sum(grad * loss) by temperature times similarity."""
    negative_RC = torch.exp(logits_RC.masked_fill(excluded_RC, MINUS_INFINITY) - loss_R[:, None])
    weights_RC = negative_RC.scatter(1, positive_R[:, None], torch.expm1(-loss_R)[:, None])
    return grad_R[:, None] * weights_RC


def _ntxent_parts(
    z: Tensor, tau: Tensor | float, normalize: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    z_ND, inverse_N1 = _prepare(z, normalize)
    row_N = torch.arange(z_ND.shape[0], device=z.device)
    positive_N = row_N.roll(z_ND.shape[0] // 2)
    logits_NN = _pair_logits(z_ND, z_ND, positive_N, tau)
    excluded_NN = _mark(logits_NN, row_N, positive_N)
    return z_ND, inverse_N1, positive_N, logits_NN, excluded_NN


def ntxent(
    z: Tensor,
    temperature: Tensor | None,
    fixed_temperature: float,
    normalize: bool,
    precision: str,
) -> Tensor:
    """NT-Xent of B images.

    Args:
        z: (2B, D) embeddings, the images' first views, then their second views.
        temperature: 0-d tensor, or None where `fixed_temperature` counts.
        fixed_temperature: the temperature where `temperature` is None.
        normalize: divide rows by their length first.
        precision: lowest precision of matrix products a backend may use.

    Returns:
        (2B,) losses.
    """
    tau = _scale(temperature, fixed_temperature, z)
    *_, positive_N, logits_NN, excluded_NN = _ntxent_parts(z, tau, normalize)
    return _pair_loss(logits_NN, excluded_NN, positive_N)


def ntxent_backward(
    grad: Tensor,
    z: Tensor,
    temperature: Tensor | None,
    fixed_temperature: float,
    normalize: bool,
    precision: str,
    loss: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of sum(grad * ntxent(...)) by z and temperature."""
    tau = _scale(temperature, fixed_temperature, z)
    z_ND, inverse_N1, positive_N, logits_NN, excluded_NN = _ntxent_parts(z, tau, normalize)
    weights_NN = _pair_weights(grad, loss, logits_NN, excluded_NN, positive_N)
    grad_ND = (weights_NN.T @ z_ND + weights_NN @ z_ND) / tau
    grad_ND = _unit_rows_backward(grad_ND, z_ND, inverse_N1)
    grad_tau = -(weights_NN * logits_NN.masked_fill(excluded_NN, 0)).sum() / tau
    return cast([grad_ND, grad_tau], [z, temperature], needs)


def _supcon_parts(
    z: Tensor, classes: Tensor, tau: Tensor | float, normalize: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    z_ND, inverse_N1 = _prepare(z, normalize)
    index_N = torch.arange(z_ND.shape[0], device=z.device)
    similarity_NN = z_ND @ z_ND.T
    same_NN = classes[:, None] == classes
    positive_NN = same_NN & ~_mark(similarity_NN, index_N)
    many_N1 = positive_NN.sum(1, keepdim=True)
    mean_N1 = (similarity_NN * positive_NN).sum(1, keepdim=True) / many_N1.clamp(min=1)
    # A row's similarity to itself, and everything in a row without positives, is left out.
    left_out_NN = (same_NN & ~positive_NN) | (many_N1 == 0)
    logits_NN = ((similarity_NN - mean_N1) / tau).masked_fill(left_out_NN, MINUS_INFINITY)
    return z_ND, inverse_N1, positive_NN, many_N1, logits_NN


def supcon(
    z: Tensor,
    classes: Tensor,
    temperature: Tensor | None,
    fixed_temperature: float,
    paired: bool,
    normalize: bool,
    precision: str,
) -> Tensor:
    """Supervised contrastive loss of a batch.

    Args:
        z: (N, D) embeddings, views and images alike.
        classes: (N,) int64; rows of equal value are each other's positives.
        temperature: 0-d tensor, or None where `fixed_temperature` counts.
        fixed_temperature: the temperature where `temperature` is None.
        paired: rows i and i + N / 2 are of one class for every i below N / 2; a backend may use
            that to keep the digits of small losses, which the formulas here do anyway.
        normalize: divide rows by their length first.
        precision: lowest precision of matrix products a backend may use.

    Returns:
        (N,) losses; 0 for a row without positives.
    """
    tau = _scale(temperature, fixed_temperature, z)
    *_, positive_NN, many_N1, logits_NN = _supcon_parts(z, classes, tau, normalize)
    some_N = many_N1[:, 0] > 0
    positive_N = logits_NN.masked_fill(~positive_NN, MINUS_INFINITY).logsumexp(1)
    positive_N = torch.where(some_N, positive_N, 0)
    negative_N = logits_NN.masked_fill(positive_NN, MINUS_INFINITY).logsumexp(1)
    return positive_N + torch.logaddexp(negative_N - positive_N, torch.zeros_like(positive_N))


def supcon_backward(
    grad: Tensor,
    z: Tensor,
    classes: Tensor,
    temperature: Tensor | None,
    fixed_temperature: float,
    paired: bool,
    normalize: bool,
    precision: str,
    loss: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of sum(grad * supcon(...)) by z and temperature."""
    tau = _scale(temperature, fixed_temperature, z)
    z_ND, inverse_N1, positive_NN, many_N1, logits_NN = _supcon_parts(z, classes, tau, normalize)
    many_N1 = many_N1.clamp(min=1).to(loss.dtype)
    log_share_NN = logits_NN - loss[:, None]
    # softmax - 1/n, written so that it is exact where the softmax is close to 1/n.
    positive_weight_NN = torch.expm1(log_share_NN + many_N1.log()) / many_N1
    weights_NN = torch.where(positive_NN, positive_weight_NN, log_share_NN.exp())
    weights_NN = torch.where(logits_NN == MINUS_INFINITY, 0, grad[:, None] * weights_NN)
    grad_ND = (weights_NN.T @ z_ND + weights_NN @ z_ND) / tau
    grad_ND = _unit_rows_backward(grad_ND, z_ND, inverse_N1)
    finite_NN = logits_NN.masked_fill(logits_NN == MINUS_INFINITY, 0)
    grad_tau = -(weights_NN * finite_NN).sum() / tau
    return cast([grad_ND, grad_tau], [z, temperature], needs)


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    temperature: Tensor | None,
    fixed_temperature: float,
    symmetric: bool,
    in_batch: bool,
    normalize: bool,
    precision: str,
) -> Tensor:
    """InfoNCE of queries against all keys; symmetric: keys against queries too.

    Args:
        query: (B, D) queries.
        key: (B, D) keys; row i is the positive of query i.
        negatives: (M, D) further keys, nobody's positive, or None.
        temperature: 0-d tensor, or None where `fixed_temperature` counts.
        fixed_temperature: the temperature where `temperature` is None.
        symmetric: add the losses of keys against queries (without `negatives`).
        in_batch: the other queries' keys are negatives; False: only `negatives` are.
        normalize: divide rows by their length first.
        precision: lowest precision of matrix products a backend may use.

    Returns:
        (B,) losses of queries, then, if symmetric, (B,) losses of keys.
    """
    tau = _scale(temperature, fixed_temperature, query)
    losses = []
    for rows, others in _directions(query, key, negatives, symmetric):
        *_, positive_B, logits_BC, excluded_BC = _info_nce_parts(
            rows, others, tau, in_batch, normalize
        )
        losses.append(_pair_loss(logits_BC, excluded_BC, positive_B))
    return torch.cat(losses)


def _directions(
    query: Tensor, key: Tensor, negatives: Tensor | None, symmetric: bool
) -> list[tuple[Tensor, Tensor]]:
    keys = key if negatives is None else torch.cat([key, negatives])
    return [(query, keys), (key, query)] if symmetric else [(query, keys)]


def _info_nce_parts(
    rows: Tensor, others: Tensor, tau: Tensor | float, in_batch: bool, normalize: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    rows_BD, rows_inverse = _prepare(rows, normalize)
    columns_CD, columns_inverse = _prepare(others, normalize)
    positive_B = torch.arange(rows.shape[0], device=rows.device)
    logits_BC = _pair_logits(rows_BD, columns_CD, positive_B, tau)
    excluded_BC = _mark(logits_BC, positive_B)
    if not in_batch:
        excluded_BC = torch.arange(others.shape[0], device=rows.device) < rows.shape[0]
        excluded_BC = excluded_BC.expand_as(logits_BC)
    return rows_BD, rows_inverse, columns_CD, columns_inverse, positive_B, logits_BC, excluded_BC


def info_nce_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    temperature: Tensor | None,
    fixed_temperature: float,
    symmetric: bool,
    in_batch: bool,
    normalize: bool,
    precision: str,
    loss: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of sum(grad * info_nce(...)) by query, key, negatives and temperature."""
    tau = _scale(temperature, fixed_temperature, query)
    of_rows, of_columns, grad_tau = [], [], loss.new_zeros(())
    directions = _directions(query, key, negatives, symmetric)
    count = query.shape[0]
    parts = zip(directions, grad.split(count), loss.split(count), strict=True)
    for (rows, others), grad_B, loss_B in parts:
        rows_BD, rows_inverse, columns_CD, columns_inverse, positive_B, logits_BC, excluded_BC = (
            _info_nce_parts(rows, others, tau, in_batch, normalize)
        )
        weights_BC = _pair_weights(grad_B, loss_B, logits_BC, excluded_BC, positive_B)
        of_rows.append(_unit_rows_backward(weights_BC @ columns_CD / tau, rows_BD, rows_inverse))
        of_columns.append(
            _unit_rows_backward(weights_BC.T @ rows_BD / tau, columns_CD, columns_inverse)
        )
        grad_tau = grad_tau - (weights_BC * logits_BC.masked_fill(excluded_BC, 0)).sum() / tau
    grad_query, grad_key = of_rows[0], of_columns[0][:count]
    grad_negatives = of_columns[0][count:]
    if symmetric:
        grad_query, grad_key = grad_query + of_columns[1], grad_key + of_rows[1]
    grads = [grad_query, grad_key, grad_negatives, grad_tau]
    return cast(grads, [query, key, negatives, temperature], needs)
