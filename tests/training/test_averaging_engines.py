"""Averages under every engine, and statistics estimated anew."""

import contextlib
import dataclasses

import pytest
import torch

from selftaught.methods.begin import sample
from selftaught.training import checkpoint
from selftaught.training.averaging import recalibrate
from tests.methods.starts import Start
from tests.training.test_averaging import DECAY, Killed, Normed, Watching, kept, same
from tests.training.toys import learn


def test_statistics_are_the_mean_over_images_of_those_of_batches():
    task = Normed().double()
    task.held.eval()
    start = Start(task, 24, count=40)  # batches of 16, 16 and 8
    start.images = torch.randn(40, 1, 1, 3, generator=torch.Generator().manual_seed(2)).double()
    before = {k: v.clone() for k, v in task.state_dict().items()}
    recalibrate(task, start, 100)
    inputs = task.first(start.images.flatten(1)).detach().split(16)
    mean = sum(len(one) / 40 * one.mean(0) for one in inputs)
    var = sum(len(one) / 40 * one.var(0) for one in inputs)
    torch.testing.assert_close(task.norm.running_mean, mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(task.norm.running_var, var, rtol=1e-12, atol=1e-14)
    changed = {k for k, v in task.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"norm.running_mean", "norm.running_var"}
    assert task.training and task.norm.training and not task.held.training
    chosen = sample(start.rows, 20, start.seed)
    recalibrate(task, start, 20)
    some = task.first(start.images[chosen].flatten(1)).detach().split(16)
    mean = sum(len(one) / 20 * one.mean(0) for one in some)
    torch.testing.assert_close(task.norm.running_mean, mean, rtol=1e-12, atol=1e-14)


def test_nothing_is_read_where_no_norm_trains():
    task = Normed()
    for one in (task.norm, task.held):
        one.eval()

    class NoImages(Start):
        def batches(self, rows, *, random=False):
            raise AssertionError("images were asked for")

    recalibrate(task, NoImages(task, 24), 8)


@pytest.mark.parametrize(
    "engine",
    [
        {"kind": "deepspeed", "zero_stage": 0},
        {"kind": "deepspeed", "zero_stage": 2, "accumulate": 2},
        {"precision": "bf16", "accumulate": 2},
    ],
)
def test_every_engine_averages_what_it_learnt_and_goes_on(tmp_path, engine):
    if engine.get("kind") == "deepspeed":
        pytest.importorskip("deepspeed")
    found, states = [], []

    def hear(at):
        def step(event, **facts):
            if event == "step" and facts["step"] == at:
                raise Killed
            if event == "step" and at is None:
                states.append({k: v.clone() for k, v in facts["engine"].task.state_dict().items()})

        return step

    for place, stops in (("whole", [None]), ("killed", [4, 9])):
        for at in stops:
            task = Normed(average=DECAY)
            stage = Watching(task)
            stage.schedule = dataclasses.replace(
                stage.schedule, accumulate=engine.get("accumulate", 1)
            )
            with pytest.raises(Killed) if at == 4 else contextlib.nullcontext():
                learn(tmp_path / place, task, stage, on_event=hear(at), **engine)
        found.append(checkpoint.newest(tmp_path / place / "c")[0])
    assert same(found[0].weights, found[1].weights) and same(found[0].average, found[1].average)
    name = "first.weight"
    plain = states[0][name].double()
    for number, state in enumerate([*states[1:], found[0].weights]):
        plain = kept(number) * plain + (1 - kept(number)) * state[name]
    torch.testing.assert_close(found[0].average[name].double(), plain, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(plain, found[0].weights[name].double(), rtol=1e-3)
