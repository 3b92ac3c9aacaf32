"""What metrics.jsonl tells about the machines, traces, counted arithmetic and compilation."""

import json
import re
import time

import pytest
import torch
from torch import nn

from selftaught import distributed
from selftaught.errors import MachineError
from selftaught.training import compiling
from selftaught.training.watch import count_flops
from tests.ranks import run_ranks
from tests.training.toys import Given, Toy, learn, lines

SIZE, ROWS = 16, 6


class Embedder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(3 * SIZE * SIZE, 5)

    def forward(self, x):
        h = self.encoder(x)
        return h, self.head(h)


class Fit(Toy):
    def __init__(self, slow=0.0, broken_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.embedder = Embedder()
        self.slow, self.broken_at, self.calls = slow, broken_at, 0

    def forward(self, batch, player="all"):
        time.sleep(self.slow)
        if self.calls == self.broken_at:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        self.calls += 1
        return {"loss": (self.embedder(batch["views"][:, 0])[1] ** 2).mean()}

    def features(self, images):
        return self.embedder(images)

    def backbone(self):
        return self.embedder.encoder


class Steps(Given):
    """Every rank's own images, and a wait for them."""

    def __init__(self, steps=4, wait=0.0):
        super().__init__(self.views, steps, lr=0.01)
        self.wait = wait

    def views(self, step):
        generator = torch.Generator().manual_seed(step)
        return {"views": torch.randn(ROWS, 2, 1, SIZE, SIZE, generator=generator)}

    def batches(self, first):
        for step in range(first, self.schedule.steps):
            time.sleep(self.wait)
            yield self.views(step) | {"ids": torch.arange(ROWS)}


def run(folder, task=None, stage=None, **options):
    learn(folder, task or Fit(), stage or Steps(), sync_batch_norm="off", **options)
    return lines(folder)


def of_kind(entries, kind):
    return [entry for entry in entries if entry["kind"] == kind]


def on_two_ranks(folder, slow_rank, in_forward):
    slow = 0.3 if distributed.rank() == slow_rank else 0.0
    task, stage = (Fit(slow), Steps()) if in_forward else (Fit(), Steps(wait=slow))
    run(folder, task, stage, profile="1-2")


@pytest.mark.parametrize(("slow_rank", "in_forward"), [(1, True), (0, False)])
def test_the_slowest_rank_is_named(tmp_path, slow_rank, in_forward):
    run_ranks(2, on_two_ranks, tmp_path, slow_rank, in_forward)
    entries = lines(tmp_path)
    for entry in of_kind(entries, "step")[2:] + of_kind(entries, "epoch"):
        assert entry["slowest_rank"] == slow_rank
    epoch = of_kind(entries, "epoch")[0]
    ranks = epoch["ranks"]
    assert set(ranks) == {"images_per_s", "data_wait", "own_s", "peak_memory_gib"}
    assert ranks["own_s"][slow_rank] > 0.3 > ranks["own_s"][1 - slow_rank]
    assert epoch["images_per_s"] == pytest.approx(sum(ranks["images_per_s"]))
    # Both ranks advance in step. The other rank's clock may start after the first of four delays.
    assert max(ranks["images_per_s"]) < 4 * ROWS / (3 * 0.3)
    if not in_forward:
        assert ranks["data_wait"][0] > 0.3 > ranks["data_wait"][1]
    assert {path.name for path in (tmp_path / "profile").iterdir()} == {
        "pretext-rank0-1-2.json",
        "pretext-rank1-1-2.json",
    }


def test_every_line_says_speed_wait_and_memory(tmp_path):
    entries = run(tmp_path)
    for entry in of_kind(entries, "step") + of_kind(entries, "epoch"):
        assert entry["images_per_s"] > 0
        assert 0 <= entry["data_wait"] <= 1
        assert 0.05 < entry["peak_memory_gib"] < 64
        assert entry["slowest_rank"] == 0
        assert "mfu" not in entry
    assert not (tmp_path / "profile").exists()


def test_flops_are_those_of_the_formulas():
    task = Fit()
    conv = 2 * 9 * 3 * SIZE * SIZE  # multiply-adds of 3 channels from one, 3 x 3 taps
    linear = 2 * 3 * SIZE * SIZE * 5
    # Forward, gradient by weights, and gradient by inputs, which the first layer does not need.
    expected = 2 * conv + 3 * linear
    views = torch.randn(4, 2, 1, SIZE, SIZE)
    assert count_flops(task, views) == 2 * expected
    assert task.training
    assert count_flops(task, views[:, :1]) == expected
    assert all(p.grad is None for p in task.parameters())


def test_mfu_is_counted_work_by_the_named_peak(tmp_path):
    entries = run(tmp_path, peak_tflops=0.5)
    assert of_kind(entries, "note")[0]["peak_tflops"] == 0.5
    gflop = of_kind(entries, "note")[0]["gflop_per_image"]
    epoch = of_kind(entries, "epoch")[0]
    assert epoch["mfu"] == pytest.approx(epoch["images_per_s"] * gflop / 500)


def test_the_end_of_a_stage_says_how_fast_it_was(tmp_path, capsys):
    entries = run(tmp_path, peak_tflops=0.5, profile="1-2")
    epoch, told = of_kind(entries, "epoch")[0], capsys.readouterr().err
    speed = float(re.search(r"pretext: ([\d,.]+) images/s, ", told)[1].replace(",", ""))
    assert speed == pytest.approx(epoch["images_per_s"], rel=0.006)
    assert f"{epoch['peak_memory_gib']:.3g} GiB at most on a rank" in told
    assert "of 0.5 TFLOP/s a rank" in told
    (path,) = (tmp_path / "profile").iterdir()
    # Also where no terminal wraps them, lines stay whole.
    assert f"pretext: trace of steps 1-2, for ui.perfetto.dev: {path}\n" in told
    assert "slowest" not in told, "one rank alone"


def test_a_trace_holds_the_named_steps(tmp_path):
    entries = run(tmp_path, profile="1-2")
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == "pretext-rank0-1-2.json"
    events = json.loads(path.read_text())["traceEvents"]
    names = [event.get("name") for event in events]
    assert names.count("aten::conv2d") == 2, "two steps, one convolution each"
    assert not of_kind(entries, "warning")


def test_a_trace_window_past_the_end_is_said(tmp_path):
    entries = run(tmp_path, profile="4-6")
    assert "the stage has 4 steps" in of_kind(entries, "warning")[0]["message"]
    assert not (tmp_path / "profile").exists()


def test_out_of_memory_ends_in_one_line_and_a_snapshot(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", taken.append)
    with pytest.raises(MachineError) as error:
        run(tmp_path, Fit(broken_at=2))
    assert "rank 0 is out of memory; lower the batch size" in str(error.value)
    assert "\n" not in str(error.value)
    assert taken == [str(tmp_path / "profile" / "pretext-rank0-out-of-memory.pickle")]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_training_gives_the_same_losses_and_says_what_it_gained(
    tmp_path, monkeypatch, backend
):
    used = []
    compile_ = torch.compile

    def counted(function, **options):
        compiled = compile_(function, backend=backend, **options)
        return lambda x: (used.append(1), compiled(x))[1]

    monkeypatch.setattr(compiling.torch, "compile", counted)
    expected = run(tmp_path / "eager")
    found = run(tmp_path / "compiled", compile=True)
    for ours, theirs in zip(of_kind(found, "step"), of_kind(expected, "step"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    (note,) = (e for e in of_kind(found, "note") if "compile_s" in e)
    assert note["compile_s"] > note["pass_s_after_compile"] > 0
    assert note["pass_s_before_compile"] > 0
    # Timed passes, then every training step; evaluation is not compiled.
    assert len(used) == 1 + compiling.TIMED + 4
    assert not [e for e in of_kind(expected, "note") if "compile_s" in e]
