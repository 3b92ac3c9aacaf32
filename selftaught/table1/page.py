"""The page that compares the systems: table1.html, complete in itself."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selftaught.evaluation.plot_style import Picture
from selftaught.evaluation.report import template
from selftaught.evaluation.run_files import flatten
from selftaught.evaluation.statistics import Replicates, stars
from selftaught.methods import System
from selftaught.table1.figures import STARS
from selftaught.table1.results import RESAMPLES, Result
from selftaught.table1.rows import BLOCKS, OURS, WORDS, Row, row_line

TEMPLATE = Path(__file__).with_name("table1_template.html")
DASH = "\N{EN DASH}"
NB = "\N{NO-BREAK SPACE}"
VERSIONS = ("selftaught", "python", "system", "packages.torch", "device", "world_size")
# Further figures of the test set and of the training: heading, figure of cells.csv, digits.
FURTHER = (
    ("AUPR abnormal", "test_aupr_abnormal", 1),
    ("AUPR normal", "test_aupr_normal", 1),
    ("Sens. at 90 % spec.", "test_sensitivity_at_90", 1),
    ("Sens. at 95 % spec.", "test_sensitivity_at_95", 1),
    ("Val AUROC after epoch 1", "val_auroc_after_epoch_1", 1),
    ("Epochs to 95 % of plateau", "epochs_to_plateau", 1),
    ("Epochs, stage 1", "pretext_epochs", 0),
    ("Epochs, stage 2", "finetune_epochs", 0),
    ("Steps", "steps", 0),
    ("Hours", "hours", 2),
    ("Peak GiB, stage 1", "pretext_peak_gib", 2),
    ("Peak GiB, stage 2", "finetune_peak_gib", 2),
)
SPREADS = ("population_sd", "sample_sd", "t_low", "t_high")


def render_page(
    out: Path,
    rows: Sequence[Row],
    pictures: Sequence[Picture],
    problems: Sequence[str],
    systems: Mapping[str, System],
) -> str:
    """The HTML of the table; what came with the data is escaped, and nothing needs the network.

    Args:
        out: folder of the table, for its name.
        rows: as `build_rows` gives them.
        pictures: the figures.
        problems: a sentence for each figure that is missing.
        systems: all that there may be rows of.
    """
    cells = [cell for row in rows for cell in row.cells]
    done = [cell for cell in cells if cell.done]
    marks, notes = _footnotes(rows)
    ours = next((row for row in rows if row.name == OURS and row.done), None)
    shown = ours.done[0] if ours else done[0] if done else None
    parts = _parts(done)
    share = done[0].figures["test_abnormal_share"] if done else None
    return template(TEMPLATE).render(
        name=out.resolve().name,
        folds=cells[0].folds,
        base=_base(rows),
        headlines=_headlines(rows),
        done=len({cell.run for cell in done}),
        planned=len({cell.run for cell in cells}),
        missing=_missing(cells),
        warnings=_warnings(rows),
        blocks=_blocks(rows, lambda row: _line(row, marks)),
        notes=notes,
        families=_families(rows),
        replicates=_replicates(done),
        resamples=RESAMPLES,
        stars=STARS,
        abnormal_share=share,
        spreads=_blocks(rows, _spread_line),
        further=[heading for heading, _, _ in FURTHER],
        further_blocks=_blocks(rows, _further_line),
        parts=parts,
        part_blocks=_blocks(rows, lambda row: [_number(row.mean(n)) for n in parts.values()]),
        pictures=pictures,
        picture_problems=problems,
        cells=[_cell_line(cell, row) for row in rows for cell in row.cells],
        shown=shown,
        settings=dict(flatten(shown.config)) if shown else {},
        changes=_changes(rows, systems),
        versions=_versions(done),
    )  # fmt: skip


def title(row: Row) -> str:
    """A row's title, with its share of known abnormal images and pollution where not the main."""
    words = []
    if row.block == 1:
        words.append(f"{_budget(row.known_abnormal)} known abnormal")
    if row.pollution:
        words.append(f"{100 * row.pollution:g}{NB}% pollution")
    return f"{row.title} ({', '.join(words)})" if words else row.title


def _budget(known: float) -> str:
    """A share of the training images, or a number of images."""
    return f"{known:,.0f}{NB}images" if known >= 1 else f"{100 * known:g}{NB}%"


def _number(value: float | None, digits: int = 1) -> str:
    return DASH if value is None else f"{value:,.{digits}f}"


def _plus_minus(mean: float | None, half: float | None) -> str:
    if mean is None:
        return DASH
    return f"{mean:.2f}" if half is None else f"{mean:.2f}{NB}\N{PLUS-MINUS SIGN}{NB}{half:.2f}"


def _p(p: float | None) -> str:
    if p is None:
        return DASH
    return f"<{NB}0.001" if p < 0.001 else f"{p:.3f}"


def _spread(spread: Replicates | None) -> str:
    """Mean and the published +-; of one replicate the mean alone."""
    if spread is None:
        return DASH
    return _plus_minus(spread.mean, spread.published_plus_minus if spread.n > 1 else None)


def _difference(row: Row) -> tuple[str, str]:
    """Its base minus a row in test AUROC: the mean, and the interval; of folds the row's gain."""
    if row.cells[0].folds:
        gain, low, high, least = row.gain
        if gain is None:
            return DASH, ""
        ends = f"{low:+.2f} to {high:+.2f}, at least {least:+.2f}" if low is not None else ""
        return f"{gain:+.2f}", ends
    if row.bootstrap is None:
        return DASH, ""
    mean, low, high = row.bootstrap
    return f"{mean:+.2f}", f"{low:+.2f} to {high:+.2f}"


def _base(rows: Sequence[Row]) -> str:
    """What rows are compared with, in words."""
    bases = {row.against for row in rows} - {""}
    titles = {row.title for row in rows if row.name in bases}
    if bases <= {OURS}:
        return "Ours"
    return titles.pop() if len(bases) == 1 == len(titles) else "its base"


def _blocks(rows: Sequence[Row], line: Callable[[Row], Any]) -> list[tuple[str, list]]:
    """The blocks that have rows, with title and content of each row."""
    blocks = []
    for number, heading in enumerate(BLOCKS):
        members = [(title(row), line(row)) for row in rows if row.block == number]
        if members:
            blocks.append((heading, members))
    return blocks


def _footnotes(rows: Sequence[Row]) -> tuple[dict[str, int], list[str]]:
    """Number of each note, and the notes in that order."""
    marks: dict[str, int] = {}
    for row in rows:
        for note in row.notes:
            marks.setdefault(note, len(marks) + 1)
    return marks, list(marks)


def _line(row: Row, marks: dict[str, int]) -> dict[str, Any]:
    """A row of the main table."""
    published, n = row.published, len(row.values(row.measured))
    return {
        "ours": row.name == OURS,
        "marks": [marks[note] for note in row.notes],
        "n": f"{n}" + (f" of {row.planned}" if n < row.planned else ""),
        "short": n < row.planned,
        "val": _spread(row.spread["val"]),
        "test": _spread(row.spread["test"]),
        "published_val": published and _plus_minus(published.val, published.val_plus_minus),
        "published_test": published and _plus_minus(published.test, published.test_plus_minus),
        "published_n": published.n if published else None,
        "difference": _difference(row),
        "welch": (_p(row.welch.p if row.welch else None), _p(row.welch_p_holm)),
        "stars": "" if row.welch_p_holm is None else stars(row.welch_p_holm),
        "paired": (_p(row.paired.p if row.paired else None), _p(row.paired_p_holm)),
        "few": row.welch is not None and row.welch.p is not None and len(row.done) == 2,
        "hours": _number(row.mean("hours"), 2),
    }


def _spread_line(row: Row) -> list[str]:
    """Every spread of the test AUROC, the paper's p, and how ours lies to what was published."""
    line = row_line(row)
    low, high = line["test_t_low"], line["test_t_high"]
    interval = DASH if low is None else f"{low:.2f} to {high:.2f}"
    within = {None: DASH, 0: "no", 1: "yes"}[line["within_published"]]
    difference = line["difference_to_published"]
    return [
        _number(line["test_population_sd"], 2),
        _number(line["test_sample_sd"], 2),
        interval,
        DASH if difference is None else f"{difference:+.2f}",
        within,
        _p(line["published_welch_p"]),
        _p(line["published_welch_p_holm"]),
    ]


def _further_line(row: Row) -> list[str]:
    return [_number(row.mean(figure), digits) for _, figure, digits in FURTHER]


def _parts(cells: Sequence[Result]) -> dict[str, str]:
    """Body parts of the test sets, and their figures in cells.csv."""
    prefix = f"{cells[0].measured}_auroc_" if cells else "test_auroc_"
    found = {name for cell in cells for name in cell.figures if name.startswith(prefix)}
    found -= {f"{prefix}low", f"{prefix}high"}
    return {name.removeprefix(prefix): name for name in sorted(found)}


def _headlines(rows: Sequence[Row]) -> list[str]:
    """Rows that beat their base come first; else that none does, or why nothing is compared."""
    named = {(row.name, row.known_abnormal, row.pollution): row for row in rows}
    lines, compared = [], 0
    for row in rows:
        mine = named.get((row.against, row.known_abnormal, row.pollution))
        if mine is None or mine.level is None or row.level is None:
            continue
        compared += 1
        if row.level <= mine.level:
            continue
        mean, interval = _difference(row)
        facts = [f"n {len(row.values(row.measured))} and {len(mine.values(row.measured))}"]
        if interval and row.cells[0].folds:
            facts.append(f"gain in {row.pairs} pairs {mean} ({interval})")
        elif interval:
            facts.append(
                f"{mine.title} minus it over the same patients in {row.pairs} shared runs {mean} "
                f"({interval})"
            )
        if row.welch_p_holm is not None:
            facts.append(f"Welch, adjusted: p {_p(row.welch_p_holm)}")
        lines.append(
            f"{title(row)} has a higher mean {WORDS[row.measured]} AUROC than {mine.title}: "
            f"{row.level:.2f} against {mine.level:.2f} ({'; '.join(facts)})."
        )
    if lines:
        return lines
    base = _base(rows)
    if not compared:
        return [f"Nothing can be compared with {base} yet: no finished run of it, or of any other."]
    words = WORDS[rows[0].measured]
    return [f"None of the {compared} other rows has a higher mean {words} AUROC than {base}."]


def _fold(cell: Result) -> str:
    return f", fold {cell.fold}" if cell.folds else ""


def _missing(cells: Sequence[Result]) -> list[str]:
    """A line for every cell without figures."""
    return [
        f"{cell.title}, {_budget(cell.known_abnormal)} known, seed {cell.seed}{_fold(cell)}: "
        f"{' '.join(cell.problem.split()) or cell.state}"
        for cell in cells
        if not cell.done
    ]


def _warnings(rows: Sequence[Row]) -> list[str]:
    """Each warning once, with the rows that it is of."""
    of: dict[str, list[str]] = {}
    for row in rows:
        for line in row.warnings:
            of.setdefault(line, []).append(title(row))
    return [f"{'; '.join(names)}: {line}" for line, names in of.items()]


def _families(rows: Sequence[Row]) -> list[str]:
    """How many tests of each kind Holm's adjustment counts, by column."""
    lines = []
    for column in dict.fromkeys((row.known_abnormal, row.pollution) for row in rows):
        members = [row for row in rows if (row.known_abnormal, row.pollution) == column]
        welch, paired = (
            sum(getattr(row, f"{kind}_p_holm") is not None for row in members)
            for kind in ("welch", "paired")
        )
        polluted = f", {100 * column[1]:g}{NB}% pollution" if column[1] else ""
        lines.append(
            f"{_budget(column[0])} known abnormal{polluted}: {welch} Welch tests, "
            f"{paired} paired tests"
        )
    return lines


def _replicates(cells: Sequence[Result]) -> str:
    """What differs between the replicates."""
    draws = len({cell.split_seed for cell in cells})
    if draws > 1:
        return (
            "Replicates differ in the seed of training and in the draw of labels and, where the "
            f"list of images does not fix them, of the sets ({draws} draws)."
        )
    return (
        "Replicates differ in the seed of training alone, as published; they share one label draw, "
        "so that their spread says nothing about other draws."
    )


def _cell_line(cell: Result, row: Row) -> list[str]:
    figures = cell.figures
    low, high = figures.get("test_auroc_low"), figures.get("test_auroc_high")
    return [
        title(row), str(cell.seed), f"{cell.split_seed}{_fold(cell)}",
        _number(figures.get("val_auroc"), 2), _number(figures.get("test_auroc"), 2),
        DASH if low is None or high is None else f"{low:.2f} to {high:.2f}",
        _number(figures.get("hours"), 2), cell.run,
    ]  # fmt: skip


def _changes(rows: Sequence[Row], systems: Mapping[str, System]) -> list[tuple[str, str]]:
    """What each system sets beside its two methods."""
    lines = {}
    for row in rows:
        if row.name in systems:
            one = systems[row.name]
            chosen = {"pretext.method": one.pretext, "finetune.method": one.finetune, **one.changes}
            score = "" if one.score == "score" else f"; score: {one.score}"
            lines[row.title] = (
                ", ".join(f"{name} {value}" for name, value in chosen.items()) + score
            )
    return list(lines.items())


def _versions(cells: Sequence[Result]) -> dict[str, str]:
    """Versions and machines of the runs, and how many runs had each where they differ."""
    runs = {cell.run: dict(flatten(cell.environment)) for cell in cells}
    lines = {}
    for name in VERSIONS:
        counts = Counter(facts[name] for facts in runs.values() if name in facts)
        if counts:
            one = len(counts) == 1 and sum(counts.values()) == len(runs)
            told = [v if one else f"{v} ({n} runs)" for v, n in sorted(counts.items())]
            lines[name] = ", ".join(told)
    return lines
