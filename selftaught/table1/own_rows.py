"""Rows of a user's own: systems made from others by a change of settings.

```yaml
stratified:                      # lower-case letters, digits, - and .
  system: ours                   # a system, or a row above this one
  title: Ours, stratified        # default: the name
  set: {finetune.share: 0.25}    # options by dotted name, on top of the system's
  score: knn_score               # column of scores.csv; default: the system's
  against: ours                  # row that it is compared with; default: its system
  note: What a reader must know.
```
The table keeps those that were planned in `rows.json`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selftaught import methods
from selftaught.errors import InputError
from selftaught.files import read_yaml, write_atomic
from selftaught.methods import System
from selftaught.training.config import STAGES, flatten

KEPT = "rows.json"
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")
KEYS = ("system", "title", "set", "score", "against", "note")
METHODS = tuple(f"{stage}.method" for stage in STAGES)
# What rows may differ in; all else decides images, labels and seeds, or how fast a run is.
FREE = (*STAGES, "model", "score")
ALSO = ("data.image_size", "split.labels")


def read_rows(path: Path) -> dict[str, System]:
    """The rows of a file, in its order.

    Args:
        path: YAML, as above.

    Raises:
        InputError: it is missing or not as above; names the row.
    """
    known, rows = methods.systems(), dict[str, System]()
    for name, facts in read_yaml(path).items():
        where = f"{path.name}: row {name!r}"
        if not (isinstance(name, str) and NAME.fullmatch(name)) or name in known:
            allowed = "lower-case letters, digits, - and ., and no system's name"
            raise InputError(f"{where}; allowed: a name of {allowed}")
        rows[name] = _row(name, facts, {**known, **rows}, where)
    return rows


def _row(name: str, facts: Any, known: Mapping[str, System], where: str) -> System:
    if not isinstance(facts, Mapping) or not set(facts) <= set(KEYS) or "system" not in facts:
        raise InputError(
            f"{where} is {facts!r}; allowed: system, and perhaps {', '.join(KEYS[1:])}"
        )
    base = known.get(facts["system"]) if isinstance(facts["system"], str) else None
    if base is None:
        raise InputError(
            f"{where}: there is no system {facts['system']!r}; allowed: a row above, or one of "
            f"{', '.join(known)}"
        )
    texts = {key: facts.get(key, "") for key in ("title", "score", "against", "note")}
    if wrong := [key for key, text in texts.items() if not isinstance(text, str)]:
        raise InputError(f"{where}: {wrong[0]} is {texts[wrong[0]]!r}; allowed: text")
    given = facts.get("set") or {}
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise InputError(f"{where}: set is {given!r}; allowed: options by dotted name")
    changes = {**base.changes, **flatten(given)}
    for option in changes:
        if option.partition(".")[0] not in FREE and option not in ALSO:
            raise InputError(
                f"{where}: set names {option}; allowed: {', '.join(ALSO)}, or options of "
                f"{', '.join(FREE)}, not what decides images, known labels or seeds"
            )
    used = {"pretext.method": base.pretext, "finetune.method": base.finetune}
    for option in METHODS:
        used[option] = changes.pop(option, used[option])
        try:
            methods.load(used[option])
        except (InputError, AttributeError) as error:
            raise InputError(f"{where}: {option}: {error}") from error
    return System(
        title=texts["title"] or name,
        pretext=used["pretext.method"],
        finetune=used["finetune.method"],
        changes=changes,
        score=texts["score"] or base.score,
        note=texts["note"],
        extra=True,
        against=texts["against"] or facts["system"],
    )


def kept(out: Path) -> dict[str, System]:
    """The rows of their own of a table.

    Raises:
        InputError: what it keeps of them is damaged.
    """
    path = out / KEPT
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {name: System(**facts) for name, facts in rows.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is damaged ({error}); allowed: the file as written") from error


def keep(out: Path, rows: Mapping[str, System]) -> None:
    """Add rows of their own to a table; whoever calls holds the plan's claim.

    Raises:
        InputError: a row of the name is there, and another one.
    """
    there = kept(out)
    for name, system in rows.items():
        if name in there and there[name] != system:
            parts = zip(System._fields, there[name], system, strict=True)
            part, then, now = next(one for one in parts if one[1] != one[2])
            raise InputError(
                f"{out}: row {name} was planned with {part} {then!r}, now {now!r}; choose another "
                "name or folder, or the same row"
            )
    if rows:
        facts = {name: one._asdict() for name, one in {**there, **rows}.items()}
        write_atomic(out / KEPT, json.dumps(facts, indent=1) + "\n")


def systems(out: Path) -> dict[str, System]:
    """All systems that a table may have rows of."""
    return {**methods.systems(), **kept(out)}
