"""The loop between steps: saves, owed epoch lines, non-finite numbers, what a step waits for."""

import contextlib
import dataclasses
import inspect

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from selftaught.errors import MachineError
from selftaught.training import checkpoint, loop
from selftaught.training.stop import StopRun
from tests.ranks import run_ranks
from tests.training.toys import Given, Line, Pair, fuse, learn, lines


class Steps(Given):
    """Two epochs of three steps; `interrupt` is raised once while observing that epoch."""

    def __init__(self, interrupt=None, poison=None):
        super().__init__(self.step, 3, epochs=2, milestones=(1,), save_every=100)
        self.interrupt, self.poison = interrupt, poison

    def step(self, number):
        value = float("nan") if number == self.poison else 1.0 + number
        return {"views": torch.full((2, 1), value), "ids": torch.arange(2) + 2 * number}

    def observe_epoch(self, epoch, step):
        if epoch == self.interrupt:
            self.interrupt = None
            raise StopRun(143)
        return {"spread": 1.0}


def run(folder, stage):
    return learn(folder, Line(), stage, optimizer="adam").weight.item()


def test_a_signal_while_observing_saves_and_the_owed_line_is_written_on_resume(tmp_path):
    expected = run(tmp_path / "whole", Steps())
    place = tmp_path / "stopped"
    with pytest.raises(StopRun):
        run(place, Steps(interrupt=0))
    assert checkpoint.newest(place / "c")[0].step == 3
    assert lines(place, "epoch") == []
    assert run(place, Steps()) == expected
    for ours, theirs in zip(lines(place, "epoch"), lines(tmp_path / "whole", "epoch"), strict=True):
        for name in ("epoch", "step", "loss", "lr", "centers", "spread"):
            assert ours[name] == theirs[name]


def test_a_number_that_is_none_stops_before_the_update_and_names_the_files(tmp_path):
    with pytest.raises(MachineError, match=r"step 4.*rank 0: loss nan.*image-8.png, image-9.png"):
        run(tmp_path, Steps(poison=4))


@pytest.mark.parametrize("every, steps", [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4, 6])])
def test_each_state_is_saved_once(every, steps, tmp_path, monkeypatch):
    saved, save = [], loop.save
    monkeypatch.setattr(loop, "save", lambda *state: saved.append(state[3]) or save(*state))
    stage = Steps()
    stage.schedule = dataclasses.replace(stage.schedule, save_every=every)
    run(tmp_path, stage)
    assert saved == steps


def test_a_finished_stage_does_nothing_more(tmp_path):
    expected = run(tmp_path, Steps())
    before = (tmp_path / "metrics.jsonl").read_text()
    again = learn(tmp_path, Line(), Steps(), optimizer="adam")
    assert (again.weight.item(), again.closed) == (expected, 0)
    assert (tmp_path / "metrics.jsonl").read_text() == before


# Long enough that some steps have no line in metrics.jsonl.
LONG, UNLOGGED = 100, (20, 22, 24)


def long_stage():
    return Given(lambda step: {"views": torch.full((4, 1), 1.0)}, LONG, lr=1e-3)


class Counting:
    """Counts calls by step: of the functions of `owner` that `wanted` names."""

    def __init__(self, owner, wanted):
        self.owner, self.wanted, self.seen, self.depth = owner, wanted, [], 0

    def hear(self, event, **facts):
        if event == "step":
            self.seen.append([])

    def __enter__(self):
        self.kept = {name: getattr(self.owner, name) for name in self.wanted}
        for name, function in self.kept.items():
            setattr(self.owner, name, self.counted(name, function))
        return self

    def counted(self, name, function):
        def call(*arguments, **named):
            if self.seen and not self.depth:
                self.seen[-1].append(name)
            self.depth += 1  # one collective that is made of others is one
            try:
                return function(*arguments, **named)
            finally:
                self.depth -= 1

        return call

    def __exit__(self, *_):
        for name, function in self.kept.items():
            setattr(self.owner, name, function)


COLLECTIVES = ("all_", "broadcast", "barrier", "monitored", "gather", "scatter", "reduce", "send")
COLLECTIVES += ("recv", "isend", "irecv", "batch_isend")


def collectives(folder):
    """Names of the collectives of each step but the last, beside DDP's averages of gradients."""
    wanted = [
        name
        for name, function in vars(dist).items()
        if inspect.isfunction(function) and name.startswith(COLLECTIVES)
    ]
    assert "all_reduce" in wanted and "all_gather_object" in wanted and "barrier" in wanted
    with Counting(dist, wanted) as counting:
        learn(folder, Line(), long_stage(), on_event=counting.hear)
    return counting.seen[:-1]


def test_a_step_of_several_ranks_has_one_collective_beside_the_gradients(tmp_path):
    for seen in run_ranks(2, collectives, tmp_path):
        assert len(seen) == LONG - 1
        assert {len(names) for names in seen} == {1}, seen[:3]
    logged = {line["step"] - 1 for line in lines(tmp_path, "step")}
    assert logged >= set(range(20)) and not logged & set(UNLOGGED)


class Reads(TorchDispatchMode):
    """What the host reads, turn by turn: how many turns ago it was made, and when it is read.

    Made in this turn, it is a wait for what the device has just been given to do; read before the
    turn's gradient, it leaves the device with nothing to do.
    """

    NAMES = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__")
    OPS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")

    def __init__(self, task, monkeypatch):
        super().__init__()
        self.seen, self.made = [], WeakTensorKeyDictionary()
        task.register_forward_pre_hook(lambda *_: self.seen.append([]))
        for one in task.parameters():
            one.register_post_accumulate_grad_hook(lambda _: self.add("gradient"))
        for name in self.NAMES:
            monkeypatch.setattr(torch.Tensor, name, self.heard(name, getattr(torch.Tensor, name)))

    def add(self, what):
        if self.seen and self.seen[-1][-1:] != [what]:
            self.seen[-1].append(what)

    def heard(self, name, function):
        def call(tensor, *arguments, **named):
            self.add((name, len(self.seen) - self.made.get(tensor, len(self.seen))))
            return function(tensor, *arguments, **named)

        return call

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in self.OPS:
            self.add((name, len(self.seen) - self.made.get(args[0], len(self.seen))))
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, torch.Tensor):
                self.made[one] = len(self.seen)
        return result


@pytest.mark.parametrize("task", [Line, Pair])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lars"])
def test_no_turn_waits_for_what_it_has_begun(tmp_path, monkeypatch, task, optimizer):
    """With the optimizers of a GPU; logged steps are no exception, only the stage's last one is."""
    fuse(monkeypatch)
    stage, task = Given(lambda step: {"views": torch.ones(4, 7)}, LONG, lr=1e-3), task()
    with Reads(task, monkeypatch) as reads:
        learn(tmp_path, task, stage, optimizer=optimizer, clip=1.0)
    first, *turns, last = reads.seen
    assert len(turns) == LONG * len(task.players) - 2
    assert first == ["gradient"]
    assert {tuple(turn) for turn in turns} == {("gradient", ("tolist", 1))}
    assert last[:3] == ["gradient", ("tolist", 1), ("tolist", 0)]
    assert len(lines(tmp_path, "step")) > 20


class Measured(Line):
    """Says more than its loss: of every step, of every other one, and of some of a rank's."""

    def forward(self, batch, player="all"):
        size = batch["views"].detach().mean()
        names = ["size"] + ["odd"] * bool(size % 2) + ["large"] * bool(size > 3)
        return super().forward(batch) | dict.fromkeys(names, size)


def counted(folder, interrupt=None):
    """Epoch lines of six steps whose views are the step's number, plus two on rank 1."""
    shift = torch.tensor([[0.0], [2.0]])
    stage = Given(lambda step: {"views": step + shift}, 3, epochs=2, save_every=1)
    if interrupt is None or not (folder / "c").exists():
        with contextlib.suppress(StopRun):
            learn(folder, Measured(), stage, on_event=interrupt or (lambda *_, **__: None))
    return lines(folder, "epoch") if torch.distributed.is_initialized() else None


def stop_at_four(event, **facts):
    if event == "step" and facts["step"] == 4:
        raise StopRun(143)


def figures_of_ranks(folder):
    counted(folder, stop_at_four)
    return counted(folder)


def test_means_of_figures_are_over_the_epoch_and_the_ranks(tmp_path):
    epochs = run_ranks(2, figures_of_ranks, tmp_path)[0]
    assert [line["size"] for line in epochs] == [2.0, 5.0]  # of 0 1 2 | 3 4 5, and two more
    assert [line["odd"] for line in epochs] == [2.0, 5.0]  # of 1 | 3 5, and two more
    assert [line["large"] for line in epochs] == [4.0, 5.4]  # of 4 | 4 5 5 6 7


class Differing(Line):
    """Has a statistic of its rank alone."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, batch, player="all"):
        self.mean.fill_(dist.get_rank())
        return super().forward(batch)


def renewed(folder):
    task, seen = Differing(), []
    stage = Given(lambda step: {"views": torch.ones(2, 1)}, 2, epochs=2)
    stage.renew = lambda **_: seen.append(float(task.mean))
    learn(folder, task, stage)
    return seen


def test_all_ranks_renew_what_one_model_sees(tmp_path):
    assert run_ranks(2, renewed, tmp_path) == [[0.0, 0.0]] * 2


class Turns(Pair):
    """The maker's turn comes every third step."""

    def turns(self, step):
        return ("maker",) if step % 3 == 2 else ("critic",)


def test_only_those_whose_turn_it_is_move(tmp_path):
    task, before = Turns(), {}

    def watch(event, **facts):
        if event == "step":
            now = {name: one.detach().clone() for name, one in task.named_parameters()}
            if before:
                mover = task.turns(facts["step"] - 1)[0]
                assert all(
                    torch.equal(now[name], before[name]) != name.startswith(mover) for name in now
                )
            before.update(now)

    learn(tmp_path, task, Given(lambda step: {"views": torch.ones(4, 7)}, 6), on_event=watch)
    assert before
