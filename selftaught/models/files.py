"""The model folder: method, weights and what films need, complete, checked and never pickled.

```
model/
    weights.safetensors   the task's state
    bank.safetensors      features of training images, where the method has features
    encoder.pt, .pt2      the encoder's program, where it was given as a file
    maps.json             scale of heat maps, once `selftaught maps` has fixed it
    model.json            format, method, options, network, preprocessing, calibration, training,
                          bank, SHA-256s
```
Models of the first format, which spheres alone could have, are read too.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from selftaught.errors import InputError
from selftaught.files import Content, standing, write_folder
from selftaught.models import bodies, first_format
from selftaught.models.bank import Bank
from selftaught.models.calibration import Calibration
from selftaught.models.encoder import measured
from selftaught.models.network import MEASURED, Network
from selftaught.models.preprocessing import Preprocessing
from selftaught.models.weights import check_finite, check_tensors

FORMAT = 2
WEIGHTS, BANK, FACTS = "weights.safetensors", "bank.safetensors", "model.json"
PROGRAMS = ("encoder.pt", "encoder.pt2")
MAPS = "maps.json"  # of `selftaught.maps.scale`; of one model, so that no other inherits it
HEADER_BYTES = 1 << 20
FACTS_BYTES = 64 << 20
WEIGHTS_BYTES = 8 << 30


class Trained(Protocol):
    """What is saved of a task (`selftaught.methods.Task`)."""

    options: Any
    network: Network

    def state_dict(self) -> Mapping[str, Tensor]:
        """All that was learnt."""


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """What a model folder holds, on the CPU.

    Attributes:
        path: the file that all but the state is from.
        method: name of the method, or the dotted path of its task.
        options: of the method, as JSON values.
        network: what its networks are built from, as JSON values; an encoder's program by the
            path of its file in this folder.
        preprocessing: what films went through.
        calibration: what a score means.
        training: facts about the training, as JSON values.
        state: of the task.
        bank: what it remembers of its training images; None where nothing was stored.
        sha256: of the files of tensors and programs by name.
    """

    path: Path
    method: str
    options: dict[str, Any]
    network: dict[str, Any]
    preprocessing: Preprocessing
    calibration: Calibration
    training: dict[str, Any]
    state: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    bank: Bank | None = None
    sha256: dict[str, str] = dataclasses.field(default_factory=dict)


def save_model(
    folder: Path,
    task: Trained,
    preprocessing: Preprocessing,
    calibration: Calibration,
    training: Mapping[str, Any] | None = None,
    bank: Bank | None = None,
) -> Path:
    """Write a model folder in one step, replacing an earlier model there.

    A kill at any moment leaves the earlier or the new model readable by `read_model`.

    Args:
        folder: the model folder; its parent must exist.
        task: on any device; floating point is stored as float32.
        preprocessing: what the training's films went through.
        calibration: what a score means.
        training: any facts, as JSON values.
        bank: what the model remembers of its training images.

    Returns:
        `folder`.

    Raises:
        ValueError: the task's options name no method, or facts are no JSON values.
        InputError: `folder` holds something that is not a model, or weights are not finite.
        MachineError: the disk is full or read-only; the earlier model is intact.
    """
    if isinstance(task, nn.Module) and not hasattr(task, "options"):
        # As programs of before call it: an embedder, its centres (K, D), and facts of format 1.
        known, state = first_format.from_embedder(task, preprocessing, calibration)
        films = Preprocessing.from_facts(known.pop("preprocessing"))
        scores = Calibration.from_facts(known.pop("calibration"))
        return _write(folder, known, films, scores, state)
    options = dataclasses.asdict(task.options)
    method = options.pop("method")
    if not method:
        raise ValueError("task.options.method is ''; allowed: the name of its method")
    facts = {
        "method": method,
        "options": options,
        "network": task.network.facts(),
        "training": dict(training or {}),
    }
    programs = {}
    if isinstance(task, nn.Module) and (sizes := measured(task)):
        facts["network"][MEASURED] = sizes
    encoder = task.network.encoder
    if bodies.is_file(encoder.architecture):
        path = Path(encoder.architecture)
        name = PROGRAMS[path.suffix == bodies.EXPORTED]
        programs[name] = bodies.program_bytes(path, encoder.digest)
        facts["network"]["encoder"]["architecture"] = name
    return _write(folder, facts, preprocessing, calibration, task.state_dict(), bank, programs)


def _write(
    folder: Path,
    facts: Mapping[str, Any],
    preprocessing: Preprocessing,
    calibration: Calibration,
    state: Mapping[str, Tensor],
    bank: Bank | None = None,
    programs: Mapping[str, bytes] | None = None,
) -> Path:
    parts = {WEIGHTS: _bytes(state), **(programs or {})}
    if bank is not None:
        parts[BANK] = _bytes(bank.state_dict())
        facts = {**facts, "bank": bank.facts()}
    document: dict[str, Any] = {
        "format": FORMAT,
        **facts,
        "preprocessing": preprocessing.facts(),
        "calibration": calibration.facts(),
    }
    older = (*first_format.FILES, BANK, *PROGRAMS, MAPS)
    return _write_parts(Path(folder), document, parts, older)


def _write_parts(
    folder: Path,
    document: dict[str, Any],
    parts: Mapping[str, bytes],
    replaces: Collection[str] = (),
) -> Path:
    """Write the files of a model and model.json, which says their checksums and its own."""
    try:
        document = json.loads(json.dumps(document, allow_nan=False, default=_number))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder}: options and facts must be JSON values: {error}") from error
    digests = {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}
    document["sha256"] = {**digests, "facts": _digest(document)}
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    contents: dict[str, Content] = {**parts, FACTS: text}
    return write_folder(folder, contents, replaces=replaces, size=sum(map(len, parts.values())))


def recalibrated(
    source: Path, folder: Path, calibration: Calibration, facts: Mapping[str, Any]
) -> Path:
    """Write a copy of a model with another calibration; all else in it stays byte by byte.

    Args:
        source: a model folder, which is only read.
        folder: the copy; one that exists is refused, as nothing may be replaced by it.
        calibration: of the copy.
        facts: how it was calibrated, as JSON values: `training.calibrated` of the copy.

    Returns:
        `folder`.

    Raises:
        InputError: `folder` exists; `source` is incomplete, damaged or of the first format.
        MachineError: the disk is full or read-only.
    """
    source, folder = standing(Path(source)), Path(folder)
    if folder.exists() or folder.is_symlink():
        raise InputError(f"{folder}: exists; allowed: a new folder, as no model is replaced")
    document = _read_facts(source / FACTS)
    if document["format"] != FORMAT:
        raise InputError(f"{source}: is of format {document['format']}; allowed: {FORMAT}")
    digests = {name: one for name, one in document.pop("sha256").items() if name != "facts"}
    if outside := [name for name in digests if Path(name).name != name]:
        raise InputError(f"{source / FACTS}: names the file {outside[0]!r}; allowed: names alone")
    parts = {name: _checked(source / name, one, WEIGHTS_BYTES) for name, one in digests.items()}
    document["calibration"] = calibration.facts()
    document["training"] = {**document["training"], "calibrated": dict(facts)}
    _write_parts(folder, document, parts)
    if (source / MAPS).is_file():  # of the same tensors
        shutil.copyfile(source / MAPS, folder / MAPS)
    return folder


def _number(value: Any) -> Any:
    """The Python number of a NumPy one, for JSON."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return json.JSONEncoder().default(value)


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file's content; refuses values that are not finite."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    plain = {name: t.float() if t.is_floating_point() else t for name, t in plain.items()}
    check_finite(plain, "model not written")
    return save({name: tensor.clone() for name, tensor in plain.items()})


def _digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of everything in model.json but its checksums."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def model_folder(path: Path) -> Path:
    """The model folder that a path means: itself, or the model of a run folder."""
    inside = path / "model"
    return inside if standing(inside).is_dir() and not (path / FACTS).exists() else path


def read_model(
    folder: Path, expected: Callable[[StoredModel], Mapping[str, Tensor]] | None = None
) -> StoredModel:
    """Read a model folder; every byte is checked before any of it is used.

    Args:
        folder: written by `save_model`.
        expected: gives the state, on the meta device, that the weights must have the names, shapes
            and types of, from what is known before they are read.

    Raises:
        InputError: something is missing, damaged, of another format, not finite, other than
            `expected`, or not safetensors (pickles are never read).
    """
    folder = standing(Path(folder))
    document = _read_facts(folder / FACTS)
    stored = _stored(document, folder / FACTS)
    if name := _program(document):
        _checked(folder / name, document["sha256"][name], WEIGHTS_BYTES)
        stored.network["encoder"] = {
            **stored.network["encoder"],
            "architecture": str((folder / name).absolute()),
        }
    wanted = None if expected is None else expected(stored)
    limit = WEIGHTS_BYTES
    if wanted is not None:
        needed = sum(tensor.numel() * tensor.element_size() for tensor in wanted.values())
        limit = min(limit, needed + HEADER_BYTES)
    names = (WEIGHTS,) if document["format"] == FORMAT else first_format.TENSORS
    parts = {name: _read_tensors(folder / name, document["sha256"][name], limit) for name in names}
    state = parts[WEIGHTS] if WEIGHTS in parts else first_format.state(parts)
    where = folder / names[0]
    if wanted is None:
        check_finite(state, where)
    else:
        check_tensors(state, wanted, where if len(names) == 1 else folder)
    if stored.bank is not None:
        blank, kept = stored.bank.state_dict(), folder / BANK
        limit = sum(4 * tensor.numel() for tensor in blank.values()) + HEADER_BYTES
        tensors = _read_tensors(kept, document["sha256"][BANK], min(limit, WEIGHTS_BYTES))
        check_tensors(tensors, blank, kept)
        stored.bank.load_state_dict(tensors, assign=True)
    return dataclasses.replace(stored, state=state)


def _stored(document: Mapping[str, Any], where: Path) -> StoredModel:
    """What model.json says, checked; options and network are for the method to check."""
    digests = {name: one for name, one in document["sha256"].items() if name != "facts"}
    try:
        if document["format"] != FORMAT:
            document = first_format.translated(document)
        for name in ("options", "network", "preprocessing", "calibration", "training"):
            if not isinstance(document[name], Mapping):
                raise ValueError(f"{name}={document[name]!r}, must be an object")
        if not isinstance(document["method"], str):
            raise ValueError(f"method={document['method']!r}, must be a name")
        return StoredModel(
            path=where,
            method=document["method"],
            options=dict(document["options"]),
            network=dict(document["network"]),
            preprocessing=Preprocessing.from_facts(document["preprocessing"]),
            calibration=Calibration.from_facts(document["calibration"]),
            training=dict(document["training"]),
            bank=Bank.from_facts(document["bank"]) if "bank" in document else None,
            sha256=digests,
        )
    except KeyError as error:
        raise InputError(f"{where}: lacks {error}") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{where}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
    """model.json, with its own checksum checked."""
    content = _read(path, FACTS_BYTES)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged: not valid JSON") from error
    if not isinstance(document, dict) or not isinstance(document.get("sha256"), dict):
        raise InputError(f"{path}: not a model's facts: must be an object with sha256")
    written = {FORMAT: (WEIGHTS,), first_format.FORMAT: first_format.TENSORS}
    kind = document.get("format")
    if type(kind) is not int or kind not in written:
        raise InputError(f"{path}: format {kind!r}, must be {first_format.FORMAT} or {FORMAT}")
    more = [BANK] * ("bank" in document) + [_program(document)] * bool(_program(document))
    digests, names = document["sha256"], (*written[kind], *more * (kind == FORMAT), "facts")
    if not all(isinstance(digests.get(name), str) for name in names):
        raise InputError(f"{path}: sha256 must name {', '.join(names)}")
    try:
        intact = _digest(document) == digests["facts"]
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise InputError(f"{path}: damaged or edited: its content does not match its checksum")
    return document


def _program(document: Mapping[str, Any]) -> str:
    """Name of the file that holds the encoder's program; "" where there is none."""
    try:
        name = document["network"]["encoder"]["architecture"]
    except (KeyError, TypeError):
        return ""
    return name if name in PROGRAMS else ""


def _checked(path: Path, digest: str, limit: int) -> bytes:
    """A file's bytes, which have the given SHA-256."""
    content = _read(path, limit)
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(f"{path}: damaged: its SHA-256 is not the one in {FACTS}")
    return content


def _read_tensors(path: Path, digest: str, limit: int) -> dict[str, Tensor]:
    """Tensors of a safetensors file whose bytes have the given SHA-256."""
    content = _checked(path, digest, limit)
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a safetensors file: {first_line(error)}") from error
