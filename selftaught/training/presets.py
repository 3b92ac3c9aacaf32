"""What a preset changes in the settings of a run."""

from typing import Any

from selftaught.data.augment import Preset
from selftaught.methods import Options
from selftaught.models.bodies import LITE
from selftaught.training.config import flatten

_HEAD_START: dict[str, Any] = {
    "model": {"architecture": LITE, "input_norm": "half"},
    "pretext": {"method": "imagenet"},
    "finetune": {"method": "relative"},
}
# What a preset changes beside the options of its methods.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {**_HEAD_START, "data": {"image_size": 160}},
    "quick": {**_HEAD_START, "data": {"image_size": 96}, "score": {"neighbours": 20}},
    "eq2": {},
    "eq2-quick": {"data": {"image_size": 64}, "score": {"neighbours": 20}},
    "paper": {
        "data": {"evaluation_views": "augmented"},
        "prepare": {"carrier": "paper", "polarity": "paper", "mask": "paper"},
        "split": {"scheme": "paper"},
        "model": {"batch_norm": "plain"},
    },
}
# What takes their place where the ImageNet weights are not installed.
WITHOUT_WEIGHTS: dict[str, Preset] = {"default": "eq2", "quick": "eq2-quick"}


def preset_overrides(
    preset: Preset, pretext: type[Options], finetune: type[Options]
) -> dict[str, Any]:
    """What a preset changes against the defaults, by dotted name.

    Args:
        preset: its name.
        pretext: options of the first stage's method, which say what the preset changes in them.
        finetune: options of the second stage's method.
    """
    sections = dict(PRESETS[preset])
    for stage, options in (("pretext", pretext), ("finetune", finetune)):
        presets = options.presets
        sections[stage] = presets.get(preset, presets.get(preset.removeprefix("eq2-"), {}))
    return flatten({"preset": preset, **sections})
