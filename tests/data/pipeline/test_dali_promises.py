"""What the DALI executor promises: bits, order, memory, bad files, options, its end."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught.data import pipeline as executors
from selftaught.data.augment import pretext_augment
from selftaught.data.images.limits import BadImage
from selftaught.data.images.pack import locate
from selftaught.data.pipeline import open_pipeline
from selftaught.data.pipeline.opencv import OpenCVPipeline
from selftaught.errors import InputError
from tests.data.pipeline.dali_cases import (
    REPO,
    SIZE,
    Files,
    N,
    all_of,
    dali,
    files,
    film,
    opened,
    packed,
    requests,
    rows,
    settings,
)

__all__ = ["files", "packed"]


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 0},
        {"workers": 3, "prefetch": 1},
        {"prefetch": 0},
        {"prefetch": 7},
        {"cache_bytes": 0},
    ],
)
def test_bits_depend_on_seed_epoch_sample_and_view_only(
    files: Files, options: dict[str, Any]
) -> None:
    with opened(files) as pipeline:
        asked = requests((0, list(range(N))), (1, list(range(N))))
        expected = rows(pipeline.batches(asked), [0, 1])
    order = requests(
        (1, [6, 2]), (0, [0]), (1, [1, 0, 5, 3, 7]), (0, [4, 7, 6, 5, 3, 2, 1]), (1, [4])
    )
    with opened(files, **options) as pipeline:
        got = rows(pipeline.batches(order), [1, 0, 1, 0, 1])
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_resume_at_any_step_gives_the_same_bits(files: Files) -> None:
    asked = requests(*[(e, [(3 * e + i) % N, (i + 1) % N]) for e in range(2) for i in range(4)])
    with opened(files) as pipeline:
        whole = [batch.views for batch in pipeline.batches(asked)]
    for step in (1, 3, 4, 7):
        with opened(files, workers=0, prefetch=step) as pipeline:
            rest = [batch.views for batch in pipeline.batches(asked[step:])]
        assert all(torch.equal(one, other) for one, other in zip(whole[step:], rest, strict=True))


def test_batches_are_dalis_memory_and_stay_as_they_are(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No copy on the way to torch, and no batch is overwritten by a later one."""
    given = []
    convert = torch.from_dlpack

    def noted(tensor: Any) -> torch.Tensor:
        given.append(tensor.data_ptr())
        return convert(tensor)

    monkeypatch.setattr(dali.torch, "from_dlpack", noted)
    kept, copies = [], []
    with opened(files, return_masks=False) as pipeline:
        for batch in pipeline.batches(requests(*[(e, [e % N, 3]) for e in range(9)])):
            kept.append(batch.views)
            copies.append(batch.views.clone())
    assert [views.data_ptr() for views in kept] == given and len(set(given)) == 9
    assert all(torch.equal(one, other) for one, other in zip(kept, copies, strict=True))


def test_a_resident_pack_gives_the_same_bits(packed: Files) -> None:
    partly = packed[0], [None, *packed[1][1:]]
    for source in (packed, partly, (packed[0], [None] * 4)):
        expected, got = all_of(source), all_of(source, on_device="always")
        assert torch.equal(expected.views, got.views) and torch.equal(expected.masks, got.masks)  # type: ignore[arg-type]


def test_only_packs_that_fit_are_resident(files: Files, packed: Files) -> None:
    from selftaught.data.pipeline.dali_resident import resident

    cpu = torch.device("cpu")
    needed = 64 * sum(-(-size // 64) for size in (9216, 2 * 96 * 61, 70 * 96, 2 * 9216))
    images = [locate(path) for path in packed[0]]
    assert resident(images, [None] * 4, cpu, needed) is not None
    assert resident(images, [None] * 4, cpu, needed - 1) is None
    assert resident([locate(path) for path in files[0]], files[1], cpu, 2**40) is None
    assert resident([*images, None], [None] * 5, cpu, 2**40) is None
    assert resident([], [], cpu, 2**40) is None
    assert resident(images, packed[1][::-1], cpu, 2**40) is None
    with opened(packed) as pipeline:
        assert pipeline._items._resident is None


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_named_and_the_pipeline_goes_on(
    files: Files, tmp_path: Path, workers: int
) -> None:
    bad = tmp_path / "cut.png"
    bad.write_bytes(files[0][0].read_bytes()[:-30])
    mine = [*files[0][:3], bad, tmp_path / "gone.png"], [None] * 5
    with opened(mine, workers=workers, views=1, return_masks=False) as pipeline:
        batches = pipeline.batches(requests((0, [0, 1]), (0, [4, 2, 3]), *[(0, [0])] * 20))
        assert next(batches).ids.tolist() == [0, 1]
        with pytest.raises(BadImage, match=r"gone\.png: is missing") as caught:
            next(batches)
        assert caught.value.path == mine[0][4]
        with pytest.raises(StopIteration):
            next(batches)
        (after,) = pipeline.batches(requests((0, [2])))
        assert after.ids.tolist() == [2]
        with pytest.raises(BadImage, match=r"cut\.png: truncated PNG"):
            list(pipeline.batches(requests((0, [3, 4]))))


@pytest.mark.parametrize("how", ["cut", "gone", "text"])
def test_a_file_that_breaks_between_epochs_is_named(tmp_path: Path, how: str) -> None:
    """DALI's own errors do not name it."""
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(film((SIZE, SIZE), i)).save(path)
    with opened((paths, [None] * 3), return_masks=False) as pipeline:
        (good,) = pipeline.batches(requests((0, [0, 1, 2])))
        data = paths[1].read_bytes()
        paths[1].unlink()
        if how != "gone":
            paths[1].write_bytes(data[: len(data) // 2] if how == "cut" else b"hello " * 99)
        with pytest.raises(BadImage, match=r"1\.png: "):
            list(pipeline.batches(requests((1, [0, 1, 2]))))
        paths[1].write_bytes(data)
        (again,) = pipeline.batches(requests((0, [0, 1, 2])))
    assert torch.equal(good.views, again.views)


def test_requests_are_taken_as_needed_and_may_be_endless(files: Files) -> None:
    taken = []

    def endless() -> Iterator[tuple[int, np.ndarray]]:
        while True:
            taken.append(0)
            yield len(taken), np.arange(2)

    for prefetch in (0, 1, 4):
        taken.clear()
        with opened(files, prefetch=prefetch) as pipeline:
            batches = pipeline.batches(endless())
            for _ in range(3):
                next(batches)
            assert len(taken) <= 3 + prefetch
            batches.close()  # type: ignore[attr-defined]


def test_closing_early_twice_and_use_after_closing(files: Files) -> None:
    before = set(threading.enumerate())
    pipeline = opened(files, workers=3)
    batches = pipeline.batches(requests(*[(e, list(range(N))) for e in range(50)]))
    next(batches)
    assert set(threading.enumerate()) - before
    batches.close()  # type: ignore[attr-defined]
    pipeline.close()
    pipeline.close()
    assert not set(threading.enumerate()) - before
    with pytest.raises(RuntimeError, match="the pipeline is closed"):
        next(pipeline.batches(requests((0, [0]))))


def test_two_iterators_at_once(files: Files) -> None:
    asked = requests((0, [0, 1]), (0, [2, 3]), (0, [4, 5]))
    with opened(files) as pipeline:
        expected = [batch.views for batch in pipeline.batches(asked)]
        pairs = list(zip(pipeline.batches(asked), pipeline.batches(asked), strict=True))
    for views, (one, other) in zip(expected, pairs, strict=True):
        assert torch.equal(one.views, views) and torch.equal(other.views, views)


def test_a_failing_source_of_requests_is_not_swallowed(files: Files) -> None:
    def broken() -> Iterator[tuple[int, np.ndarray]]:
        yield 0, np.arange(3)
        raise KeyError("source")

    with opened(files) as pipeline, pytest.raises(KeyError, match="source"):
        list(pipeline.batches(broken()))


def test_empty_batches_and_bad_ids(files: Files) -> None:
    with opened(files) as pipeline:
        got = list(pipeline.batches(requests((0, []), (0, [1]), (0, []), (0, [2, 3]))))
        assert [batch.ids.tolist() for batch in got] == [[], [1], [], [2, 3]]
        assert got[0].views.shape == (0, 2, 1, SIZE, SIZE) and got[0].masks is not None
        for ids in ([N], [-1]):
            with pytest.raises(ValueError, match=f"allowed 0 to {N - 1}"):
                list(pipeline.batches(requests((0, ids))))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 4}, "data.image_size 4: allowed 8 to 8192"),
        ({"views": 0}, "views 0"),
        ({"masks": [None]}, "1 masks for 8 images"),
        ({"workers": -2}, "data.workers -2"),
        (
            {"augment": pretext_augment("paper")},
            "augment.order 'published' .* data.pipeline opencv",
        ),
    ],
)
def test_refused_options(files: Files, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        opened(files, **options)
    assert "\n" not in str(caught.value)


def test_choice_of_executor(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    published = pretext_augment("paper")
    with open_pipeline("dali", **settings(files)) as pipeline:
        assert isinstance(pipeline, dali.DaliPipeline)
    with open_pipeline("auto", **settings(files)) as pipeline:
        assert isinstance(pipeline, OpenCVPipeline)
    with open_pipeline("auto", device="cuda", **settings(files, augment=published)) as pipeline:
        assert isinstance(pipeline, OpenCVPipeline)
    asked = []
    monkeypatch.setattr(dali, "DaliPipeline", lambda *_, **options: asked.append(options))
    open_pipeline("auto", device="cuda:0", **settings(files))
    assert asked[0]["device"] == torch.device("cuda:0")


def test_dali_that_is_missing_is_refused(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    assert not executors.has_dali()
    with pytest.raises(InputError, match="data.pipeline dali: .* not installed") as caught:
        open_pipeline("dali", **settings(files))
    assert "\n" not in str(caught.value)
    with open_pipeline("auto", device="cuda", **settings(files)) as pipeline:
        assert isinstance(pipeline, OpenCVPipeline)


def test_a_process_that_forgets_to_close_still_ends(files: Files) -> None:
    script = (
        "import sys; import numpy as np; from pathlib import Path\n"
        "from selftaught.data.pipeline import open_pipeline\n"
        "from selftaught.data.plan import PLAIN\n"
        "p = open_pipeline('dali', paths=[Path(sys.argv[1])], image_size=32, augment=PLAIN,\n"
        "                  seed=1, stage='plain', views=1, workers=2)\n"
        "b = p.batches((e, np.zeros(4, int)) for e in range(10**6))\n"
        "next(b); print('done')\n"
    )
    command = [sys.executable, "-c", script, str(files[0][0])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPO)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "done", "")
