"""What cells take from each other: the beginning of a run, and a first stage that is finished.

Cells with the same images and split begin alike, so that the images are read and compared once;
cells with the same first stage take it from the one that trained it. A folder that was begun so
is as if its run had been killed after that stage: the run goes on from there.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from selftaught.errors import InputError, MachineError
from selftaught.files import fsync_folder, sha256, write_atomic
from selftaught.table1.status import is_done
from selftaught.training import folder
from selftaught.training.config import Config
from selftaught.training.context import FINETUNE, PRETEXT

LINES = "metrics.jsonl"
BEGINNING = (
    *("sources.csv", "bad_files.csv", "split.csv", "split_table.txt", "split.json"),
    "split_leakage.csv",
)


def has_begun(run: Path) -> bool:
    """Whether the split of a run is drawn, its files are checked and its settings are noted."""
    return (run / "config.yaml").is_file()


def first_stage_is_there(run: Path) -> bool:
    """Whether the first stage of a run is finished and its last checkpoint is still there."""
    begun = (run / "checkpoints" / FINETUNE).is_dir() or is_done(run)
    return begun and _last_step(run) is not None


def _last_step(run: Path) -> Path | None:
    steps = sorted((run / "checkpoints" / PRETEXT).glob("step-*"))
    return steps[-1] if steps else None


def begin_from(
    out: Path, source: str, run: str, config: Config, *, pretext: bool, ranks: int
) -> bool:
    """Begin a run as another one began, in one step; a kill at any moment leaves all or nothing.

    Args:
        out: the table's folder.
        source: run to take from, which has begun, from `out` on.
        run: run to begin.
        config: its settings.
        pretext: whether the finished first stage is taken too.
        ranks: that will work on it.

    Returns:
        Whether that was done; False: the run's folder is not empty, or something was edited.
    """
    final = out / run
    temporary = final.with_name(f".{final.name}.begins")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        facts = _copied_beginning(out / source, temporary)
        facts |= {"world_size": ranks, "begun_from": source}
        if pretext:
            digests = _linked_stage(out / source, temporary)
            facts["pretext_from"] = {"run": source, "sha256": digests}
        write_atomic(temporary / "environment.json", json.dumps(facts, indent=1) + "\n")
        folder.write_settings(temporary, dataclasses.replace(config, out=str(final.absolute())))
        with contextlib.suppress(OSError):
            final.rmdir()  # empty
        os.rename(temporary, final)
        fsync_folder(final.parent)
    except (OSError, InputError, MachineError):
        return False  # What stands in the way, the run itself will tell.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _copied_beginning(source: Path, target: Path) -> dict[str, Any]:
    """Copy the split and what was seen of the files; what the source's environment.json says."""
    facts = folder.environment(source)
    for name in BEGINNING:
        if (source / name).exists():
            shutil.copy2(source / name, target / name)
    if facts.get("split_sha256") != sha256(target / "split.csv"):
        raise InputError(f"{source / 'split.csv'}: was edited")
    return facts


def _linked_stage(source: Path, target: Path) -> dict[str, str]:
    """The last checkpoint of the first stage, under a second name or copied, and its log lines.

    Returns:
        Checksums of its files.
    """
    step = _last_step(source)
    if step is None:
        raise InputError(f"{source}: its checkpoints are gone")
    made = target / "checkpoints" / PRETEXT / step.name
    made.mkdir(parents=True)
    for path in step.iterdir():
        try:
            os.link(path, made / path.name)
        except OSError:  # a file system without links
            shutil.copy2(path, made / path.name)
    write_atomic(target / LINES, _lines_of(source / LINES, PRETEXT))
    return {path.name: sha256(path) for path in sorted(made.iterdir())}


def _lines_of(path: Path, stage: str) -> str:
    """What a stage wrote to metrics.jsonl."""
    kept = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                if json.loads(line).get("stage") == stage:
                    kept.append(line)
    return "".join(kept)
