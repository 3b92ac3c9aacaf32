"""Strata of a manifest's column, and shares of batches, from the split table to a saved model."""

import json

import numpy as np
import pytest
import torch

from selftaught import methods
from selftaught.data.augment import finetune_augment, plain
from selftaught.errors import InputError
from selftaught.methods.stored import built, expected
from selftaught.models import Calibration, Preprocessing, read_model, save_model
from selftaught.models.network import Network
from selftaught.training.config import Config, DataConfig, ModelConfig
from selftaught.training.inputs import Images, training_batches
from selftaught.training.tasks import check_settings, new_task
from tests import thin
from tests.methods import runs


@pytest.fixture(autouse=True)
def thin_encoder():
    torch.set_num_threads(1)
    with thin.patch():
        yield


def images_of(root, **columns):
    frame = runs.split_table().assign(**columns)
    return Images(frame=frame, root=root, config=DataConfig(image_size=32, workers=0), seed=3)


def config_of(**options):
    stages = {
        "pretext": methods.options("none"),
        "finetune": methods.options("relative", **options),
    }
    return Config(
        out="run", data=DataConfig(image_size=32), model=ModelConfig(head=[8, 4]), **stages
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("images"))


def test_strata_are_those_of_the_training_images(root):
    parts = ["b", "a", "", None, *["a"] * 16, "c", "b", "a", ""]
    images = images_of(root, part=parts)
    names, numbers = images.strata("finetune", "part")
    assert names == ("a", "b")  # c is seen in validation alone
    assert numbers.tolist() == [1, 0, -1, -1, *[0] * 16, -1, 1, 0, -1]
    assert images.strata("finetune", "")[0] == ()


def test_batches_hold_the_stratum_of_their_images(root):
    images, augment = images_of(root), plain(finetune_augment())
    rows = images.training_rows("finetune")
    known = dict(enumerate(images.frame["body_part"]))
    names, settings = ("elbow", "hand", "wrist"), {"batch_size": 6, "accumulate": 1, "steps": 3}
    with images.open("finetune", augment, 1) as pipeline:
        for column in ("body_part", ""):
            for batch in training_batches(
                images,
                pipeline,
                rows,
                stage="finetune",
                first_step=0,
                input_range=augment.input_range,
                device=torch.device("cpu"),
                strata=column,
                **settings,
            ):
                assert ("stratum" in batch) == bool(column)
                if column:
                    held = [names[n] if n >= 0 else "" for n in batch["stratum"].tolist()]
                    assert held == [known[i] for i in batch["ids"].tolist()]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"strata": "nothing"}, r"finetune.strata is 'nothing'; allowed: a column .* body_part"),
        ({"strata": "label"}, r"finetune.strata is 'label'; allowed: a column of the manifest"),
        ({"strata": "each"}, r"finetune.strata is 'each', .* have 20 values; allowed: 1 to 3"),
        ({"strata": "blank"}, r"finetune.strata is 'blank', .* have 0 values; allowed: 1 to 3"),
        ({"strata": "body_part", "centers": 2}, r"finetune.centers is 2; allowed: 1 or 3, the val"),
        ({"centers": 4}, r"finetune.centers is 4; allowed: 1 to 3, one less than model.head"),
    ],
)
def test_strata_that_do_not_fit_are_refused_before_anything_is_written(root, options, line):
    images = images_of(root, each=[str(i) for i in range(runs.IMAGES)], blank="")
    with pytest.raises(InputError, match=line) as error:
        check_settings(config_of(**options), images)
    assert "\n" not in str(error.value)
    check_settings(config_of(strata="body_part", centers=3), images)


def test_a_column_that_is_the_label_under_another_name_is_refused(root):
    number = np.arange(runs.IMAGES)
    semi, label = np.where(number % 2, -1, 1) * (number < 20), number % 2
    finding = np.array(["none", "fracture", "none", "implant"] * 6)
    line = (
        r"finetune.strata is 'finding', each of whose values stands with one label alone .* 24 im"
    )
    known = {"semi_label": semi, "label": label}
    with pytest.raises(InputError, match=line) as error:
        check_settings(config_of(strata="finding"), images_of(root, finding=finding, **known))
    assert "\n" not in str(error.value)
    shared = np.where(number == 4, "implant", finding)
    check_settings(config_of(strata="finding"), images_of(root, finding=shared, **known))
    # Labels that training may not know are not looked at, and chance is not taken for a rule.
    few = {"semi_label": np.where(number < 6, semi, 0), "label": label}
    check_settings(config_of(strata="finding"), images_of(root, finding=finding, **few))


def test_a_saved_model_keeps_its_strata(root, tmp_path):
    task = new_task(config_of(strata="body_part"), images_of(root), "finetune").eval()
    task.odds.copy_(torch.tensor([0.2, 0.5]))
    assert task.centers == 3
    films = Preprocessing(image_size=32)
    stored = read_model(save_model(tmp_path / "model", task, films, Calibration()), expected)
    assert stored.network["strata"] == ["elbow", "hand", "wrist"]
    loaded = built(stored)
    loaded.load_state_dict(stored.state)
    images = torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        one, two = task.scorer()(images), loaded.eval().scorer()(images)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    # Models of before, and those without strata, say nothing of them.
    facts = json.loads(json.dumps(Network().facts()))
    assert "strata" not in facts and Network.from_facts(facts).strata == ()


def test_a_batch_holds_the_share_whatever_the_method(root, tmp_path):
    for name, options in {
        "relative": {},
        "spheres": {"share": 0.25},
        "classifier": {"balance": "sample", "share": 0.25},
    }.items():
        counts = []

        def look(event, **facts):
            if event == "step" and facts["stage"] == "finetune":
                counts.append(int((facts["batch"]["semi_label"] == -1).sum()))  # noqa: B023

        runs.train(root, tmp_path / name, name, on_event=look, epochs=1, **options)
        assert counts == [2, 2]
    task = methods.load("spheres")(methods.options("spheres"), Network())
    assert task.known_share == 0
