"""Which way round the films of a set are, told from some of them before any is prepared."""

import json
import warnings
from contextlib import closing
from pathlib import Path

from selftaught.console import Bar
from selftaught.data.images.stamps import Stamp, changes, first_of
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.polarity import kind_of
from selftaught.data.prepare.reference import NAME, settle
from selftaught.data.prepare.shard_work import Places, Row, Seen, see_films, write_carriers
from selftaught.files import write_atomic
from selftaught.workers import work_side_by_side, worker_count

FILMS, CHUNK = 192, 24


def survey(places: Places, rows: list[Row], config: PrepareConfig) -> None:
    """Write the set's reference (`polarity.json`), unless it is there and its films are the same.

    Shards that were prepared by another reference are forgotten. It depends on the films only, so
    that a set does not depend on the number of workers nor on where it was killed.

    Args:
        places: folders of the job.
        rows: of the whole set.
        config: settings.

    Raises:
        MachineError: the disk is full or cannot be read, the source's folder is gone, or a worker
            was killed.
    """
    if config.polarity != "default":
        return
    before = _written(places.out / NAME)
    if before is not None:
        films = {name: Stamp(*was) for name, was in before["films"].items()}
        changed = changes(places.root, films)
        if not changed:
            return
        warnings.warn(f"{first_of(changed)} since the set was looked through: again", stacklevel=3)
    seen = _see(places, _chosen(rows), config)
    # A film of one level, or one that cannot be read, is like no other.
    looks = {n: see.look for n, see in enumerate(seen) if see.look and see.look.pattern.any()}
    reference = settle(list(looks.values()), [seen[n].stated for n in looks])
    content = {
        "reference": reference.text(),
        "unsettled": reference.unsettled,
        "films": {name: was for one in seen for name, was in one.files.items()},
    }
    if before is None or any(content[name] != before[name] for name in ("reference", "unsettled")):
        for note in places.work.glob("[0-9]*.json"):
            note.unlink()
    write_carriers(places, seen)
    write_atomic(places.out / NAME, json.dumps(content) + "\n")


def _chosen(rows: list[Row]) -> list[Row]:
    """Up to 192 films for which the rules were tested: of all body parts, and spread evenly."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        if kind_of(row.body_part) != "other":
            parts.setdefault(row.body_part, []).append(row)
    chosen: list[Row] = []
    smallest_first = sorted(parts.values(), key=len)
    for number, films in enumerate(smallest_first):
        count = (FILMS - len(chosen)) // (len(parts) - number)
        chosen += [films[i] for i in spread(len(films), count)]
    return sorted(chosen)


def spread(total: int, count: int) -> list[int]:
    """Up to `count` of the numbers below `total`, evenly."""
    return [i * total // count for i in range(count)] if count < total else list(range(total))


def _see(places: Places, rows: list[Row], config: PrepareConfig) -> list[Seen]:
    chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    seen: dict[int, list[Seen]] = {}
    work = work_side_by_side(
        see_films,
        [(places.root, chunk, config) for chunk in chunks],
        workers=worker_count(config.workers),
        folder=places.work,
        remedy="start again, with fewer workers if it happens again",
    )
    with closing(Bar("polarity", len(rows))) as bar, closing(work) as finished:
        for position, looks in finished:
            seen[position] = looks
            bar.advance(sum(map(len, seen.values())))
    return [one for position in range(len(chunks)) for one in seen[position]]


def _written(path: Path) -> dict | None:
    """What an earlier start wrote; None where it did not, or what it wrote is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if {"reference", "unsettled", "films"} <= content.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
