"""Batches of a stage that skips bad files: full, with the same known labels, listed by step."""

import dataclasses

import pytest
import torch

from selftaught.data.plan import plain
from selftaught.errors import InputError
from selftaught.training.bad_files import BadFiles
from selftaught.training.inputs import training_batches
from tests.data.images.broken import break_file


@pytest.fixture
def skipping(images, tmp_path):
    """The images as a run that skips has them, each file a copy of its own."""
    for name in images.frame["path"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((images.root / name).read_bytes())
    config = dataclasses.replace(images.config, bad_files="skip", cache_gib=0.0)
    listed = BadFiles(tmp_path, images.frame, tmp_path, 0.1)
    return dataclasses.replace(images, root=tmp_path, config=config, bad_files=listed)


def batches(images, augment, steps, first=0, workers=0):
    images = dataclasses.replace(images, config=dataclasses.replace(images.config, workers=workers))
    rows = images.training_rows("finetune")
    with images.open("finetune", augment, 1, training=rows) as pipeline:
        yield from training_batches(
            images,
            pipeline,
            rows,
            stage="finetune",
            batch_size=4,
            accumulate=1,
            first_step=first,
            steps=steps,
            input_range=augment.input_range,
            device=torch.device("cpu"),
        )


def test_batches_stay_full_with_the_same_known_labels(skipping, config):
    augment = plain(config.finetune.augment)
    steps = len(skipping.training_rows("finetune")) // 4
    before = list(batches(skipping, augment, steps))
    known = skipping.semi_label
    bad = next(i for batch in before for i in batch["ids"].tolist() if known[i] == 0)
    step = next(n for n, batch in enumerate(before) if bad in batch["ids"])
    break_file(skipping.root / skipping.frame["path"][bad], "cut png")
    after = list(batches(skipping, augment, steps))
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one["semi_label"], other["semi_label"])
        same = one["ids"] != bad
        assert torch.equal(one["ids"][same], other["ids"][same])
        assert torch.equal(one["views"][same], other["views"][same])
        assert bad not in other["ids"]
    (row,) = skipping.bad_files.listed.values()
    assert (row["stage"], row["step"]) == ("finetune", str(step))
    # From a later step on, with threads, they are the same.
    for one, other in zip(after[step:], batches(skipping, augment, steps, step, 2), strict=True):
        assert torch.equal(one["ids"], other["ids"]) and torch.equal(one["views"], other["views"])


def test_too_many_while_it_trains(skipping, config):
    augment = plain(config.finetune.augment)
    for name in skipping.frame["path"][skipping.training_rows("finetune")[:6]]:
        break_file(skipping.root / name, "text")
    with pytest.raises(InputError, match="data.bad_limit, 10.0%") as caught:
        list(batches(skipping, augment, 5))
    assert "\n" not in str(caught.value)
