"""The settings of `selftaught prepare`."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from selftaught.errors import InputError

Rule = Literal["default", "paper", "none"]
Bits = Literal["keep", "8"]
SMALLEST, LARGEST = 16, 8192
FREE = {"resume": "free"}  # may change when a run goes on


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How films become a pack.

    Args:
        size: longest side of a prepared image, in pixels; smaller films are not enlarged.
        carrier: find the film on its page: default = scored candidates, unsure films stay whole;
            paper = first hit, with the published least areas; none = never crop.
        polarity: turn negatives: default = what a DICOM file states, else what the set's other
            films and the picture show beyond doubt, for limbs and chests; unsure films stay and
            are flagged; paper = the published rule (mean above 125), which inverts for the mask
            only; none = never.
        mask: find the body: default = checked threshold, paper = as published, none = no masks.
        given_mask: use the manifest's masks, cropped along, where it names some.
        low_contrast: films whose grey levels (1st to 99th percentile) span less than this share
            of the range are flagged.
        drop_low_contrast: leave flagged films out, as published.
        cutoff: per cent of the pixels cut at each end for the stored contrast limits.
        bits: keep = 16-bit films stay so; 8 = all become 8-bit.
        workers: processes; auto = one for each core.
        sheets: pages of contact sheets, spread evenly over the set; 0 = none.
        bad_limit: share of refused files above which the command fails, after all work is done.
        allow_outside: accept manifest paths that leave the manifest's folder.

    Raises:
        InputError: a value outside its range.
    """

    size: int = 512
    carrier: Rule = "default"
    polarity: Rule = "default"
    mask: Rule = "default"
    given_mask: bool = True
    low_contrast: float = 0.05
    drop_low_contrast: bool = True
    cutoff: float = 1.0
    bits: Bits = "keep"
    workers: int | Literal["auto"] = field(default="auto", metadata=FREE)
    sheets: int = field(default=4, metadata=FREE)
    bad_limit: float = field(default=0.05, metadata=FREE)
    allow_outside: bool = False

    def __post_init__(self) -> None:
        rules, bits = get_args(Rule), get_args(Bits)
        for option, fine, allowed in (
            ("carrier", self.carrier in rules, ", ".join(rules)),
            ("polarity", self.polarity in rules, ", ".join(rules)),
            ("mask", self.mask in rules, ", ".join(rules)),
            ("bits", self.bits in bits, ", ".join(bits)),
            ("size", type(self.size) is int, "a whole number"),
            ("size", SMALLEST <= self.size <= LARGEST, f"{SMALLEST} to {LARGEST}"),
            ("low_contrast", 0 <= self.low_contrast < 1, "0 to below 1"),
            ("cutoff", 0 <= self.cutoff < 50, "0 to below 50 per cent"),
            ("sheets", 0 <= self.sheets <= 1000, "0 to 1000"),
            ("bad_limit", 0 <= self.bad_limit <= 1, "0 to 1"),
            ("workers", self.workers == "auto" or 1 <= self.workers <= 256, "auto, or 1 to 256"),
        ):
            if not fine:
                raise InputError(
                    f"prepare: {option} is {getattr(self, option)!r}; allowed: {allowed}"
                )
