"""Images as a model's training saw them: taken, prepared first, or refused in one line."""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from selftaught import distributed
from selftaught.arguments import names_in, paths_in
from selftaught.data.images.pack import MASKS, Packed, locate
from selftaught.data.manifest.spelling import cleaned
from selftaught.data.pipeline.sample import Made, Sample
from selftaught.data.prepare.claim import settings_of
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.film import usable_film
from selftaught.data.prepare.reference import Reference
from selftaught.errors import InputError
from selftaught.models.preprocessing import Preprocessing

ALLOWED = "allowed: raw films, which the model prepares itself, or a set of the same settings"


MASKS_GIVEN = "a list of paths of masks, None where there is none"
SLACK = 1e-6  # of the input range: resampling in float32 may overshoot by rounding


def checked_tensor(
    images: Tensor, masks: Any, preprocessing: Preprocessing, takes_masks: bool
) -> Tensor | None:
    """Refuse a tensor that is not a model's network input; the masks of its images.

    Raises:
        ValueError: another shape or type, values out of range, masks that do not match.
    """
    if masks is not None and not takes_masks:
        raise ValueError("masks: only with paths; a tensor is network input already")
    size = preprocessing.image_size
    if images.ndim != 4 or tuple(images.shape[1:]) != (1, size, size):
        raise ValueError(f"images: shape {tuple(images.shape)}, must be (N, 1, {size}, {size})")
    if not images.is_floating_point():
        raise ValueError(f"images: {images.dtype}, must be floating point")
    if masks is None:
        masks = torch.ones_like(images) if takes_masks else None
    elif not isinstance(masks, Tensor) or masks.shape != images.shape:
        shape = tuple(masks.shape) if isinstance(masks, Tensor) else type(masks).__name__
        raise ValueError(f"masks: {shape}, must be a tensor {tuple(images.shape)} in [0, 1]")
    elif masks.numel() and not (masks.min() >= 0 and masks.max() <= 1):
        raise ValueError("masks: values outside [0, 1]")
    if not images.numel():
        return masks
    low, high = (float(value) for value in images.aminmax())
    least, most = preprocessing.input_range
    slack = SLACK * (most - least)
    if not (least - slack <= low and high <= most + slack):
        raise ValueError(
            f"images: values from {low:g} to {high:g}, must be within [{least:g}, {most:g}]"
        )
    return masks


def read_films(
    images: Sequence[str | PathLike[str]],
    masks: Any,
    body_parts: Sequence[str] | None,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    return_masks: bool,
    pipeline: Literal["auto", "opencv", "dali"],
    device: torch.device,
    skipped: dict[int, str] | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Rows (b,), images and masks (b, 1, S, S) of files, as evaluation in training saw them.

    What cannot be read goes into `skipped`, by row, with the reason; None: it is an error.
    """
    from selftaught.data.images.bad_files import Skipping
    from selftaught.data.pipeline import open_pipeline

    paths = [Path(path) for path in images]
    given_masks = None if masks is None else paths_in("masks", masks, MASKS_GIVEN, blank=True)
    covers = None if given_masks is None else [mask and Path(mask) for mask in given_masks]
    parts = None if body_parts is None else names_in("body_parts", body_parts)
    for name, given in (("masks", covers), ("body_parts", parts)):
        if given is not None and len(given) != len(paths):
            raise ValueError(f"{name}: {len(given)} for {len(paths)} images, must be as many")
    films = as_trained(paths, covers, parts, preprocessing)
    if not preprocessing.known and paths and distributed.is_main():
        unmasked = preprocessing.masked and covers is None
        warnings.warn(
            "the model does not say how its films were prepared: scores mean something only "
            "for films prepared alike"
            + (", with masks, of which none are given" if unmasked else ""),
            stacklevel=4,
        )
    if not paths:
        return
    ids = np.arange(len(paths), dtype=np.int64)
    requests = ((0, ids[i : i + batch_size]) for i in range(0, len(ids), batch_size))
    with open_pipeline(
        pipeline,
        paths=paths,
        device=device,
        masks=films.masks,
        return_masks=return_masks,
        made=films.made,
        flat=False,
        image_size=preprocessing.image_size,
        augment=preprocessing.augment(),
        seed=0,
        stage="plain",
        views=1,
        cache_bytes=0,
        skipping=None if skipped is None else Skipping(),
    ) as opened:
        for batch in opened.batches(requests):
            for problem in batch.problems:
                text = f"{problem.file}: {problem.reason}"
                warnings.warn(f"{text}; it gets no score", stacklevel=4)
                assert skipped is not None
                skipped[problem.sample] = text
            regions = None if batch.masks is None else batch.masks[:, 0]
            yield batch.ids, batch.views[:, 0], regions


def levels(images: Tensor, span: tuple[float, float]) -> Tensor:
    """Mean and standard deviation of images (N, ...), as shares of `span`: (N, 2) on the CPU."""
    low, high = span
    flat = (images.detach().float().flatten(1) - low) / (high - low)
    return torch.stack([flat.mean(1), flat.std(1, correction=0)], dim=1).cpu()


class Films(NamedTuple):
    """What an executor is given.

    Attributes:
        masks: for each image its mask file or None; None = no masks.
        made: prepares raw films while they are read; None: all are read as they are.
    """

    masks: list[Path | None] | None
    made: Made | None


def as_trained(
    paths: Sequence[Path],
    masks: Sequence[Path | None] | None,
    body_parts: Sequence[str] | None,
    preprocessing: Preprocessing,
) -> Films:
    """Decide for every file what has to happen to it.

    Args:
        paths: N images, raw or in prepared sets.
        masks: for each its mask or None; None: none are given.
        body_parts: for each, "" where unknown; None: not given.
        preprocessing: of the model.

    Raises:
        InputError: a film was prepared otherwise, or what the model needs is not given.
        ValueError: masks are given to a model that was trained without.
    """
    given = None if masks is None else list(masks)
    if not preprocessing.known:
        return Films(given, None)
    if given is not None and not preprocessing.masked:
        raise ValueError("masks: the model was trained without masks; allowed: None")
    packed = [locate(path) for path in paths]
    _check_sets(paths, packed, preprocessing.prepared)
    raw = [number for number, one in enumerate(packed) if one is None]
    if preprocessing.masked and given is None:
        if preprocessing.prepared is None and paths:
            raise InputError(
                "masks: none are given, but the model was trained on images multiplied by masks; "
                "allowed: a mask for each image (in a manifest, the column mask), None for those "
                "without"
            )
        given = [None if one is None else _mask_in_pack(one) for one in packed]
    if preprocessing.prepared is None or not raw:
        return Films(given, None)
    config = PrepareConfig(**preprocessing.prepared)
    reference = Reference.from_text(preprocessing.reference)
    if config.carrier == "paper" and body_parts is None:
        raise InputError(
            "body_parts: none are given, but the model's films were cropped by the published rule, "
            "which asks for them; allowed: one for each image, '' where unknown"
        )
    parts = list(body_parts or [""] * len(paths))
    if not preprocessing.masked:
        config = dataclasses.replace(config, mask="none")
    regions = list(given or [None] * len(paths))
    pending = set(raw)

    def made(sample: int) -> Sample | None:
        if sample not in pending:
            return None
        part = cleaned(parts[sample]).lower()
        film = usable_film(paths[sample], regions[sample], part, config, reference)
        mask = None if film.mask is None else film.mask.astype(np.uint8) * np.uint8(255)
        return Sample(np.ascontiguousarray(film.image), mask)

    if given is not None:
        given = [None if number in pending else mask for number, mask in enumerate(given)]
    return Films(given, made)


def _check_sets(
    paths: Sequence[Path], packed: Sequence[Packed | None], wanted: Mapping[str, Any] | None
) -> None:
    """Refuse films of sets that were not prepared as the model's own films were."""
    fine: set[Path] = set()
    for path, one in zip(paths, packed, strict=True):
        if one is None or (home := one.pack.folder.parent) in fine:
            continue
        settings = settings_of(home)
        if settings is None or settings != wanted:
            raise InputError(f"{path}: {_difference(settings, wanted)}")
        fine.add(home)


def _difference(settings: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> str:
    if settings is None:
        return f"is in a pack that does not say how it was prepared; {ALLOWED}"
    if wanted is None:
        return (
            "is in a prepared set, but the model was trained on films as they came; allowed: the "
            "raw films"
        )
    name = next(name for name in wanted if settings[name] != wanted[name])
    return (
        f"was prepared with {name} {settings[name]!r}, the model's films with {wanted[name]!r}; "
        f"{ALLOWED}"
    )


def _mask_in_pack(one: Packed) -> Path | None:
    """The path of the mask that a pack holds for an image."""
    if one.pack.records[one.slot]["mask_offset"] < 0:
        return None
    return one.pack.folder / MASKS / one.pack.names[one.slot]
