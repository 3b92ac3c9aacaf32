"""Settings of the views: the table of the paper, and what is refused."""

import dataclasses

import pytest

from selftaught.data.plan import PLAIN, Augment, finetune_augment, plain, pretext_augment

PRETEXT = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.0,
    "brightness": (1.0, 1.0),
    "scale": (0.8, 1.2),
    "rotation": (-45.0, 45.0),
    "crop_area": (0.4, 1.0),
    "crop_ratio": (0.8, 1.25),
    "crop_tries": 10,
    "color": 0.8,
    "color_brightness": (0.6, 1.4),
    "color_contrast": (0.6, 1.4),
    "blur": 0.5,
    "blur_sigma": (0.1, 2.0),
    "autocontrast": 1.0,
}
FINETUNE = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "brightness": (0.8, 1.2),
    "scale": (0.8, 1.2),
    "rotation": (-20.0, 20.0),
    "crop_area": (1.0, 1.0),
    "color": 0.0,
    "blur": 0.0,
    "autocontrast": 1.0,
}
CORRECTED = {
    "rotation_steps": "continuous",
    "crop_box": "intended",
    "scale_pivot": "center",
    "order": "composed",
    "mask_scale": 1,
}
PUBLISHED = {
    "rotation_steps": "integer",
    "crop_box": "published",
    "scale_pivot": "corner",
    "order": "published",
}


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        (pretext_augment("default"), PRETEXT | CORRECTED),
        (pretext_augment("quick"), PRETEXT | CORRECTED),
        (finetune_augment("default"), FINETUNE | CORRECTED),
        (pretext_augment("paper"), PRETEXT | PUBLISHED | {"mask_scale": 255}),
        (finetune_augment("paper"), FINETUNE | PUBLISHED | {"mask_scale": 1}),
    ],
)
def test_presets_are_the_table(augment: Augment, expected: dict[str, object]) -> None:
    settings = dataclasses.asdict(augment)
    assert {name: settings[name] for name in expected} == expected


def test_plain_keeps_preparation_and_scale_only() -> None:
    assert plain(pretext_augment("default")) == PLAIN == Augment()
    published = plain(pretext_augment("paper"))
    assert published == Augment(order="published", mask_scale=255)
    assert (PLAIN.input_range, published.input_range) == ((0.0, 1.0), (0.0, 255.0))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"horizontal_flip": 1.5}, "horizontal_flip 1.5: a probability"),
        ({"blur": float("nan")}, "blur nan"),
        ({"scale": (0.0, 1.0)}, r"scale \(0, 1\): allowed low <= high, above 0 to 10"),
        ({"scale": (1.2, 0.8)}, "scale"),
        ({"rotation": (-200, 0)}, "rotation"),
        ({"brightness": (1.0,)}, "brightness .*two numbers"),
        ({"brightness": 1.0}, "brightness .*two numbers"),
        ({"color_contrast": (0.5, float("inf"))}, "color_contrast"),
        ({"crop_area": (0.4, 1.5)}, "crop_area"),
        ({"crop_tries": 11}, "crop_tries 11: allowed 1 to 10"),
        ({"autocontrast": 50}, "autocontrast 50"),
        ({"mask_scale": 2}, "mask_scale 2: allowed"),
        ({"order": "other"}, "order 'other'"),
        ({"crop_box": "published", "crop_area": (0.1, 1.0)}, "crop_box published"),
    ],
)
def test_refusals_name_the_setting(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Augment(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_lists_from_a_file_become_tuples() -> None:
    augment = Augment(**dataclasses.asdict(pretext_augment("paper")) | {"scale": [0.8, 1.2]})
    assert augment == pretext_augment("paper") and hash(augment) == hash(pretext_augment("paper"))


def test_unknown_preset() -> None:
    for factory in (pretext_augment, finetune_augment):
        with pytest.raises(ValueError, match="preset 'best': allowed default, quick, eq2"):
            factory("best")
