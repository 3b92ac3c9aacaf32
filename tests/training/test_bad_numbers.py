"""A step whose numbers are not finite leaves nothing behind, though the host learns of it late."""

import pytest
import torch
from torch import nn

from selftaught import distributed
from selftaught.errors import MachineError
from selftaught.methods import Options
from selftaught.training import checkpoint, loop
from selftaught.training.stop import StopRun
from tests.ranks import run_ranks
from tests.training.toys import Given, Toy, fuse, learn, lines

STEPS = 6
# What goes wrong, in a batch's `harm`: 0 nothing.
PIXELS, LOSS, GRADIENT = 1, 2, 3


class Normed(Toy):
    """A convolution with running statistics, and weights that are averaged."""

    def __init__(self):
        super().__init__()
        self.options = Options(average=0.5)
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Sequential(nn.Conv1d(1, 3, 3, bias=False), nn.BatchNorm1d(3), nn.Flatten())
        self.register_buffer("wide", torch.zeros(2, dtype=torch.float64))
        with torch.no_grad():
            self.net[0].weight.copy_(torch.randn(3, 1, 3, generator=generator))

    def forward(self, batch, player="all"):
        harm = int(batch["harm"].max())
        z = self.net(batch["views"])
        self.wide += z.detach().double().mean()
        if harm == GRADIENT:
            z.register_hook(lambda gradient: gradient * float("nan"))
        loss = (z - 1).square().mean()
        # Its gradient is finite, on every rank.
        return {"loss": loss + torch.inf if harm == LOSS else loss}


def stage(harms=(), rank=0, ranks=1, **plan):
    """`STEPS` steps, of which some are harmed on a rank; an epoch by default."""

    def batch(step):
        views = torch.randn(8, 1, 5, generator=torch.Generator().manual_seed(step))
        harm = torch.zeros(8, dtype=torch.int64)
        place = rank * 8 // ranks
        harm[place] = dict(harms).get(step, 0)
        if harm[place] == PIXELS:
            views[place] = float("nan")
        return {"views": views, "harm": harm, "ids": torch.arange(8) + 8 * step}

    return Given(batch, **{"steps": STEPS, "lr": 0.01} | plan)


def harmed(folder, monkeypatch, optimizer, harms, rank=0, ranks=1, **plan):
    """What a run that ends by a bad number leaves in memory, and its message."""
    held = {}

    class Held(loop.Averaged):
        def __init__(self, task):
            super().__init__(task)
            held["average"] = self.state

    monkeypatch.setattr(loop, "Averaged", Held)
    task = Normed()
    with pytest.raises(MachineError) as raised:
        learn(
            folder,
            task,
            stage(harms, rank, ranks, **plan),
            optimizer=optimizer,
            on_event=lambda event, **facts: held.update(facts),
        )
    held = {"weights": task.state_dict(), "state": held["engine"].state()} | held
    return str(raised.value), {kind: held[kind] for kind in ("weights", "state", "average")}


def assert_as_before(folder, left, bad, optimizer):
    """What is left is what a run of the steps before the bad one saved, to the bit."""
    weights, state = Normed().state_dict(), left["state"]
    if bad:
        learn(folder, Normed(), stage(steps=bad), optimizer=optimizer)
        saved = checkpoint.newest(folder / "c")[0]
        weights, state = saved.weights, saved.optimizer
    for ours, theirs in ((left["weights"], weights), (left["state"], state)):
        for name, value in ours.items():
            assert torch.equal(theirs[name], value) or not value.is_floating_point(), name
    for kind in left.values():
        assert all(value.isfinite().all() for value in kind.values())


FUSED = [("adam", False), ("sgd", False), ("lars", False), ("adam", True), ("sgd", True)]


@pytest.mark.parametrize(("optimizer", "fused"), FUSED)
@pytest.mark.parametrize("harm", [PIXELS, LOSS, GRADIENT])
def test_nothing_moves_from_the_bad_step_on(tmp_path, monkeypatch, optimizer, fused, harm):
    if fused:
        fuse(monkeypatch)
    message, left = harmed(tmp_path / "bad", monkeypatch, optimizer, {3: harm, 4: PIXELS})
    assert message.startswith("step 3: not finite, stopped before the update, last checkpoint")
    assert "image-24.png" in message and "image-32.png" not in message
    assert_as_before(tmp_path / "good", left, 3, optimizer)
    assert [line["step"] for line in lines(tmp_path / "bad", "step")] == [1, 2, 3]
    assert not (tmp_path / "bad" / "c").exists()


@pytest.mark.parametrize(
    ("bad", "epochs"), [(0, 1), (STEPS - 2, 1), (STEPS - 1, 1), (STEPS // 2 - 1, 2)]
)
def test_at_either_end_of_an_epoch_too(tmp_path, monkeypatch, bad, epochs):
    plan = {"steps": STEPS // epochs, "epochs": epochs}
    message, left = harmed(tmp_path / "bad", monkeypatch, "adam", {bad: LOSS}, **plan)
    assert message.startswith(f"step {bad}: ")
    assert bad == 0 or not lines(tmp_path / "bad", "epoch")
    assert_as_before(tmp_path / "good", left, bad, "adam")


def on_ranks(folder, harm):
    with pytest.MonkeyPatch.context() as monkeypatch:
        message, left = harmed(folder / "bad", monkeypatch, "adam", {3: harm}, 1, 2)
    if not distributed.is_main():
        del left["weights"][
            "wide"
        ]  # no norm's statistic, but a rank's own: the first one's is saved
    assert_as_before(folder / "good", left, 3, "adam")
    return message


@pytest.mark.parametrize("harm", [PIXELS, LOSS, GRADIENT])
def test_one_rank_stops_all_and_is_named(tmp_path, harm):
    first, second = run_ranks(2, on_ranks, tmp_path, harm)
    assert first == second and first.startswith("step 3: ")
    assert "rank 1: loss" in first and "image-28.png" in first
    assert "rank 0" not in first


def stopped(folder, at, rank):
    """A run that a signal to one rank stops, and goes on; where it stopped, and its end."""

    def hear(event, **facts):
        if event == "step" and facts["step"] == at and distributed.rank() == rank:
            stoppers[-1].code = 143

    stoppers = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = loop.train

        def train(engine, stage, folder, reporter, stopper, options):
            stoppers.append(stopper)
            return made(engine, stage, folder, reporter, stopper, options)

        monkeypatch.setattr("tests.training.toys.train", train)
        with pytest.raises(StopRun) as raised:
            learn(folder, Normed(), stage(), optimizer="adam", on_event=hear)
    assert raised.value.code == 143
    step = checkpoint.newest(folder / "c")[0].step
    return step, learn(folder, Normed(), stage(), optimizer="adam").state_dict()


@pytest.mark.parametrize("at", [2, STEPS - 1])
def test_a_signal_to_one_rank_stops_all_at_one_step(tmp_path, at):
    expected = run_ranks(2, whole, tmp_path / "whole")
    for (step, left), right in zip(
        run_ranks(2, stopped, tmp_path / "stopped", at, 1), expected, strict=True
    ):
        assert step == min(at + 2, STEPS)
        assert all(torch.equal(left[name], value) for name, value in right.items())


def whole(folder):
    return learn(folder, Normed(), stage(), optimizer="adam").state_dict()
