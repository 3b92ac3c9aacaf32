"""The folder of a synthetic set: its settings, its paths, its owner."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from selftaught.data.synthetic.anatomy import BODY_PARTS
from selftaught.data.synthetic.anomalies import KINDS
from selftaught.data.synthetic.cohort import Entry, plan
from selftaught.data.synthetic.export import FORMATS
from selftaught.data.synthetic.radiograph import LARGEST, SMALLEST
from selftaught.data.synthetic.streams import stream
from selftaught.errors import InputError
from selftaught.files import machine_errors, write_atomic

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


def claim(out: Path, config: SetConfig) -> None:
    """Make `out` ours: create it, or empty it of a former set."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder that is new, empty or a synthetic set")
    mark = out / MARK
    if out.exists() and any(out.iterdir()) and not mark.is_file():
        raise InputError(f"{out}: holds files that are not a synthetic set; give another folder")
    with machine_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        if mark.is_file():
            _remove_former(out, mark)
    write_atomic(mark, json.dumps(asdict(config), indent=1) + "\n")


def _remove_former(out: Path, mark: Path) -> None:
    """Delete the files of the set that `mark` describes, and nothing else."""
    try:
        former = json.loads(mark.read_text(encoding="utf-8"))
        former.update({name: tuple(former[name]) for name in ("formats", "body_parts", "kinds")})
        config = SetConfig(**former)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{mark}: not settings this version wrote ({error}); delete the folder or give another"
        ) from error
    for name in ("manifest.csv", "truth.json"):
        (out / name).unlink(missing_ok=True)
    for list_path in (out / "MURA-v1.1").glob("*.csv"):
        list_path.unlink()
    for entry in plan(
        config.seed, config.images, config.body_parts, config.abnormal_fraction, config.kinds
    ):
        for path in paths_of(out, config, entry):
            path.unlink(missing_ok=True)


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
