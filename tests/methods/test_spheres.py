"""Centres of fine-tuning: drawn, counted, pruned, and what is said of them."""

import copy

import numpy as np
import pytest
import torch

from selftaught import methods
from selftaught.errors import InputError
from selftaught.methods.occupancy import count, occupancy, prune
from selftaught.methods.spheres import Spheres
from selftaught.models.network import Network
from selftaught.training.config import DataConfig
from selftaught.training.inputs import Images, open_plain
from tests import thin
from tests.methods import runs


def task_of(head=(4,), **options):
    with thin.patch():
        return Spheres(methods.options("spheres", **options), Network(head=head))


def with_counts(counts, **options):
    task = task_of(centers=len(counts), **options)
    task.counts += torch.tensor(counts)
    return task


def test_counts_leave_out_rows_without_a_centre_and_rows_not_counted():
    index = torch.tensor([2, 0, -1, 2, 2, 1])
    assert count(index, 5).tolist() == [1, 1, 3, 0, 0]
    counted = torch.tensor([True, False, True, True, False, True])
    assert count(index, 5, counted).tolist() == [0, 1, 2, 0, 0]
    assert count(index[:0], 2).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("counts", "active", "gamma", "stay"),
    [
        ([100, 5, 4, 0], [1, 1, 1, 1], 0.05, [1, 1, 0, 0]),  # exactly gamma times the most stays
        ([100, 5, 4, 0], [0, 1, 1, 1], 0.05, [0, 1, 1, 0]),  # a removed centre sets no threshold
        ([7, 7, 6, 0], [1, 1, 1, 1], 1.0, [1, 1, 0, 0]),
        ([0, 0, 0], [1, 0, 1], 0.05, [1, 0, 1]),  # nothing counted: nothing known
        ([9, 0, 3], [1, 1, 1], 0.0, [1, 1, 1]),
        ([3, 90], [1, 0], 0.5, [1, 0]),  # the last one stays
        ([2**40, 2**40 - 1], [1, 1], 1.0, [1, 0]),  # beyond float32's integers
    ],
)
def test_pruning(counts, active, gamma, stay):
    result = prune(torch.tensor(counts), torch.tensor(active).bool(), gamma)
    assert result.int().tolist() == stay


def test_pruning_keeps_a_centre_whatever_the_counts():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        counts = torch.randint(0, 4, (6,), generator=generator)
        active = torch.rand(6, generator=generator) < 0.4
        gamma = float(torch.rand((), generator=generator))
        stay = prune(counts, active, gamma)
        assert stay.any() == active.any() and not (stay & ~active).any()


def test_figures():
    figures = occupancy(torch.tensor([30, 10, 0, 60, 7]), torch.tensor([1, 1, 1, 1, 0]).bool())
    shares = np.array([0.3, 0.1, 0.6])
    assert figures[:3] == (100, 4, 1) and figures.smallest == 0
    assert figures.largest == pytest.approx(0.6)
    assert figures.effective == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert "1 have none" in str(figures)
    even = occupancy(torch.full((8,), 5), torch.ones(8).bool())
    assert even.effective == pytest.approx(8)
    nothing = occupancy(torch.zeros(3, dtype=torch.int64), torch.ones(3).bool())
    assert nothing == (0, 3, 3, 0.0, 0, 0.0)


def test_an_epochs_end_prunes_for_good_and_counts_anew():
    task = with_counts([100, 5, 4, 0], gamma=0.05)
    figures = task.close_epoch()
    assert task.active.tolist() == [True, True, False, False]
    assert (figures["centers"], figures["empty_centers"], figures["occupancy_min"]) == (2, 1, 0)
    assert task.counts.tolist() == [0, 0, 0, 0]
    task.counts += torch.tensor([1, 90, 90, 90])
    task.close_epoch()
    assert task.active.tolist() == [False, True, False, False], "removed centres stay removed"


def test_an_epoch_without_counted_images_prunes_nothing():
    task = with_counts([0, 0, 0])
    task.close_epoch()
    assert task.active.all()


@pytest.mark.parametrize(
    ("left", "k", "epoch", "warned"), [(1, 9, 0, True), (2, 9, 0, False), (1, 9, 1, False),
                                     (1, 1, 0, False)]
)  # fmt: skip
def test_few_centres_after_the_first_epoch_of_many_are_told(left, k, epoch, warned):
    task = task_of(centers=k)
    task.active[left:] = False
    lines = task.check_epoch(epoch)
    assert bool(lines) == warned
    assert not warned or f"{left} of {k} centres" in lines[0]


def test_known_abnormal_images_are_not_counted():
    task = task_of(centers=3)
    task.centers.normal_()
    batch = {"views": torch.rand(4, 1, 1, 32, 32), "semi_label": torch.tensor([-1, 0, 1, -1])}
    task.train()
    task(batch)
    assert int(task.counts.sum()) == 2
    task.eval()
    task(batch | {"semi_label": torch.zeros(4, dtype=torch.int64)})
    assert int(task.counts.sum()) == 2


class Start:
    """What a task is offered at its start: features near zero of 12 images, weights of no stage."""

    seed, rows = 3, np.arange(12)
    labels = torch.tensor([0, 0, 1, -1] * 3)

    def __init__(self, before=None):
        self.before, self.asked, self.notes = before or {}, [], []
        self.z = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)) * 0.2
        self.z[:, 2] = 0

    def weights(self):
        return self.before

    def features(self, rows, *, random=False):
        self.asked.append((rows.tolist(), random))
        return self.z[rows]

    def alone(self, work):
        return work()

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize("views", ["plain", "augmented"])
def test_centres_are_k_means_of_the_images_not_known_to_be_abnormal(views):
    task, start = task_of(centers=9, center_epsilon=0.1, center_views=views), Start()
    task.begin(start)
    rows = np.flatnonzero(start.labels.numpy() != -1)
    assert start.asked == [(rows.tolist(), views == "augmented")]
    assert "9 centres were asked for" in start.notes[0]
    # As many centres as images: each image is one, its coordinates kept away from zero.
    z = start.z[rows]
    small = (z.abs() < 0.1) & (z != 0)
    expected = torch.where(small, z.sign() * 0.1, z)
    assert small.any() and (z == 0).any()
    result, wanted = (one[one[:, 0].argsort()] for one in (task.centers, expected))
    torch.testing.assert_close(result, wanted)


def test_one_centre_is_the_mean_of_the_images_not_known_to_be_abnormal():
    task, start = task_of(centers=1, center_epsilon=0.0), Start()
    task.begin(start)
    expected = start.z[start.labels != -1].double().mean(0)
    torch.testing.assert_close(task.centers[0].double(), expected, rtol=1e-6, atol=1e-8)


def test_an_epoch_of_one_centre_is_an_epoch_of_deep_sad(tmp_path):
    """Against the published formula and torch's own optimizer, in float64."""
    batches, before = [], {}

    def keep(event, **facts):
        if event == "step":
            if not before:
                before.update({k: v.clone() for k, v in facts["engine"].task.state_dict().items()})
            batches.append(facts["batch"])

    options = {"centers": 1, "epochs": 1, "lr": 1e-3, "eta": 2.0, "optimizer": "sgd"}
    root = runs.write(tmp_path / "images")
    with thin.patch():
        whole = runs.train(
            root, tmp_path / "run", "spheres", precision="fp64", on_event=keep, **options
        )
    task = task_of(head=(256, 128), **options).double()
    task.load_state_dict(before)
    optimizer = torch.optim.SGD(task.parameters(), 1e-3, momentum=0.9, weight_decay=1e-6)
    for batch in batches:
        optimizer.zero_grad()
        y, z = batch["semi_label"], task.embedder(batch["views"][:, 0])[1]
        squared = (z - task.centers[0]).square().sum(1)
        torch.where(y == 0, squared, 2 * (squared + 1e-6) ** y.double()).mean().backward()
        optimizer.step()
    assert torch.equal(whole.weights["centers"], before["centers"]), "centres never move"
    assert len(batches) == 2 and {-1, 0, 1} <= set(
        torch.cat([b["semi_label"] for b in batches]).tolist()
    )
    for name, value in task.embedder.state_dict().items():
        expected = whole.weights[f"embedder.{name}"]
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12, msg=name)
        moved = value.is_floating_point() and "layers" in name
        assert not moved or not torch.equal(value, before[f"embedder.{name}"]), name


def test_a_resumed_run_keeps_pruned_centres_removed(tmp_path):
    class Killed(Exception):
        pass

    def kill(event, **facts):
        if event == "step" and facts["step"] == 3:
            raise Killed

    root, options = runs.write(tmp_path / "images"), {"gamma": 1.0, "centers": 4}
    with thin.patch():
        whole = runs.train(root, tmp_path / "whole", "spheres", **options)
        with pytest.raises(Killed):
            runs.train(root, tmp_path / "killed", "spheres", on_event=kill, save_every=1, **options)
        again = runs.train(root, tmp_path / "killed", "spheres", **options)
    assert 0 < int(whole.weights["active"].sum()) < 4
    assert torch.equal(again.weights["active"], whole.weights["active"])


def test_the_encoder_is_taken_and_the_head_is_fresh():
    before = task_of(centers=2).embedder
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.add_(1.0)
    weights = {f"embedder.{name}": value for name, value in before.state_dict().items()}
    task = task_of(centers=2)
    head = [p.clone() for p in task.embedder.head.parameters()]
    task.begin(Start(weights))
    for ours, theirs in zip(
        task.embedder.encoder.parameters(), before.encoder.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert all(
        torch.equal(*pair) for pair in zip(head, task.embedder.head.parameters(), strict=True)
    )


def test_a_stage_before_without_an_encoder_is_refused():
    with pytest.raises(InputError, match="starts from the state `embedder.encoder`"):
        task_of(centers=2).begin(Start({"net.1.weight": torch.ones(2)}))


def test_more_centres_than_readable_images_are_one_line():
    with pytest.raises(InputError, match="centers is 10, but only 9"):
        task_of(centers=10).begin(Start())


def test_more_centres_than_images_are_refused():
    task = task_of(centers=10)
    with pytest.raises(ValueError, match="centers is 10, but only 9 .* allowed: 1 to 9"):
        task.check(Start.labels)
    task_of(centers=9).check(Start.labels)


def test_a_score_is_the_distance_to_the_nearest_centre_left():
    task = task_of(centers=5)
    task.centers.normal_(generator=torch.Generator().manual_seed(0))
    task.active[[1, 3]] = False
    task.eval()
    images = torch.rand(6, 1, 32, 32)
    with torch.no_grad():
        result, (h, z) = task.scorer()(images), task.features(images)
    distances = torch.cdist(z.double(), task.centers[task.active].double())
    torch.testing.assert_close(result["score"].double(), distances.min(1).values, rtol=1e-5, atol=0)
    assert torch.equal(result["center"], distances.argmin(1))
    assert torch.equal(result["h"], h) and torch.equal(result["z"], z)


class Begun(Exception):
    pass


def test_one_centre_is_the_mean_embedding_in_eval_mode(tmp_path):
    root, frame = runs.write(tmp_path), runs.split_table()
    data = DataConfig(image_size=runs.SIZE, workers=0)

    def compare(event, **facts):
        if event != "step" or facts["stage"] != "finetune":
            return
        task = copy.deepcopy(facts["engine"].task).eval()
        images = Images(frame=frame, root=root, config=data, seed=3)
        rows = np.flatnonzero((frame["split"] == "train") & (frame["semi_label"] != -1))
        with open_plain(images, task.options.augment) as pipeline, torch.no_grad():
            z = task.features(next(pipeline.batches([(0, rows)])).views[:, 0])[1]
        mean = z.mean(0, keepdim=True)
        small = (mean.abs() < 0.1) & (mean != 0)
        torch.testing.assert_close(task.centers, torch.where(small, mean.sign() * 0.1, mean))
        assert not small.all()
        raise Begun

    with thin.patch(), pytest.raises(Begun):
        runs.train(root, tmp_path / "run", "spheres", centers=1, on_event=compare)
