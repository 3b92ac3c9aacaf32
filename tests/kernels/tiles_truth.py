"""What the tiled passes compute, written out in float64 on whole matrices."""

import torch
import torch.nn.functional as F


def left_out(count, columns, excluded):
    """The docstring of `Excluded`, entry by entry."""
    mask = torch.zeros(count, columns, dtype=torch.bool)
    if excluded is None:
        return mask
    for row in range(count):
        places = [excluded.offset + row]
        if excluded.half:
            other = row + excluded.half if row < excluded.half else row - excluded.half
            places.append(excluded.offset + other)
        for place in places:
            if 0 <= place < columns:
                mask[row, place] = True
    return mask


def logits_of(z, y, tau, excluded, normalize=True):
    """(R, C) float64 logits of raw rows, -inf where left out, and the float64 rows y."""
    z, y = z.double(), y.double()
    if normalize:
        z, y = F.normalize(z, eps=1e-300), F.normalize(y, eps=1e-300)
    mask = left_out(len(z), len(y), excluded).to(z.device)
    return (z @ y.T / tau.double()).masked_fill(mask, float("-inf")), y


def weighted(logits, y, row, column, classes=None):
    """The docstring of `Tiles.weighted_sums`."""
    weight = torch.zeros_like(logits)
    slopes = None
    if row is not None:
        powers = row.weight.double()[:, None] * (logits - row.total.double()[:, None]).exp()
        weight += powers
        above = (logits - row.positive.double()[:, None]).masked_fill(logits.isinf(), 0)
        slopes = (powers * above).sum(1)
    if column is not None:
        weight += column.weight.double() * (logits - column.total.double()).exp()
    if classes is not None:
        same = (classes.rows[:, None] == classes.columns) & ~logits.isinf()
        for given, axis in ((row, 1), (column, 0)):
            if given is not None:
                weight -= same * given.share.double().unsqueeze(axis)
    return weight @ y, slopes
