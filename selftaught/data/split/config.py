"""The settings of a split, each checked under the name the user types."""

from collections.abc import Callable
from dataclasses import dataclass

from selftaught.errors import InputError

SCHEMES = ("default", "paper")
UNLABELLED = ("train", "pretext", "unused")
LABELS = ("budget", "all")
LEAKAGE = ("warn", "fail", "drop", "off")


class SplitWarning(UserWarning):
    """The split works, but not quite as asked; the message says what differs."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How images are divided and which labels training may know; formulas in `data.split`.

    Attributes:
        train_fraction: f, nominal size of the training set as a share of the labelled data.
        known_normal: a, share of the training set that is known to be normal.
        known_abnormal: b, share of the training set that is known to be abnormal; from 2 on, that
            many images.
        pollution: p, share of the unknown training images that are abnormal.
        group: manifest column whose values never cross sets.
        scheme: `default` (counts images, fixed test set) or `paper` (counts groups of patient
            and body part, draws as published).
        seed: of every draw.
        unlabelled: images of training groups with a blank label `train` as unknown, serve the
            `pretext` stage only (where many of them may be abnormal), or stay `unused`.
        val_fraction: share of the training groups that becomes validation where the manifest's
            own split has no validation images.
        leakage: where patients or near-duplicate images are in more than one set `warn` with
            figures, `fail`, or `drop` those of train and val so that test stays whole and nothing
            crosses; `off` does not look, which saves reading the images.
        labels: `all` opens every label of the training part, for references that are not to be
            had in practice; val and test are those of `budget`.
        folds: cross-validation in so many folds of all that is not in the test set, which is
            `unused` then; 0 = none.
        fold: the fold that is val, counted from 0.
    """

    train_fraction: float = 0.5
    known_normal: float = 0.05
    known_abnormal: float = 0.05
    pollution: float = 0.0
    group: str = "patient"
    scheme: str = "default"
    seed: int = 42
    unlabelled: str = "train"
    val_fraction: float = 0.1
    leakage: str = "warn"
    labels: str = "budget"
    folds: int = 0
    fold: int = 0

    def __post_init__(self) -> None:
        _number("train_fraction", self.train_fraction, "0 < x < 1", lambda x: 0 < x < 1)
        _number(
            "known_abnormal",
            self.known_abnormal,
            "0 <= x < 1, or a number of images from 2",
            is_budget,
        )
        for name in ("known_normal", "pollution"):
            _number(name, getattr(self, name), "0 <= x < 1", lambda x: 0 <= x < 1)
        _number("val_fraction", self.val_fraction, "0 < x <= 0.5", lambda x: 0 < x <= 0.5)
        if self.known_abnormal < 1 <= self.known_normal + self.known_abnormal:
            raise InputError(
                f"split.known_normal + split.known_abnormal is {self.known_normal} + "
                f"{self.known_abnormal}; allowed: a sum below 1"
            )
        if type(self.seed) is not int or not 0 <= self.seed < 2**32:
            raise InputError(f"split.seed is {self.seed!r}; allowed: whole numbers 0 to 2^32 - 1")
        folds = self.folds
        if type(folds) is not int or not (folds == 0 or 2 <= folds <= 100):
            raise InputError(f"split.folds is {folds!r}; allowed: 0 (none), or 2 to 100")
        if type(self.fold) is not int or not 0 <= self.fold < max(folds, 1):
            allowed = f"0 to {folds - 1}" if folds else "0, as split.folds is 0"
            raise InputError(f"split.fold is {self.fold!r}; allowed: {allowed}")
        if folds and self.scheme == "paper":
            raise InputError(f"split.folds is {folds}; allowed with split.scheme paper: 0")
        if not isinstance(self.group, str) or not self.group:
            raise InputError(f"split.group is {self.group!r}; allowed: a column of the manifest")
        choices: tuple[tuple[str, str, tuple[str, ...]], ...] = (
            ("scheme", self.scheme, SCHEMES),
            ("unlabelled", self.unlabelled, UNLABELLED),
            ("leakage", self.leakage, LEAKAGE),
            ("labels", self.labels, LABELS),
        )
        for name, value, names in choices:
            if value not in names:
                raise InputError(f"split.{name} is {value!r}; allowed: {', '.join(names)}")
        if self.labels == "all" and (self.scheme == "paper" or self.pollution):
            raise InputError(
                "split.labels is 'all'; allowed: budget with split.scheme paper or split.pollution"
            )

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The sets that figures are of: where there are folds, the test set is closed."""
        return ("val",) if self.folds else ("val", "test")


def is_budget(value: float) -> bool:
    """Whether a number may be `known_abnormal`; 1 could be meant as one image or as all."""
    return 0 <= value < 1 or (2 <= value < 2**53 and value == int(value))


def _number(name: str, value: object, allowed: str, inside: Callable[[float], bool]) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # NaN compares false with every bound.
    if not number or not inside(value):  # type: ignore[arg-type]
        raise InputError(f"split.{name} is {value!r}; allowed: {allowed}")
