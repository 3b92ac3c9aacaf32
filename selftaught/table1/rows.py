"""The rows of the table: means, spreads and tests against a base, beside what was published."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from selftaught.errors import InputError
from selftaught.evaluation.bootstrap import percentile_interval
from selftaught.evaluation.metrics import SPLITS
from selftaught.evaluation.statistics import (
    Replicates,
    TTest,
    holm,
    paired_t_test,
    summarise,
    t_interval,
    welch_from_summary,
    welch_test,
)
from selftaught.methods import System
from selftaught.table1.results import Result

OURS = "ours"
PUBLISHED = Path(__file__).with_name("published.csv")
PUBLISHED_SHARE = 0.05
LEAST_PAIRS = 3
IDENTICAL = 1e-9  # percent points
BLOCKS = (
    "The paper's systems",
    "Other shares of known abnormal images, and polluted sets",
    "Systems that are not in the paper",
)
GAIN = tuple(f"paired_gain{end}" for end in ("", "_low", "_high", "_least"))
WORDS = {"val": "validation", "test": "test"}
FIGURES = ("mean", "population_sd", "plus_minus", "sample_sd", "t_low", "t_high")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published row, in percent; `plus_minus` are 1.96 x population SD over n replicates."""

    val: float
    val_plus_minus: float
    test: float
    test_plus_minus: float
    n: int
    note: str
    welch: TTest | None = None  # Ours as published against this row, from the printed figures
    welch_p_holm: float | None = None

    @property
    def summary(self) -> tuple[float, float, int]:
        """Mean, population SD and n of the test set."""
        return self.test, self.test_plus_minus / 1.96, self.n


@dataclass(kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        name: of the system.
        title: as printed.
        known_abnormal, pollution, extra: as in the plan.
        block: place in `BLOCKS`.
        cells: all that the plan has for it.
        spread: figures over the replicates by set, in percent; None without any.
        published: the row of the paper; None if there is none.
        against: name of the base that this row is compared with, Ours unless a row names another;
            "" where there is none.
        welch, paired: tests of the base against this row; None where there is none to make.
        pairs: replicates that the paired t-test and the bootstrap could use.
        gain: this row minus its base, in percent points: mean over the pairs, its 95 % interval
            (Student's t), and the least gain at one-sided 95 %.
        bootstrap: mean over pairs of test AUROC of the base minus this row's, and the ends of its
            patient-clustered 95 % interval, in percent points.
        welch_p_holm, paired_p_holm: adjusted over the rows of the same column.
        notes: what is as published and what is not.
        warnings: what to know before trusting the row.
    """

    name: str
    title: str
    known_abnormal: float
    pollution: float
    extra: bool
    cells: list[Result]
    block: int = 0
    spread: dict[str, Replicates | None] = field(default_factory=dict)
    published: Published | None = None
    against: str = ""
    welch: TTest | None = None
    paired: TTest | None = None
    pairs: int = 0
    gain: tuple[float | None, ...] = (None,) * 4
    bootstrap: tuple[float, float, float] | None = None
    welch_p_holm: float | None = None
    paired_p_holm: float | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def done(self) -> list[Result]:
        """Cells with figures."""
        return [cell for cell in self.cells if cell.done]

    @property
    def measured(self) -> str:
        """The set that rows are compared on."""
        return self.cells[0].measured

    @property
    def planned(self) -> int:
        """Replicates of the plan."""
        return len({cell.replicate for cell in self.cells})

    def values(self, split: str) -> dict[tuple[int, int], float]:
        """AUROC in percent by replicate; with folds their mean, once all of them are there."""
        each: dict[tuple[int, int], list[float]] = {}
        for cell in self.done:
            each.setdefault(cell.replicate, []).append(cell.figures[f"{split}_auroc"])
        whole = max(self.cells[0].folds, 1)
        return {
            key: float(np.mean(values)) if len(values) > 1 else values[0]
            for key, values in each.items()
            if len(values) == whole and None not in values
        }

    @property
    def level(self) -> float | None:
        """Mean AUROC in percent on the set that rows are compared on."""
        spread = self.spread[self.measured]
        return spread.mean if spread else None

    @property
    def identical(self) -> bool:
        """Whether several replicates agree, and so are none."""
        values = list(self.values(self.measured).values())
        return len(values) > 1 and bool(np.ptp(values) <= IDENTICAL)

    def mean(self, figure: str) -> float | None:
        """Mean of a figure of cells.csv over the cells that have it."""
        values = [
            cell.figures[figure] for cell in self.done if cell.figures.get(figure) is not None
        ]
        return float(np.mean(values)) if values else None


def published_rows(path: Path = PUBLISHED) -> dict[tuple[str, float], Published]:
    """The paper's figures by system and share of known abnormal images, tests against Ours and all.

    The family of Holm is that of the paper's table: its eleven rows beside Ours at 5 %.
    """
    rows, family = {}, []
    with path.open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            key = line["row"], float(line["known_abnormal"])
            figures: dict[str, Any] = {
                name: float(line[name]) for name in line if name.startswith(SPLITS)
            }
            rows[key] = Published(**figures, n=int(line["n"]), note=line["note"])
            if line["in_table"] == "1" and key[1] == PUBLISHED_SHARE and key[0] != OURS:
                family.append(key)
    ours = rows[OURS, PUBLISHED_SHARE].summary
    tests = [welch_from_summary(ours, rows[key].summary) for key in family]
    for key, test, adjusted in zip(family, tests, holm([one.p for one in tests]), strict=True):
        facts = vars(rows[key]) | {"welch": test, "welch_p_holm": adjusted}
        rows[key] = Published(**facts)
    return rows


@cache
def _order() -> list[str]:
    return list(dict.fromkeys(name for name, _ in published_rows()))


def place(name: str) -> int:
    """Of a system among those of the paper's table; those that are not in it stand last."""
    return _order().index(name) if name in _order() else len(_order())


def build_rows(
    cells: Sequence[Result], systems: Mapping[str, System], against: str = ""
) -> list[Row]:
    """The table's rows in the order of the paper's table, each compared with a row of its column.

    Args:
        cells: of a plan, as `read_results` gives them.
        systems: all that there may be rows of.
        against: row that all are compared with; "" = each with its own, which is mostly Ours.

    Raises:
        InputError: the plan has no such row.
    """
    if against and against not in (names := list(dict.fromkeys(cell.row for cell in cells))):
        raise InputError(f"against is {against!r}; allowed: a row of the plan: {', '.join(names)}")
    grouped: dict[tuple, list[Result]] = {}
    for cell in cells:
        grouped.setdefault((cell.row, *cell.column), []).append(cell)
    published = published_rows()
    rows = []
    for (name, share, pollution), members in grouped.items():
        row = Row(
            name=name, title=members[0].title, known_abnormal=share, pollution=pollution,
            extra=bool(members[0].extra), cells=members,
        )  # fmt: skip
        own = systems[name].against if name in systems else ""
        row.against = against or own or OURS
        row.published = (
            None if pollution or members[0].folds else published.get((name, round(share, 6)))
        )
        for split in SPLITS:
            values = list(row.values(split).values())
            row.spread[split] = summarise(values) if values else None
        noted = (systems[name].note if name in systems else "", getattr(row.published, "note", ""))
        row.notes = [note for note in noted if note]
        rows.append(row)
    main = _main_share(rows)
    for row in rows:
        other = row.known_abnormal != main or row.pollution > 0
        row.block = 1 if other else 2 if row.extra else 0
    rows.sort(key=lambda r: (r.block, r.pollution, r.known_abnormal, place(r.name)))
    for row in rows:
        row.warnings = _warnings(row)
    for column in dict.fromkeys((row.known_abnormal, row.pollution) for row in rows):
        _compare([row for row in rows if (row.known_abnormal, row.pollution) == column])
    return rows


def _main_share(rows: Sequence[Row]) -> float:
    """The share of known abnormal images of the main block: the paper's, or the most frequent."""
    shares = Counter(row.known_abnormal for row in rows)
    most = max(shares.values(), default=0)
    frequent = [share for share, count in shares.items() if count == most]
    return PUBLISHED_SHARE if PUBLISHED_SHARE in frequent or not frequent else frequent[0]


def _warnings(row: Row) -> list[str]:
    lines, words = [], WORDS[row.measured]
    if len(row.done) < len(row.cells):
        lines.append(f"{len(row.done)} of {len(row.cells)} runs have figures")
    if row.identical:
        lines.append(
            f"identical: its {len(row.values(row.measured))} replicates agree in {words} AUROC, so "
            "that their seeds change nothing or one run stands in more than once; no test can use "
            "them"
        )
    return lines


def _compare(rows: list[Row]) -> None:
    """Tests of every row of a column against its base, the family of Holm."""
    named = {row.name: row for row in rows}
    for row in rows:
        base = named.get(row.against)
        if base is None or base is row:
            row.against = ""
        else:
            _compare_with(base, row)
    others = [row for row in rows if row.against]
    for kind in ("welch", "paired"):
        tests = [getattr(row, kind) for row in others]
        for row, p in zip(others, holm([test.p if test else None for test in tests]), strict=True):
            setattr(row, f"{kind}_p_holm", p)


def _compare_with(base: Row, row: Row) -> None:
    """Tests of a base against a row; with folds on validation, and none of the test set."""
    its, mine = base.values(row.measured), row.values(row.measured)
    both = [key for key in mine if key in its]
    row.pairs = len(both)
    first, second = ([values[key] for key in both] for values in (its, mine))
    if both:
        row.gain = (float(np.subtract(second, first).mean()), None, None, None)
    if not row.cells[0].folds:
        runs = [{cell.replicate: cell for cell in one.done} for one in (base, row)]
        row.bootstrap = _bootstrap([(runs[0][key], runs[1][key]) for key in both])
    few = min(len(its), len(mine))
    if few < 2 or base.identical or row.identical:
        return
    if not row.cells[0].folds:
        row.welch = welch_test(list(its.values()), list(mine.values()))
        if few == 2:
            row.warnings.append("its Welch p is from two replicates of a system")
    if row.pairs >= LEAST_PAIRS:
        row.paired = paired_t_test(first, second)
        if row.paired.p is not None:
            gains = np.subtract(second, first)
            least, _ = t_interval(gains, 0.90)
            row.gain = (float(gains.mean()), *t_interval(gains), least)


def _bootstrap(pairs: Sequence[tuple[Result, Result]]) -> tuple[float, float, float] | None:
    """Mean over seeds of the difference in test AUROC, and its interval over the same resamples.

    Other draws of the split may have other test sets, which share patients that no resample of
    both shares: the ends are averaged, as if the draws rose and fell together, at worst too wide.
    """
    if not pairs or any("test" not in cell.resamples for pair in pairs for cell in pair):
        return None
    draws: dict[int, list[np.ndarray]] = {}
    for a, b in pairs:
        draws.setdefault(a.split_seed, []).append(a.resamples["test"] - b.resamples["test"])
    ends = [percentile_interval(np.mean(resampled, axis=0)) for resampled in draws.values()]
    low, high = np.mean(ends, axis=0).tolist()
    points = [a.figures["test_auroc"] - b.figures["test_auroc"] for a, b in pairs]
    return float(np.mean(points)), low, high


def _figures(spread: Replicates | None) -> tuple[float | None, ...]:
    """In the order of `FIGURES`."""
    if spread is None:
        return (None,) * len(FIGURES)
    low, high = spread.t_interval or (None, None)
    several = spread.n > 1  # one replicate has no spread, and not the spread 0
    population, plus_minus = spread.population_sd, spread.published_plus_minus
    return (
        spread.mean,
        population if several else None,
        plus_minus if several else None,
        *(spread.sample_sd, low, high),
    )


def row_line(row: Row) -> dict[str, Any]:
    """A row of table1.csv; percent and percent points, None where there is no figure."""
    line: dict[str, Any] = {
        "row": row.name,
        "system": row.title,
        "known_abnormal": row.known_abnormal,
        "pollution": row.pollution,
        "extra": int(row.extra),
        "folds": row.cells[0].folds,
        "n": len(row.values(row.measured)),
        "planned": row.planned,
    }
    for split in SPLITS:
        values = zip(FIGURES, _figures(row.spread[split]), strict=True)
        line |= {f"{split}_{name}": value for name, value in values}
    line |= published_part(row)
    for kind in ("welch", "paired"):
        test = getattr(row, kind)
        for name, attribute in (("t", "t"), ("df", "degrees_of_freedom"), ("p", "p")):
            line[f"{kind}_{name}"] = getattr(test, attribute, None)
        line[f"{kind}_p_holm"] = getattr(row, f"{kind}_p_holm")
    line["against"] = row.against
    line |= dict(zip(GAIN, row.gain, strict=True))
    low_high = ("bootstrap_difference", "bootstrap_low", "bootstrap_high")
    line |= {"pairs": row.pairs, **dict(zip(low_high, row.bootstrap or (None,) * 3, strict=True))}
    line |= {name: row.mean(name) for name in ("hours", "steps")}
    for name in ("preset", "split_sha256"):
        line[name] = " ".join(sorted({str(cell.figures[name]) for cell in row.done}))
    return line | {"warning": "; ".join(row.warnings), "note": " ".join(row.notes)}


def published_part(row: Row) -> dict[str, Any]:
    """The columns of table1.csv that hold the paper's figures, and how ours lie to them."""
    facts = ("val", "val_plus_minus", "test", "test_plus_minus", "n")
    line = {f"published_{name}": getattr(row.published, name, None) for name in facts}
    difference = None
    if row.published and row.level is not None:
        difference = row.level - row.published.test
    within = None
    if difference is not None and row.published:
        within = int(abs(difference) <= row.published.test_plus_minus)
    test = row.published.welch if row.published else None
    return line | {
        "published_welch_p": test.p if test else None,
        "published_welch_p_holm": getattr(row.published, "welch_p_holm", None),
        "difference_to_published": difference,
        "within_published": within,
    }
