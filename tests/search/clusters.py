"""Groups of samples for the tests of searches."""

import numpy as np


def clusters(n=1200, d=24, groups=12, spread=6.0, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    means = spread * rng.standard_normal((groups, d))
    x = means[rng.integers(0, groups, n)] + rng.standard_normal((n, d)) + offset
    return x.astype(np.float32)
