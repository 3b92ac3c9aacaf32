"""Memory that pipelines share: never more than the budget, and returned when they are closed."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from selftaught.data.pipeline import CacheBudget, open_pipeline
from selftaught.data.pipeline.cache import Cache
from selftaught.data.plan import PLAIN
from selftaught.errors import InputError


def test_several_caches_keep_no_more_than_their_budget_together():
    budget = CacheBudget(1000)
    caches: list[Cache[int]] = [Cache(budget) for _ in range(3)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: caches[i % 3].keep(i // 3, i, 7), range(600)))
    kept = [[key for key in range(200) if one.get(key) is not None] for one in caches]
    assert sum(map(len, kept)) == 1000 // 7
    assert not budget.take(7) and budget.take(1000 % 7)
    budget.give_back(1000 % 7)
    caches[0].clear()
    caches[0].clear()
    assert budget.take(7 * len(kept[0]) + 1000 % 7) and not budget.take(1)


def test_what_is_kept_stays_and_is_paid_for_once():
    budget = CacheBudget(10)
    cache: Cache[str] = Cache(budget)
    cache.keep("a", "first", 4)
    cache.keep("a", "second", 4)
    cache.keep("b", "too large", 7)
    assert (cache.get("a"), cache.get("b")) == ("first", None)
    assert budget.take(6) and not budget.take(1)
    with pytest.raises(InputError, match="cache_bytes -1"):
        CacheBudget(-1)


@pytest.mark.parametrize("kind", ["opencv", "dali"])
def test_pipelines_share_a_budget(tmp_path: Path, kind: str):
    if kind == "dali":
        pytest.importorskip("nvidia.dali")
    paths = [tmp_path / f"{number}.tif" for number in range(4)]
    for number, path in enumerate(paths):
        noise = np.random.default_rng(number).integers(0, 256, (32, 32)).astype(np.uint8)
        cv2.imwrite(str(path), noise)
    budget = CacheBudget(6 * 32 * 32)

    def opened():
        return open_pipeline(
            kind,
            paths=paths,
            image_size=32,
            augment=PLAIN,
            seed=1,
            stage="plain",
            workers=2,
            cache_bytes=budget,
        )

    with opened() as first, opened() as second:
        batches = [next(iter(one.batches([(0, np.arange(4))]))) for one in (first, second)]
        assert np.array_equal(batches[0].views.numpy(), batches[1].views.numpy())
        assert not budget.take(1)
    assert budget.take(6 * 32 * 32)
