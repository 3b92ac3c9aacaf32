"""Two ranks whose batch norms are apart: what is looked at and what is saved is one model."""

import pytest
import torch

from selftaught.training import checkpoint
from selftaught.training.config import EngineConfig
from selftaught.training.engine import make_engine
from selftaught.training.loop import Schedule, train
from selftaught.training.progress import Reporter
from selftaught.training.stop import Stopper
from tests.ranks import run_ranks

from . import engine_cases as cases

EPOCHS, STEPS = 2, 3


def statistics(weights):
    return {name: value.clone() for name, value in weights.items() if "running_" in name}


class Looking:
    """Remembers a rank's statistics: before each step, at each epoch's end and look."""

    def __init__(self, task, save_every):
        self.task, self.before, self.closed, self.looks = task, [], [], []
        self.schedule = Schedule(
            stage="pretext", epochs=EPOCHS, steps_per_epoch=STEPS, lr=0.05, milestones=(),
            save_every=save_every,
        )  # fmt: skip

    def own(self):
        return statistics(self.task.state_dict())

    def batches(self, first):
        for step in range(first, self.schedule.steps):
            self.before.append(self.own())
            (share,) = cases.shares(step, 1)
            yield share | {"ids": torch.arange(len(share["views"]))}

    def close_epoch(self):
        self.closed.append(self.own())
        return {}

    def observe_epoch(self, epoch, step):
        self.looks.append(self.own())
        return {}

    def files(self, ids):
        return []


def learn(folder):
    """For a run that saves at its end only and one that saves at every step: what it looked at."""
    config = EngineConfig(precision="fp32", sync_batch_norm="off")
    out = {}
    for save_every in (0, 1):
        place = folder / f"{save_every}"
        place.mkdir(exist_ok=True)
        engine = make_engine(cases.Small(), config, optimizer="sgd", weight_decay=0.0)
        stage = Looking(engine.task, save_every)
        with Reporter(place) as reporter:
            train(engine, stage, place / "c", reporter, Stopper(), config)
        out[save_every] = stage
        del stage.task
    return out


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return folder, run_ranks(2, learn, folder)


def same(one, other):
    assert one.keys() == other.keys() and len(one) == 4
    return [torch.equal(one[name], other[name]) for name in one]


def test_all_ranks_look_at_one_model_where_nothing_was_saved(ranks):
    folder, (first, second) = ranks
    ours, theirs = first[0], second[0]
    assert len(ours.looks) == EPOCHS
    assert not any(same(ours.closed[0], theirs.closed[0])), "both ranks saw the same images"
    for number in range(EPOCHS):
        assert all(same(ours.looks[number], theirs.looks[number]))
    assert all(same(ours.looks[0], ours.closed[0])), "not those of rank 0"


def test_all_ranks_go_on_from_what_is_saved(ranks):
    folder, (first, second) = ranks
    ours, theirs = first[1], second[1]
    assert len(ours.before) == EPOCHS * STEPS
    for number in range(1, EPOCHS * STEPS):
        assert all(same(ours.before[number], theirs.before[number])), f"apart at step {number}"
    for save_every in (0, 1):
        found, _ = checkpoint.newest(folder / f"{save_every}" / "c")
        assert found.step == EPOCHS * STEPS
        for rank in (first, second):
            assert all(same(statistics(found.weights), rank[save_every].looks[-1]))
