"""The settings a prepared set was made with: in its folder (prepare.json) and in what uses it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from selftaught.data.prepare.config import PrepareConfig
from selftaught.errors import InputError

CLAIM = "prepare.json"


def claimed(config: PrepareConfig) -> dict[str, Any]:
    """The settings that decide what is written, not how fast."""
    fields = dataclasses.fields(config)
    return {
        field.name: getattr(config, field.name)
        for field in fields
        if field.metadata.get("resume") != "free"
    }


def shaping(config: PrepareConfig) -> dict[str, Any]:
    """The settings that decide what becomes of a film: two sets with equal ones look alike."""
    return {name: value for name, value in claimed(config).items() if name != "allow_outside"}


def read_claim(claim: Path) -> dict[str, Any]:
    """A prepare.json: `settings`, `source_sha256`, `format` and `version`.

    Raises:
        InputError: it cannot be read or is damaged.
    """
    try:
        content = json.loads(claim.read_text(encoding="utf-8"))
        return {**content, "settings": dict(content["settings"])}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{claim}: is damaged; delete the folder or choose another") from error


def settings_of(folder: Path) -> dict[str, Any] | None:
    """The `shaping` settings of the set in a folder; None: it holds no such set.

    Raises:
        InputError: its prepare.json is damaged, or says what is not known here.
    """
    claim = folder / CLAIM
    if not claim.is_file():
        return None
    try:
        return shaping(PrepareConfig(**read_claim(claim)["settings"]))
    except TypeError as error:
        raise InputError(f"{claim}: {error}; prepare the films again") from error
