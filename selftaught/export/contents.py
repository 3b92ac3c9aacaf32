"""What an exported file holds: the facts in its metadata, and checksums over all of it.

NumPy alone, without torch: the box that scores films reads them too.
"""

import base64
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from selftaught.errors import InputError

KEY = "selftaught"  # of the metadata
FORMAT = 1
METADATA = 14  # number of the field of an ONNX ModelProto
SUFFIXES = (".onnx", ".pt2")
LARGEST_GOLDEN = 1 << 26  # bytes of a golden film


def read_facts(path: Path) -> dict[str, Any]:
    """The facts that a file holds; its checksums are those of its content.

    Raises:
        InputError: it is missing, damaged, altered, or none of ours.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: allowed: a file of `selftaught export`, {' or '.join(SUFFIXES)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    digest, text = split(path, content)
    if text is None:
        raise InputError(f"{path}: has no facts of `selftaught export`; allowed: a file it wrote")
    try:
        facts = json.loads(text)
        sums = facts["sha256"]
        if facts["format"] != FORMAT:
            raise InputError(f"{path}: format {facts['format']!r}, must be {FORMAT}")
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: its facts are damaged") from error
    if sums.get("facts") != digest_of(facts):
        raise InputError(f"{path}: altered: its facts do not match their checksum")
    if sums.get("graph") != digest:
        raise InputError(f"{path}: altered: its graph or weights do not match their checksum")
    return dict(facts)


def split(path: Path, content: bytes) -> tuple[str, str | None]:
    """SHA-256 of all but the metadata, and the text of our facts; None where there are none.

    Raises:
        InputError: the content is no such file.
    """
    try:
        return _split_onnx(content) if path.suffix == ".onnx" else _split_program(path)
    except (ValueError, IndexError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged, or no {path.suffix} file") from error


def _split_onnx(content: bytes) -> tuple[str, str | None]:
    """Of an ONNX model, whose outermost message alone is taken apart."""
    text, parts = None, []
    for number, part in _fields(memoryview(content)):
        if number == METADATA:
            entry = dict(_fields(part))
            if bytes(entry[1]).decode() == KEY:
                text = bytes(entry.get(2, b"")).decode()
            continue
        parts.append((number, part))
    digest = hashlib.sha256()
    for number, part in sorted(parts, key=lambda one: one[0]):  # stable: repeated ones in order
        digest.update(b"%d:%d:" % (number, len(part)))
        digest.update(part)
    return digest.hexdigest(), text


def _split_program(path: Path) -> tuple[str, str | None]:
    """Of a torch.export archive, a ZIP file."""
    text, digest = None, hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            part = archive.read(name)
            if name.endswith(f"/extra/{KEY}"):
                text = part.decode()
                continue
            digest.update(f"{name}:{len(part)}:".encode())
            digest.update(part)
    return digest.hexdigest(), text


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of the fields of a protobuf message.

    Raises:
        ValueError: it is none.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind, begin = tag & 7, at
        if kind == 0:
            _, at = _varint(message, at)
        elif kind == 2:
            size, begin = _varint(message, at)
            at = begin + size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(message):
            raise ValueError("truncated")
        yield tag >> 3, message[begin:at]


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError("varint")


def digest_of(facts: Mapping[str, Any]) -> str:
    """SHA-256 of all facts but the checksums."""
    rest = {key: value for key, value in facts.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(facts: Mapping[str, Any], graph: str) -> dict[str, Any]:
    """Facts with checksums.

    Args:
        facts: JSON values.
        graph: SHA-256 of the file without metadata.
    """
    facts = json.loads(json.dumps(facts))
    return {**facts, "sha256": {"graph": graph, "facts": digest_of(facts)}}


def packed(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON values."""
    content = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "zlib": content}


def unpacked(stored: Mapping[str, Any]) -> np.ndarray:
    """The array that `packed` gave; raises ValueError where it is damaged."""
    reader = zlib.decompressobj()
    try:
        content = reader.decompress(base64.b64decode(stored["zlib"]), LARGEST_GOLDEN)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return np.frombuffer(content, stored["dtype"]).reshape(stored["shape"])
