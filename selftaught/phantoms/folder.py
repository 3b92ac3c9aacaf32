"""The folder of a synthetic set: its settings, its paths, its owner."""

from dataclasses import asdict, dataclass
from pathlib import Path

from selftaught.errors import InputError
from selftaught.files import claim_folder
from selftaught.phantoms.anatomy import BODY_PARTS
from selftaught.phantoms.anomalies import KINDS
from selftaught.phantoms.cohort import Entry
from selftaught.phantoms.export import FORMATS
from selftaught.phantoms.radiograph import LARGEST, SMALLEST
from selftaught.phantoms.streams import stream

MARK = "synthetic.json"
LAYOUTS = ("manifest", "mura")
VALID_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class SetConfig:
    """What a set consists of; equal settings give bit-equal files."""

    images: int
    seed: int
    size: int
    abnormal_fraction: float
    severity: float
    clutter: bool
    formats: tuple[str, ...]
    body_parts: tuple[str, ...]
    kinds: tuple[str, ...]
    layout: str


def check_config(config: SetConfig) -> None:
    """Refuse settings out of range, in one line that names the option."""
    if config.images < 1:
        raise InputError(f"images: {config.images} is below 1")
    if not SMALLEST <= config.size <= LARGEST:
        raise InputError(f"size: {config.size} is not between {SMALLEST} and {LARGEST} pixels")
    for name in ("abnormal_fraction", "severity"):
        if not 0 <= getattr(config, name) <= 1:
            raise InputError(f"{name}: {getattr(config, name)} is not between 0 and 1")
    for option, given, allowed in (
        ("formats", config.formats, tuple(FORMATS)),
        ("body_parts", config.body_parts, BODY_PARTS),
        ("kinds", config.kinds, KINDS),
        ("layout", (config.layout,), LAYOUTS),
    ):
        wrong = [value for value in given if value not in allowed]
        if wrong or not given or len(set(given)) < len(given):
            raise InputError(f"{option}: {', '.join(wrong) or given} not allowed; choose distinct "
                             f"values from {', '.join(allowed)}")  # fmt: skip
    if config.layout == "mura" and any(FORMATS[name][0] != ".png" for name in config.formats):
        raise InputError(f"formats: {', '.join(config.formats)}: layout mura has PNG files only")


def claim(out: Path, config: SetConfig) -> bool:
    """Make `out` ours: create it, or go on with the set that is there.

    Returns:
        Whether the set is complete; then nothing in it needs to be written.

    Raises:
        InputError: it holds other files, or a set with other settings, which is not replaced.
    """
    begun = claim_folder(out, MARK, asdict(config), "a synthetic set")
    return begun and last_list(out, config).is_file()


def last_list(out: Path, config: SetConfig) -> Path:
    """What is written last of all."""
    if config.layout == "manifest":
        return out / "manifest.csv"
    return out / "MURA-v1.1" / "valid_labeled_studies.csv"


def paths_of(out: Path, config: SetConfig, entry: Entry) -> tuple[Path, Path, Path, Path]:
    """Image, body mask, bone mask and anomaly mask of one picture."""
    number = f"{entry.index:06d}"
    mask = out / "masks" / f"{number}.png"
    truth = (out / "truth/bones" / f"{number}.png", out / "truth/anomalies" / f"{number}.png")
    suffix = FORMATS[format_of(config, entry)][0]
    if config.layout == "manifest":
        return out / "images" / f"{number}{suffix}", mask, *truth
    part = (
        "valid" if stream(config.seed, "valid", entry.patient).random() < VALID_SHARE else "train"
    )
    sign = "positive" if entry.label else "negative"
    study = f"study{entry.study_of_part}_{sign}"
    folder = out / "MURA-v1.1" / part / f"XR_{entry.body_part.upper()}"
    image = folder / f"patient{entry.patient:05d}" / study / f"image{entry.image}{suffix}"
    return image, mask, *truth


def format_of(config: SetConfig, entry: Entry) -> str:
    """Format of one picture."""
    draw = stream(config.seed, "format", entry.index)
    return config.formats[int(draw.integers(len(config.formats)))]
