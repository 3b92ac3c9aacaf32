"""The CUDA kernels of the nearest centre, on a host's emulation and on a GPU where there is one."""

import pytest
import torch

from selftaught.kernels.cuda import spheres
from selftaught.kernels.cuda.spheres import CudaSpheres
from tests.kernels.nearest_center_table import LOW, NearestCenterTable, check, counted


class TestCuda(NearestCenterTable):
    @pytest.fixture(autouse=True)
    def on_the_machine(self, machine):
        self.machine, self.device = machine, machine.device.type
        self.passes = CudaSpheres()

    @pytest.fixture(autouse=True)
    def few_blocks(self, monkeypatch):
        """The emulation runs one block after the other; two of them share the rows."""
        monkeypatch.setattr(spheres, "SPLITS", 8)
        monkeypatch.setattr(spheres, "BLOCKS", 2)

    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize("count, width", [(100, 128), (260, 300), (2500, 5)])
    def test_blocks_of_many_rows(self, count, width, dtype):
        """Centres kept in shared memory and not, counted there and not, by more than one round."""
        x, c = self.points(300, count, width, dtype=dtype)
        found = counted(self.passes, x, c)
        check(x, c, found[:2])
        assert torch.equal(found[2], torch.bincount(found[1], minlength=count))

    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize(
        "size",
        [
            0.0,
            1e-30,
            1.0,
            1e6,
            *(pytest.param(n, marks=pytest.mark.slow) for n in (1e-7, 1e3, 1e9)),
        ],
    )
    def test_the_index_is_the_first_smallest_distance(self, size, dtype):
        """On a sphere about their mean centres are as far; taken alone they need no score."""
        generator = torch.Generator().manual_seed(5)
        c = torch.nn.functional.normalize(torch.randn(20, 33, generator=generator), dim=1)
        c = torch.cat([c, -c]).to(self.device)
        if dtype == torch.float16:
            size = min(size, 1e3)
        x = (size * torch.randn(30, 33, generator=generator)).to(self.device, dtype)
        alone = [self.nearest(x, c, one)[0] for one in torch.eye(40, device=self.device).bool()]
        truth = torch.stack(alone, 1)
        squared, index = self.nearest(x, c)
        assert torch.equal(squared, truth.min(1).values)
        assert torch.equal(index, (truth == squared[:, None]).int().argmax(1))

    @pytest.mark.parametrize("dtype", LOW)
    def test_no_order_of_threads_changes_a_bit(self, dtype):
        """A missing barrier or wait would show as a difference between the orders."""
        y = self.semi_labels(150)
        for count, width in ((30, 72), (70, 330)):
            x, c = self.points(150, count, width, dtype=dtype)
            runs = []
            for seed in range(4):
                self.machine.seed(seed)
                found = self.spheres.mad(x, c, y, None, 0.7, 1e-3, "auto")
                settings = (x, c, y, None, 0.7, 1e-3, "auto", *found, [True, True])
                counts = counted(self.passes, x, c)[2]
                runs.append((*found, counts, *self.spheres.mad_backward(found[0], *settings)))
            for run in runs[1:]:
                assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))

    def test_rows_that_start_anywhere_in_memory(self):
        for dtype in LOW:
            x, c = self.points(70, 9, 40, dtype=dtype)
            expected = self.nearest(x, c)
            room = torch.zeros(x.numel() + 1, dtype=dtype, device=self.device)
            moved = room[1:].view_as(x).copy_(x)
            for values in (moved, torch.cat([x, x[:, :3]], 1)[:, :40]):
                found = self.nearest(values, c)
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    def test_nothing_to_search(self):
        x, c = self.points(5, 3, 8)
        squared, index, counts = counted(self.passes, x[:0], c)
        assert squared.shape == index.shape == (0,) and counts.tolist() == [0, 0, 0]
        y = self.semi_labels(0)
        found = self.spheres.mad(x[:0], c, y, None, 1.0, 1e-6, "auto")
        arguments = (found[0], x[:0], c, y, None, 1.0, 1e-6, "auto", *found, [True, True])
        by_x, by_centers = self.spheres.mad_backward(*arguments)
        assert by_x.shape == (0, 8) and not by_centers.any()
        with pytest.raises(ValueError, match="centers: must have at least one row"):
            self.nearest(x, c[:0])
