"""Image files as a model's training saw them: taken, prepared first, or refused in one line."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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
