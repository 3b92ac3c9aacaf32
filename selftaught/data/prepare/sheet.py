"""Contact sheets: source with its carrier beside the prepared film with its mask, for a look."""

from pathlib import Path

import cv2
import numpy as np

from selftaught.data.images.decode import read_grey
from selftaught.data.images.limits import BadImage
from selftaught.data.images.pack import FOLDER, Pack
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.geometry import levels, shrink
from selftaught.data.prepare.shard_work import Note
from selftaught.files import machine_errors, write_atomic

TILE, COLUMNS, ROWS, CAPTION = 160, 5, 6, 16
GREEN, BLUE, GREY, WHITE = (80, 220, 80), (255, 160, 40), (48, 48, 48), (230, 230, 230)


def write_sheets(out: Path, root: Path, kept: list[Note], config: PrepareConfig) -> None:
    """Write `sheets/page_001.png`, ... of the set, and `unsure_001.png`, ... of unsure polarity.

    Args:
        out: folder of the set; its pack is complete.
        root: folder of the source.
        kept: notes of the prepared films, by slot.
        config: `sheets` is the number of pages of each kind, of films spread evenly over it.
    """
    if config.sheets == 0:
        return
    every = list(range(len(kept)))
    unsure = [slot for slot in every if kept[slot].get("polarity") == "unsure"]
    with machine_errors(out / "sheets"):
        (out / "sheets").mkdir(exist_ok=True)
    for name, slots in (("page", every), ("unsure", unsure)):
        _write_pages(out, name, slots, root, kept, config.sheets)


def _write_pages(
    out: Path, name: str, slots: list[int], root: Path, kept: list[Note], pages: int
) -> None:
    each = COLUMNS * ROWS
    count = min(len(slots), pages * each)
    pack = Pack(out / FOLDER)
    chosen = [slots[int(i)] for i in np.linspace(0, len(slots) - 1, count).round()]
    for page, first in enumerate(range(0, count, each), 1):
        tiles = [_tile(pack, slot, root, kept[slot]) for slot in chosen[first : first + each]]
        blank = np.full_like(tiles[0], GREY[0])
        tiles += [blank] * (-len(tiles) % COLUMNS)
        rows = [np.hstack(tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)]
        data = cv2.imencode(".png", np.vstack(rows))[1]
        write_atomic(out / "sheets" / f"{name}_{page:03d}.png", bytes(data))


def _tile(pack: Pack, slot: int, root: Path, note: Note) -> np.ndarray:
    """(TILE + CAPTION, 2 TILE, 3): source and film, numbered by slot."""
    panels = np.full((TILE + CAPTION, 2 * TILE, 3), GREY[0], np.uint8)
    try:
        source = read_grey(root / note["path"])
        picture, scale = _small(source, source.dtype == np.uint16)
        corners = (np.array(note["quad"]) + 0.5) * scale - 0.5
        cv2.polylines(picture, [np.round(corners).astype(np.int32)], True, GREEN, 1, cv2.LINE_AA)
        panels[: picture.shape[0], : picture.shape[1]] = picture
    except BadImage:
        pass  # It was readable when it was packed; the film beside is what counts.
    image, mask = pack.image(slot), pack.mask(slot)
    picture, scale = _small(image, image.dtype == np.uint16)
    if mask is not None:
        size = (picture.shape[1], picture.shape[0])
        outlines, _ = cv2.findContours(
            cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST),
            cv2.RETR_CCOMP,
            cv2.CHAIN_APPROX_NONE,
        )
        cv2.drawContours(picture, outlines, -1, BLUE, 1)
    panels[: picture.shape[0], TILE : TILE + picture.shape[1]] = picture
    caption = f"{slot} {note['carrier']}{' inverted' if note['inverted'] else ''}"
    caption += " polarity?" if note.get("polarity") == "unsure" else ""
    place = (4, TILE + CAPTION - 5)
    cv2.putText(panels, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, WHITE, 1, cv2.LINE_AA)
    return panels


def _small(image: np.ndarray, deep: bool) -> tuple[np.ndarray, float]:
    """A colour thumbnail, 16-bit films stretched to what they span, and its scale."""
    scale = min(1.0, TILE / max(image.shape))
    picture = levels(shrink(image, TILE))
    if deep:
        low, high = float(picture.min()), float(picture.max())
        picture = (picture - low) * (255 / max(high - low, 1e-6))
    return cv2.cvtColor(np.rint(picture).astype(np.uint8), cv2.COLOR_GRAY2BGR), scale
