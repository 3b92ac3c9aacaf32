"""What every method promises: a new file in methods/ is tested by being there."""

import contextlib
import dataclasses
import functools
import re
import typing

import numpy as np
import pytest
import torch

from selftaught import distributed, methods
from selftaught.data.augment import Preset
from selftaught.errors import InputError
from selftaught.methods.task import score_images
from selftaught.models.encoder import EncoderConfig
from selftaught.models.network import Network
from tests import thin
from tests.methods import runs, starts
from tests.ranks import run_ranks

NAMES = methods.names()
# What is run of each method: its defaults, and other options where these leave a part of it out.
RUNS = {name: (name, {}) for name in NAMES} | {
    # On two dozen images the default key network is a copy of the query network.
    "moco, moving keys": ("moco", {"momentum": 0.8, "queue": 11, "group": 4}),
    "spheres, a quarter": ("spheres", {"share": 0.25}),
    "classifier, a quarter": ("classifier", {"balance": "sample", "share": 0.25}),
    "relative, strata": (
        "relative",
        {"strata": "body_part", "centers": 1, "strata_weight": 2.0, "contamination": 0.2},
    ),
    "moco, averaged": ("moco", {"momentum": 0.8, "queue": 11, "average": 0.9, "recalibrate": 10}),
    "spheres, averaged": ("spheres", {"average": 0.9, "recalibrate": 10}),
    "spheres, recalibrated": ("spheres", {"recalibrate": 10}),
    "logistic, known": ("logistic", {"normals": "known", "inverse_regularisation": 1.0}),
    "mahalanobis, known": ("mahalanobis", {"normals": "known"}),
    "spheres, held encoder": ("spheres", {"encoder": "head", "lr": 1e-2, "dropout": 0.5}),
    "classifier, slow encoder": ("classifier", {"encoder": "all", "lr": 1e-2, "dropout": 0.5}),
    "svdd, soft": ("svdd", {"boundary": "soft", "warmup_epochs": 1, "nu": 0.3, "lr": 1e-2}),
}


@pytest.fixture(autouse=True, scope="module")
def thin_encoder():
    torch.set_num_threads(1)
    with thin.patch():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("images"))


def weights_of_all(root, folder):
    found = {}
    with thin.patch():
        for run, (name, options) in RUNS.items():
            given = {"precision": "fp64", "epochs": 2 if options else 1, "optimizer": "sgd"}
            reads = runs.HostReads()
            left = runs.train(root, folder / run, name, on_event=reads.hear, **given, **options)
            # With several players DDP itself reads which parameters had a gradient.
            ddp = distributed.world_size() > 1 and len(methods.load(name).players) > 1
            assert ddp or not reads.seen, f"{run} reads what its step computes: {reads.seen}"
            average = {f"average of {key}": value for key, value in left.average.items()}
            assert bool(average) == bool(options.keys() & {"average", "recalibrate"})
            found[run] = {key: value.numpy() for key, value in (left.weights | average).items()}
    return found


@pytest.fixture(scope="module")
def one_and_two(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return weights_of_all(root, folder / "one"), run_ranks(2, weights_of_all, root, folder / "two")


@pytest.mark.parametrize("run", RUNS)
def test_two_ranks_learn_what_one_does(one_and_two, run):
    one, two = one_and_two
    for rank in two:
        assert rank[run].keys() == one[run].keys()
        for key, value in one[run].items():
            np.testing.assert_allclose(rank[run][key], value, rtol=1e-7, atol=1e-9, err_msg=key)


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """The checkpoint of a run that nothing disturbed, trained once."""
    folder = tmp_path_factory.mktemp("whole")
    return functools.cache(lambda run: runs.train(root, folder / run, RUNS[run][0], **RUNS[run][1]))


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def turned():
    """The images with the labels of unknown ones turned round, which no method may look at."""
    plain = runs.split_table()
    unknown = (plain["semi_label"] == 0) & (plain["split"] == "train")
    frame = plain.assign(label=plain["label"].where(~unknown, 1 - plain["label"]))
    assert not frame["label"].equals(plain["label"])
    return frame


@pytest.mark.parametrize("run", RUNS)
def test_killed_and_with_other_labels_of_unknown_images_it_ends_with_the_same_bits(
    root, whole, turned, tmp_path, run
):
    name, options = RUNS[run]

    def kill(event, **facts):
        if event == "step" and facts["step"] == 2:
            raise Killed

    trains = methods.options(name).epochs > 0
    with pytest.raises(Killed) if trains else contextlib.nullcontext():
        runs.train(root, tmp_path, name, frame=turned, on_event=kill, save_every=1, **options)
    again = runs.train(root, tmp_path, name, frame=turned, **options)
    assert again.step == whole(run).step
    for kind in ("weights", "optimizer", "average"):
        left, right = getattr(whole(run), kind), getattr(again, kind)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("name", [one for one in NAMES if methods.options(one).epochs])
def test_micro_batches_have_the_batchs_loss_unless_the_method_says_otherwise(name):
    network = Network(image_size=32, images=32, seed=5)
    task = methods.load(name)(runs.small_options(name), network)
    start = starts.Start(task, 32)
    task.begin(start)
    for parameter in task.parameters():
        if not parameter.any():  # a loss that looks at nothing would be the same for any batch
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))

    def losses(rows):
        batch = start.batch(rows)
        views = torch.cat([batch["views"], batch["views"].flip(-1)], 1)[:, : task.views]
        return [task(batch | {"views": views}, one)["loss"].detach() for one in task.players]

    task.eval()  # batch statistics are those of a micro-batch in any case
    whole, *halves = (torch.stack(losses(rows)) for rows in (range(4), [0, 1], [2, 3]))
    same = torch.isclose(whole, torch.stack(halves).mean(0), rtol=1e-5, atol=0)
    assert not same.any() if task.whole_batch else same.all()


# What looks at places of an image, and not at its pooled features alone.
PLACES = {"ae", "arae", "gan", "joint", "joint-ae", "padim", "patchcore"}


@pytest.mark.parametrize("name", [one for one in NAMES if runs.scores(one)])
def test_both_sides_of_an_image_count_but_where_places_do(name):
    size = 64 if name in PLACES else 32
    made = []
    for mirror in (False, True):
        network = Network(encoder=EncoderConfig(mirror=mirror), image_size=size, images=32, seed=5)
        made.append(methods.load(name)(runs.small_options(name), network).eval())
    one, both = made
    start = starts.Start(one, size)
    one.begin(start)
    for parameter in one.parameters():
        if not parameter.any():  # a linear layer that begins at zero
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    both.load_state_dict(one.state_dict())
    images, masks = start.images[:4].double(), start.masks[:4].double()
    if name not in PLACES:
        masks = None
    with torch.no_grad():
        plain, left, right = (
            score_images(task.eval().double().scorer(), side, masks)["score"]
            for task, side in ((one, images), (both, images), (both, images.flip(-1)))
        )
    if name in PLACES:
        assert torch.equal(left, plain)
    else:
        torch.testing.assert_close(left, right)
        assert not torch.allclose(left, plain, rtol=1e-6)


def bad_values(kind):
    """Values that no option of a type may have."""
    if typing.get_origin(kind) is typing.Literal:
        return ["nonsense"]
    return {int: [-1], float: [-1.0, float("nan"), float("inf")], list[int]: [[5, 3]]}.get(kind, [])


CASES = [
    (name, option, value)
    for name in NAMES
    for option, kind in typing.get_type_hints(methods.load(name).Options).items()
    for value in bad_values(kind)
    # What trains nothing has no epochs, whatever is asked for.
    if not (option == "epochs" and methods.options(name).epochs == 0)
]


@pytest.mark.parametrize(("name", "option", "value"), CASES)
def test_an_option_out_of_range_is_refused_in_one_line(name, option, value):
    with pytest.raises(ValueError) as error:
        methods.options(name, **{option: value})
    text = str(error.value)
    assert text.startswith(f"{option} is ")
    assert "; allowed: " in text
    assert "\n" not in text


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_explained(name):
    kinds = methods.load(name).Options.__mro__
    text = "\n".join(kind.__doc__ or "" for kind in kinds)
    for field in dataclasses.fields(kinds[0]):
        assert re.search(rf"^ *{field.name}: ", text, re.M), field.name


@pytest.mark.parametrize("name", NAMES)
def test_presets_change_options_that_are_there(name):
    options = methods.load(name).Options
    names = {field.name for field in dataclasses.fields(options)}
    for preset, changes in options.presets.items():
        assert preset in typing.get_args(Preset)
        assert {key.partition(".")[0] for key in changes} <= names


def test_systems_name_methods_that_are_there():
    for system in methods.systems().values():
        assert {system.pretext, system.finetune} <= set(NAMES)
        assert runs.scores(system.finetune)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nothing", "method is 'nothing'; allowed: .*ntxent.*, or the dotted path of a Task"),
        ("no_such_module.Mine", "cannot be imported .*PYTHONPATH"),
        ("collections.OrderedDict", "is no selftaught.methods.Task"),
        (".Mine", "method is .*; allowed"),
        ("...", "method is .*; allowed"),
        (".collections.OrderedDict", "method is .*; allowed"),
        ("tests.methods.runs.nothing", "is no selftaught.methods.Task"),
    ],
)
def test_a_method_that_is_not_there_is_refused_in_one_line(name, line):
    with pytest.raises(InputError, match=line) as error:
        methods.load(name)
    assert "\n" not in str(error.value)
