"""What a method gives that it must not: one line that names the method, before a step is done."""

import pytest
import torch
from torch import nn

from selftaught.errors import InputError
from selftaught.methods import Options, Task
from selftaught.methods.task import loss_of
from selftaught.models.network import Network
from selftaught.training.contract import check_scorer, check_trained

CPU = torch.device("cpu")


class Scorer(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.outputs, self.dropout = outputs, nn.Dropout()

    def forward(self, images):
        assert not self.training and images.shape == (2, 1, 16, 16)
        return self.outputs(images) if callable(self.outputs) else self.outputs


class Gives(Task):
    def __init__(self, scorer=None):
        super().__init__(Options(method="mine.Gives"), Network(image_size=16))
        self.given = [scorer]

    def scorer(self):
        return self.given[0]


def scores(**more):
    return Scorer({"score": torch.zeros(2), **more})


@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"brightness": torch.zeros(2)},
        {"center": torch.zeros(2, dtype=torch.int64)},
        {"h": torch.zeros(2, 5), "z": torch.zeros(2, 3)},
    ],
)
def test_a_scorer_as_described_is_taken(outputs):
    task = Gives(scores(**outputs))
    check_scorer(task, CPU)
    assert task.training and task.given[0].training, "modes are as before"


@pytest.mark.parametrize(
    ("scorer", "line"),
    [
        (None, "scorer gave None; allowed: an nn.Module"),
        (lambda images: images, "allowed: an nn.Module"),
        (Scorer(torch.zeros(2)), r"scorer gave a tensor \(2,\); allowed: .*score"),
        (Scorer({"scores": torch.zeros(2)}), r"gave {'scores': \(2,\)}"),
        (Scorer({"score": [0.0, 0.0]}), "allowed: .*a float tensor"),
        (Scorer({"score": torch.zeros(2, 1)}), r"'score' gave \(2, 1\)"),
        (Scorer({"score": torch.zeros(())}), r"'score' gave \(\)"),
        (scores(size=torch.zeros(2, 1)), r"'size' gave \(2, 1\)"),
        (scores(size=torch.zeros(3)), r"'size' gave \(3,\)"),
        (scores(h=torch.zeros(2)), r"'h' gave"),
        (scores(h=torch.zeros(3, 4)), r"'h' gave \(3, 4\)"),
        (scores(path=torch.zeros(2)), "gave path; allowed: outputs of other names"),
        (scores(size=1.0), "'size' gave float"),
    ],
)
def test_any_other_scorer_is_refused(scorer, line):
    with pytest.raises(InputError, match=line) as error:
        check_scorer(Gives(scorer), CPU)
    assert str(error.value).startswith("method") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "outputs",
    [
        None,
        torch.ones((), requires_grad=True),
        {"los": torch.ones((), requires_grad=True)},
        {"loss": torch.ones(3, requires_grad=True)},
        {"loss": 1.0},
        {"loss": torch.ones(())},
        {"loss": torch.ones((), dtype=torch.int64)},
    ],
)
def test_any_other_loss_is_refused(outputs):
    with pytest.raises(InputError, match="^method: forward gave .*0-d float") as error:
        loss_of(outputs)
    assert "\n" not in str(error.value)


def test_a_loss_as_described_is_taken():
    loss = torch.ones((), requires_grad=True)
    taken, figures = loss_of({"loss": loss, "more": 1, "error": 2 * loss, "rows": torch.ones(3)})
    assert taken is loss
    assert figures.keys() == {"error"} and not figures["error"].requires_grad


def test_a_task_without_parameters_is_refused():
    with pytest.raises(InputError, match="no parameter with requires_grad"):
        check_trained(Gives())
