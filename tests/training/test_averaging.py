"""Averaged weights: what they are, what uses them, and that the raw ones train on as if alone."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from selftaught import methods
from selftaught.evaluation.metrics import auroc
from selftaught.methods import Options
from selftaught.training import averaging, checkpoint, guards
from selftaught.training.averaging import Averaged
from selftaught.training.begin import Beginning
from selftaught.training.context import FINETUNE, PRETEXT
from selftaught.training.scoring import GROUPS, read_scores, score
from selftaught.training.stage import train_stage
from selftaught.training.tasks import finished_weights, new_task, trained_task
from tests.ranks import run_ranks
from tests.training import engine_cases as cases
from tests.training.toys import Given, Toy, learn, lines, run_of

DECAY, STEPS = 0.35, 7  # the first steps keep less than that, the last ones as much


class Normed(Toy):
    """A net with batch norm, a mask, a count and a queue."""

    copied = ("queue",)

    def __init__(self, **options):
        super().__init__()
        self.options = Options(**options)
        generator = torch.Generator().manual_seed(1)
        self.first, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.held = nn.BatchNorm1d(4, affine=False)
        self.register_buffer("active", torch.tensor([True, True]))
        self.register_buffer("queue", torch.full((2,), -1.0))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def features(self, images):
        h = self.held(self.norm(self.first(images.flatten(1))))
        return h, h

    def forward(self, batch, player="all"):
        self.queue += 1
        x = batch["views"][:, 0]
        return {"loss": ((self.features(x)[1] - x.sum(1, keepdim=True)) ** 2).mean()}

    def close_epoch(self):
        self.active[0] = False
        return {}


def rows_of(step):
    generator = torch.Generator().manual_seed(step)
    return {"views": torch.randn(8, 1, 3, generator=generator)}


def wide(step):
    return {"views": rows_of(step)["views"].double()}


def test_the_average_is_that_of_a_plain_loop_and_of_torch(tmp_path):
    task, states = Normed(average=DECAY).double(), []
    torchs = AveragedModel(
        Normed().double(),
        multi_avg_fn=lambda ours, theirs, number: [
            one.copy_(kept(int(number) - 1) * one + (1 - kept(int(number) - 1)) * other)
            for one, other in zip(ours, theirs, strict=True)
        ],
        use_buffers=True,
    )
    torchs.update_parameters(task)  # its first update copies

    def hear(event, **facts):
        if event == "step":
            states.append({k: v.clone() for k, v in task.state_dict().items()})
            if facts["step"]:
                torchs.update_parameters(task)

    learn(tmp_path, task, Given(wide, STEPS), on_event=hear, precision="fp64")
    torchs.update_parameters(task)
    states.append(task.state_dict())
    saved = checkpoint.newest(tmp_path / "c")[0].average
    assert set(saved) == {k for k, v in states[0].items() if v.is_floating_point()} - {"queue"}
    assert {"norm.running_mean", "norm.running_var", "norm.weight"} < set(saved)
    theirs = torchs.module.state_dict()
    for name, value in saved.items():
        plain = states[0][name].clone()
        for number, state in enumerate(states[1:]):
            plain = kept(number) * plain + (1 - kept(number)) * state[name]
        torch.testing.assert_close(value, plain, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(value, theirs[name], rtol=1e-13, atol=1e-15)


def kept(step):
    """Share of the average that the 0-based step keeps."""
    return min(DECAY, (1 + step) / (10 + step))


def test_the_shares_of_the_first_steps_rise_to_the_decay():
    assert [round(kept(step), 3) for step in (0, 1, 3, 4, 6)] == [0.1, 0.182, 0.308, 0.35, 0.35]
    task = Normed(average=DECAY)
    averaged = Averaged(task)
    before = averaged.state["first.weight"].clone()
    with torch.no_grad():
        task.first.weight.add_(1)
    averaged.update(0)
    torch.testing.assert_close(averaged.state["first.weight"], before + 0.9)


class Watching(Given):
    """Remembers what the task is at each epoch's look."""

    def __init__(self, task, batch=rows_of, save_every=1):
        super().__init__(batch, 3, epochs=3, lr=0.05, save_every=save_every)
        self.task, self.looks = task, []

    def observe_epoch(self, epoch, step):
        self.looks.append({k: v.clone() for k, v in self.task.state_dict().items()})
        return {}


def watched(folder, **options):
    task = Normed(**options)
    stage = Watching(task)
    learn(folder, task, stage, optimizer="adam")
    return stage.looks, checkpoint.newest(folder / "c")[0]


def test_epochs_look_at_averages_with_the_tasks_own_numbers_and_queues(tmp_path):
    raw, plain = watched(tmp_path / "raw")
    looks, found = watched(tmp_path / "averaged", average=0.9)
    assert not plain.average and same(found.weights, plain.weights)
    assert same(found.optimizer, plain.optimizer)
    assert same(looks[-1], found.weights | found.average)
    for look, other in zip(looks, raw, strict=True):
        for name in ("active", "queue", "norm.num_batches_tracked"):
            assert torch.equal(look[name], other[name])
        assert not torch.equal(look["first.weight"], other["first.weight"])
        assert not torch.equal(look["norm.running_var"], other["norm.running_var"])


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_without_an_average_a_checkpoint_is_what_it_was(tmp_path):
    watched(tmp_path)
    for path in (tmp_path / "c").iterdir():
        names = {"weights.safetensors", "optimizer.safetensors", "state.json"}
        assert {one.name for one in path.iterdir()} == names


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 3, 5, 8])
def test_a_killed_average_goes_on_bit_for_bit(tmp_path, at):
    _, whole = watched(tmp_path / "whole", average=0.9)

    def kill(event, **facts):
        if event == "step" and facts["step"] == at:
            raise Killed

    task = Normed(average=0.9)
    with pytest.raises(Killed):
        learn(tmp_path / "k", task, Watching(task), optimizer="adam", on_event=kill)
    again = watched(tmp_path / "k", average=0.9)[1]
    assert same(again.average, whole.average) and same(again.weights, whole.weights)


def test_a_damaged_average_is_noticed_and_one_that_is_missing_begins_at_the_weights(tmp_path):
    _, found = watched(tmp_path, average=0.9)
    path = checkpoint.save(tmp_path / "other", found) / checkpoint.AVERAGE
    assert same(checkpoint.newest(tmp_path / "other")[0].average, found.average)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    _, problems = checkpoint.newest(tmp_path / "other")
    assert "average.safetensors: checksum differs" in problems[0]
    task = Normed(average=0.9)
    averaged = Averaged(task)
    task.load_state_dict(found.weights)
    averaged.load({})
    assert same(averaged.state, {k: found.weights[k] for k in averaged.state})


def test_room_is_asked_for_the_average_too(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(checkpoint, "check_room", lambda folder, *kinds: asked.append(kinds))
    task = Normed(average=0.9)
    learn(tmp_path, task, Watching(task))
    assert [set(kind) for kind in asked[0]] == [set(task.state_dict()), set(Averaged(task).state)]


def ranks_apart(folder):
    """What this rank looked at and what was saved, by how often it saves."""
    found = []
    for save_every in (0, 2):
        task = cases.Small()
        task.options = Options(average=0.5)
        stage = Watching(task, cases.whole, save_every)
        place = folder / f"{save_every}"
        learn(place, task, stage, sync_batch_norm="off")
        found.append((stage.looks, checkpoint.newest(place / "c")[0].average))
    return found


def test_ranks_with_norms_of_their_own_look_at_one_average(tmp_path):
    for ours, theirs in zip(*run_ranks(2, ranks_apart, tmp_path), strict=True):
        assert all(same(one, other) for one, other in zip(ours[0], theirs[0], strict=True))
        last = {k: v for k, v in ours[0][-1].items() if v.is_floating_point()}
        assert same(ours[1], last) and same(theirs[1], last)


def averaged_config(config, pretext="none", **more):
    """Rates so high that raw and averaged weights are far apart."""
    given = {"batch_size": 8, "epochs": 2, "milestones": [], "lr": 1e-2, "average": 0.9} | more
    manifest = Path(config.out).with_name("images") / "manifest.csv"
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, manifest=str(manifest)),
        pretext=methods.options(pretext, **given),
        finetune=methods.options("spheres", centers=3, gamma=0.3, **given),
    )


def whole_run(config, images, folder, on_event=lambda event, **_: None):
    with run_of(config, images, folder, on_event) as run:
        for role in (PRETEXT, FINETUNE):
            train_stage(run, role)
        score(run)
        return run


@pytest.fixture
def validated(images):
    """More images to validate on: AUROCs of four images agree by chance."""
    frame = images.frame.copy()
    frame.loc[10:19, "split"] = "val"
    frame[list(GROUPS)] = ""
    return dataclasses.replace(images, frame=frame)


def test_all_that_is_looked_at_and_written_is_of_averaged_weights(config, validated, tmp_path):
    config = averaged_config(config, recalibrate=8, batch_size=4)
    run = whole_run(config, validated, tmp_path / "run")
    latest = checkpoint.newest(run.checkpoints(FINETUNE))[0]
    task, raw = trained_task(run, FINETUNE), trained_task(run, FINETUNE)
    raw.load_state_dict(latest.weights)
    assert same(finished_weights(run, FINETUNE), latest.weights | latest.average)
    epoch = [line for line in lines(run.folder, "epoch") if line["stage"] == FINETUNE][-1]
    scores = read_scores(run.folder / "scores.csv")
    val = scores[scores["split"] == "val"]
    assert epoch["val_auroc"] == auroc(val["label"].astype(int), val["score"])
    rows = run.images.training_rows(FINETUNE)
    views = torch.stack([one["views"][:, 0] for one in plain(run, raw, rows)][0:1])[0]
    spread, other = (guards.spread(one.features(views)[1].detach()) for one in (task, raw))
    assert epoch["spread"] == pytest.approx(spread, rel=1e-5) != pytest.approx(other, rel=1e-2)
    table = scores.set_index(scores["path"])["score"]
    path = run.images.frame["path"].iloc[rows[0]]
    own, far = (float(one.scorer()(views)["score"][0].detach()) for one in (task, raw))
    assert table[path] == pytest.approx(own, rel=1e-4) != pytest.approx(far, rel=1e-2)
    best = checkpoint.read_best(run.checkpoints("best"))
    for name, weights in (("model", latest.weights | latest.average), ("model-best", best)):
        stored = checkpoint.load_file(run.folder / name / "weights.safetensors")
        assert same(stored, weights)


def plain(run, task, rows):
    return list(Beginning(run, FINETUNE, task).batches(rows))


def test_the_best_epoch_is_kept_averaged(config, validated, tmp_path):
    config = averaged_config(config, epochs=1)
    run = whole_run(config, validated, tmp_path / "run")
    latest = checkpoint.newest(run.checkpoints(FINETUNE))[0]
    assert same(checkpoint.read_best(run.checkpoints("best")), latest.weights | latest.average)


def test_a_later_stage_begins_with_the_average_of_the_first(config, images, tmp_path):
    config = averaged_config(config, "ntxent", epochs=1)
    with run_of(config, images, tmp_path / "run") as run:
        train_stage(run, PRETEXT)
        first = checkpoint.newest(run.checkpoints(PRETEXT))[0]
        task = new_task(config, images, FINETUNE)
        task.begin(Beginning(run, FINETUNE, task))
    name = "embedder.encoder.layers.conv1.weight"
    begun = task.state_dict()
    assert name in first.average
    assert torch.equal(begun[name], first.average[name])
    assert not torch.equal(begun[name], first.weights[name])


@pytest.mark.parametrize("more", [{"recalibrate": 8}, {"average": 0.0, "recalibrate": 8}])
def test_raw_weights_learn_as_if_there_were_no_average(config, images, tmp_path, more):
    found = {}
    for name, given in (("with", more), ("without", {"average": 0.0})):
        chosen = averaged_config(config, **given)
        with run_of(chosen, images, tmp_path / name) as run:
            train_stage(run, PRETEXT)
            train_stage(run, FINETUNE)
        found[name] = checkpoint.newest(run.checkpoints(FINETUNE))[0]
    assert same(found["with"].weights, found["without"].weights)
    assert same(found["with"].optimizer, found["without"].optimizer)
    apart = {
        name
        for name, value in found["with"].average.items()
        if not torch.equal(value, found["with"].weights[name])
    }
    if more.get("average") == 0.0:  # the same weights, with statistics of their own
        assert apart and all("running_" in name for name in apart)
    else:
        assert "embedder.encoder.layers.conv1.weight" in apart


def test_a_killed_run_scores_the_same(config, validated, tmp_path):
    config = averaged_config(config, recalibrate=6, batch_size=4)
    engine = dataclasses.replace(config.engine, save_every=1)
    config = dataclasses.replace(config, engine=engine)
    whole_run(config, validated, tmp_path / "whole")

    def killer(at):
        def kill(event, **facts):
            if event == "step" and facts["stage"] == FINETUNE and facts["step"] == at:
                raise Killed
            if event == "batch" and facts["name"] == "validation" and at is None:
                raise Killed  # after the save of an epoch's end, before its line

        return kill

    for at in (1, 2, None):
        with pytest.raises(Killed):
            whole_run(config, validated, tmp_path / f"killed {at}", killer(at))
        whole_run(config, validated, tmp_path / f"killed {at}")
        for name in ("scores.csv", "model/weights.safetensors", "model-best/weights.safetensors"):
            ours, theirs = (tmp_path / folder / name for folder in ("whole", f"killed {at}"))
            assert ours.read_bytes() == theirs.read_bytes()


def test_a_subspace_that_scores_is_that_of_averaged_embeddings(config, images, tmp_path):
    config = averaged_config(config, epochs=1)
    more = {"batch_size": 8, "epochs": 1, "milestones": [], "lr": 1e-2, "average": 0.9}
    config = dataclasses.replace(
        config,
        finetune=methods.options("joint", distance="subspace", **more),
    )
    with run_of(config, images, tmp_path / "run") as run:
        train_stage(run, PRETEXT)
        train_stage(run, FINETUNE)
        task = trained_task(run, FINETUNE)
        saved = task.off.clone()
        task.renew(Beginning(run, FINETUNE, task))
        raw = checkpoint.newest(run.checkpoints(FINETUNE))[0].weights
    torch.testing.assert_close(task.off, saved, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(raw["off"], saved, atol=1e-2)


def test_scoring_ends_with_the_raw_weights_whatever_happens():
    task = Normed(average=0.9)
    averaged = Averaged(task)
    for value in averaged.state.values():
        value.zero_()
    before = {k: v.clone() for k, v in task.state_dict().items()}
    with pytest.raises(Killed), averaged.scoring():
        assert not task.first.weight.any()
        task.norm.running_mean.fill_(5)
        raise Killed
    assert same(before, task.state_dict())
    assert (averaged.state["norm.running_mean"] == 5).all()
    assert not averaged.state["first.weight"].any()
    assert averaging.Averaged(Normed()).state == {}
