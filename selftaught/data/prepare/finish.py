"""The files that make finished shards a set: index, manifest, quarantine list, contact sheets."""

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from selftaught.data.images.pack import FOLDER, IMAGES, MASKS
from selftaught.data.images.pack_writer import Record, write_index
from selftaught.data.images.stamps import NAME as SOURCES
from selftaught.data.images.stamps import write_stamps
from selftaught.data.manifest import Manifest, check
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.polarity import kind_of
from selftaught.data.prepare.reference import read_reference
from selftaught.data.prepare.shard_work import Note, Places, stamps_of
from selftaught.data.prepare.sheet import write_sheets
from selftaught.errors import InputError
from selftaught.files import write_atomic

FACTS = (
    "source",
    "sha256",
    "slot",
    "height",
    "width",
    "bits",
    "low",
    "high",
    "quad",
    "carrier",
    "carrier_score",
    "inverted",
    "polarity",
    "mask_from",
    "low_contrast",
)
MANY = 0.2  # share of turned films that wants a look


class Summary(NamedTuple):
    """What a job came to.

    Attributes:
        manifest: the list of prepared images.
        images, refused: how many.
        counts: images by flag, such as {"carrier cropped": 80}.
        remarks: lines on what was decided of polarity.
    """

    manifest: Path
    images: int
    refused: int
    counts: dict[str, int]
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        total = self.images + self.refused
        lines = [f"{self.images} of {total} images prepared, {self.refused} refused"]
        lines += [f"  {name:<18} {n}" for name, n in sorted(self.counts.items())]
        return "\n".join([*lines, *self.remarks])

    def check(self, limit: float, option: str = "bad_limit") -> None:
        """Refuse a set of which too much is missing.

        Raises:
            InputError: more than `limit` (0 to 1) of the images were refused.
        """
        total = self.images + self.refused
        if self.refused > limit * total:
            raise InputError(
                f"{option} is {limit:g}: {self.refused} of {total} images were refused "
                f"({self.manifest.with_name('quarantine.csv')} says why); the set is complete "
                "without them"
            )


def finish(
    out: Path, source: Manifest, config: PrepareConfig, places: Places, shards: list[list[Note]]
) -> Summary:
    """Write everything that belongs to the set as a whole, `manifest.csv` last.

    Args:
        out: folder of the set.
        source: what was prepared.
        config: settings.
        places: folders of the job.
        shards: notes of every shard, in order.

    Raises:
        InputError: no image could be used.
        MachineError: the disk is full.
    """
    kept: list[Note] = []
    records: list[Record] = []
    files: list[str] = []
    for number, notes in enumerate(shards):
        good = [note for note in notes if "reason" not in note]
        kept += good
        records += [{"shard": len(files), **note["record"]} for note in good]
        if good:
            files.append(places.shard(number).relative_to(out / FOLDER).as_posix())
    refused = [note for notes in shards for note in notes if "reason" in note]
    _write_quarantine(out / "quarantine.csv", source, refused)
    if not kept:
        raise InputError(
            f"{source.name}: none of the {len(refused)} images can be used; see "
            f"{out / 'quarantine.csv'}"
        )
    write_index(
        out / FOLDER,
        size=config.size,
        cutoff=config.cutoff,
        shards=files,
        names=[note["name"] for note in kept],
        records=records,
    )
    write_sheets(out, source.root, kept, config)
    counts = Counter(f"carrier {note['carrier']}" for note in kept)
    counts += Counter(f"mask {note['mask_from']}" for note in kept)
    depths = [note.get("source_bits", 16) for note in kept]
    counts += Counter(f"{bits} bits in 16" for bits in depths if 8 < bits < 16)
    # Counts of zero, which += would drop.
    counts["inverted"] = sum(note["inverted"] for note in kept)
    counts["polarity unsure"] = sum(note.get("polarity") == "unsure" for note in kept)
    counts["low contrast"] = sum(note["low_contrast"] for note in kept)
    remarks = _remarks(out, source, kept) if config.polarity == "default" else []
    facts = {"images": len(kept), "refused": len(refused), "counts": dict(counts)}
    facts["remarks"] = remarks
    write_stamps(out / SOURCES, stamps_of([note for notes in shards for note in notes]))
    write_atomic(out / "summary.json", json.dumps(facts, indent=1) + "\n")
    _write_manifest(out / "manifest.csv", source, kept)
    return Summary(out / "manifest.csv", len(kept), len(refused), dict(counts), tuple(remarks))


def read_summary(out: Path) -> Summary:
    """What `finish` returned for a complete set."""
    facts = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    remarks = tuple(facts.get("remarks", ()))
    return Summary(
        out / "manifest.csv", facts["images"], facts["refused"], facts["counts"], remarks
    )


def _remarks(out: Path, source: Manifest, kept: list[Note]) -> list[str]:
    """How many films were turned and why, and when that wants a look."""
    turned = [note for note in kept if note["inverted"]]
    by_set = sum(note["polarity"] == "set" for note in turned)
    unsure = sum(note["polarity"] == "unsure" for note in kept)
    remarks = [
        f"polarity: {len(turned)} turned ({len(turned) - by_set} by what the film shows, {by_set} "
        f"only by the set's other films), {unsure} unsure, left as they came"
    ]
    parts = source.table["body_part"].iloc[[note["row"] for note in kept]]
    untested = sum(kind_of(part) == "other" for part in parts)
    if untested:
        remarks.append(f"polarity: {untested} are of body parts that no rule was tested for")
    if read_reference(out).unsettled:
        remarks.append(
            "polarity: the films contradict each other too much to judge one by the others; "
            "look at sheets/"
        )
    if len(turned) > MANY * len(kept) and not parts.str.strip().any():
        remarks.append(
            f"polarity: {len(turned)} of {len(kept)} turned, and no body part is named; look at "
            "sheets/ (--polarity none, in a run --prepare.polarity none, leaves all as they came)"
        )
    return remarks


def _write_quarantine(path: Path, source: Manifest, refused: list[Note]) -> None:
    lines: list[list[Any]] = [["path", "row", "label", "reason"]]
    for note in refused:
        cells = source.table.iloc[note["row"]]
        row = "" if source.rows is None else source.rows[note["row"]]
        lines.append([cells["path"], row, _text(cells["label"]), note["reason"]])
    _write_csv(path, lines)


def _write_manifest(path: Path, source: Manifest, kept: list[Note]) -> None:
    """The source's columns with packed paths, then what was found out."""
    table = source.table.iloc[[note["row"] for note in kept]].reset_index(drop=True)
    origin = table["path"].tolist()
    table["path"] = [f"{FOLDER}/{IMAGES}/{note['name']}" for note in kept]
    table["mask"] = [
        f"{FOLDER}/{MASKS}/{note['name']}" if note["record"]["mask_offset"] >= 0 else ""
        for note in kept
    ]
    facts = pd.DataFrame(
        {
            **{name: [note.get(name, "") for note in kept] for name in FACTS},
            **{
                name: [note["record"][name] for note in kept]
                for name in ("height", "width", "bits", "low", "high")
            },
            "source": origin,
            "slot": range(len(kept)),
            "quad": [" ".join(f"{x:g} {y:g}" for x, y in note["quad"]) for note in kept],
        }
    )
    always = ("path", "label", "mask")
    columns = [
        name
        for name in table.columns
        if name not in FACTS and (name in always or not _blank(table[name], name))
    ]
    # Not by `map`: pandas 2 makes floats of whole numbers beside gaps.
    texts = [[_text(cell) for cell in table[name]] for name in columns]
    cells = [*texts, *(facts[name] for name in FACTS)]
    _write_csv(path, [[*columns, *FACTS], *(list(row) for row in zip(*cells, strict=True))])


def _blank(cells: pd.Series, name: str) -> bool:
    """Whether a column of the manifest says nothing."""
    return name in check.COLUMNS and not any(_text(cell) for cell in cells)


def _text(cell: Any) -> str:
    return "" if cell is pd.NA else str(cell)


def _write_csv(path: Path, lines: list[list[Any]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_atomic(path, text.getvalue().encode())
