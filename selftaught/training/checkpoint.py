"""Checkpoints that are complete or absent, checked when read.

```
checkpoints/<stage>/step-00000120/
    weights.safetensors     the task's parameters and buffers (centres and pruning included)
    optimizer.safetensors   the optimizer's state (Adam: moments and step counts)
    average.safetensors     averaged weights and buffers, only where a stage has such
    state.json              step, the loop's running figures, SHA-256 of these files and of itself
checkpoints/best/
    weights.safetensors     of the epoch that was validated best, averaged where there is an average
    best.json               epoch, val_auroc, SHA-256 of the weights
```
A checkpoint is written to a hidden folder, fsynced and renamed; the one before the previous is
deleted only afterwards. Reading takes the newest one whose checksums hold. Nothing else in these
folders is touched; a damaged checkpoint is put aside as `damaged-step-00000120`.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from selftaught.errors import InputError, MachineError
from selftaught.files import (
    Content,
    disk_full,
    free_bytes,
    machine_errors,
    sha256,
    write_atomic,
    write_folder,
)
from selftaught.training.folder import check_held

KEEP = 2
NAME = re.compile(r"step-\d{8}")
# What a damaged file or disk gives when read; anything else may be gone the next time.
DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)
TENSORS = ("weights.safetensors", "optimizer.safetensors")
AVERAGE = "average.safetensors"
STATE = "state.json"
BEST = "best.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a loop needs to go on: `step` optimizer steps are done.

    `average` holds those of the weights that are averaged, if any are.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    figures: dict[str, Any]
    average: dict[str, Tensor] = field(default_factory=dict)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def check_room(folder: Path, *weights: Mapping[str, Tensor]) -> None:
    """Refuse to begin where not even the weights of one more checkpoint have room.

    Raises:
        MachineError: the disk is that full.
    """
    size = sum(map(_size, weights))
    if 0 <= free_bytes(folder) < size:
        raise disk_full(folder, size)


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` below `folder` and drop all but the newest two.

    A whole checkpoint of the same step is kept as it is: it holds the same.

    Returns:
        The checkpoint's folder.

    Raises:
        MachineError: the disk is full or read-only, or the run folder is gone; earlier
            checkpoints are intact.
    """
    check_held(folder)
    final = folder / f"step-{checkpoint.step:08d}"
    if final.exists() and _is_whole(final):
        return final
    tensors = dict(zip(TENSORS, (checkpoint.weights, checkpoint.optimizer), strict=True))
    if checkpoint.average:
        tensors[AVERAGE] = checkpoint.average
    size = sum(map(_size, tensors.values()))
    with machine_errors(final, size):
        if final.exists():
            _put_aside(final)
    contents: dict[str, Content] = {
        name: partial(save_file, _contiguous(content)) for name, content in tensors.items()
    }
    state: dict[str, Any] = {"step": checkpoint.step, "figures": checkpoint.figures}

    def write_state(path: Path) -> None:
        state["sha256"] = _digests(path.parent, state, tensors)
        path.write_text(json.dumps(state, indent=1), encoding="utf-8")

    write_folder(final, {**contents, STATE: write_state}, size=size)
    for old in _folders(folder)[:-KEEP]:
        shutil.rmtree(old)
    return final


def _folders(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.glob("step-*")
        if NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    )


def _put_aside(path: Path) -> None:
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)


def put_aside_after(folder: Path, step: int) -> None:
    """Rename the checkpoints newer than `step`, which are damaged, so that they do not count."""
    for path in _folders(folder):
        if int(path.name.removeprefix("step-")) > step:
            _put_aside(path)


def _digests(path: Path, state: dict[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Checksums of the tensor files and of what state.json itself says."""
    found = {name: sha256(path / name) for name in names}
    own = json.dumps([state["step"], state["figures"]])
    return {**found, STATE: hashlib.sha256(own.encode()).hexdigest()}


def _verified(path: Path) -> dict[str, Any]:
    """state.json, where all checksums in it hold."""
    state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    for name, digest in _digests(path, state, _names(state)).items():
        if digest != state["sha256"][name]:
            raise InputError(f"{path / name}: checksum differs from {STATE}: damaged file")
    return state


def _names(state: Mapping[str, Any]) -> tuple[str, ...]:
    """Tensor files of a checkpoint with this state.json."""
    return (*TENSORS, AVERAGE) if AVERAGE in state["sha256"] else TENSORS


def _is_whole(path: Path) -> bool:
    try:
        _verified(path)
    except (OSError, KeyError, TypeError, ValueError):
        return False
    return True


def read(path: Path) -> Checkpoint:
    """Read one checkpoint folder.

    Raises:
        InputError: something is missing or a checksum does not hold.
        MachineError: it cannot be read now, for another reason than damage.
    """
    try:
        state = _verified(path)
        weights, optimizer, *average = (load_file(path / name) for name in _names(state))
        return Checkpoint(
            step=int(state["step"]),
            weights=weights,
            optimizer=optimizer,
            figures=state["figures"],
            average=average[0] if average else {},
        )
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        if isinstance(error, OSError) and error.errno not in DAMAGE:
            raise MachineError(f"{error.filename}: cannot be read: {error.strerror}") from error
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: damaged checkpoint: {type(error).__name__}: {reason}") from error


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and a sentence for each newer one that is not."""
    problems: list[str] = []
    left = _folders(folder)
    while left:
        try:
            return read(left.pop()), problems
        except InputError as error:
            then = "using the one before" if left else "none is left, the stage begins anew"
            problems.append(f"{error}; {then}")
    return None, problems


def keep_best(folder: Path, weights: Mapping[str, Tensor], epoch: int, value: float) -> None:
    """Keep the state of an epoch that was validated better than all before it.

    What was kept at `epoch` or later is of steps that were lost and are done again.

    Raises:
        MachineError: the disk is full or read-only.
    """
    kept = _best(folder)
    if kept and kept[0] < epoch and kept[1] >= value:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / TENSORS[0]
    write_atomic(path, lambda temporary: save_file(_contiguous(dict(weights)), temporary))
    note = {"epoch": epoch, "val_auroc": value, "sha256": sha256(path)}
    write_atomic(folder / BEST, json.dumps(note))


def has_best(folder: Path) -> bool:
    """Whether some epoch was validated."""
    return (folder / BEST).exists()


def read_best(folder: Path) -> dict[str, Tensor]:
    """The state of the epoch that was validated best.

    Raises:
        InputError: it is damaged.
    """
    if _best(folder) is None:
        raise InputError(f"{folder / TENSORS[0]}: checksum differs from {BEST}: damaged file")
    return load_file(folder / TENSORS[0])


def _best(folder: Path) -> tuple[int, float] | None:
    """Epoch and validation AUROC of the best epoch; None: there is none, or it is damaged."""
    try:
        facts = json.loads((folder / BEST).read_text(encoding="utf-8"))
        whole = sha256(folder / TENSORS[0]) == facts["sha256"]
        return (int(facts["epoch"]), float(facts["val_auroc"])) if whole else None
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None
