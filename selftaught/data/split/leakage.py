"""Whether a split leaks: patients, and near-duplicate images, in more than one set."""

import json
import warnings
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selftaught.data.manifest.check import SETS
from selftaught.data.split.config import SplitWarning
from selftaught.data.split.duplicates import NEAR, Near, near_duplicates
from selftaught.errors import InputError
from selftaught.files import write_atomic
from selftaught.semi_labels import UNKNOWN

_NO_ROWS = np.zeros(0, np.int64)
NONE = Near(_NO_ROWS, _NO_ROWS, _NO_ROWS, np.zeros(0, bool))

USED = tuple(name for name in SETS if name != "unused")
LISTED = 100_000
COLUMNS = (
    *("path", "set", "patient", "label"),
    *("other_path", "other_set", "other_patient", "other_label"),
    *("distance", "mirrored"),
)


@dataclass(frozen=True)
class Leakage:
    """What crosses the sets of a split.

    Attributes:
        facts: JSON-ready counts, as `split.json` holds them under `leakage`.
        pairs: one row for each pair of near-duplicates in two sets, columns `COLUMNS`; at most
            `LISTED`, nearest first.
        excess: (N,) bool, images without which nothing crosses; none of them is in test.
    """

    facts: dict[str, Any]
    pairs: pd.DataFrame
    excess: np.ndarray


def find_leakage(frame: pd.DataFrame, hashes: np.ndarray, compared: np.ndarray) -> Leakage:
    """Look for patients and near-duplicates in more than one of train, val and test.

    Args:
        frame: a split, as `make_split` gives it.
        hashes: (N, 32) uint8 perceptual hashes of its images.
        compared: (N,) bool, which of them are there.
    """
    sets = frame["split"].to_numpy(object)
    rows = [np.flatnonzero((sets == name) & compared) for name in USED]
    crossing = [_crossing(hashes, *two) for two in combinations(rows, 2)]
    # A symmetric image is near its like both ways: the nearer one counts.
    pairs = pd.concat(crossing).sort_values(["distance", "mirrored", "first", "second"])
    pairs = pairs.drop_duplicates(["first", "second"])
    touched = np.unique(pairs[["first", "second"]].to_numpy())
    used = np.isin(sets, USED)
    facts = {
        "patients": _patients(frame[used]),
        "near_duplicates": {
            "most_differing_bits": NEAR,
            "compared": int((compared & used).sum()),
            "not_compared": int((~compared & used).sum()),
            "pairs": len(pairs),
            "mirrored": int(pairs["mirrored"].sum()),
            "images": {name: int((sets[touched] == name).sum()) for name in USED},
            "of": {name: int((sets == name).sum()) for name in USED},
        },
    }
    excess = _excess(sets, frame["patient"].to_numpy(object), pairs)
    return Leakage(facts, _named(frame, pairs.head(LISTED)), excess)


def _excess(sets: np.ndarray, patients: np.ndarray, pairs: pd.DataFrame) -> np.ndarray:
    """Images of val that are also in test, and of train that are also in what is left of both."""
    first, second = (pairs[side].to_numpy(np.int64) for side in ("first", "second"))
    excess = np.zeros(len(sets), bool)
    for earlier, later in (("val", ("test",)), ("train", ("val", "test"))):
        kept = np.isin(sets, later) & ~excess
        crossing = np.isin(patients, patients[kept & (patients != "")])
        # The first of a pair is in the earlier set.
        crossing[first[kept[second]]] = True
        excess |= crossing & (sets == earlier)
    return excess


def without_leaks(frame: pd.DataFrame, excess: np.ndarray) -> pd.DataFrame:
    """A split whose rows `excess` (positions) are unused, in a new table."""
    split, semi = frame["split"].to_numpy(object).copy(), frame["semi_label"].to_numpy().copy()
    split[excess], semi[excess] = "unused", UNKNOWN
    return frame.assign(split=pd.Series(split, frame.index, dtype="str"), semi_label=semi)


def _crossing(hashes: np.ndarray, first: np.ndarray, second: np.ndarray) -> pd.DataFrame:
    """Near pairs of two sets, given by their rows of the split."""
    blocks = list(near_duplicates(hashes[first], hashes[second])) or [NONE]
    columns = {
        name: np.concatenate([getattr(one, name) for one in blocks]) for name in Near._fields
    }
    return pd.DataFrame(
        columns | {"first": first[columns["first"]], "second": second[columns["second"]]}
    )


def _named(frame: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Rows as a reader knows them."""
    columns = {}
    for prefix, side in (("", "first"), ("other_", "second")):
        part = frame.iloc[pairs[side].to_numpy()]
        for name, column in (("path", "path"), ("set", "split"), ("patient", "patient")):
            columns[prefix + name] = part[column].to_numpy(object)
        columns[prefix + "label"] = part["label"].astype(object).where(part["label"].notna(), "")
    columns |= {"distance": pairs["distance"], "mirrored": pairs["mirrored"].astype(int)}
    return pd.DataFrame({name: np.asarray(columns[name]) for name in COLUMNS})


def _patients(used: pd.DataFrame) -> dict[str, int]:
    named = used[used["patient"] != ""]
    sets = named.groupby("patient")["split"].nunique()
    crossing = sets.index[sets > 1]
    return {
        "named": len(sets),
        "crossing": len(crossing),
        "images": int(named["patient"].isin(crossing).sum()),
    }


def in_words(facts: dict[str, Any]) -> list[str]:
    """A sentence for each kind of leak that was found.

    Args:
        facts: of `Leakage`.
    """
    sentences = []
    patients, near = facts["patients"], facts["near_duplicates"]
    if patients["crossing"]:
        sentences.append(
            f"{patients['crossing']} of {patients['named']} patients have images in more than one "
            f"set ({patients['images']} images)"
        )
    if near["pairs"]:
        touched = ", ".join(
            f"{near['images'][name]} of {near['of'][name]} {name} images" for name in USED
        )
        sentences.append(
            f"near-duplicate images in two sets: {near['pairs']} pairs, {near['mirrored']} of them "
            f"mirrored, with {touched}"
        )
    if sentences and "dropped" in facts:
        dropped = " and ".join(f"{count} {name}" for name, count in facts["dropped"].items())
        sentences.append(f"{dropped} images are unused, so that nothing crosses")
    return sentences


def report_leakage(
    frame: pd.DataFrame, hashes: np.ndarray, compared: np.ndarray, policy: str, split: Path
) -> tuple[list[str], np.ndarray]:
    """Look for leaks, write what was found beside the split file, and warn, fail or drop.

    Args:
        frame: the images in use of a split.
        hashes: (N, 32) uint8 perceptual hashes of them.
        compared: (N,) bool, which of them are there.
        policy: `split.leakage`: warn, fail, drop or off.
        split: the split file.

    Returns:
        Lines to print, and (N,) bool, the images that the policy drop takes out.

    Raises:
        InputError: something crosses and the policy is fail.
        MachineError: the disk is full or the folder cannot be written.
    """
    table, facts = leakage_files(split)
    nothing = np.zeros(len(frame), bool)
    if policy == "off":
        table.unlink(missing_ok=True)
        write_atomic(facts, json.dumps({"leakage": {"policy": policy}}, indent=1) + "\n")
        return [], nothing
    leakage = find_leakage(frame, hashes, compared)
    report = {"policy": policy, **leakage.facts}
    if policy == "drop":
        dropped = frame["split"].to_numpy(object)[leakage.excess]
        report["dropped"] = {name: int((dropped == name).sum()) for name in ("train", "val")}
    write_atomic(table, lambda path: leakage.pairs.to_csv(path, index=False))
    write_atomic(facts, json.dumps({"leakage": report}, indent=1) + "\n")
    near = leakage.facts["near_duplicates"]
    line = f"leakage: {near['compared']} images compared, {near['not_compared']} could not be"
    sentences = in_words(report)
    if not sentences:
        return [f"{line}; no patient and no near-duplicate image is in two sets"], nothing
    text = f"{'; '.join(sentences)}; the pairs are in {table}"
    if policy == "drop":
        return [line, f"leakage: {text}"], leakage.excess
    if policy == "fail":
        allowed = "nothing that crosses, or drop or warn"
        raise InputError(f"split.leakage is fail: {text}; allowed: {allowed}")
    warnings.warn(text, SplitWarning, stacklevel=2)
    return [line], nothing


def leakage_files(split: Path) -> tuple[Path, Path]:
    """Where the pairs and the counts of a split file go: SPLIT_leakage.csv and SPLIT.json."""
    return split.with_name(f"{split.stem}_leakage.csv"), split.with_suffix(".json")
