"""How a run begins, or goes on: the split, every file checked, and the settings noted."""

import os
from collections.abc import Container
from contextlib import closing
from pathlib import Path

import pandas as pd

from selftaught import distributed
from selftaught.console import Bar
from selftaught.data import sources
from selftaught.data.images.bad_files import Problem
from selftaught.data.images.pack import stored_in
from selftaught.data.manifest import Manifest, read_manifest
from selftaught.data.preflight import Checked, check_images, refuse_bad
from selftaught.data.split import check_classes, format_table, make_split, read_split, write_split
from selftaught.data.split.leakage import report_leakage, without_leaks
from selftaught.errors import InputError
from selftaught.files import sha256, write_atomic
from selftaught.models.weights import load_encoder_weights
from selftaught.training import finetune, folder
from selftaught.training.bad_files import BadFiles
from selftaught.training.config import Config
from selftaught.training.inputs import Images, Rows
from selftaught.training.stages import new_embedder, total_steps
from selftaught.training.stop import Stopper, StopRun, first_rank_alone

SOURCES = "sources.csv"


def split_images(config: Config, place: Path, stopper: Stopper) -> Images:
    """Read the manifest, split it or take up the split that is there, and check every file.

    Raises:
        InputError: manifest, split or an image is wrong, or no longer what the run began with.
    """
    if not config.data.manifest:
        raise InputError(
            "data.manifest is missing; allowed: a CSV or parquet file, a folder with "
            "normal/ and abnormal/, or a MURA-v1.1 folder"
        )
    manifest = read_manifest(
        config.data.manifest,
        allow_outside=config.data.allow_outside,
        missing=config.data.bad_files == "skip",
    )
    root = manifest.root.resolve()
    if not distributed.broadcast_object((place / "config.yaml").exists()):
        first_rank_alone(lambda: begin(config, place, manifest, stopper), stopper)
    distributed.barrier()
    facts = folder.environment(place)
    if facts["manifest_sha256"] != manifest.digest:
        raise InputError(
            f"data.manifest: {config.data.manifest} is not what this run began with; "
            "choose another --out or restore the manifest"
        )
    if facts.get("split_sha256") not in (None, sha256(place / "split.csv")):
        raise InputError(
            f"{place / 'split.csv'}: was edited since this run began; restore it or choose another "
            "--out"
        )
    frame = read_split(place / "split.csv")
    first_rank_alone(lambda: take_up(config, place, _images(config, place, root, frame)), stopper)
    return _images(config, place, root, frame)


def _images(config: Config, place: Path, root: Path, frame: pd.DataFrame) -> Images:
    return Images(
        frame=frame,
        root=root,
        config=config.data,
        seed=config.seed,
        unlabelled=config.split.unlabelled,
        bad_files=BadFiles(place, frame, root, config.data.bad_limit),
    )


def take_up(config: Config, place: Path, images: Images) -> None:
    """Compare the images with what the run began with, and note the settings it goes on with.

    Raises:
        InputError: an image or mask is no longer the same, though it can be read; names it. Or,
            where bad files are skipped, there are too many.
    """
    told = sources.changes(images.root, sources.read_stamps(place / SOURCES))
    if config.data.bad_files == "skip":
        for name in _skip_again(images, told):
            told.pop(name, None)
    if told:
        raise InputError(
            f"{sources.first_of(told)} since this run began; choose another --out or restore it"
        )
    folder.write_settings(place, config)


def _skip_again(images: Images, changed: Container[str]) -> set[str]:
    """Look at what was listed and what changed; bring the list up to date, name the bad files."""
    assert images.bad_files is not None
    paths, masks = images.files(images.used)
    listed = images.frame["path"].isin(list(images.bad_files.listed)).to_numpy()[images.used]
    for i, files in enumerate(zip(paths, masks or paths, strict=True)):
        listed[i] |= any(path is not None and _told(images.root, path) in changed for path in files)
    rows = images.used[listed]
    problems = _problems(rows, check_images(*images.files(rows)))
    images.bad_files.begin(problems)
    # A pack that was made anew is another one, whatever is bad in it.
    alone = [problem.file for problem in problems if stored_in(problem.file) == problem.file]
    return {_told(images.root, path) for path in alone}


def _told(root: Path, path: str | Path) -> str:
    """An image or mask as `sources.csv` names it."""
    return os.path.relpath(stored_in(root / path), root)


def _problems(rows: Rows, checked: Checked) -> list[Problem]:
    """Of rows that were checked, by row number."""
    return [one._replace(sample=int(rows[one.sample])) for one in checked.problems]


def _check_sizes(config: Config, images: Images) -> None:
    """Refuse more centres or larger batches than there are images."""
    finetune.check_centers(config, images)
    for name, options in (("pretext", config.pretext), ("finetune", config.finetune)):
        total_steps(options, name, images, config.engine.accumulate)


def begin(config: Config, place: Path, manifest: Manifest, stopper: Stopper) -> None:
    """Split, check every file and every setting that the split decides, then claim the folder.

    Raises:
        InputError: the split, an image or a setting is wrong; the folder holds no run yet.
        StopRun: a signal arrived.
    """
    root = manifest.root.resolve()
    frame = make_split(manifest, config.split)
    images = _images(config, place, root, frame)
    _check_sizes(config, images)
    if config.pretext.method == "imagenet" and not Path(config.model.weights).is_file():
        raise InputError(f"model.weights: {config.model.weights}: no such file")
    if config.pretext.method == "imagenet":
        load_encoder_weights(new_embedder(config, config.seed).encoder, Path(config.model.weights))
    used = images.used
    paths, masks = images.files(used)
    names = [_told(root, path) for path in [*paths, *(masks or [])] if path is not None]
    workers, stop = config.data.workers, lambda: bool(stopper.code)
    with closing(Bar("checksums", len(set(names)), unit="files")) as bar:
        then = sources.stamps(root, names, workers=workers, stop=stop, done=bar.advance)
    look = config.split.leakage != "off"
    with closing(Bar("check", len(paths))) as bar:
        checked = check_images(
            paths, masks, hashes=look, workers=workers, stop=stop, done=bar.advance
        )
    if stopper.code:
        raise StopRun(stopper.code)
    if config.data.bad_files == "fail":
        refuse_bad(checked.problems, len(used))
    policy = config.split.leakage
    said, excess = report_leakage(frame.iloc[used], checked, policy, place / "split.csv")
    problems = _problems(used, checked)
    if excess.any():
        frame = without_leaks(frame, used[excess])
        check_classes(frame, manifest.name)
        images = _images(config, place, root, frame)
        _check_sizes(config, images)
        problems = [one for one in problems if one.sample in images.used]
    assert images.bad_files is not None
    images.bad_files.begin(problems)
    sources.write_stamps(place / SOURCES, then)
    write_split(frame, place / "split.csv")
    table = format_table(frame)
    write_atomic(place / "split_table.txt", table + "\n")
    folder.describe(place, config, root, manifest.digest)
    print("\n".join([table, *said]), flush=True)
