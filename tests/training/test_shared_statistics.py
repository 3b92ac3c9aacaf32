"""Two ranks whose batch norms are apart: what is looked at and what is saved is one model."""

import pytest
import torch

from selftaught.training import checkpoint
from tests.ranks import run_ranks
from tests.training import engine_cases as cases
from tests.training.toys import Given, learn

EPOCHS, STEPS = 2, 3


class Looking(Given):
    """Remembers a rank's statistics: before each step, at each epoch's end and look."""

    def __init__(self, task, save_every):
        super().__init__(cases.whole, STEPS, epochs=EPOCHS, lr=0.05, save_every=save_every)
        self.task, self.before, self.closed, self.looks = task, [], [], []

    def own(self):
        state = self.task.state_dict().items()
        return {name: value.clone() for name, value in state if "running_" in name}

    def hear(self, event, **facts):
        if event == "step":
            self.before.append(self.own())

    def close_epoch(self):
        self.closed.append(self.own())
        return {}

    def observe_epoch(self, epoch, step):
        self.looks.append(self.own())
        return {}


def watched(folder):
    """For a run that saves at its end only and one that saves at every step: what it looked at."""
    out = {}
    for save_every in (0, 1):
        task = cases.Small()
        stage = Looking(task, save_every)
        task.close_epoch = stage.close_epoch
        place = folder / f"{save_every}"
        learn(place, task, stage, on_event=stage.hear, sync_batch_norm="off")
        out[save_every] = {name: getattr(stage, name) for name in ("before", "closed", "looks")}
    return out


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return folder, run_ranks(2, watched, folder)


def same(one, other):
    assert one.keys() == other.keys() and len(one) == 4
    return [torch.equal(one[name], other[name]) for name in one]


def test_all_ranks_look_at_one_model_where_nothing_was_saved(ranks):
    ours, theirs = (rank[0] for rank in ranks[1])
    assert len(ours["looks"]) == EPOCHS
    assert not any(same(ours["closed"][0], theirs["closed"][0])), "both ranks saw the same images"
    for number in range(EPOCHS):
        assert all(same(ours["looks"][number], theirs["looks"][number]))
    assert all(same(ours["looks"][0], ours["closed"][0])), "not those of rank 0"


def test_all_ranks_go_on_from_what_is_saved(ranks):
    folder, everyone = ranks
    ours, theirs = (rank[1] for rank in everyone)
    assert len(ours["before"]) == EPOCHS * STEPS
    for number in range(1, EPOCHS * STEPS):
        assert all(same(ours["before"][number], theirs["before"][number])), f"step {number}"
    for save_every in (0, 1):
        found, _ = checkpoint.newest(folder / f"{save_every}" / "c")
        assert found.step == EPOCHS * STEPS
        saved = {name: value for name, value in found.weights.items() if "running_" in name}
        for rank in everyone:
            assert all(same(saved, rank[save_every]["looks"][-1]))
