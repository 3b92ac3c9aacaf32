"""What the nearest centre and the MAD loss of the backends for GPUs must be, against float64."""

import pytest
import torch

from selftaught.kernels.spheres import SphereOps, Spheres
from tests.losses import formulas
from tests.losses.formulas import relative_error

LOW = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(37, 100, width) for width in (1, 16, 17, 100, 128, 200, 512)]
SHAPES += [(65, count, 17) for count in (1, 2, 129, 1000)] + [(3, 1, 200)]
LOW_SHAPES = [(5, 1, 1), (37, 100, 128), (65, 129, 40), (3, 33, 200), (5, 100, 512)]
CALLS = [(shape, torch.float32) for shape in SHAPES]
CALLS += [(shape, dtype) for shape in LOW_SHAPES for dtype in LOW[1:]]
GRADIENTS = [(shape, LOW[0]) for shape in [(1, 1, 1), (67, 7, 130), (20, 50, 3)]]
GRADIENTS += [(shape, dtype) for shape in [(5, 1, 17), (3, 11, 100)] for dtype in LOW]


def check(x, c, found, active=None):
    """Distances to 1e-6 of float64; another centre only where it is as near to 1e-6."""
    squared, index = found
    assert squared.dtype == torch.float32 and index.dtype == torch.int64
    truth, place = formulas.nearest(x.double(), c.double(), active)
    torch.testing.assert_close(squared.double(), truth, rtol=1e-6, atol=0)
    chosen = (x.double() - c.double()[index]).square().sum(1)
    torch.testing.assert_close(squared.double(), chosen, rtol=1e-6, atol=0)
    other = index != place
    assert (chosen[other] <= truth[other] * (1 + 1e-6)).all()
    assert other.sum() <= len(x) // 20


def counted(passes, x, c, active=None):
    """Squared distances, indices and numbers of rows of every centre, from one search."""
    counts = torch.zeros(len(c), dtype=torch.int64, device=x.device)
    found = passes.search(x, c, active, counts=counts)
    return found.squared, found.center, counts


class NearestCenterTable:
    """The table; a backend's subclass says where its functions are.

    Attributes:
        passes: the backend's `Spheres`.
        device: where tensors are to be.
    """

    passes: Spheres
    device = "cpu"

    @property
    def spheres(self):
        return SphereOps(self.passes)

    def points(self, rows, centers, width, spread=1.0, offset=0.0, dtype=torch.float32):
        """Rows `spread` away from centres, all of it moved by `offset`; of exactly `dtype`."""
        generator = torch.Generator().manual_seed(rows + 31 * centers + width)
        c = torch.randn(centers, width, dtype=torch.float64, generator=generator) + offset
        noise = spread * torch.randn(rows, width, dtype=torch.float64, generator=generator)
        x = c[torch.arange(rows) % centers] + noise
        return x.to(self.device, dtype), c.to(self.device, dtype)

    def semi_labels(self, rows):
        return torch.arange(rows, device=self.device) % 3 - 1

    def nearest(self, x, c, active=None, precision="auto"):
        return self.spheres.nearest_center(x, c, active, precision)

    @pytest.mark.parametrize("shape, dtype", CALLS)
    def test_distance_and_index(self, shape, dtype):
        x, c = self.points(*shape, dtype=dtype)
        check(x, c, self.nearest(x, c))

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
    def test_index_is_the_nearest_at_every_precision(self, precision):
        for dtype in LOW:
            x, c = self.points(70, 70, 40, dtype=dtype)
            check(x, c, self.nearest(x, c, precision=precision))

    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize("offset", [0.0, 1.0, 1e2, 1e4])
    @pytest.mark.parametrize("spread", [1e-4, 1.0])
    def test_collapse_and_offset(self, spread, offset, dtype):
        x, c = self.points(70, 40, 40, spread, offset)
        check(x.to(dtype), c, self.nearest(x.to(dtype), c))

    def test_no_rows(self):
        x, c = self.points(3, 9, 20)
        squared, index = self.nearest(x[:0], c)
        assert squared.shape == index.shape == (0,)
        y = self.semi_labels(3)[:0]
        found = self.spheres.mad(x[:0], c, y, None, 1.0, 1e-6, "auto")
        arguments = (found[0], x[:0], c, y, None, 1.0, 1e-6, "auto", *found, [True, True])
        rows, centers = self.spheres.mad_backward(*arguments)
        assert rows.shape == (0, 20) and torch.equal(centers, torch.zeros_like(c))

    def test_many_centers(self):
        """So many that their mean takes a launch of its own."""
        x, c = self.points(5, 1100, 16, offset=50.0)
        active = torch.arange(1100, device=self.device) % 3 != 0
        check(x, c, self.nearest(x, c, active), active)

    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize("apart", [1e-4, 1e-6])
    def test_pairs_of_centers_within_the_error_of_the_scores(self, apart, dtype):
        x, c = self.points(140, 70, 40)
        c[1::2] = c[::2] + apart * c[1::2]
        x = (c.repeat(2, 1) + apart * x).to(dtype)
        check(x, c, self.nearest(x, c))

    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize("apart", [3e-2, 1e-3, 1e-5, 3e-7])
    def test_more_centers_than_two_within_the_error_of_the_scores(self, apart, dtype):
        """Twelve centres `apart` from one another, and far ones that set the errors' scale."""
        generator = torch.Generator().manual_seed(3)
        near = apart * torch.randn(12, 40, dtype=torch.float64, generator=generator) + 1
        far = 10 * torch.randn(90, 40, dtype=torch.float64, generator=generator)
        c = torch.cat([far[:50], near, far[50:]]).float().to(self.device)
        x = apart * torch.randn(67, 40, dtype=torch.float64, generator=generator) + 1
        x = x.to(self.device, dtype)
        check(x, c, self.nearest(x, c))

    @pytest.mark.parametrize("dtype", LOW)
    def test_rows_far_from_zero(self, dtype):
        """Pairs of centres whose distances differ by less than products of unmoved rows tell."""
        generator = torch.Generator().manual_seed(4)
        c = 256 + torch.randn(70, 40, dtype=torch.float64, generator=generator)
        c[1::2] = c[::2] + 1e-3 * torch.randn(35, 40, dtype=torch.float64, generator=generator)
        x = 256 + 2.0 * torch.randint(-1, 2, (60, 40), generator=generator)
        c, x = c.float().to(self.device), x.to(self.device, dtype)
        check(x, c, self.nearest(x, c))

    def test_scores_are_as_good_as_float32(self):
        """Eight centres all around each row whose distances differ by a few parts in 10,000."""
        generator = torch.Generator().manual_seed(5)
        x = 4 * formulas.unit(torch.randn(40, 24, dtype=torch.float64, generator=generator))
        around = formulas.unit(torch.randn(320, 24, dtype=torch.float64, generator=generator))
        length = 1 + 2e-4 * torch.rand(320, 1, dtype=torch.float64, generator=generator) * 8
        c = (x.repeat_interleave(8, 0) + around * length).float().to(self.device)
        check(x.float().to(self.device), c, self.nearest(x.float().to(self.device), c))

    @pytest.mark.parametrize("dtype", LOW)
    def test_ties_go_to_the_smallest_index(self, dtype):
        _, c = self.points(1, 130, 33, dtype=dtype)
        for same in ((3, 70), (129, 64, 8)):
            copies = c.clone()
            copies[list(same)] = c[same[0]]
            x = copies[[same[0], 40]] * 1.0078125
            index = self.nearest(x, copies)[1].tolist()
            assert index[0] == min(same)
        x = torch.tensor([[0.0, 0.0], [0.0, 3.0], [5.0, 0.0]], device=self.device, dtype=dtype)
        c = torch.tensor(
            [[2.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, -1.0]], device=self.device, dtype=dtype
        )
        squared, index = self.nearest(x, c)
        assert index.tolist() == [1, 1, 0]
        assert squared.tolist() == [1.0, 4.0, 9.0]

    def test_squares_beyond_the_range_of_float16(self):
        x, c = self.points(50, 40, 128, dtype=torch.float64)
        for scale in (30.0, 1e4):
            low = [(t.clamp(-5, 5) * scale).half() for t in (x, c)]
            assert low[0].float().norm(dim=1).min() > 256
            check(*low, self.nearest(*low))

    def test_inactive_centers_are_never_nearest(self):
        x, c = self.points(40, 90, 17)
        active = torch.arange(90, device=self.device) % 2 == 0
        for filler in (1e30, float("nan")):
            found = self.nearest(x, torch.where(active[:, None], c, filler), active)
            check(x, c, found, active)
        for count in (1, 90):
            none = torch.zeros(count, dtype=torch.bool, device=self.device)
            squared, index = self.nearest(x, c[:count], none)
            assert squared.isnan().all() and (index == -1).all()
        x[:] = c[1]
        assert (self.nearest(x, c[:2], ~active[:2])[1] == 1).all()

    @pytest.mark.parametrize("count, dtype", [(1, LOW[0]), *((70, dtype) for dtype in LOW)])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_rows_that_are_not_finite(self, count, value, dtype):
        x, c = self.points(66, count, 40, dtype=dtype)
        expected = self.nearest(x, c)
        x[[2, 64], 19] = value
        squared, index, counts = counted(self.passes, x, c)
        good = torch.ones(66, dtype=torch.bool, device=self.device)
        good[[2, 64]] = False
        assert squared[~good].isnan().all() and (index[~good] == -1).all()
        assert torch.equal(squared[good], expected[0][good])
        assert torch.equal(index[good], expected[1][good])
        assert counts.dtype == torch.int64
        assert torch.equal(counts, torch.bincount(index[good], minlength=count))
        c[count // 2, 3] = value
        squared, index = self.nearest(x, c)
        assert squared.isnan().all() and (index == -1).all()

    def test_distances_that_overflow_are_infinite(self):
        x, c = self.points(3, 5, 4)
        x[1] = 1e30
        squared, index = self.nearest(x, c)
        assert squared.isfinite().tolist() == [True, False, True]
        assert squared[1] == float("inf") and index[1] >= 0
        y = torch.full((3,), -1, device=self.device)
        assert self.spheres.mad(x, c, y, None, 1.0, 1e-6, "auto")[0][1] == 0

    @pytest.mark.parametrize("dtype", LOW)
    def test_a_row_does_not_depend_on_its_batch(self, dtype):
        x, c = self.points(150, 70, 40, dtype=dtype)
        y = self.semi_labels(150)
        whole = self.spheres.mad(x, c, y, None, 0.5, 1e-3, "auto")
        again = self.spheres.mad(x, c, y, None, 0.5, 1e-3, "auto")
        places = [0, 1, 76, 150]
        parts = [
            self.spheres.mad(x[a:b], c, y[a:b], None, 0.5, 1e-3, "auto")
            for a, b in zip(places, places[1:], strict=False)
        ]
        order = torch.randperm(150, generator=torch.Generator().manual_seed(0)).to(self.device)
        mixed = self.spheres.mad(x[order], c, y[order], None, 0.5, 1e-3, "auto")
        for place, value in enumerate(whole):
            assert torch.equal(again[place], value)
            assert torch.equal(torch.cat([part[place] for part in parts]), value)
            assert torch.equal(mixed[place], value[order])

    @pytest.mark.parametrize("shape, dtype", GRADIENTS)
    def test_losses_and_gradients(self, shape, dtype):
        x, c = self.points(*shape, dtype=dtype)
        y = self.semi_labels(shape[0]).to(torch.int8)
        grad = torch.linspace(0.5, 1.5, shape[0], device=self.device)
        wide = [t.double().requires_grad_() for t in (x, c)]
        tolerance = {torch.float32: 2e-6}.get(dtype, torch.finfo(dtype).eps)

        found = self.spheres.nearest_center(x, c, None, "auto")
        truth = formulas.nearest(*wide)[0]
        back = self.spheres.nearest_center_backward(grad, x, c, None, "auto", *found, [True, True])
        for value, exact in zip(
            back, torch.autograd.grad(truth @ grad.double(), wide), strict=True
        ):
            assert value.dtype == dtype and relative_error(value, exact) < tolerance

        found = self.spheres.mad(x, c, y, None, 0.7, 0.1, "auto")
        truth = formulas.mad(*wide, y, 0.7, 0.1)
        torch.testing.assert_close(found[0].double(), truth, rtol=2e-6, atol=0)
        arguments = (grad, x, c, y, None, 0.7, 0.1, "auto", *found)
        back = self.spheres.mad_backward(*arguments, [True, True])
        for value, exact in zip(
            back, torch.autograd.grad(truth @ grad.double(), wide), strict=True
        ):
            assert value.dtype == dtype and relative_error(value, exact) < tolerance
        again = self.spheres.mad_backward(*arguments, [True, True])
        assert all(torch.equal(*pair) for pair in zip(back, again, strict=True))
        only = self.spheres.mad_backward(*arguments, [False, True])
        assert only[0].numel() == 0 and torch.equal(only[1], back[1])

    @pytest.mark.parametrize("squared", [0.0, 1e-20, 1e-12, 1e-8, 1e-6, 1e-3, 1.0, 1e3, 1e6])
    def test_known_abnormal_gradient_at_every_distance(self, squared):
        c = torch.tensor([[0.0, 0.0, 0.0], [2e4, 2e4, 2e4]], device=self.device)
        x = torch.tensor([[squared**0.5, 0.0, 0.0]], device=self.device)
        y, grad = torch.tensor([-1], device=self.device), torch.ones(1, device=self.device)
        # The square of 1e-22 has no digits in float32.
        for eta, eps in ((3.0, 1e-6), (1e-6, 1e-22)):
            found = self.spheres.mad(x, c, y, None, eta, eps, "auto")
            arguments = (grad, x, c, y, None, eta, eps, "auto", *found)
            value = self.spheres.mad_backward(*arguments, [True, False])[0]
            exact = x.double()
            distance = exact.square().sum() + eps
            torch.testing.assert_close(found[0].double(), eta / distance[None], rtol=1e-6, atol=0)
            expected = -2 * eta * exact / distance**2
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)

    def test_wrong_rows_poison_their_gradients_only(self):
        x, c = self.points(70, 4, 8)
        x[2, 3] = float("nan")
        y = self.semi_labels(70)
        y[5] = 2
        grad = torch.ones(1, device=self.device).expand(70)
        found = self.spheres.mad(x, c, y, None, 1.0, 1e-6, "auto")
        arguments = (grad, x, c, y, None, 1.0, 1e-6, "auto", *found)
        rows, centers = self.spheres.mad_backward(*arguments, [True, True])
        wrong = torch.zeros(70, dtype=torch.bool, device=self.device)
        wrong[[2, 5]] = True
        assert torch.equal(found[0].isnan(), wrong)
        assert torch.equal(rows.isnan().all(1), wrong) and rows[~wrong].isfinite().all()
        assert torch.equal(
            centers.isnan().any(1).nonzero()[:, 0], torch.tensor([0, 1], device=self.device)
        )

    def test_views_and_other_dtypes_of_centers(self):
        x, c = self.points(70, 9, 20)
        expected = self.nearest(x, c)
        padded = torch.cat([x, torch.full_like(x, 9e9)], 1)
        y = self.semi_labels(70)
        both = torch.stack([y, y + 7], 1)
        plain = self.spheres.mad(x, c, y, None, 1.0, 1e-6, "auto")
        for rows in (padded[:, :20], x.T.contiguous().T):
            for centers in (c.double(), c.T.contiguous().T):
                for value, truth in zip(self.nearest(rows, centers), expected, strict=True):
                    assert torch.equal(value, truth)
                found = self.spheres.mad(rows, centers, both[:, 0], None, 1.0, 1e-6, "auto")
                assert torch.equal(found[0], plain[0])
                arguments = (y, None, 1.0, 1e-6, "auto", *found, [True, True])
                back = self.spheres.mad_backward(found[0], rows, centers, *arguments)
                truth = self.spheres.mad_backward(found[0], x, c, *arguments)
                assert torch.equal(back[0], truth[0]) and back[1].dtype == centers.dtype
                assert torch.equal(back[1].float(), truth[1])
