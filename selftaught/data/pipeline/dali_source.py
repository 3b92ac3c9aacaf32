"""What a DALI graph is fed: bytes, masks and numbers of samples, looked up on the host."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from selftaught.data.augment import Augment
from selftaught.data.images import jpeg, png
from selftaught.data.images.contrast import contrast_limits
from selftaught.data.images.decode import read_grey
from selftaught.data.images.masks import read_mask
from selftaught.data.images.pack import Packed
from selftaught.data.pipeline import composed
from selftaught.data.pipeline.cache import Cache, CacheBudget
from selftaught.data.pipeline.dali_graph import CODED, Kind
from selftaught.data.pipeline.dali_resident import Resident
from selftaught.data.pipeline.sample import Made, refuse_flat
from selftaught.data.plan import PARAMETERS

PNG, JPEG = (".png",), (".jpg", ".jpeg", ".jpe", ".jfif")


class Facts(NamedTuple):
    """What is known of a file once it has been read strictly: how to feed it, and its contrast.

    `size` and `crc` are the number of its bytes and their CRC-32 where DALI decodes them, else 0;
    `masked`: it has a mask, other than its frame.
    """

    kind: Kind
    height: int
    width: int
    low: int
    high: int
    masked: bool
    size: int
    crc: int


class Item(NamedTuple):
    """One sample to feed: its bytes (n,) uint8, its mask as bits (m,) uint8 or None, its facts."""

    data: np.ndarray | Tensor
    mask: np.ndarray | Tensor | None
    facts: Facts


class Numbers(NamedTuple):
    """What the graph is told about a batch, one field for each of `dali_graph.NUMBERS`.

    Attributes:
        kind: (B,) int32.
        shape: (B, 3) int32, height, width, 1.
        resized: (B, 2) float32, height and width on the canvas.
        levels: (B, 4) float32: lowest level, stretch, top of the range, 1 without a mask.
        turns: (B, V, 2, 3) float32, view corner coordinates to those of the resized image.
        tones: (B, V, 3) float32: two brightness factors, contrast factor.
        sigmas: (B, V) float32, of the blur; 0 = none.
        windows: (B, V) int32, width of its kernel in pixels.
    """

    kind: np.ndarray
    shape: np.ndarray
    resized: np.ndarray
    levels: np.ndarray
    turns: np.ndarray
    tones: np.ndarray
    sigmas: np.ndarray
    windows: np.ndarray


class Items:
    """Samples by id; every file is read strictly once, then fed to DALI undecoded.

    DALI decodes some damaged files silently, and fails on others without naming them. So bytes that
    differ from those that were read strictly are read strictly again before DALI gets them.

    Args:
        paths: image files; a sample's id is its position.
        masks: for each its mask or None.
        packed: for each where it lies in a pack, or None.
        cutoff: per cent of the pixels cut at each end of the histogram.
        feed_masks: whether items have masks; without a file, the image's frame.
        cache_bytes: memory for images that DALI cannot decode, and for masks as bits.
        resident: holds all images and masks, if given.
        made: gives samples that are not to be read from their files, if given.
        flat: take images of one grey level too.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        masks: Sequence[Path | None],
        packed: Sequence[Packed | None],
        *,
        cutoff: float,
        feed_masks: bool,
        cache_bytes: int | CacheBudget,
        resident: Resident | None,
        made: Made | None = None,
        flat: bool = True,
    ) -> None:
        self._paths, self._masks, self._packed = paths, masks, packed
        self._cutoff, self._feed_masks = cutoff, feed_masks
        self._resident, self._made, self._flat = resident, made, flat
        self._facts: dict[int, Facts] = {}
        self._cache: Cache[np.ndarray] = Cache(cache_bytes)

    def item(self, sample: int) -> Item:
        """Everything to feed for one sample.

        Raises:
            BadImage: the file or its mask cannot be used.
            MachineError: the disk cannot be read.
        """
        known, bits = self._facts.get(sample), None
        data = None if known is None else self._again(sample, known)
        if known is None or data is None:
            known, data, bits = self._read(sample)
        fed = data if self._resident is None else self._resident.image(sample)
        if self._feed_masks and bits is None:
            return Item(fed, self._mask(sample, known), known)
        return Item(fed, bits, known)

    def _again(self, sample: int, facts: Facts) -> np.ndarray | None:
        """What DALI is fed of a file read before; None: it has to be read strictly again."""
        packed = self._packed[sample]
        if packed is not None:
            return packed.pack.image(packed.slot).reshape(-1).view(np.uint8)
        if facts.kind not in CODED:
            kept = self._cache.get((sample, "mask")) is not None
            whole = not facts.masked or self._masks[sample] or kept
            return self._cache.get((sample, "image")) if whole else None
        data = _bytes(self._paths[sample], facts.size + 1)
        return data if zlib.crc32(data.data) == facts.crc else None

    def _read(self, sample: int) -> tuple[Facts, np.ndarray, np.ndarray | None]:
        """Read a file strictly: its facts, what DALI is fed, and the mask if that was made."""
        path, packed = self._paths[sample], self._packed[sample]
        made = None if self._made is None else self._made(sample)
        if made is not None:
            grey = made.image
        else:
            grey = read_grey(path) if packed is None else packed.pack.image(packed.slot)
        if not self._flat:
            refuse_flat(path, grey)
        bits = None if made is None or made.mask is None else np.packbits(made.mask > 0)
        deep = grey.dtype != np.uint8
        if packed is not None and self._cutoff == packed.pack.cutoff:
            low, high = packed.pack.limits(packed.slot)
        else:
            low, high = contrast_limits(grey, self._cutoff)
        if packed is None and made is None and decodable(path):
            kind, data = Kind.CODED16 if deep else Kind.CODED8, _bytes(path, path.stat().st_size)
            size, crc = len(data), zlib.crc32(data.data)
        else:
            kind, data = Kind.PIXELS16 if deep else Kind.PIXELS8, grey.reshape(-1).view(np.uint8)
            size = crc = 0
            if packed is None:
                self._cache.keep((sample, "image"), data, data.nbytes)
        if bits is not None:
            self._cache.keep((sample, "mask"), bits, bits.nbytes)
        masked = self._masks[sample] is not None if made is None else bits is not None
        facts = Facts(kind, grey.shape[0], grey.shape[1], low, high, masked, size, crc)
        self._facts[sample] = facts
        return facts, data, bits

    def _mask(self, sample: int, facts: Facts) -> np.ndarray | Tensor:
        if self._resident is not None:
            return self._resident.mask(sample)
        size, path = -(-facts.height * facts.width // 8), self._masks[sample]
        bits = self._cache.get((sample, "mask"))
        if bits is not None and len(bits) == size:
            return bits
        if path is None:
            return np.full(size, 255, np.uint8)
        mask = read_mask(path, self._paths[sample], (facts.height, facts.width))
        bits = np.packbits(mask > 0)
        self._cache.keep((sample, "mask"), bits, bits.nbytes)
        return bits

    def forget(self) -> None:
        """Free the memory of images and masks."""
        self._cache.clear()
        self._resident = None


def _bytes(path: Path, most: int) -> np.ndarray:
    """(n,) uint8, the first `most` bytes of a file, or all of them.

    Raises:
        BadImage: it cannot be opened any more.
        MachineError: the disk cannot be read.
    """
    try:
        return np.fromfile(path, np.uint8, most)
    except OSError:
        read_grey(path)
        raise


def decodable(path: Path) -> bool:
    """Whether DALI decodes a good file to the levels of `read_grey`.

    It does grey PNGs of 8 or 16 bits and JPEGs, grey or colour; not palettes, transparency,
    colour PNGs, CMYK, TIFF or DICOM.
    """
    suffix = path.suffix.lower()
    if suffix in PNG:
        return png.is_plain(path)
    return suffix in JPEG and jpeg.is_plain(path)


def numbers(facts: Sequence[Facts], plan: np.ndarray, size: int, augment: Augment) -> Numbers:
    """Turn a plan into what the graph is told.

    Args:
        facts: of B samples.
        plan: (B, V, P) as `selftaught.data.plan.draw` gives it.
        size: S, side of canvas and views in pixels.
        augment: the pivot of the scale.
    """
    column = {name: plan[..., i].astype(np.float64) for i, name in enumerate(PARAMETERS)}
    resized = np.array([composed.inner_shape(one.height, one.width, size) for one in facts])
    tones = [column[name] for name in ("brightness", "color_brightness", "color_contrast")]
    turns = matrices(column, size, corner=augment.scale_pivot == "corner")
    turns[..., 2] -= ((size - resized[:, ::-1]) // 2)[:, None]
    return Numbers(
        kind=np.array([one.kind for one in facts], np.int32),
        shape=np.array([(one.height, one.width, 1) for one in facts], np.int32),
        resized=resized.astype(np.float32),
        levels=np.array([_levels(one) for one in facts], np.float32),
        turns=turns.astype(np.float32),
        tones=np.stack(tones, axis=-1).astype(np.float32),
        sigmas=column["blur_sigma"].astype(np.float32),
        windows=(2 * np.ceil(3.0 * column["blur_sigma"]) + 1).astype(np.int32),
    )


def matrices(column: Mapping[str, np.ndarray], size: int, *, corner: bool) -> np.ndarray:
    """`composed.matrix` of many views at once, for coordinates from a pixel's corner.

    Args:
        column: parameters by name, each (B, V).
        size: S, side of canvas and view in pixels.
        corner: scale about the top left corner instead of the centre.

    Returns:
        (B, V, 2, 3) float64, view (x, y, 1) to canvas (x, y), (0, 0) the corner of the first pixel.
    """
    center, angle = size / 2.0, np.radians(column["angle"])
    pivot = 0.0 if corner else center
    cos, sin = np.cos(angle), np.sin(angle)
    mirror_x = np.where(column["horizontal_flip"] != 0, -1.0, 1.0)
    mirror_y = np.where(column["vertical_flip"] != 0, -1.0, 1.0)
    left, top = (column[name] * size - center for name in ("crop_left", "crop_top"))
    width, height, scale = (column[name] for name in ("crop_width", "crop_height", "scale"))
    x = (center - pivot + cos * left - sin * top) / scale + pivot - center
    y = (center - pivot + sin * left + cos * top) / scale + pivot - center
    rows = [
        [mirror_x * cos * width / scale, -mirror_x * sin * height / scale, mirror_x * x + center],
        [mirror_y * sin * width / scale, mirror_y * cos * height / scale, mirror_y * y + center],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _levels(facts: Facts) -> tuple[float, float, float, float]:
    top = 255.0 if facts.kind in (Kind.PIXELS8, Kind.CODED8) else 65535.0
    keep = 0.0 if facts.masked else 1.0
    if facts.high <= facts.low:
        return 0.0, 1.0, top, keep
    return float(facts.low), top / (facts.high - facts.low), top, keep
