"""`selftaught monitor`: whether a week's films, their scores and embeddings are as usual."""

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftaught.cli.main import complain
from selftaught.cli.outputs import check_replace
from selftaught.cli.parser import build_parser, parse
from selftaught.cli.score import Scored, add_films, ranks, reading, scored, tell_skipped
from selftaught.errors import InputError

if TYPE_CHECKING:
    from selftaught.monitoring.observed import Observed

ALARM = 4


def main(arguments: Sequence[str]) -> int:
    """Append a row to OUT/monitor.csv, write OUT/monitor.html; 4 where there is an alarm."""
    parser = build_parser(
        "monitor", "Compare films with those the model knows, or with a list of a usual time."
    )
    parser.add_argument("model", type=str, help="model folder, or a run folder with one")
    add_films(parser, "films to watch, such as those of a week: a manifest or a folder")
    parser.add_argument(
        "--data.reference",
        type=str,
        default="",
        help="films of a usual time of the same site, as they came; without it, the model's own "
        "normal films",
    )
    parser.add_argument(
        "--alarm_rate",
        type=float,
        default=0.01,
        help="probability that a run raises an alarm where nothing has changed",
    )
    parser.add_argument("--out", type=str, default="", help="folder of monitor.csv and .html")
    options = parse(parser, arguments)
    if not options.data.manifest:
        raise InputError("data.manifest is missing; allowed: a list or a folder of films to watch")
    if not 1e-3 <= options.alarm_rate < 1:
        raise InputError(f"alarm_rate is {options.alarm_rate:g}; allowed: 0.001 to below 1")
    out = _target(options.out)
    from selftaught import distributed
    from selftaught.environment import launched

    model, how = Path(options.model), reading(options)
    with ranks() as (device, stopper):
        films = scored(model, Path(options.data.manifest), device, stopper, **how)
        reference = None
        if options.data.reference:
            reference = scored(model, Path(options.data.reference), device, stopper, **how)
        alarms: list[str] = []
        if distributed.is_main():
            if options.data.bad_files == "skip":
                tell_skipped(films.table)
            alarms = _monitor(films, reference, options.alarm_rate, out)
            print(out / "monitor.html")
        alarms = distributed.broadcast_object(alarms)
    if alarms and distributed.is_main():
        complain(f"alarm: {', '.join(alarms)}; see {out / 'monitor.html'}")
    # A launcher starts all ranks again after any code but 0.
    return ALARM if alarms and not launched() else 0


def _target(out: str) -> Path:
    """The folder to write into, checked."""
    from selftaught.monitoring.history import MARKS

    if not out:
        raise InputError("out is missing; allowed: a folder for monitor.csv and monitor.html")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; allowed: a folder, new or of earlier runs")
    check_replace(folder / "monitor.csv", MARKS)
    if (folder / "monitor.html").exists() and not (folder / "monitor.csv").exists():
        raise InputError(f"{folder}: holds another monitor.html; allowed: a folder of this command")
    return folder


def _monitor(films: Scored, reference: Scored | None, rate: float, out: Path) -> list[str]:
    """Compare, append, draw; the names of the alarms."""
    from selftaught.monitoring import history
    from selftaught.monitoring.compare import compare, meaning
    from selftaught.monitoring.observed import of_model
    from selftaught.monitoring.page import write_page

    both = [films] if reference is None else [films, reference]
    labelled = all(one.table["label"][~one.skipped].notna().all() for one in both)
    here = _observed(films, labelled)
    there = of_model(films.detector) if reference is None else _observed(reference, labelled)
    tests = compare(here, there, rate)
    table = films.table[~films.skipped]
    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "list": films.manifest.name,
        "films": len(table),
        "skipped": int(films.skipped.sum()),
        "compared": "films labelled normal" if labelled else "all films",
        "against": "model" if reference is None else reference.manifest.name,
        "flagged": "" if table["flagged"].isna().all() else float(table["flagged"].mean()),
        "alarm_rate": rate,
    }
    runs = history.append(out / "monitor.csv", facts, tests)
    sentences = meaning(tests, labelled, reference is not None)
    write_page(out / "monitor.html", facts, tests, sentences, (here, there), films.detector, runs)
    return [test.name for test in tests if test.alarm]


def _observed(films: Scored, labelled: bool) -> "Observed":
    from selftaught.monitoring.observed import header_facts, of_films

    read = (~films.skipped).to_numpy()
    table = films.table[read].reset_index(drop=True)
    features = None if films.features is None else films.features.numpy()[read]
    levels = films.levels.numpy()[read]
    return of_films(table, features, levels, header_facts(table, films.manifest.root), labelled)
