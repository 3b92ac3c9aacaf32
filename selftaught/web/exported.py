"""Scores of film files by an exported model: what its films went through, then its graph."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selftaught.data.images.decode import read_grey
from selftaught.errors import InputError
from selftaught.web.scoring import Score

if TYPE_CHECKING:
    from selftaught.export.runtime import Exported


def scorer_of(model: "Exported") -> Score:
    """What scores a raw film as the model's detector does.

    Raises:
        InputError: one film's file is not all that the model needs.
    """
    films = model.facts["preprocessing"]
    prepared, masked = films["prepared"], films["masked"]
    if not films["known"]:
        raise InputError(f"{model.path}: {model.needs}")
    if prepared is None:
        if masked:
            raise InputError(
                f"{model.path}: was trained on images multiplied by masks, which one film does not "
                "bring; allowed: a model without, or one whose films were prepared"
            )
        return lambda path: model.score([read_grey(path)])[0]
    from selftaught.data.prepare.config import PrepareConfig
    from selftaught.data.prepare.film import usable_film
    from selftaught.data.prepare.reference import Reference

    config, reference = PrepareConfig(**prepared), Reference.from_text(films["reference"])
    if config.carrier == "paper":
        raise InputError(
            f"{model.path}: its films were cropped by the published rule, which asks for the body "
            "part; allowed: a model whose carrier is default or none"
        )
    if not masked:
        config = dataclasses.replace(config, mask="none")
    if config.mask != "none":
        try:
            import skimage.filters  # noqa: F401  # missed now, not at the first film
        except ImportError as error:
            raise InputError(
                f"{model.path}: masks are found by the package scikit-image; install it by: pip "
                "install scikit-image"
            ) from error

    def score(path: Path) -> dict[str, Any]:
        film = usable_film(path, None, "", config, reference)
        mask = None if film.mask is None else film.mask.astype(np.uint8) * np.uint8(255)
        return model.score([film.image], [mask] if masked else None, prepared=True)[0]

    return score
