"""Reads what a run folder holds, as far as it is there."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from selftaught.data.images import bad_files as bad_files_list
from selftaught.errors import InputError
from selftaught.evaluation.metrics import ABLATIONS

NUMBERS = ("label", "semi_label", "score", "center", "percentile", *ABLATIONS)
LONGEST_LIST = 24
NEXT_COMMAND = {"scores.csv": "selftaught score", "metrics.json": "selftaught evaluate"}


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """A run folder in memory.

    Attributes:
        folder: the run folder.
        scores: `scores.csv`, one row an image that could be read; text columns are str, "" where
            blank, numeric ones float64, NaN where blank.
        metrics: `metrics.json`.
        config: `config.yaml`, resolved settings; {} when missing.
        environment: `environment.json`; {} when missing.
        model: `model/model.json`; {} when missing.
        split: `split.csv` with the same types as `scores`; None when missing.
        log: the objects of `metrics.jsonl`, in order.
        embeddings: `embeddings.safetensors`, name (h, z, pretext_h) -> (N, D) float32 in the
            order of `scores`.
        bad_files: `bad_files.csv` as text; None when missing.
        leakage: `leakage` of `split.json`; {} when missing.
        problems: one sentence for every part that is missing or cannot be used.
    """

    folder: Path
    scores: pd.DataFrame
    metrics: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    model: dict[str, Any]
    split: pd.DataFrame | None
    log: list[dict[str, Any]]
    embeddings: dict[str, np.ndarray]
    bad_files: pd.DataFrame | None = None
    leakage: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_run(folder: Path) -> RunFiles:
    """Read a run folder; only `scores.csv` and `metrics.json` have to be there.

    Args:
        folder: the run folder.

    Returns:
        Its content; what is missing or damaged is listed in `problems`.

    Raises:
        InputError: no folder, `scores.csv` or `metrics.json` missing or unreadable.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder")
    for name, command in NEXT_COMMAND.items():
        if not (folder / name).is_file():
            raise InputError(f"{folder}: holds no {name}; `{command}` writes it")
    problems: list[str] = []
    scores = read_table(folder / "scores.csv")
    for column in ("path", "split", "label", "score"):
        if column not in scores:
            raise InputError(f"{folder / 'scores.csv'}: column {column} is missing")
    if "problem" in scores:
        scores = scores[(scores["problem"] == "") | scores["score"].notna()]
        scores = scores.reset_index(drop=True)
    bad_files = folder / bad_files_list.NAME
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / 'metrics.json'}: not JSON: {error}") from error
    if not isinstance(metrics, dict):
        raise InputError(
            f"{folder / 'metrics.json'}: holds a {type(metrics).__name__}, not figures"
        )
    has_split = (folder / "split.csv").is_file()
    return RunFiles(
        folder=folder,
        scores=scores,
        metrics=metrics,
        config=read_mapping(folder / "config.yaml", problems),
        environment=read_mapping(folder / "environment.json", problems),
        model=read_mapping(folder / "model" / "model.json", problems),
        split=read_table(folder / "split.csv") if has_split else None,
        log=list(read_log(folder / "metrics.jsonl")),
        bad_files=bad_files_list.read_bad_files(bad_files) if bad_files.is_file() else None,
        leakage=_leakage(folder),
        embeddings=_embeddings(folder / "embeddings.safetensors", len(scores), problems),
        problems=problems,
    )


def find_image_root(run: RunFiles) -> Path | None:
    """The folder that the image paths of a run are relative to; None when it is not recorded.

    Args:
        run: the run folder.
    """
    recorded = run.environment.get("image_root")
    if isinstance(recorded, str) and recorded:
        return Path(recorded)
    data = run.config.get("data")
    manifest = data.get("manifest") if isinstance(data, dict) else None
    if not isinstance(manifest, str) or not manifest:
        return None
    path = Path(manifest)
    return path if path.is_dir() else path.parent


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and text of every leaf of a nested mapping; of a long list only its length."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{name}.")
        elif isinstance(value, list) and len(value) > LONGEST_LIST:
            yield name, f"{len(value)} values"
        else:
            yield name, value if isinstance(value, str) else json.dumps(value, default=str)


def read_table(path: Path) -> pd.DataFrame:
    """A CSV whose text stays text: a body part called "NA" is not a blank."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    for column in NUMBERS:
        if column in table:
            table[column] = pd.to_numeric(table[column], errors="coerce").astype("float64")
    return table


def _leakage(folder: Path) -> dict[str, Any]:
    """The counts of what crosses the sets; {} where nobody looked."""
    if not (folder / "split.json").is_file():
        return {}
    facts = read_mapping(folder / "split.json", []).get("leakage")
    return facts if isinstance(facts, dict) else {}


def read_mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    """A YAML or JSON mapping; {} and a sentence in `problems` when it cannot be had."""
    if not path.is_file():
        problems.append(f"{path.name} is missing from the run folder.")
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (ValueError, yaml.YAMLError):
        problems.append(f"{path.name} cannot be read.")
        return {}
    return values if isinstance(values, dict) else {}


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file; a line torn by a kill is passed over."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


def _embeddings(path: Path, rows: int, problems: list[str]) -> dict[str, np.ndarray]:
    """Finite embeddings with one row an image, by name."""
    if not path.is_file():
        problems.append(f"{path.name} is missing from the run folder.")
        return {}
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError):
        problems.append(f"{path.name} cannot be read.")
        return {}
    usable = {}
    for name, tensor in sorted(tensors.items()):
        if tensor.ndim != 2 or len(tensor) != rows or not np.isfinite(tensor).all():
            problems.append(
                f"{path.name}: {name} has shape {tensor.shape} or holds non-finite values; "
                f"{rows} finite rows are needed, one for each row of scores.csv."
            )
        else:
            usable[name] = tensor
    return usable
