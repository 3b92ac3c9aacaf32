"""A film as the ranks of a few cells: to compare films, whatever their contrast and polarity."""

import cv2
import numpy as np
import numpy.typing as npt

SIDE = 12
STEPS = 1000  # grey levels that cells are told apart by: rounding makes no ranks
LEAST_SPAN = 0.01  # of 255
Pattern = npt.NDArray[np.int8]

# Left half of the mean pattern of 2,910 chests from the front (2,889 of PneumoniaMNIST, 21 of
# ChestX-ray8, which weigh as much), made symmetric. `benchmarks.polarity` leaves these films out.
_HALF_CHEST = (
    (-42, -39, -36, -27, -7, 7),
    (-30, -22, -18, -15, -7, 7),
    (-17, -6, -10, -19, -12, 8),
    (-10, -1, -14, -27, -16, 11),
    (-9, -2, -18, -27, -13, 17),
    (-11, -6, -20, -22, -3, 25),
    (-15, -11, -18, -12, 7, 32),
    (-20, -13, -14, -2, 15, 38),
    (-24, -13, -5, 5, 21, 41),
    (-23, -5, 10, 21, 31, 45),
    (-14, 11, 28, 37, 43, 50),
    (-6, 17, 34, 42, 46, 50),
)
MEAN_CHEST: Pattern = np.array([row + row[::-1] for row in _HALF_CHEST], np.int8).reshape(-1)


def pattern_of(picture: np.ndarray) -> Pattern:
    """Ranks of 12 x 12 cells around zero; of the negative, the same with the other sign.

    Args:
        picture: (h, w) float32 grey levels.

    Returns:
        (144,) int8 from -72 to 72; all zero for a picture of one level.
    """
    cells = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA).reshape(-1)
    low, high = float(cells.min()), float(cells.max())
    steps = np.rint((cells - low) * (STEPS / max(high - low, LEAST_SPAN)))
    _, which, count = np.unique(steps, return_inverse=True, return_counts=True)
    middles = np.cumsum(count) - (count + 1) / 2  # equal cells share the mean of their ranks
    return np.rint(middles[which] - (SIDE * SIDE - 1) / 2).astype(np.int8)


def likeness(patterns: Pattern, one: Pattern) -> npt.NDArray[np.float64]:
    """How like one pattern others are, as they are or mirrored left to right, whichever is clearer.

    Sums of whole numbers: the same bits on every machine.

    Args:
        patterns: (N, 144).
        one: (144,).

    Returns:
        (N,) cosines from -1, like its negative, to 1.
    """
    many, single = patterns.astype(np.int64), one.astype(np.int64)
    mirrored = single.reshape(SIDE, SIDE)[:, ::-1].reshape(-1)
    straight, turned = many @ single, many @ mirrored
    clearer = np.where(np.abs(turned) > np.abs(straight), turned, straight)
    return clearer / np.sqrt(np.maximum((many * many).sum(axis=1) * (single @ single), 1))
