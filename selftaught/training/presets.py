"""What a preset changes in the settings of a run."""

from collections.abc import Mapping
from typing import Any

from selftaught import methods
from selftaught.data.augment import Preset
from selftaught.training.config import STAGES, flatten

# Presets that are a row of the table, and what they change in it.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("default", {}),
    "quick": ("default", {"data.image_size": 96, "score.neighbours": 20}),
}
# What takes their place where the ImageNet weights are not installed.
WITHOUT_WEIGHTS: dict[str, Preset] = {"default": "eq2", "quick": "eq2-quick"}
# What the others change beside the options of their methods.
OTHERS: dict[str, dict[str, Any]] = {
    "eq2": {},
    "eq2-quick": {"data.image_size": 64, "score.neighbours": 20},
    "paper": {
        "data.evaluation_views": "augmented",
        "prepare.carrier": "paper",
        "prepare.polarity": "paper",
        "prepare.mask": "paper",
        "split.scheme": "paper",
        "model.batch_norm": "plain",
    },
}


def preset_methods(preset: Preset) -> dict[str, str]:
    """The method of each stage."""
    if preset not in ROWS:
        return dict(STAGES)
    system = methods.systems()[ROWS[preset][0]]
    return dict(zip(STAGES, (system.pretext, system.finetune), strict=True))


def preset_overrides(preset: Preset, chosen: Mapping[str, str]) -> dict[str, Any]:
    """What a preset changes against the defaults, by dotted name.

    Args:
        preset: its name.
        chosen: the method of each stage: its options say what the preset changes in them; what a
            row changes in its own method stays with that method.
    """
    changes: dict[str, Any] = {"preset": preset, **OTHERS.get(preset, {})}
    own = preset_methods(preset)
    if preset in ROWS:
        row, more = ROWS[preset]
        for name, value in {**methods.systems()[row].changes, **more}.items():
            stage = name.partition(".")[0]
            if stage not in STAGES or chosen[stage] == own[stage]:
                changes[name] = value
    for stage, name in chosen.items():
        if preset not in ROWS or name != own[stage]:
            presets = methods.load(name).Options.presets
            given = presets.get(preset, presets.get(preset.removeprefix("eq2-"), {}))
            changes |= flatten({stage: given})
    return changes
