"""How right a prepared set is, where the truth is known."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from selftaught.data.images.decode import read_grey
from selftaught.data.images.limits import BadImage
from selftaught.data.images.pack import FOLDER, Pack
from selftaught.data.manifest import Manifest, read_manifest
from selftaught.data.prepare.geometry import Quad, levels, ordered, overlap, upright
from selftaught.errors import InputError

RIGHT_OVERLAP = 0.9
VISIBLE_STEP, VISIBLE_SHARE = 0.5, 0.05


def check_set(out: Path, truth: Path) -> str:
    """Compare carriers, masks and polarity with the truth of `selftaught synth`.

    A film's edge can be seen if on each side at least a twentieth of its length differs from the
    page by half a grey level of 255; where it cannot, no rule can know where the film ends.

    Args:
        out: a prepared set.
        truth: truth.json of the set that was prepared.

    Returns:
        A few lines of figures.

    Raises:
        InputError: the truth cannot be read or is about other images.
    """
    try:
        images = json.loads(truth.read_text(encoding="utf-8"))["images"]
        known = {image["path"]: image for image in images}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{truth}: is not a truth.json of `selftaught synth`") from error
    manifest = read_manifest(out / "manifest.csv")
    pack = Pack(out / FOLDER)
    rows = []
    for slot in range(len(manifest.table)):
        cells = manifest.table.iloc[slot]
        if cells["source"] not in known:
            raise InputError(f"{truth}: says nothing about {cells['source']}")
        rows.append(_compare(truth.parent, known[cells["source"]], cells, pack))
    return _text(pd.DataFrame(rows), manifest)


def _compare(root: Path, known: dict, cells: pd.Series, pack: Pack) -> dict[str, float]:
    """Overlap of the carrier, Dice of the mask in the crop, share of the body outside, and more."""
    quad = np.array(cells["quad"].split(), float).reshape(4, 2)
    film = np.array(known["quad"], float)
    truth = (read_grey(root / known["mask"]) > 127).astype(np.uint8) * 255
    portrait = int(cells["height"]) >= int(cells["width"])
    body = upright(truth, quad)
    if (body.shape[0] >= body.shape[1]) != portrait:
        body = np.rot90(body, 3)
    shape = (int(cells["width"]), int(cells["height"]))
    body = cv2.resize(np.ascontiguousarray(body), shape, interpolation=cv2.INTER_AREA) > 127
    mask = pack.mask(int(cells["slot"]))
    predicted = np.ones(body.shape, bool) if mask is None else mask > 0
    dice = 2 * (predicted & body).sum() / max(int(predicted.sum() + body.sum()), 1)
    kept = cv2.fillConvexPoly(np.zeros_like(truth), np.round(quad).astype(np.int32), 1) > 0
    try:
        visible = edges_visible(read_grey(root / known["path"]), film)
    except BadImage:
        visible = False
    return {
        "overlap": overlap(quad, film),
        "dice": float(dice),
        "lost": float(((truth > 0) & ~kept).sum() / max(int((truth > 0).sum()), 1)),
        "polarity": float(bool(int(cells["inverted"])) == bool(known["inverted"])),
        "visible": float(visible),
        "cropped": float(cells["carrier"] == "cropped"),
    }


def edges_visible(grey: np.ndarray, quad: Quad) -> bool:
    """Whether each side of a film differs from the page on part of its length.

    Args:
        grey: (H, W) the source.
        quad: (4, 2) true corners.
    """
    picture, corners = levels(grey), ordered(quad)
    last = np.array([grey.shape[1] - 1, grey.shape[0] - 1])
    for side in range(4):
        start, way = corners[side], corners[(side + 1) % 4] - corners[side]
        inwards = np.array([-way[1], way[0]]) / max(float(np.linalg.norm(way)), 1e-9)
        points = start + np.linspace(0.03, 0.97, 200)[:, None] * way
        strips = []
        for steps in (range(2, 9), range(-6, -2)):
            places = points + np.array(steps)[:, None, None] * inwards
            column, row = np.clip(np.rint(places), 0, last).astype(int).transpose(2, 0, 1)
            strips.append(picture[row, column].mean(axis=0))
        if (np.abs(strips[0] - strips[1]) >= VISIBLE_STEP).mean() < VISIBLE_SHARE:
            return False
    return True


def _text(rows: pd.DataFrame, manifest: Manifest) -> str:
    right = rows["overlap"] > RIGHT_OVERLAP
    visible, cropped = rows["visible"] > 0, rows["cropped"] > 0

    def share(which: pd.Series) -> str:
        return f"{right[which].mean():.1%} of {int(which.sum())}" if which.any() else "none"

    dice = rows["dice"]
    return "\n".join(
        (
            f"carriers with IoU > 0.9: {share(right | ~right)} films; {share(visible)} whose edges "
            f"can be seen; {share(cropped)} that were cropped",
            f"mask Dice: mean {dice.mean():.3f}, median {dice.median():.3f}, "
            f"above 0.9: {(dice > 0.9).mean():.1%}; "
            f"mean {dice[visible].mean():.3f} where the film's edges can be seen; "
            f"{rows['lost'].mean():.2%} of the body cropped away",
            f"polarity right: {rows['polarity'].mean():.1%}",
        )
    )
