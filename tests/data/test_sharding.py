"""Order and augmentation on any number of ranks, with any batch size and workers, by each executor.

Ranks are played one after the other in this process; `tests/training` runs real ones.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from selftaught import distributed, sent
from selftaught.data.augment import finetune_augment, pretext_augment
from selftaught.data.images.contrast import contrast_limits
from selftaught.data.images.pack_writer import Packable, write_pack
from selftaught.data.pipeline import Pipeline, has_dali
from selftaught.data.plan import batch_at, steps_per_epoch
from selftaught.training.config import DataConfig
from selftaught.training.inference import infer
from selftaught.training.inputs import Images, open_plain, training_batches

SIZE, N, SEED = 32, 23, 5
EXECUTORS = [
    "opencv",
    pytest.param(
        "dali", marks=pytest.mark.skipif(not has_dali(), reason="NVIDIA DALI is not installed")
    ),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    y, x = np.mgrid[:40, :36] / 40
    for i in range(N):
        image = 120 + 60 * np.sin(5 * x + i) + 60 * np.cos((3 + i % 4) * y)
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def pack(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The films as a pack, all but every third with a mask."""
    place = tmp_path_factory.mktemp("set")
    y, x = np.mgrid[:40, :36] / 40
    packables = []
    for i in range(N):
        image = np.asarray(Image.open(root / f"{i}.png"))
        mask = (x - 0.45) ** 2 + (y - 0.5) ** 2 < 0.04 + i / 200 if i % 3 else None
        packables.append(Packable(f"{i}.png", image, mask, *contrast_limits(image, 1.0)))
    write_pack(place / "pack", packables, size=40)
    return place


def images(root: Path, executor: str, workers: int = 1) -> Images:
    packed = (root / "pack").is_dir()
    folder = "pack/images/" if packed else ""
    frame = pd.DataFrame(
        {
            "path": [f"{folder}{i}.png" for i in range(N)],
            "mask": [f"pack/masks/{i}.png" if packed and i % 3 else "" for i in range(N)],
            "split": "train",
            "label": 0,
            "semi_label": np.arange(N) % 3 - 1,
        }
    )
    config = DataConfig(image_size=SIZE, pipeline=executor, workers=workers)  # type: ignore[arg-type]
    return Images(frame=frame, root=root, config=config, seed=SEED)


def play(monkeypatch: pytest.MonkeyPatch, world: int, rank: int) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    monkeypatch.setattr(distributed, "rank", lambda: rank)


def trained(
    monkeypatch: pytest.MonkeyPatch,
    root: Path,
    executor: str,
    *,
    world: int,
    batch_size: int = 8,
    workers: int = 1,
    accumulate: int = 1,
    first_step: int = 0,
    steps: int = 5,
) -> list[dict[int, Tensor]]:
    """For each step, the views of all ranks by sample."""
    found: list[dict[int, Tensor]] = [{} for _ in range(steps - first_step)]
    for rank in range(world):
        play(monkeypatch, world, rank)
        source = images(root, executor, workers)
        with source.open("pretext", pretext_augment("default"), views=2) as pipeline:
            batches = list(
                training_batches(
                    source,
                    pipeline,
                    source.rows("train"),
                    stage="pretext",
                    batch_size=batch_size,
                    accumulate=accumulate,
                    first_step=first_step,
                    steps=steps,
                    input_range=(0.0, 1.0),
                    device=torch.device("cpu"),
                )
            )
        assert len(batches) == steps - first_step, "ranks must have as many steps"
        for step, batch in enumerate(batches):
            assert len(batch["ids"]) == batch_size // world
            assert batch["semi_label"].tolist() == [i % 3 - 1 for i in batch["ids"].tolist()]
            for i, sample in enumerate(batch["ids"].tolist()):
                assert sample not in found[step], "two ranks have the same sample"
                found[step][sample] = batch["views"][i]
    return found


def same(one: dict[Any, Tensor], other: dict[Any, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_steps_hold_the_same_bits_on_any_number_of_ranks(
    root: Path, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = trained(monkeypatch, root, executor, world=1)
    for step, views in enumerate(alone):
        _, ids = batch_at(SEED, "pretext", step, N, 8)
        assert sorted(views) == sorted(ids.tolist())
    for options in ({"world": 2}, {"world": 4, "workers": 0}, {"world": 2, "accumulate": 2}):
        shared = trained(monkeypatch, root, executor, **options)  # type: ignore[arg-type]
        assert all(same(*pair) for pair in zip(alone, shared, strict=True))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_run_resumes_on_another_number_of_ranks_with_the_same_bits(
    root: Path, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(monkeypatch, root, executor, world=2)
    for first_step, world in ((1, 1), (3, 4)):
        rest = trained(monkeypatch, root, executor, world=world, first_step=first_step)
        assert all(same(*pair) for pair in zip(whole[first_step:], rest, strict=True))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_views_of_an_epoch_do_not_depend_on_the_batch_size(
    root: Path, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def epoch(batch_size: int) -> tuple[list[int], dict[int, Tensor]]:
        steps = steps_per_epoch(N, batch_size)
        found = trained(monkeypatch, root, executor, world=1, batch_size=batch_size, steps=steps)
        order = [sample for step in found for sample in step]
        return order, {sample: views for step in found for sample, views in step.items()}

    order, views = epoch(4)
    assert len(order) == len(set(order)) == 20
    other_order, other = epoch(10)
    assert other_order == order and same(views, other)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_pack_gives_the_same_bits_to_any_ranks_workers_and_resumed_runs(
    pack: Path, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = trained(monkeypatch, pack, executor, world=1, workers=0, steps=4)
    black = {i: float((view == 0).float().mean()) for views in alone for i, view in views.items()}
    least = min(share for i, share in black.items() if i % 3)
    assert least > np.median([share for i, share in black.items() if i % 3 == 0]), "no masks"
    for world, workers, first_step in ((1, 4, 0), (2, 0, 0), (4, 4, 0), (2, 4, 2)):
        options: dict[str, int] = {"world": world, "workers": workers, "first_step": first_step}
        found = trained(monkeypatch, pack, executor, steps=4, **options)  # type: ignore[arg-type]
        assert all(same(*pair) for pair in zip(alone[first_step:], found, strict=True)), options


def described(images: Tensor, masks: Tensor | None) -> dict[str, Tensor]:
    """Numbers that tell images apart."""
    h = images.flatten(1)[:, ::7]
    return {"h": h, "z": h.mean(1, keepdim=True)}


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("rows", [1, 7, N])
def test_evaluation_sees_every_sample_once_and_asks_equally_often(
    root: Path, executor: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = images(root, executor)
    chosen = source.rows("train")[::-1][:rows].copy()

    def share(pipeline: Pipeline, world: int, rank: int) -> tuple[Any, int]:
        """What a rank gives to the others, and how often it asked them whether to go on."""
        local: list[Any] = []
        asked: list[Any] = []
        run = SimpleNamespace(
            kind=torch.float32,
            config=SimpleNamespace(score=SimpleNamespace(batch_size=4)),
            images=source,
            device=torch.device("cpu"),
            reporter=SimpleNamespace(on_event=lambda event, **facts: None),
            stopper=SimpleNamespace(code=0),
        )

        def gather(mine: Any) -> list[Any]:
            local.append(mine)
            return [mine or {"row": np.zeros(0, int)}]

        def gather_row(values: Any, device: torch.device) -> list[Any]:
            asked.append(values)
            return [values]

        play(monkeypatch, world, rank)
        monkeypatch.setattr(distributed, "gather_objects", gather)
        monkeypatch.setattr(sent, "gather_row", gather_row)
        infer(run, described, [], pipeline, chosen, name="test")  # type: ignore[arg-type]
        return local[0], len(asked)

    with open_plain(source, finetune_augment("default")) as pipeline:
        whole, _ = share(pipeline, 1, 0)
        assert whole["row"].tolist() == chosen.tolist()
        assert len(whole["h"]) == rows and len(np.unique(whole["z"])) == rows
        for world in (2, 3, 8):
            parts, asked = zip(*[share(pipeline, world, r) for r in range(world)], strict=True)
            assert len(set(asked)) == 1
            for name in ("row", "h", "z"):
                together = np.concatenate([part[name] for part in parts if part])
                np.testing.assert_array_equal(together, whole[name])
