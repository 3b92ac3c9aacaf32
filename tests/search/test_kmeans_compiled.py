"""k-means' C++ passes: the bits of the plain formulas, whatever is skipped, on any thread count."""

import pytest
import torch

from selftaught.kernels import native, ops
from selftaught.kernels.cpp import clusters
from selftaught.search import assign, kmeans
from selftaught.search.direct import compiled, squared_to
from selftaught.search.exact_sums import mean_of_rows, moved_to_grid, scale_for
from selftaught.search.lloyd import _Sums
from selftaught.search.shards import Ranks, Shard

pytestmark = pytest.mark.skipif(bool(native.reason()), reason=native.reason())

SHAPES = [(1, 1, 1), (1, 5, 3), (50, 49, 7), (97, 17, 33), (311, 700, 5), (60, 20, 1024)]


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def everywhere(x, centers):
    return ops.nearest_center(x, centers, None, "cpp", "auto")[1]


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain(monkeypatch, function, *arguments):
    """What the formulas without C++ return."""
    with monkeypatch.context() as patch:
        patch.setenv("SELFTAUGHT_BACKEND", "reference")
        assert not compiled(torch.device("cpu"))
        return function(*arguments)


@pytest.mark.parametrize("variant", native.variants())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bounds", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_centres_that_move_are_found_as_by_looking_at_all(
    shape, bounds, dtype, variant, threads, monkeypatch
):
    monkeypatch.setenv(native.VARIABLE, variant)
    n, k, d = shape
    x, centers = random(n, d, dtype=dtype), random(k, d, seed=1, dtype=dtype)
    again = clusters.NearestAgain(x, bounds)
    for step, size in enumerate((0, 1, 0.3, 1e-3, 0, 30, 0.1, 1e-6)):
        centers = centers + size * random(k, d, seed=step + 2, dtype=dtype)
        found = again(centers, gaps=True)
        assert torch.equal(found, everywhere(x, centers))
        distances = torch.cdist(x.double(), centers.double(), compute_mode=DIRECT)
        nearest = distances.gather(1, found[:, None])
        others = distances.scatter(1, found[:, None], torch.inf).amin(1)
        assert (again.gap <= others - nearest[:, 0] + 1e-12).all()


DIRECT = "donot_use_mm_for_euclid_dist"


@pytest.mark.parametrize("width", [1, 3, 16, 129])
def test_ties_and_near_ties_fall_as_by_looking_at_all(width):
    # Copies a few units of rounding apart change places in every step; exact copies tie.
    x = random(400, width)
    base = random(6, width, seed=1).repeat_interleave(4, dim=0)
    again = clusters.NearestAgain(x)
    changed, last = 0, torch.full((400,), -1)
    for step in range(60):
        jitter = random(24, width, seed=step + 2).sign() * torch.arange(24)[:, None].remainder(3)
        centers = base + 2.0**-23 * jitter * base.abs()
        found = again(centers)
        assert torch.equal(found, everywhere(x, centers)), step
        changed += int((found != last).sum())
        last = found
    assert changed > 2000


@pytest.mark.parametrize("spread", [30, 1000])
def test_scores_that_are_off_rule_nothing_out(spread):
    # The farther the centres are apart, the more a score's rounding is beside a distance.
    base = (spread * random(6, 40, seed=1)).repeat_interleave(4, dim=0)
    x = base[torch.arange(600) % 24] + random(600, 40)
    again = clusters.NearestAgain(x)
    centers, last = base + 1e-3 * random(24, 40, seed=2), torch.full((600,), -1)
    changed = 0
    for step in range(40):
        found = again(centers)
        assert torch.equal(found, everywhere(x, centers)), step
        changed += int((found != last).sum())
        last, centers = found, centers + spread * 1e-6 * random(24, 40, seed=step + 3)
    assert changed > 700


def test_a_centre_far_away_that_comes_is_noticed():
    # The bound of a row and a centre is never refreshed while the centre is ruled out.
    x = random(300, 20)
    centers = torch.cat([x[:4], torch.full((30, 20), 40.0)])
    again = clusters.NearestAgain(x)
    for step in range(60):
        centers[4:] *= 0.93
        assert torch.equal(again(centers), everywhere(x, centers)), step
    assert (again(centers) >= 4).any()


def test_another_number_of_centres_starts_anew():
    x = random(90, 6)
    again = clusters.NearestAgain(x)
    for k in (8, 30, 8, 1):
        centers = random(k, 6, seed=k)
        first = again(centers)
        assert torch.equal(first, everywhere(x, centers))
    assert torch.equal(again(centers), first)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_those_of_the_formulas(shape, weighted, threads, monkeypatch):
    n, k, d = shape
    x = random(n, d, dtype=torch.float64) * 10.0 ** torch.arange(d).remainder(5)
    scale = scale_for(x.abs().amax(0), n, torch.float64)
    weights = random(n, seed=1).double().abs() * (torch.arange(n) % 4 > 0) if weighted else None
    shard = Shard(
        x=moved_to_grid(x, torch.zeros(d).double(), scale), scale=scale, weights=weights,
        first=0, rows=n, ranks=Ranks(),
    )  # fmt: skip
    fast, slow = _Sums(shard, k), _Sums(shard, k)
    before = torch.full((n,), -1)
    for step, share in enumerate((1.0, 0.1, 0.9, 0.0)):
        moves = torch.rand(n, generator=torch.Generator().manual_seed(step)) < share
        anywhere = torch.randint(k, (n,), generator=torch.Generator().manual_seed(step))
        now = torch.where(moves, anywhere, before)
        moved = fast.move(before, now)
        assert moved == plain(monkeypatch, slow.move, before, now)
        assert moved == bool((now != before).any())
        assert torch.equal(fast.totals, slow.totals) and torch.equal(fast.masses, slow.masses)
        before = now
    assert fast.masses.sum() > 0 or weighted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [*SHAPES, (0, 3, 4)])
def test_rows_on_the_grid_and_distances_are_those_of_the_formulas(
    shape, dtype, threads, monkeypatch
):
    n, k, d = shape
    x = 3 + random(n, d, dtype=dtype)
    largest = torch.full((d,), 10.0, dtype=torch.float64)
    scale = scale_for(largest, max(n, 1), torch.float64)
    origin = random(d, seed=2, dtype=torch.float64)
    index = torch.arange(n) * 7 % k
    for function, arguments in (
        (mean_of_rows, (x, largest, max(n, 1), Ranks())),
        (moved_to_grid, (x, origin, scale)),
        (moved_to_grid, (x, origin, 2.0**-30 * scale)),
        (squared_to, (x, random(k, d, seed=3), index)),
        (squared_to, (x, random(k, d, seed=3, dtype=torch.float64), index)),
    ):
        assert torch.equal(function(*arguments), plain(monkeypatch, function, *arguments))


@pytest.mark.parametrize("empty", ["farthest", "split", "keep", "drop"])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_whole_runs_give_the_bits_of_looking_at_all(empty, offset, monkeypatch):
    x = torch.round(4 * random(700, 9)) / 4 + offset  # with ties
    start = torch.cat([x[:20], x[:1].repeat(4, 1) + 100])
    weights = torch.arange(700) % 5
    options = {"initial": start, "empty": empty, "weights": weights, "backend": "native"}
    skipping = kmeans(x, 24, **options)
    with monkeypatch.context() as patch:
        patch.setattr(assign, "BOUND_BYTES", 0)
        unbounded = kmeans(x, 24, **options)
    monkeypatch.setattr(assign, "repeated", lambda kind, x, clusters: assign.native)
    everything = kmeans(x, 24, **options)
    for found in (unbounded, everything):
        assert torch.equal(found.centers, skipping.centers)
        assert torch.equal(found.assignment, skipping.assignment)
        assert torch.equal(found.counts, skipping.counts) and found.inertia == skipping.inertia
