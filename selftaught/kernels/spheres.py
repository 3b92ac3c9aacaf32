"""The passes that the sphere ops are made of, as a backend has to provide them, and those ops.

Shapes: N rows, K centres, D width.
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class Mad(NamedTuple):
    """What the multi-modal anomaly detection loss (paper, Eq. 2) takes beside distances.

    Attributes:
        labels: (N,) integers: 0 unknown, +1 known normal, -1 known abnormal.
        eta: weight of the known samples.
        eps: added to the squared distance of the known samples.
    """

    labels: Tensor
    eta: float
    eps: float


class Nearest(NamedTuple):
    """The nearest centre of every row.

    Attributes:
        squared: (N,) squared distances, float32, float64 for float64 rows; NaN for a row with a
            non-finite entry, and for every row where no centre is active.
        center: (N,) int64 indices of the centres; -1 where the distance is NaN.
        loss: (N,) losses, NaN for a label other than -1, 0, 1; None: not asked for.
    """

    squared: Tensor
    center: Tensor
    loss: Tensor | None = None


class Spheres(Protocol):
    """The passes of one backend. Two runs give equal bits.

    The index is that of the smallest distance but for ties within rounding, whatever the data and
    their dtype, so no precision can be asked for.
    """

    def search(
        self,
        x: Tensor,
        centers: Tensor,
        active: Tensor | None,
        mad: Mad | None = None,
        counts: Tensor | None = None,
    ) -> Nearest:
        """The nearest centres and, with `mad`, the losses.

        Args:
            x: (N, D) points.
            centers: (K, D) centres, at least one.
            active: (K,) bool, False for a centre that is never nearest, or None.
            mad: the loss, or None.
            counts: (K,) int64 zeros that become the numbers of rows of every centre, or None; rows
                with index -1 are counted nowhere.
        """
        ...

    def gradients(
        self,
        grad: Tensor,
        x: Tensor,
        centers: Tensor,
        nearest: Nearest,
        mad: Mad | None,
        needs: list[bool],
    ) -> list[Tensor]:
        """Gradients of sum(grad * loss), without `mad` of sum(grad * squared distance).

        Args:
            grad: (N,).
            x: (N, D) points.
            centers: (K, D) centres.
            nearest: what `search` gave.
            mad: as in `search`.
            needs: whether those by x and by centres are wanted; any tensor stands for another.
        """
        ...


class SphereOps:
    """The ops on passes, with the arguments and results of `kernels.ops`; see `Spheres`."""

    def __init__(self, passes: Spheres) -> None:
        self._passes = passes

    def nearest_center(
        self, x: Tensor, centers: Tensor, active: Tensor | None, precision: str
    ) -> tuple[Tensor, Tensor]:
        """(N,) squared distances and (N,) indices of the nearest centres."""
        nearest = self._passes.search(x, centers, active)
        return nearest.squared, nearest.center

    def nearest_center_backward(
        self,
        grad: Tensor,
        x: Tensor,
        centers: Tensor,
        active: Tensor | None,
        precision: str,
        squared: Tensor,
        index: Tensor,
        needs: list[bool],
    ) -> list[Tensor]:
        """Gradients of sum(grad * squared distance) by x and centers."""
        return self._passes.gradients(grad, x, centers, Nearest(squared, index), None, needs)

    def mad(
        self,
        x: Tensor,
        centers: Tensor,
        semi_labels: Tensor,
        active: Tensor | None,
        eta: float,
        eps: float,
        precision: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) losses, squared distances and indices; the distances carry no gradient."""
        nearest = self._passes.search(x, centers, active, Mad(semi_labels, eta, eps))
        assert nearest.loss is not None
        return nearest.loss, nearest.squared, nearest.center

    def mad_backward(
        self,
        grad: Tensor,
        x: Tensor,
        centers: Tensor,
        semi_labels: Tensor,
        active: Tensor | None,
        eta: float,
        eps: float,
        precision: str,
        loss: Tensor,
        squared: Tensor,
        index: Tensor,
        needs: list[bool],
    ) -> list[Tensor]:
        """Gradients of sum(grad * loss) by x and centers."""
        mad = Mad(semi_labels, eta, eps)
        return self._passes.gradients(grad, x, centers, Nearest(squared, index, loss), mad, needs)
