"""The pipeline as a whole: same bits whatever the workers, named failures, no thread left."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught.data.images.limits import BadImage
from selftaught.data.pipeline import ImageBatch, open_pipeline
from selftaught.data.pipeline.opencv import OpenCVPipeline
from selftaught.data.plan import PLAIN, finetune_augment, plain, pretext_augment
from selftaught.errors import InputError
from selftaught.workers import worker_count

REPO = Path(__file__).resolve().parents[3]
KNEES = REPO / ".." / "shared" / "data" / "knee" / "images"
SIZE = 48
N = 7


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Path | None]]:
    """Images of mixed sizes and depths; every second one has a mask."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths: list[Path] = []
    masks: list[Path | None] = []
    for i in range(N):
        shape = (60 + 5 * i, 80 - 7 * i)
        deep = i % 3 == 2
        smooth = np.add.outer(np.linspace(0, 1, shape[0]), np.linspace(0, 1 + i, shape[1]))
        image = (smooth / smooth.max() + 0.1 * rng.random(shape)) / 1.1
        image = (image * (65535 if deep else 255)).astype(np.uint16 if deep else np.uint8)
        paths.append(folder / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
        masks.append(folder / f"m{i}.png" if i % 2 else None)
        if i % 2:
            region = np.zeros(shape, np.uint8)
            region[10:-10, 5:-5] = 255
            Image.fromarray(region).save(folder / f"m{i}.png")
    return paths, masks


Files = tuple[list[Path], list[Path | None]]


def opened(files: Files, **options: object) -> OpenCVPipeline:
    settings: dict[str, object] = {
        "masks": files[1],
        "image_size": SIZE,
        "augment": pretext_augment("default"),
        "seed": 1,
        "stage": "pretext",
        "views": 2,
        "workers": 2,
    }
    return OpenCVPipeline(files[0], **(settings | options))  # type: ignore[arg-type]


def requests(*batches: tuple[int, list[int]]) -> list[tuple[int, np.ndarray]]:
    return [(epoch, np.array(ids, np.int64)) for epoch, ids in batches]


def rows(batches: Iterator[ImageBatch], epochs: list[int]) -> dict[tuple[int, int], torch.Tensor]:
    """Views and masks by (epoch, sample)."""
    found = {}
    for epoch, batch in zip(epochs, batches, strict=True):
        for i, sample in enumerate(batch.ids.tolist()):
            parts = [batch.views[i]] + ([] if batch.masks is None else [batch.masks[i]])
            found[epoch, sample] = torch.cat(parts)
    return found


EARLIER: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def threads_of_earlier_tests() -> None:
    """Detectors of other files may still hold theirs."""
    EARLIER.clear()
    EARLIER.update(threading.enumerate())


def no_threads() -> bool:
    return not [
        thread
        for thread in set(threading.enumerate()) - EARLIER
        if thread.name.startswith("selftaught-views")
    ]


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_shapes_and_range(files: Files, preset: str) -> None:
    augment = pretext_augment(preset)  # type: ignore[arg-type]
    with opened(files, augment=augment, return_masks=True) as pipeline:
        (batch,) = pipeline.batches(requests((0, [3, 0, 5])))
    assert batch.views.shape == (3, 2, 1, SIZE, SIZE) and batch.views.dtype == torch.float32
    assert batch.views.is_contiguous() and batch.ids.tolist() == [3, 0, 5]
    assert batch.ids.dtype == torch.int64 and batch.masks is not None
    assert batch.masks.shape == batch.views.shape and batch.masks.dtype == torch.float32
    low, high = augment.input_range
    assert batch.views.min() >= low and 0.5 * high < batch.views.max() <= high
    assert 0 <= batch.masks.min() and batch.masks.max() <= 1
    assert torch.isfinite(batch.views).all() and torch.isfinite(batch.masks).all()
    assert not torch.equal(batch.views[:, 0], batch.views[:, 1])


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize(
    "options",
    [
        {"workers": 0},
        {"workers": 1, "prefetch": 0},
        {"workers": 5, "prefetch": 3},
        {"cache_bytes": 0},
        {"cache_bytes": 3 * SIZE * SIZE},
    ],
)
def test_bits_depend_on_seed_epoch_sample_and_view_only(
    files: Files, preset: str, options: dict[str, object]
) -> None:
    augment = pretext_augment(preset)  # type: ignore[arg-type]
    with opened(files, augment=augment, return_masks=True) as pipeline:
        asked = requests((0, list(range(N))), (1, list(range(N))))
        expected = rows(pipeline.batches(asked), [0, 1])
    order = requests((1, [6, 2]), (0, [0]), (1, [1, 0, 5, 3]), (0, [4, 6, 5, 3, 2, 1]), (1, [4]))
    with opened(files, augment=augment, return_masks=True, **options) as pipeline:
        got = rows(pipeline.batches(order), [1, 0, 1, 0, 1])
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_resume_in_the_middle_gives_the_same_bits(files: Files) -> None:
    asked = requests(*[(e, [(3 * e + i) % N, (i + 1) % N]) for e in range(2) for i in range(4)])
    with opened(files) as pipeline:
        whole = [batch.views for batch in pipeline.batches(asked)]
    with opened(files, workers=1) as pipeline:
        rest = [batch.views for batch in pipeline.batches(asked[5:])]
    assert all(torch.equal(one, other) for one, other in zip(whole[5:], rest, strict=True))


def test_returning_masks_does_not_change_views(files: Files) -> None:
    asked = requests((0, list(range(N))))
    for augment in (pretext_augment("default"), finetune_augment("paper")):
        with (
            opened(files, augment=augment) as one,
            opened(files, augment=augment, return_masks=True) as other,
        ):
            (first,), (second,) = one.batches(asked), other.batches(asked)
        assert first.masks is None and torch.equal(first.views, second.views)


def test_a_missing_mask_is_the_frame(files: Files) -> None:
    with opened(files, masks=None, augment=PLAIN, views=1, return_masks=True) as pipeline:
        (batch,) = pipeline.batches(requests((0, [0])))
    assert batch.masks is not None
    frame = batch.masks[0, 0, 0]
    assert frame.unique().tolist() == [0.0, 1.0]
    assert frame.sum() == SIZE * round(60 * SIZE / 80) and frame[SIZE // 2].all()


def test_masks_hide_everything_outside(files: Files) -> None:
    for augment in (pretext_augment("default"), pretext_augment("paper")):
        with opened(files, augment=augment, return_masks=True) as pipeline:
            (batch,) = pipeline.batches(requests((0, [1, 3, 5])))
        assert batch.masks is not None
        outside = batch.masks == 0
        assert outside.any() and not batch.views[outside].any()


def test_epochs_seeds_and_stages_differ(files: Files) -> None:
    def views(epoch: int = 0, **options: object) -> torch.Tensor:
        with opened(files, **options) as pipeline:
            return next(iter(pipeline.batches(requests((epoch, [2]))))).views

    base = views()
    for other in (views(1), views(seed=2), views(stage="finetune")):
        assert not torch.equal(base, other)


def test_plain_views_do_not_depend_on_seed_or_epoch(files: Files) -> None:
    for augment in (PLAIN, plain(pretext_augment("paper"))):
        made = []
        for seed, epoch in ((1, 0), (2, 5)):
            with opened(files, augment=augment, seed=seed, views=1) as pipeline:
                made.append(next(iter(pipeline.batches(requests((epoch, [0, 1, 2]))))).views)
        assert torch.equal(*made)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_named_and_nothing_hangs(files: Files, tmp_path: Path, workers: int) -> None:
    bad = tmp_path / "cut.png"
    bad.write_bytes(files[0][0].read_bytes()[:-30])
    paths = [*files[0][:3], bad, tmp_path / "gone.png"]
    with OpenCVPipeline(
        paths, image_size=SIZE, augment=PLAIN, seed=1, stage="plain", workers=workers
    ) as pipeline:
        batches = pipeline.batches(requests((0, [0, 1]), (0, [4, 2, 3]), *[(0, [0])] * 20))
        assert next(batches).ids.tolist() == [0, 1]
        with pytest.raises(BadImage, match=r"gone\.png: is missing") as caught:
            next(batches)
        assert caught.value.path == paths[4]
        with pytest.raises(StopIteration):
            next(batches)
        (after,) = pipeline.batches(requests((0, [2])))
        assert after.ids.tolist() == [2]
        with pytest.raises(BadImage, match=r"cut\.png: truncated PNG"):
            list(pipeline.batches(requests((0, [3, 4]))))
    assert no_threads()


def test_an_unexpected_failure_names_the_file_too(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selftaught.data.pipeline import composed

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(composed, "render", fail)
    with opened(files) as pipeline, pytest.raises(RuntimeError, match=r"2\.png: no view") as caught:
        list(pipeline.batches(requests((0, [2, 1]))))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_requests_are_taken_as_needed_and_may_be_endless(files: Files) -> None:
    taken = []

    def endless() -> Iterator[tuple[int, np.ndarray]]:
        epoch = 0
        while True:
            taken.append(epoch)
            yield epoch, np.arange(2)
            epoch += 1

    with opened(files, prefetch=2) as pipeline:
        batches = pipeline.batches(endless())
        for _ in range(3):
            next(batches)
        assert len(taken) <= 3 + 2
    assert no_threads()


def test_stopping_early_closing_twice_and_use_after_closing(files: Files) -> None:
    pipeline = opened(files, workers=3)
    batches = pipeline.batches(requests(*[(e, list(range(N))) for e in range(50)]))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    pipeline.close()
    pipeline.close()
    assert no_threads()
    with pytest.raises(RuntimeError, match="the pipeline is closed"):
        next(pipeline.batches(requests((0, [0]))))


def test_a_failing_source_of_requests_is_not_swallowed(files: Files) -> None:
    def broken() -> Iterator[tuple[int, np.ndarray]]:
        yield 0, np.arange(3)
        raise KeyError("source")

    with opened(files) as pipeline, pytest.raises(KeyError, match="source"):
        list(pipeline.batches(broken()))
    assert no_threads()


def test_a_process_that_forgets_to_close_still_ends(files: Files) -> None:
    script = (
        "import sys; import numpy as np; from pathlib import Path\n"
        "from selftaught.data.pipeline import open_pipeline\n"
        "from selftaught.data.plan import PLAIN\n"
        "p = open_pipeline('auto', paths=[Path(sys.argv[1])], image_size=32, augment=PLAIN,\n"
        "                  seed=1, stage='plain', views=1, workers=2)\n"
        "b = p.batches((e, np.zeros(4, int)) for e in range(10**6))\n"
        "next(b); print('done')\n"
    )
    command = [sys.executable, "-c", script, str(files[0][0])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPO)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "done", "")


def test_empty_batches_and_bad_ids(files: Files) -> None:
    with opened(files) as pipeline:
        (batch,) = pipeline.batches(requests((0, [])))
        assert batch.views.shape == (0, 2, 1, SIZE, SIZE)
        for ids in ([N], [-1]):
            with pytest.raises(ValueError, match=f"allowed 0 to {N - 1}"):
                list(pipeline.batches(requests((0, ids))))


def test_workers() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert worker_count("auto") == cores and worker_count(0) == 0 and worker_count(3) == 3
    for bad in (-1, 2000, "many", True, 1.5):
        with pytest.raises(InputError, match="data.workers"):
            worker_count(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 4}, "data.image_size 4: allowed 8 to 8192"),
        ({"views": 0}, "views 0"),
        ({"masks": [None]}, "1 masks for 7 images"),
        ({"cache_bytes": -1}, "cache_bytes -1"),
        ({"workers": -2}, "data.workers -2"),
    ],
)
def test_refused_options(files: Files, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        opened(files, **options)


def test_choice_of_executor(files: Files) -> None:
    settings = {"image_size": SIZE, "augment": PLAIN, "seed": 1, "stage": "plain", "workers": 0}
    for kind in ("auto", "opencv"):
        with open_pipeline(kind, paths=files[0], **settings) as pipeline:  # type: ignore[arg-type]
            assert isinstance(pipeline, OpenCVPipeline)
    with pytest.raises(InputError, match="data.pipeline 'other'"):
        open_pipeline("other", paths=files[0], **settings)  # type: ignore[arg-type]


@pytest.mark.skipif(not KNEES.is_dir(), reason="the real radiographs are not beside the repo")
@pytest.mark.real_data
def test_real_knees() -> None:
    paths = sorted(KNEES.iterdir())[::150]
    with open_pipeline(
        "auto",
        paths=paths,
        image_size=96,
        augment=pretext_augment("default"),
        seed=1,
        stage="pretext",
        views=2,
        workers=2,
    ) as pipeline:
        (batch,) = pipeline.batches([(0, np.arange(len(paths)))])
    assert batch.views.min() == 0 and batch.views.amax((2, 3, 4)).min() > 0.99
    assert (batch.views.std((2, 3, 4)) > 0.05).all()
