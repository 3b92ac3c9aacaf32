"""Several optimizers that take turns in a step: alone, on ranks, resumed, and where refused."""

import dataclasses
import os
import signal

import pytest
import torch

from selftaught.errors import InputError
from selftaught.methods import Options
from selftaught.training import checkpoint
from selftaught.training.config import Config, EngineConfig
from selftaught.training.ddp import TorchEngine
from selftaught.training.stage import make_engine
from tests.ranks import CONTEXT, run_ranks
from tests.training.toys import Given, Pair, learn

STEPS = 6
PAIR = "tests.training.toys.Pair"


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return {"views": torch.randn(8, 7, generator=generator, dtype=torch.float64)}


def stage():
    return Given(batch, STEPS, lr=0.02, save_every=1)


def trained(folder, on_event=lambda event, **facts: None, **options):
    settings = {"optimizer": "adam", "precision": "fp64", **options}
    return learn(folder, Pair().double(), stage(), on_event=on_event, **settings).state_dict()


def by_hand(accumulate=1):
    """The same steps in plain PyTorch."""
    task = Pair().double()
    optimizers = {
        name: torch.optim.Adam(getattr(task, name).parameters(), lr=0.02)
        for name in ("critic", "maker")
    }
    for step in range(STEPS):
        for name, optimizer in optimizers.items():
            task.zero_grad()
            for part in batch(step)["views"].chunk(accumulate):
                (task({"views": part}, name)["loss"] / accumulate).backward()
            optimizer.step()
    return task.state_dict()


def assert_same(result, expected, tolerance=0.0):
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loop_repeats_plain_pytorch(tmp_path, accumulate):
    whole = Given(batch, STEPS, lr=0.02, accumulate=accumulate)
    task = learn(tmp_path, Pair().double(), whole, optimizer="adam", precision="fp64")
    assert_same(task.state_dict(), by_hand(accumulate), 1e-12)


def test_a_turn_leaves_the_other_player_as_it_is():
    engine = TorchEngine(Pair(), weight_decay=0.1, optimizer="adam", precision="fp32")
    views = {"views": batch(0)["views"].float()}
    for player, other in (("critic", "maker"), ("maker", "critic")):
        before = {name: value.clone() for name, value in engine.task.state_dict().items()}
        engine.backward(engine.forward(views, player)["loss"], 1)
        gradients = [p.grad for p in engine.task.parameters_of(player)]
        expected = torch.cat([grad.flatten() for grad in gradients]).norm()
        torch.testing.assert_close(engine.gradient_norm(player), expected)
        engine.step(0.1, player)
        for name, value in engine.task.state_dict().items():
            assert torch.equal(value, before[name]) == name.startswith(other), name
        assert all(p.grad is None for p in engine.task.parameters())


def on_ranks(folder):
    return trained(folder)


def test_two_ranks_do_what_one_does(tmp_path):
    expected = trained(tmp_path / "one")
    for result in run_ranks(2, on_ranks, tmp_path / "two"):
        assert_same(result, expected, 1e-12)


def killed_at(folder, step):
    """What hears the run and ends it with kill -9 before its 0-based `step`."""

    def hear(event, **facts):
        if event == "step" and facts["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    trained(folder, hear)


def test_killed_and_begun_again_it_ends_with_the_same_bits(tmp_path):
    expected = trained(tmp_path / "whole")
    process = CONTEXT.Process(target=killed_at, args=(tmp_path / "run", 3))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert checkpoint.newest(tmp_path / "run" / "c")[0].step == 3
    assert_same(trained(tmp_path / "run"), expected)
    saved = [checkpoint.newest(tmp_path / name / "c")[0] for name in ("run", "whole")]
    for name, value in saved[0].optimizer.items():
        assert torch.equal(value, saved[1].optimizer[name]), name


def test_a_checkpoint_holds_the_state_of_every_player(tmp_path):
    trained(tmp_path)
    saved = checkpoint.newest(tmp_path / "c")[0].optimizer
    task = Pair()
    numbers = {p: number for number, p in enumerate(task.parameters())}
    for player in task.players:
        for parameter in task.parameters_of(player):
            for name in ("exp_avg", "exp_avg_sq"):
                assert saved[f"{numbers[parameter]}.{name}"].shape == parameter.shape
            assert saved[f"{numbers[parameter]}.step"] == STEPS


def test_deepspeed_refuses_them_in_one_line():
    config = EngineConfig(kind="deepspeed", precision="fp32")
    with pytest.raises(InputError, match="Pair has 2 optimizers that take turns; allowed: ddp"):
        make_engine(Pair(), config, optimizer="adam", weight_decay=0.0)
    settings = Config(out="run", pretext=Options(method=PAIR))
    with pytest.raises(ValueError, match="engine.kind is 'deepspeed'; allowed: ddp with pretext"):
        dataclasses.replace(settings, engine=config)
