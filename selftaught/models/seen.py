"""Which films a training saw, by header and list, and whether a new film is one of their kind."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from selftaught.data.images.decode import is_dicom
from selftaught.data.manifest.films import RASTER

FACTS = ("modality", "body_part", "view")
LATERAL = {"ll", "rl", "lat", "lateral"}
Seen = Mapping[str, Mapping[str, int]]


def facts_of(header: Any) -> dict[str, str]:
    """Modality, body part and view of a DICOM header (a pydicom Dataset); "" where unknown."""

    def coded(name: str) -> str:
        items = header.get(name) or []
        return str(items[0].get("CodeMeaning", "")) if len(items) else ""

    return {
        "modality": str(header.get("Modality") or ""),
        "body_part": str(header.get("BodyPartExamined") or coded("AnatomicRegionSequence")),
        "view": str(header.get("ViewPosition") or coded("ViewCodeSequence")),
    }


def seen(table: pd.DataFrame, root: Path) -> dict[str, dict[str, int]]:
    """How many films of each modality, body part and view a training saw; "" = unknown.

    Args:
        table: of the training films: `path`, and as many of `modality`, `body_part`, `view` as the
            manifest has. What it leaves blank is looked up in the film's header, where it has one.
        root: folder that the paths start from.
    """
    facts = pd.DataFrame(
        {n: table[n].fillna("").astype(str) if n in table else "" for n in FACTS}, table.index
    )
    for row in facts.index[(facts == "").any(axis=1)]:
        path = root / table.at[row, "path"]
        if path.suffix.lower() not in RASTER and is_dicom(path):
            for name, value in _read(path).items():
                facts.at[row, name] = facts.at[row, name] or value
    return {name: dict(Counter(plain(name, one) for one in facts[name])) for name in FACTS}


def _read(path: Path) -> dict[str, str]:
    """`facts_of` a file; nothing else of its header is kept."""
    from pydicom import dcmread

    tags: list[Any] = ["Modality", "BodyPartExamined", "AnatomicRegionSequence"]
    tags += ["ViewPosition", "ViewCodeSequence"]
    try:
        return facts_of(dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True))
    except Exception:  # of a header that lies; whoever decodes the film says what is wrong
        return dict.fromkeys(FACTS, "")


def plain(name: str, value: str) -> str:
    """A value in words by which lists and headers can be compared; "" where unknown."""
    return " ".join(_words(name, value))


def _words(name: str, value: str) -> list[str]:
    """A value's words, by which "XR_KNEE", "Knee" and "KNEE joint" are compared."""
    words = [word for word in re.split(r"[\W_]+", value.casefold()) if word not in ("", "xr")]
    return ["lateral"] if name == "view" and LATERAL & set(words) else words


def judged(facts: Mapping[str, str], known: Seen | None) -> tuple[str, list[str]]:
    """Whether a model may score a film.

    A body part or view that the training never saw is a reason not to. Of another modality, of
    what the film does not say, or of what the training's films did not all say, a remark is made.

    Args:
        facts: of the film, as `facts_of` gives them.
        known: what `seen` gave in the training; None in models that do not say.

    Returns:
        The reason not to score it, "" for none; and remarks for its result.
    """
    remarks = []
    for name in FACTS:
        what, words = name.replace("_", " "), set(_words(name, facts[name]))
        counts = (known or {}).get(name) or {"": 0}
        stated = [one for one in counts if one]
        if any(set(one.split()) <= words for one in stated):
            continue
        value = " ".join(sorted(words)) or "unknown"
        if not stated:
            remarks.append(f"{what} {value}: the model does not say which it was trained on")
        elif not words:
            remarks.append(f"{what} unknown: the model was trained on {', '.join(stated)}")
        elif name == "modality" or "" in counts:
            remarks.append(f"{what} {value}: not among those known of the model's training")
        else:
            return f"{what} {value}: the model was trained on {', '.join(stated)}", remarks
    return "", remarks
