"""Files that cannot be read while a run goes on, with both executors: named, or replaced."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught.data.augment import pretext_augment
from selftaught.data.images.bad_files import Problem, Skipping
from selftaught.data.images.contrast import contrast_limits
from selftaught.data.images.limits import BadImage
from selftaught.data.images.pack_writer import Packable, write_pack
from selftaught.data.pipeline import ImageBatch, has_dali, open_pipeline
from selftaught.data.plan import stand_ins
from selftaught.errors import InputError
from tests.data.images.broken import KINDS, break_file, write_good

SIZE, COUNT, BAD = 32, 9, 4
NO_DALI = pytest.mark.skipif(not has_dali(), reason="NVIDIA DALI is not installed")
EXECUTORS = ["opencv", pytest.param("dali", marks=NO_DALI)]
everywhere = pytest.mark.parametrize("executor", EXECUTORS)
all_kinds = pytest.mark.parametrize("kind", KINDS)


def opened(executor: str, paths: list[Path], **options: Any) -> Any:
    settings: dict[str, Any] = {
        "image_size": SIZE,
        "augment": pretext_augment("default"),
        "seed": 1,
        "stage": "pretext",
        "views": 2,
        "workers": 2,
    }
    return open_pipeline(executor, paths=paths, **(settings | options))  # type: ignore[arg-type]


def requests(*batches: tuple[int, list[int]]) -> list[tuple[int, np.ndarray]]:
    return [(epoch, np.array(ids, np.int64)) for epoch, ids in batches]


def one(executor: str, paths: list[Path], epoch: int, ids: list[int], **options: Any) -> ImageBatch:
    with opened(executor, paths, **options) as pipeline:
        (batch,) = pipeline.batches(requests((epoch, ids)))
    return batch


def replacing(pool: list[int]) -> Skipping:
    return Skipping(partial(draw_from, np.array(pool, np.int64)))


def draw_from(pool: np.ndarray, epoch: int, sample: int) -> list[int]:
    return stand_ins(1, "pretext", epoch, sample, pool).tolist()


@everywhere
@all_kinds
@pytest.mark.parametrize("workers", [0, 2])
def test_without_skipping_the_file_is_named(
    tmp_path: Path, executor: str, kind: str, workers: int
) -> None:
    paths = write_good(tmp_path, COUNT, kind)
    break_file(paths[BAD], kind)
    with opened(executor, paths, workers=workers) as pipeline:
        batches = pipeline.batches(requests((0, [0, 1]), (0, [2, 3]), (0, [BAD, 5])))
        with pytest.raises(BadImage) as caught:
            list(batches)
    assert str(caught.value).startswith(f"{paths[BAD]}: ") and "\n" not in str(caught.value)
    assert KINDS[kind][2] in caught.value.reason


@everywhere
@all_kinds
@pytest.mark.parametrize("workers", [0, 2])
def test_another_image_takes_the_place(
    tmp_path: Path, executor: str, kind: str, workers: int
) -> None:
    """Its views are those of the bad image's place: only the pixels come from the other file."""
    paths = write_good(tmp_path, COUNT, kind)
    other = draw_from(np.arange(COUNT), 3, BAD)[0]
    assert other != BAD
    ids = [2, BAD, 7, 0]
    expected = one(executor, [*paths[:BAD], paths[other], *paths[BAD + 1 :]], 3, ids)
    break_file(paths[BAD], kind)
    batch = one(executor, paths, 3, ids, workers=workers, skipping=replacing(list(range(COUNT))))
    assert batch.ids.tolist() == [2, other, 7, 0]
    assert torch.equal(batch.views, expected.views)
    (problem,) = batch.problems
    assert problem[:2] == (BAD, paths[BAD]) and KINDS[kind][2] in problem.reason


@everywhere
@all_kinds
def test_a_file_that_breaks_between_two_reads(tmp_path: Path, executor: str, kind: str) -> None:
    paths = write_good(tmp_path, COUNT, kind)
    with opened(executor, paths, cache_bytes=0, prefetch=0, skipping=Skipping()) as pipeline:
        ids = [3, BAD, 5]
        before, after = pipeline.batches(breaking(requests((0, ids), (1, ids)), paths[BAD], kind))
    assert (before.ids.tolist(), before.problems) == (ids, ())
    assert after.ids.tolist() == [3, 5] and after.problems[0].file == paths[BAD]


def breaking(asked: list[Any], path: Path, kind: str) -> Iterator[Any]:
    """Break the file after the first request was carried out."""
    first, *others = asked
    yield first
    break_file(path, kind)
    yield from others


@everywhere
def test_left_out_where_nobody_may_stand_in(tmp_path: Path, executor: str) -> None:
    paths = write_good(tmp_path, COUNT, "cut png")
    expected = one(executor, paths, 0, [0, 1, 2, 3])
    for bad in (1, 3):
        break_file(paths[bad], "cut png")
    with opened(executor, paths, skipping=Skipping(), return_masks=True) as pipeline:
        asked = requests((0, [0, 1, 2, 3]), (0, [1, 3]), (0, [2, 0]), (0, [3]))
        got = list(pipeline.batches(asked))
    assert [batch.ids.tolist() for batch in got] == [[0, 2], [], [2, 0], []]
    told = [[problem.sample for problem in batch.problems] for batch in got]
    assert told == [[1, 3], [1, 3], [], [3]]
    assert torch.equal(got[0].views, expected.views[[0, 2]])
    assert got[1].views.shape == (0, 2, 1, SIZE, SIZE) == got[1].masks.shape


@everywhere
def test_who_stands_in_may_be_bad_too(tmp_path: Path, executor: str) -> None:
    paths = write_good(tmp_path, COUNT, "cut png")
    first, second = list(dict.fromkeys(draw_from(np.arange(COUNT), 0, BAD)))[:2]
    for bad in (BAD, first):
        break_file(paths[bad], "cut png")
    batch = one(executor, paths, 0, [BAD], skipping=replacing(list(range(COUNT))))
    assert batch.ids.tolist() == [second]
    assert list(dict.fromkeys(problem.sample for problem in batch.problems)) == [BAD, first]
    with pytest.raises(InputError, match="stand in for it") as caught:
        one(executor, paths, 0, [BAD], skipping=replacing([BAD, first]))
    assert str(paths[BAD]) in str(caught.value) and "\n" not in str(caught.value)


@everywhere
def test_the_views_depend_on_epoch_and_place_only(tmp_path: Path, executor: str) -> None:
    """Not on workers, batch sizes, order, or on what the pipeline did before."""
    paths = write_good(tmp_path, COUNT, "cut png")
    for bad in (1, BAD, 8):
        break_file(paths[bad], "cut png")

    def views(asked: list[Any], **options: Any) -> dict[tuple[int, int], torch.Tensor]:
        skipping = replacing(list(range(COUNT)))
        found = {}
        with opened(executor, paths, skipping=skipping, **options) as pipeline:
            for (epoch, ids), batch in zip(asked, pipeline.batches(asked), strict=True):
                assert len(batch.ids) == len(ids)
                for asked_id, view in zip(ids.tolist(), batch.views, strict=True):
                    found[epoch, asked_id] = view
        return found

    everyone = list(range(COUNT))
    whole = views(requests((0, everyone), (1, everyone)))
    pieces = requests((1, [8, 2, 1]), (1, [0]), (1, [BAD, 7, 6, 5, 3]), (0, everyone[::-1]))
    parts = views(pieces, workers=0, prefetch=0)
    assert whole.keys() == parts.keys()
    for key, view in whole.items():
        assert torch.equal(view, parts[key]), key
    assert not torch.equal(whole[0, BAD], whole[1, BAD])


@everywhere
def test_a_bad_mask_makes_its_image_bad(tmp_path: Path, executor: str) -> None:
    paths = write_good(tmp_path, 3, "cut png")
    masks = [tmp_path / f"mask{i}.png" for i in range(3)]
    for i, path in enumerate(masks):
        side = (7, 7) if i == 1 else (40, 50)
        Image.new("L", side, 255).save(path)
    batch = one(executor, paths, 0, [0, 1, 2], masks=masks, skipping=Skipping())
    assert batch.ids.tolist() == [0, 2]
    assert batch.problems[0].file == masks[1] and "mask of 7 x 7" in batch.problems[0].reason


@everywhere
@pytest.mark.parametrize("where", ["never", "always"])
def test_a_changed_byte_of_a_pack(tmp_path: Path, executor: str, where: str) -> None:
    images = [np.array(Image.open(path)) for path in write_good(tmp_path, 4, "cut png")]
    inside = np.ones((50, 40), bool)
    items = [Packable(f"{i}", a, inside, *contrast_limits(a, 1.0)) for i, a in enumerate(images)]
    write_pack(tmp_path / "pack", items, size=50)
    (shard,) = (tmp_path / "pack" / "shards").iterdir()
    data = bytearray(shard.read_bytes())
    at = bytes(data).index(images[2].tobytes())
    data[at + 99] ^= 1
    shard.write_bytes(bytes(data))
    paths = [tmp_path / "pack" / "images" / f"{i}" for i in range(4)]
    masks = [tmp_path / "pack" / "masks" / f"{i}" for i in range(4)]
    options: dict[str, Any] = {"masks": masks}
    if executor == "dali":
        options["on_device"] = where
    batch = one(executor, paths, 0, [0, 1, 2, 3], skipping=Skipping(), **options)
    assert batch.ids.tolist() == [0, 1, 3]
    assert batch.problems[0].file == paths[2] and "checksum" in batch.problems[0].reason
    with pytest.raises(BadImage, match="checksum"):
        one(executor, paths, 0, [0, 1, 2, 3], **options)


def test_a_bad_sample_is_read_once() -> None:
    asked: list[int] = []

    def load(sample: int) -> str:
        asked.append(sample)
        if sample == 5:
            raise BadImage("x.png", "is empty")
        return f"image {sample}"

    skipping = Skipping(lambda epoch, sample: [7])
    found = [skipping.find(epoch, 5, load) for epoch in (0, 1)]
    assert asked == [5, 7, 7]
    assert [(one.sample, one.content) for one in found] == 2 * [(7, "image 7")]
    assert found[0].problems == (Problem(5, Path("x.png"), "is empty"),) == found[1].problems
