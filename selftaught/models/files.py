"""The model folder: weights, centres and facts that are complete, checked and never pickled.

```
model/
    encoder.safetensors   encoder and head
    centers.safetensors   `centers` (K, D) float32
    model.json            format, architecture, facts (preprocessing, threshold, ...), SHA-256s
```
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from selftaught.errors import InputError
from selftaught.files import fsync_file, fsync_folder, machine_errors
from selftaught.models.encoder import EncoderConfig
from selftaught.models.heads import Embedder
from selftaught.models.weights import check_finite, check_tensors

FORMAT = 1
ENCODER, CENTERS, FACTS = "encoder.safetensors", "centers.safetensors", "model.json"
RESERVED = ("format", "architecture", "sha256")
HEADER_BYTES = 1 << 20
FACTS_BYTES = 64 << 20


class LoadedModel(NamedTuple):
    """What a model folder holds, on the CPU.

    Attributes:
        embedder: in evaluation mode.
        centers: (K, D) float32.
        facts: as given to `save_model`, with its defaults filled in.
    """

    embedder: Embedder
    centers: Tensor
    facts: dict[str, Any]


def save_model(folder: Path, embedder: Embedder, centers: Tensor, facts: Mapping[str, Any]) -> Path:
    """Write a model folder in one step, replacing an earlier model there.

    A kill at any moment leaves the earlier or the new model readable by `load_model`.

    Args:
        folder: the model folder; its parent must exist.
        embedder: encoder and head on any device; stored as float32.
        centers: (K, D) with D the head's output width.
        facts: JSON values. `preprocessing` is required, with `image_size` (int) and
            `input_range` ([low, high]); `threshold` (float, default None), `normal_scores`
            (scores of normal validation images, any order, default none), `training` (default
            empty) and any further keys are kept.

    Returns:
        `folder`.

    Raises:
        ValueError: centres or facts are not as described.
        InputError: `folder` holds something that is not a model.
        MachineError: the disk is full or read-only; the earlier model is intact.
    """
    folder = Path(folder)
    centers = torch.as_tensor(centers).detach()
    width = embedder.head.widths[-1]
    if centers.ndim != 2 or len(centers) < 1 or centers.shape[1] != width:
        raise ValueError(f"centers: shape {tuple(centers.shape)}, must be (K >= 1, {width})")
    if taken := [key for key in RESERVED if key in facts]:
        raise ValueError(f"facts: {taken[0]!r} is written by save_model, must not be given")
    kept = {"threshold": None, "training": {}, **facts}
    kept["normal_scores"] = sorted(float(score) for score in facts.get("normal_scores", ()))
    try:
        kept = json.loads(json.dumps(kept, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"facts: must be JSON values: {error}") from error
    _check_facts(kept, "facts", ValueError)
    contents = {
        ENCODER: _bytes(embedder.state_dict()),
        CENTERS: _bytes({"centers": centers.float()}),
    }
    architecture = {
        "encoder": asdict(embedder.encoder.config),
        "head_widths": list(embedder.head.widths),
        "centers": len(centers),
    }
    document = {"format": FORMAT, "architecture": architecture, **kept}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    document["sha256"] = {**digests, "facts": _digest(document)}
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    _replace_folder(folder, {**contents, FACTS: text.encode()})
    return folder


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file's content; raises ValueError for values that are not finite."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    plain = {name: t.float() if t.is_floating_point() else t for name, t in plain.items()}
    check_finite(plain, "model not written")
    return save(plain)


def _digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of everything in model.json but its checksums."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_facts(document: Mapping[str, Any], where: str, kind: type[ValueError]) -> None:
    """Raise `kind` unless the facts that a scorer relies on are there and sensible."""
    preprocessing = document.get("preprocessing")
    if not isinstance(preprocessing, Mapping):
        raise kind(f"{where}: preprocessing={preprocessing!r}, must be an object")
    size, limits = preprocessing.get("image_size"), preprocessing.get("input_range")
    if type(size) is not int or size < 1:
        raise kind(f"{where}: preprocessing.image_size={size!r}, must be a whole number >= 1")
    pair = list(limits) if isinstance(limits, (list, tuple)) else []
    if len(pair) != 2 or not all(_is_number(v) for v in pair) or pair[0] >= pair[1]:
        raise kind(f"{where}: preprocessing.input_range={limits!r}, must be [low, high]")
    threshold, scores = document.get("threshold"), document.get("normal_scores")
    if threshold is not None and not _is_number(threshold):
        raise kind(f"{where}: threshold={threshold!r}, must be a finite number or null")
    if not isinstance(scores, list) or not all(_is_number(score) for score in scores):
        raise kind(f"{where}: normal_scores must be a list of finite numbers")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _aside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


def _replace_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write `contents` beside `folder`, then rename; the earlier one waits as `.NAME.previous`."""
    temporary, previous = _aside(folder, "tmp"), _aside(folder, "previous")
    with machine_errors(folder):
        if folder.is_file():
            raise InputError(f"{folder}: is a file, must be absent, empty or a model folder")
        if folder.exists():
            others = sorted({entry.name for entry in folder.iterdir()} - {ENCODER, CENTERS, FACTS})
            if others:
                raise InputError(
                    f"{folder}: holds {others[0]!r}, must be absent, empty or a model folder"
                )
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for name, content in contents.items():
                (temporary / name).write_bytes(content)
                fsync_file(temporary / name)
            fsync_folder(temporary)
            if folder.exists():
                shutil.rmtree(previous, ignore_errors=True)
                os.replace(folder, previous)
            os.replace(temporary, folder)
            fsync_folder(folder.parent)
            shutil.rmtree(previous, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def load_model(folder: Path) -> LoadedModel:
    """Read a model folder; every byte is checked before any of it is used.

    Args:
        folder: written by `save_model`.

    Returns:
        The embedder, its centres and the facts.

    Raises:
        InputError: something is missing, damaged, of another format or architecture, not finite,
            or not safetensors (pickles are never read).
    """
    folder = Path(folder)
    previous = _aside(folder, "previous")
    if not folder.exists() and previous.exists():
        # A writer was killed between its two renames; the earlier model is complete.
        folder = previous
    document = _read_facts(folder / FACTS)
    embedder = _empty_embedder(document, folder / FACTS)
    where = folder / CENTERS
    shape = (document["architecture"]["centers"], embedder.head.widths[-1])
    tensors = _read_tensors(where, document["sha256"][CENTERS], 4 * shape[0] * shape[1])
    check_tensors(tensors, {"centers": torch.empty(shape, device="meta")}, where)
    where = folder / ENCODER
    expected = embedder.state_dict()
    limit = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    state = _read_tensors(where, document["sha256"][ENCODER], limit)
    check_tensors(state, expected, where)
    embedder.load_state_dict(state, assign=True)
    facts = {key: value for key, value in document.items() if key not in RESERVED}
    return LoadedModel(embedder.eval(), tensors["centers"], facts)


def _read(path: Path, limit: int) -> bytes:
    """A file's bytes, refused above `limit` before they are read."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise InputError(f"{path}: {size} bytes, at most {limit} fit this model")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _read_facts(path: Path) -> dict[str, Any]:
    """model.json, with its own checksum and the parts that loading needs checked."""
    content = _read(path, FACTS_BYTES)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged: not valid JSON") from error
    if not isinstance(document, dict) or not isinstance(document.get("sha256"), dict):
        raise InputError(f"{path}: not a model's facts: must be an object with sha256")
    if document.get("format") != FORMAT:
        raise InputError(f"{path}: format {document.get('format')!r}, must be {FORMAT}")
    digests = document["sha256"]
    if not all(isinstance(digests.get(name), str) for name in (ENCODER, CENTERS, "facts")):
        raise InputError(f"{path}: sha256 must name {ENCODER}, {CENTERS} and facts")
    try:
        intact = _digest(document) == digests["facts"]
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise InputError(f"{path}: damaged or edited: its content does not match its checksum")
    _check_facts(document, str(path), InputError)
    return document


def _empty_embedder(document: Mapping[str, Any], where: Path) -> Embedder:
    """The stored architecture without memory, so that nothing is allocated before it is checked."""
    try:
        architecture = document["architecture"]
        widths = [int(width) for width in architecture["head_widths"]]
        if type(architecture["centers"]) is not int or architecture["centers"] < 1:
            raise ValueError(f"centers={architecture['centers']!r}: must be a whole number >= 1")
        with torch.device("meta"):
            return Embedder(EncoderConfig(**architecture["encoder"]), widths)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise InputError(f"{where}: architecture cannot be built: {reason}") from error


def _read_tensors(path: Path, digest: str, limit: int) -> dict[str, Tensor]:
    """Tensors of a safetensors file whose bytes have the given SHA-256."""
    content = _read(path, limit + HEADER_BYTES)
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(f"{path}: damaged: its SHA-256 is not the one in {FACTS}")
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise InputError(f"{path}: not a safetensors file: {reason}") from error
