"""The plan of a table: one line for each row, label budget, seed and fold, and their settings.

```
DIR/table1.json             what all cells share: the manifest's checksum and common settings
DIR/plan.csv                one line for each (row, budget, seed); only ever added to
DIR/settings/DIGEST.yaml    settings of a run, resolved: `selftaught run --config` takes them
DIR/cells/ours/b050/s0001/  run folders; with folds s0001-f0, s0001-f1, ...
DIR/work/                   claims, failures and logs of the cells
```
Lines whose settings are the same share one run, whatever column of its scores.csv is their score.
"""

import csv
import dataclasses
import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from selftaught.errors import InputError
from selftaught.files import claim_folder, read_yaml, write_atomic
from selftaught.methods import System
from selftaught.training.config import (
    STAGES,
    Config,
    build,
    resume_policies,
    settings,
)
from selftaught.training.folder import check_seal, sealed

MARK, PLAN, SETTINGS, WORK = "table1.json", "plan.csv", "settings", "work"
KIND = "a table of `selftaught table1`"
OTHER = {"manifest_sha256": "with another list of images in data.manifest"}
WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
# What may differ between the cells of a table beside the methods' options.
VARIED = ("seed", "split.known_abnormal", "split.seed", "split.fold")
# On what the split depends, and the first stage.
SPLIT = ("data.", "prepare.", "split.")
PRETEXT = (*SPLIT, "model.", "engine.", "seed", "pretext.")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A line of plan.csv.

    Attributes:
        row: name of the system.
        title: as the table prints it.
        known_abnormal: label budget, a share; from 1 on a number of images.
        seed: of the run.
        split_seed: of the split and its label draw.
        run: run folder, from the table's folder on.
        score: column of scores.csv that is the row's score.
        extra: whether the row is not in the paper's table.
        pollution: share of the unknown training images that are abnormal.
        digest: of the run's settings and the manifest.
        donor: run whose first stage this one takes, "" where it trains its own.
        state: waiting, running, done or failed.
        problem: why it failed, or failed last; "" where it did not.
        folds: of the table's cross-validation; 0 where the test set is used.
        fold: that validates.
    """

    row: str
    title: str
    known_abnormal: float
    seed: int
    split_seed: int
    run: str
    score: str
    extra: int
    pollution: float
    digest: str
    donor: str
    state: str = WAITING
    problem: str = ""
    folds: int = 0
    fold: int = 0

    @property
    def place(self) -> tuple[Any, ...]:
        """What a table has one cell for."""
        draw = (self.seed, self.split_seed, self.folds, self.fold)
        return (self.row, self.known_abnormal, *draw, self.pollution)

    @property
    def measured(self) -> str:
        """The set that rows are compared on: validation where folds close the test set."""
        return "val" if self.folds else "test"

    @property
    def name(self) -> str:
        """As a person names the run, such as ours/b050/s0001."""
        return self.run.removeprefix("cells/")


KINDS = {name: kind for name, kind in get_type_hints(Cell).items() if kind in (str, int, float)}
SINCE = {"folds": "0", "fold": "0"}  # columns that older plans do not have


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What is to be run for one system.

    Attributes:
        system: the row.
        config: its settings; seeds and budget are replaced.
        budgets: shares, or numbers, of known abnormal images.
        own: whether it is a row of the user's own.
    """

    system: System
    config: Config
    budgets: Sequence[float]
    own: bool = False


def read_plan(out: Path) -> list[Cell]:
    """The lines of a plan, in their order; none where there is no plan.

    Raises:
        InputError: it is damaged.
    """
    path = out / PLAN
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            cells = [
                Cell(**{name: kind((SINCE | line)[name]) for name, kind in KINDS.items()})
                for line in csv.DictReader(lines, strict=True)
            ]
        places = Counter(cell.place for cell in cells)
        if twice := [cell for cell in cells if places[cell.place] > 1]:
            raise ValueError(f"{twice[0].name} stands there twice")
        return cells
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: is damaged ({error}); allowed: the file as written") from error


def write_plan(out: Path, cells: Iterable[Cell]) -> None:
    """Replace plan.csv; whoever calls holds the plan's claim."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(KINDS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(cell) for cell in cells)
    write_atomic(out / PLAN, text.getvalue())


def claim_table(out: Path, config: Config, manifest: str) -> None:
    """Make a folder a table's own, or check that it is the folder of the same table.

    Args:
        out: the folder.
        config: settings that all cells share.
        manifest: checksum of the list of images.

    Raises:
        InputError: it holds something else, or a table with other settings.
    """
    common = {
        name: value
        for name, value in fixed(config).items()
        if name not in VARIED and name.partition(".")[0] not in STAGES
    }
    common = _without_new(out, common)
    facts = {"manifest_sha256": manifest, "settings": common}
    claim_folder(out, MARK, facts, KIND, OTHER)
    for name in (SETTINGS, WORK):
        (out / name).mkdir(exist_ok=True)


def check_manifest(out: Path, manifest: str) -> None:
    """Make sure that a table goes on with the list of images that it began with.

    Raises:
        InputError: it is another one.
    """
    claim_folder(out, MARK, {"manifest_sha256": manifest}, KIND, OTHER)


def _without_new(out: Path, common: dict[str, Any]) -> dict[str, Any]:
    """Settings but for those at their defaults that a table knows nothing of: it is older."""
    try:
        there = json.loads((out / MARK).read_text(encoding="utf-8"))["settings"]
        usual = settings(build({"out": str(out)}))
        return {k: v for k, v in common.items() if k in there or v != usual[k]}
    except (OSError, ValueError, KeyError, TypeError):
        return common


def fixed(config: Config) -> dict[str, Any]:
    """The settings on which the results depend, by dotted name."""
    policies = resume_policies(config)
    return {name: value for name, value in settings(config).items() if policies[name] != "free"}


def digest(config: Config, manifest: str, names: tuple[str, ...] = ("",)) -> str:
    """Checksum of the settings whose names begin with one of `names`, and of the manifest."""
    facts = {name: value for name, value in fixed(config).items() if name.startswith(names)}
    text = json.dumps([manifest, facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_of(out: Path, cell: Cell) -> Config:
    """The settings of a cell's run.

    Raises:
        InputError: their file is gone, damaged or edited.
    """
    path = settings_path(out, cell)
    values = read_yaml(path)
    check_seal(path)
    return build(values)


def other_settings(then: Config, now: Config) -> list[str]:
    """On what results depend and two runs differ, in words."""
    before, after = fixed(then), fixed(now)
    return [
        f"{name} {before.get(name)!r}, now {after.get(name)!r}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]


def settings_path(out: Path, cell: Cell) -> Path:
    """Where the settings of a cell's run are."""
    return out / SETTINGS / f"{cell.digest}.yaml"


def extend(
    out: Path,
    rows: Mapping[str, Planned],
    *,
    seeds: Sequence[int],
    label_draws: int,
    manifest: str,
    crossed: bool = False,
) -> list[Cell]:
    """Add what is asked for to the plan in a folder, and write the settings of its runs.

    Args:
        out: the table's folder, claimed.
        rows: by name, in the table's order.
        seeds: one a replicate.
        label_draws: different label draws among the replicates: the i-th has the split seed plus
            i modulo this.
        manifest: checksum of the list of images.
        crossed: every seed with every draw, in place of in turn.

    Returns:
        The whole plan, as written.

    Raises:
        InputError: a cell is planned already with other settings.
    """
    planned = read_plan(out)
    _refuse_other_preset(out, planned, rows)
    there = {cell.place: cell for cell in planned}
    runs = {cell.digest: cell.run for cell in planned}
    donors: dict[str, str] = {}
    for run, cell in {cell.run: cell for cell in planned}.items():
        donors.setdefault(digest(settings_of(out, cell), manifest, PRETEXT), run)
    for name, row in rows.items():
        for config in _replicates(row, seeds, label_draws, crossed):
            key = digest(config, manifest)
            run = runs.setdefault(key, _run_name(name, config, row.config, runs.values()))
            donor = ""
            if config.pretext.epochs:
                donor = donors.setdefault(digest(config, manifest, PRETEXT), run)
            cell = _cell(name, row.system, config, run, key, "" if donor == run else donor)
            if cell.place not in there:
                planned.append(cell)
            elif there[cell.place].digest != cell.digest:
                cell = there[cell.place]
                _refuse_other(out, cell, config)
            # Where the images lie and how fast they are read may change at any time.
            text = sealed(dataclasses.replace(config, out=str((out / run).absolute())))
            path = settings_path(out, cell)
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                write_atomic(path, text)
    write_plan(out, planned)
    return planned


def _replicates(
    row: Planned, seeds: Sequence[int], label_draws: int, crossed: bool
) -> Iterator[Config]:
    """The settings of all runs of a row."""
    if crossed:
        pairs = list(itertools.product(seeds, range(label_draws)))
    else:
        pairs = [(seed, number % label_draws) for number, seed in enumerate(seeds)]
    split = row.config.split
    for budget in row.budgets:
        for seed, draw in pairs:
            for fold in range(max(split.folds, 1)):
                one = dataclasses.replace(
                    split, known_abnormal=budget, seed=split.seed + draw, fold=fold
                )
                yield dataclasses.replace(row.config, seed=seed, split=one)


def _run_name(row: str, config: Config, base: Config, taken: Collection[str]) -> str:
    known = config.split.known_abnormal
    whole = abs(1000 * known - round(1000 * known)) < 1e-9
    budget = f"b{round(1000 * known):03d}" if whole else f"b{1000 * known:.10g}"
    if known >= 1:
        budget = f"n{known:03.0f}"
    name = f"cells/{row}/{budget}/s{config.seed:04d}"
    fold = f"-f{config.split.fold}" if config.split.folds else ""
    # Taken: planned earlier, when split.seed was another.
    first = config.split.seed == base.split.seed and name + fold not in taken
    return name + fold if first else f"{name}-d{config.split.seed}{fold}"


def _cell(name: str, system: System, config: Config, run: str, key: str, donor: str) -> Cell:
    return Cell(
        row=name,
        title=system.title,
        known_abnormal=config.split.known_abnormal,
        seed=config.seed,
        split_seed=config.split.seed,
        run=run,
        score=system.score,
        extra=int(system.extra),
        pollution=config.split.pollution,
        digest=key,
        donor=donor,
        folds=config.split.folds,
        fold=config.split.fold,
    )


def _refuse_other_preset(out: Path, planned: Sequence[Cell], rows: Mapping[str, Planned]) -> None:
    """Refuse another preset than a table was begun with: its columns could not be compared."""
    then = str(settings_of(out, planned[0]).preset) if planned else ""
    then = {"default": "eq2", "quick": "eq2-quick"}.get(then, then)  # as tables of before call it
    for row in rows.values():
        if then and row.config.preset != then:
            raise InputError(
                f"{out}: was begun with preset {then}, now {row.config.preset}; choose another "
                "folder or the same settings"
            )


def _refuse_other(out: Path, cell: Cell, config: Config) -> None:
    """Refuse other settings than a cell was planned with; one that is new has its default there."""
    if other := other_settings(settings_of(out, cell), config):
        raise InputError(
            f"{out}: {cell.row} at known_abnormal {cell.known_abnormal:g}, seed {cell.seed} was "
            f"planned with {other[0]}; choose another folder or the same settings"
        )
