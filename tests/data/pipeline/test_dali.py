"""The DALI executor on the CPU: the views of the OpenCV executor, its promises and its refusals."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught.data import pipeline as executors
from selftaught.data.augment import PLAIN, Augment, finetune_augment, plain, pretext_augment
from selftaught.data.limits import BadImage
from selftaught.data.pipeline import Batch, composed, open_pipeline
from selftaught.data.pipeline.opencv import OpenCVPipeline
from selftaught.data.pipeline.pack import locate
from selftaught.data.pipeline.sample import autocontrast, contrast_limits
from selftaught.data.plan import PARAMETERS, draw
from selftaught.data.prepare.shards import Packable, write_pack
from selftaught.errors import InputError
from tests.data.pipeline.slow import view as slow_view

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed (Linux x86-64, extra gpu)")

from selftaught.data.pipeline import dali

REPO = Path(__file__).resolve().parents[3]
KNEES = REPO / ".." / "shared" / "data" / "knee" / "images"
SIZE = 96
SHAPES = [(96, 96), (150, 101), (80, 96), (96, 60), (240, 200), (40, 55), (96, 96), (130, 130)]
N = len(SHAPES)
Files = tuple[list[Path], list[Path | None]]


def film(shape: tuple[int, int], phase: float, dtype: type = np.uint8) -> np.ndarray:
    """Smooth, without symmetry, black at the top and bottom, full range."""
    y, x = np.mgrid[: shape[0], : shape[1]] / max(shape)
    image = 0.4 + 0.3 * x + 0.2 * np.sin(7 * y + 4 * x + phase) + 0.1 * np.cos(15 * x * y)
    image = (image - image.min()) / (image.max() - image.min())
    image[: shape[0] // 9] = image[-shape[0] // 9 :] = 0
    return np.rint(image * np.iinfo(dtype).max).astype(dtype)


def disc(shape: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]] / max(shape)
    return np.where((x - 0.4) ** 2 + (y - 0.45) ** 2 < 0.13, 255, 0).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """PNG of 8 and 16 bits, JPEG, TIFF and a palette; every second one has a mask."""
    folder = tmp_path_factory.mktemp("films")
    names = ["0.png", "1.png", "2.jpg", "3.tif", "4.png", "5.png", "6.png", "7.jpg"]
    paths, masks = [], []
    for i, (shape, name) in enumerate(zip(SHAPES, names, strict=True)):
        picture = Image.fromarray(film(shape, i, np.uint16 if i in (1, 3, 6) else np.uint8))
        if i == 5:
            picture = picture.convert("P")
        if i == 7:
            picture = picture.convert("RGB")
        picture.save(folder / name, **({"quality": 95} if name.endswith("jpg") else {}))
        Image.fromarray(disc(shape)).save(folder / f"mask{i}.png")
        paths.append(folder / name)
        masks.append(folder / f"mask{i}.png" if i % 2 else None)
    return paths, masks


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A pack of both depths at the size of the views, all with masks."""
    folder = tmp_path_factory.mktemp("packed") / "pack"
    items = []
    for i, shape in enumerate([(96, 96), (96, 61), (70, 96), (96, 96)]):
        image = film(shape, i, np.uint16 if i % 2 else np.uint8)
        items.append(Packable(f"{i}", image, disc(shape) > 0, *contrast_limits(image, 1.0)))
    write_pack(folder, items, size=SIZE)
    numbers = range(len(items))
    return [folder / f"images/{i}" for i in numbers], [folder / f"masks/{i}" for i in numbers]


def settings(files: Files, **options: Any) -> dict[str, Any]:
    return {
        "paths": files[0],
        "masks": files[1],
        "image_size": SIZE,
        "augment": pretext_augment("default"),
        "seed": 1,
        "stage": "pretext",
        "views": 2,
        "workers": 1,
        "return_masks": True,
    } | options


def opened(files: Files, **options: Any) -> dali.DaliPipeline:
    return dali.DaliPipeline(**settings(files, **options))


def requests(*batches: tuple[int, list[int]]) -> list[tuple[int, np.ndarray]]:
    return [(epoch, np.array(ids, np.int64)) for epoch, ids in batches]


def all_of(files: Files, epoch: int = 0, **options: Any) -> Batch:
    with opened(files, **options) as pipeline:
        (batch,) = pipeline.batches(requests((epoch, list(range(len(files[0]))))))
    return batch


def both(files: Files, **options: Any) -> tuple[Batch, Batch]:
    """Everything once, by DALI and by OpenCV."""
    with OpenCVPipeline(**settings(files, **options)) as pipeline:
        (other,) = pipeline.batches(requests((0, list(range(len(files[0]))))))
    return all_of(files, **options), other


def rows(batches: Iterator[Batch], epochs: list[int]) -> dict[tuple[int, int], torch.Tensor]:
    found = {}
    for epoch, batch in zip(epochs, batches, strict=True):
        assert batch.masks is not None
        for i, sample in enumerate(batch.ids.tolist()):
            found[epoch, sample] = torch.cat([batch.views[i], batch.masks[i]])
    return found


OPERATORS = {
    "decode, autocontrast, resize, pad": Augment(),
    "no autocontrast": Augment(autocontrast=0.0),
    "strong autocontrast": Augment(autocontrast=20.0),
    "flips": Augment(horizontal_flip=0.5, vertical_flip=0.5),
    "scale": Augment(scale=(0.7, 1.4)),
    "scale about the corner": Augment(scale=(0.7, 1.4), scale_pivot="corner"),
    "rotation": Augment(rotation=(-180.0, 180.0)),
    "crop": Augment(crop_area=(0.3, 0.9), crop_ratio=(0.8, 1.25)),
    "brightness": Augment(brightness=(0.6, 1.4)),
    "color": Augment(color=1.0, color_brightness=(0.6, 1.4), color_contrast=(0.5, 1.6)),
    "blur": Augment(blur=0.7, blur_sigma=(0.1, 2.0)),
    "mask to 255": Augment(mask_scale=255, rotation=(-30.0, 30.0)),
    "all of the pretext": pretext_augment("default"),
    "all of the fine-tuning": finetune_augment("default"),
    "none of the pretext": plain(pretext_augment("default")),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_views_and_masks_agree_with_opencv(files: Files, name: str) -> None:
    """Within one grey level on average, view by view; the geometry of masks too."""
    augment = OPERATORS[name]
    made, expected = both(files, augment=augment)
    assert made.ids.tolist() == expected.ids.tolist() and made.masks is not None
    assert made.views.shape == expected.views.shape and made.views.is_contiguous()
    levels = 255 / augment.mask_scale
    error = (made.views - expected.views).abs().mean((2, 3, 4)) * levels
    assert error.max() < 1.0, error
    assert expected.masks is not None
    assert ((made.masks - expected.masks).abs().mean((2, 3, 4)) * 255).max() < 0.6
    low, high = augment.input_range
    assert made.views.min() >= low and 0.9 * high < made.views.max() <= high * 1.000001


@pytest.mark.parametrize("corner", [False, True])
def test_matrices_are_those_of_the_composed_order(corner: bool) -> None:
    from selftaught.data.pipeline.dali_source import matrices

    augment = replace(pretext_augment("default"), vertical_flip=0.5)
    plan = draw(augment, seed=1, stage="t", epoch=0, samples=range(9), views=2).astype(float)
    column = {name: plan[..., i] for i, name in enumerate(PARAMETERS)}
    made = matrices(column, SIZE, corner=corner)
    for i, v in np.ndindex(9, 2):
        row = dict(zip(PARAMETERS, plan[i, v].tolist(), strict=True))
        expected = composed.matrix(row, SIZE, corner=corner)
        expected[:, 2] += 0.5 - 0.5 * expected[:, :2].sum(1)
        np.testing.assert_allclose(made[i, v], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["flips", "crop", "color", "all of the fine-tuning"])
def test_packs_agree_with_opencv(packed: Files, name: str) -> None:
    """Nothing is resized, so only the rounding of 8-bit steps is left."""
    made, expected = both(packed, augment=OPERATORS[name])
    error = (made.views - expected.views).abs().mean((2, 3, 4)) * 255
    assert error.max() < 0.7 and error[1::2].max() < 0.1


def test_views_agree_with_the_slow_reference(packed: Files) -> None:
    """In float64, without OpenCV's steps of 8 bits and of 1/32 pixel."""
    augment = pretext_augment("default")
    made = all_of(packed)
    ids = range(len(packed[0]))
    plan = draw(augment, seed=1, stage="pretext", epoch=0, samples=ids, views=2)
    for i, shape in enumerate([(96, 96), (96, 61), (70, 96), (96, 96)]):
        image = autocontrast(film(shape, i, np.uint16 if i % 2 else np.uint8), 1.0)
        base = composed.canvas(composed.Sample(image, disc(shape)), SIZE, frame=True)
        for v in range(2):
            row = dict(zip(PARAMETERS, plan[i, v].astype(float).tolist(), strict=True))
            expected = slow_view(base.image, base.mask, row)
            error = np.abs(made.views[i, v, 0].numpy() - expected)
            # At the frame, DALI's blur mirrors the image; the others repeat its last pixel, which
            # may be the brightest one that everything is divided by.
            assert error.mean() * 255 < (0.5 if row["blur_sigma"] > 0 else 0.01)


@pytest.mark.parametrize("source", ["png", "pack"])
def test_16_bits_are_exact(tmp_path: Path, source: str) -> None:
    """Every stored level comes out; 8 bits would leave 256 of 9216."""
    levels = np.random.default_rng(0).permutation(65536)[: SIZE * SIZE].astype(np.uint16)
    levels[:2] = 0, 65535
    image = levels.reshape(SIZE, SIZE)
    if source == "png":
        path = tmp_path / "deep.png"
        Image.fromarray(image).save(path)
    else:
        write_pack(tmp_path / "pack", [Packable("deep", image, None, 0, 65535)], size=SIZE)
        path = tmp_path / "pack/images/deep"
    augment = Augment(autocontrast=0.0)
    batch = all_of(([path], [None]), augment=augment, views=1, return_masks=False)
    assert batch.masks is None
    got = batch.views[0, 0, 0].numpy().astype(np.float64) * (1 + 1e-6) * 65535
    np.testing.assert_array_equal(np.rint(got), image)
    turned = all_of(([path], [None]), augment=OPERATORS["rotation"], views=1, return_masks=False)
    assert turned.views.unique().numel() > 2000


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


def test_returning_masks_does_not_change_views(files: Files) -> None:
    assert torch.equal(all_of(files).views, all_of(files, return_masks=False).views)


def test_masks_hide_everything_outside_and_only_where_there_is_one(files: Files) -> None:
    batch = all_of(files, augment=PLAIN)
    assert batch.masks is not None
    outside = batch.masks[1::2] == 0
    assert outside.any() and not batch.views[1::2][outside].any()
    frame = batch.masks[3 - 1, 0, 0]  # 80 x 96 pixels, without a mask
    assert frame.unique().tolist() == [0.0, 1.0] and frame.sum() == 80 * 96
    for augment in (PLAIN, pretext_augment("default")):
        batch = all_of(files, augment=augment)
        bare = all_of((files[0], [None] * N), augment=augment, return_masks=False)
        torch.testing.assert_close(bare.views[::2], batch.views[::2], rtol=0, atol=1e-6)
        assert (bare.views[1] - batch.views[1]).abs().max() > 0.1


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    """One-pixel stripes average out; plain subsampling would keep or lose them."""
    stripes = np.zeros((SIZE * 5, SIZE * 5), np.uint16)
    stripes[:, ::2] = 60_000
    stripes[: SIZE * 2], stripes[SIZE * 4 :] = 0, 60_000
    Image.fromarray(stripes).save(tmp_path / "a.png")
    batch = all_of(([tmp_path / "a.png"], [None]), augment=PLAIN, views=1)
    middle = batch.views[0, 0, 0, SIZE * 2 // 5 + 4 : SIZE * 4 // 5 - 4, 4:-4]
    assert (middle - 0.5).abs().max() < 0.05


def test_what_dali_decodes_and_what_the_host_does(files: Files, tmp_path: Path) -> None:
    from selftaught.data.pipeline.dali_source import decodable

    assert [decodable(path) for path in files[0]] == [
        *(True, True, True, False, True, False, True, True)
    ]
    others = {"a.jpg": "CMYK", "b.png": "RGB", "c.png": "LA", "d.png": "1"}
    for name, mode in others.items():
        Image.fromarray(film((20, 20), 0)).convert(mode).save(tmp_path / name)
        assert not decodable(tmp_path / name)
    Image.fromarray(film((20, 20), 0)).save(tmp_path / "e.png", transparency=7)
    assert not decodable(tmp_path / "e.png")


def test_files_and_the_pack_of_them_give_the_same_views(packed: Files, tmp_path: Path) -> None:
    paths: list[Path] = []
    for i, shape in enumerate([(96, 96), (96, 61), (70, 96), (96, 96)]):
        Image.fromarray(film(shape, i, np.uint16 if i % 2 else np.uint8)).save(
            tmp_path / f"{i}.png"
        )
        paths.append(tmp_path / f"{i}.png")
    from_files, from_pack = all_of((paths, packed[1])), all_of(packed)
    torch.testing.assert_close(from_files.views, from_pack.views, rtol=0, atol=1e-4)
    torch.testing.assert_close(from_files.masks, from_pack.masks, rtol=0, atol=1e-6)


def test_a_resident_pack_gives_the_same_bits(packed: Files) -> None:
    partly = packed[0], [None, *packed[1][1:]]
    for files in (packed, partly, (packed[0], [None] * 4)):
        expected, got = all_of(files), all_of(files, on_device="always")
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
    pipeline = opened(files, workers=3)
    batches = pipeline.batches(requests(*[(e, list(range(N))) for e in range(50)]))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    pipeline.close()
    pipeline.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("selftaught-views")]
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


@pytest.mark.skipif(not KNEES.is_dir(), reason="the real radiographs are not beside the repo")
@pytest.mark.real_data
def test_real_knees_agree_with_opencv() -> None:
    paths = sorted(KNEES.iterdir())[::150]
    made, expected = both((paths, [None] * len(paths)), image_size=128, return_masks=False)
    assert ((made.views - expected.views).abs().mean((2, 3, 4)) * 255).max() < 1.0
