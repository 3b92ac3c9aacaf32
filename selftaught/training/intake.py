"""How a run begins, or goes on: films prepared, the split, every file checked, settings noted."""

import dataclasses
from collections.abc import Container
from contextlib import closing
from pathlib import Path

import pandas as pd

from selftaught import distributed
from selftaught.console import Bar
from selftaught.data.images import stamps as sources
from selftaught.data.images.bad_files import Problem
from selftaught.data.images.pack import stored_in
from selftaught.data.manifest import Manifest, read_manifest
from selftaught.data.manifest.mura import is_mura
from selftaught.data.reader_labels import current, into_split, read_rows, with_labels
from selftaught.data.split import check_classes, format_table, make_split, read_split, write_split
from selftaught.data.split.leakage import report_leakage, without_leaks
from selftaught.data.survey import Survey, survey
from selftaught.errors import InputError
from selftaught.files import sha256, write_atomic
from selftaught.training import folder
from selftaught.training.bad_files import BadFiles
from selftaught.training.config import STAGES, Config
from selftaught.training.context import alone
from selftaught.training.events import OnEvent, ignore
from selftaught.training.inputs import Images, Rows
from selftaught.training.stop import Stopper, StopRun
from selftaught.training.tasks import check_settings

SOURCES = "sources.csv"
PREPARED = "prepared"


def use_prepared(
    config: Config, place: Path, stopper: Stopper, on_event: OnEvent = ignore
) -> Config:
    """Prepare what `data.manifest` names, where that is asked for and not done yet.

    A prepared set is complete once it has its manifest; until then the same command goes on with
    it, whenever it was killed. The first rank prepares, in `prepare.workers` processes.

    Args:
        config: settings as the user gave them.
        place: the run folder, already claimed.
        stopper: asked between shards.
        on_event: hears of it.

    Returns:
        The settings with the prepared set's manifest in `data.manifest`, or `config` itself.

    Raises:
        InputError: the source, or the folder in `data.pack`, cannot be used.
        MachineError: the disk is full, or a worker was killed.
        StopRun: a signal arrived; finished shards are kept.
    """
    if not wants_prepared(config):
        return config
    if config.data.image_size > config.prepare.size:
        raise InputError(
            f"prepare.size is {config.prepare.size}; allowed: data.image_size, which is "
            f"{config.data.image_size}, or more; or data.prepare never"
        )
    out = (Path(config.data.pack) if config.data.pack else place / PREPARED).absolute()
    manifest = out / "manifest.csv"
    alone(on_event, stopper, "prepare", lambda: _prepare(config, out))
    distributed.barrier()
    if not manifest.is_file():
        raise InputError(
            f"{manifest}: not found; allowed: a folder for data.pack or out that all ranks share"
        )
    data = dataclasses.replace(config.data, manifest=str(manifest))
    return dataclasses.replace(config, data=data)


def wants_prepared(config: Config) -> bool:
    """Whether the images are to be prepared first."""
    from selftaught.data.prepare.job import CLAIM

    data, source = config.data, Path(config.data.manifest)
    if not data.manifest or data.prepare == "never":
        return False
    folder = source if source.is_dir() else source.parent
    if (folder / CLAIM).is_file():
        return False  # It is a prepared set.
    return data.prepare == "always" or bool(data.pack) or (source.is_dir() and is_mura(source))


def _prepare(config: Config, out: Path) -> None:
    from selftaught.data.prepare.job import prepare

    outside = config.prepare.allow_outside or config.data.allow_outside
    settings = dataclasses.replace(config.prepare, allow_outside=outside)
    begun = not (out / "manifest.csv").is_file()
    summary = prepare(Path(config.data.manifest), out, settings)
    if begun:
        print(summary, flush=True)
    summary.check(settings.bad_limit, "prepare.bad_limit")


def split_images(
    config: Config, place: Path, stopper: Stopper, on_event: OnEvent = ignore
) -> Images:
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
    begun = distributed.broadcast_object((place / "config.yaml").exists())
    if not begun:
        alone(on_event, stopper, "split", lambda: begin(config, place, manifest, stopper))
    distributed.barrier()
    facts = folder.environment(place)
    if facts["manifest_sha256"] != manifest.digest:
        raise InputError(
            f"data.manifest: {config.data.manifest} is not what this run began with; "
            "choose another --out or restore the manifest"
        )
    if begun and distributed.is_main() and config.data.labels:
        labels = Path(config.data.labels)
        if not labels.is_file() or facts.get("labels_sha256") != sha256(labels):
            print(f"data.labels: {labels} has changed; the run goes on with what it began with")
    if facts.get("split_sha256") not in (None, sha256(place / "split.csv")):
        raise InputError(
            f"{place / 'split.csv'}: was edited since this run began; restore it or choose another "
            "--out"
        )
    frame = read_split(place / "split.csv")
    images = _images(config, place, root, frame)
    if begun:
        # What may change until a stage begins was not checked when the run began.
        waiting = [role for role in STAGES if not (place / "checkpoints" / role).exists()]
        check_settings(config, images, distributed.broadcast_object(waiting))
    alone(on_event, stopper, "sources", lambda: take_up(config, place, images))
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
    changed = sources.changes(images.root, sources.read_stamps(place / SOURCES))
    if config.data.bad_files == "skip":
        for name in _skip_again(images, changed):
            changed.pop(name, None)
    if changed:
        raise InputError(
            f"{sources.first_of(changed)} since this run began; choose another --out or restore it"
        )
    folder.write_settings(place, config)


def _skip_again(images: Images, changed: Container[str]) -> set[str]:
    """Check again what was listed or changed; bring the list up to date, name the bad files."""
    assert images.bad_files is not None
    paths, masks = images.files(images.used)
    listed = images.frame["path"].isin(list(images.bad_files.listed)).to_numpy()[images.used]
    for i, files in enumerate(zip(paths, masks or paths, strict=True)):
        listed[i] |= any(
            path is not None and _listed_as(images.root, path) in changed for path in files
        )
    rows = images.used[listed]
    problems = _problems(rows, survey(*images.files(rows)))
    images.bad_files.begin(problems)
    # A pack that was made anew is another one, whatever is bad in it.
    alone = [problem.file for problem in problems if stored_in(problem.file) == problem.file]
    return {_listed_as(images.root, path) for path in alone}


def _listed_as(root: Path, path: str | Path) -> str:
    """An image or mask as `sources.csv` names it."""
    return sources.stamp_name(root / path, root)


def _problems(rows: Rows, checked: Survey) -> list[Problem]:
    """Of rows that were checked, by row number."""
    return [one._replace(sample=int(rows[one.sample])) for one in checked.problems]


def begin(config: Config, place: Path, manifest: Manifest, stopper: Stopper) -> None:
    """Split, check every file and every setting that the split decides, then claim the folder.

    Raises:
        InputError: the split, an image or a setting is wrong; the folder holds no run yet.
        StopRun: a signal arrived.
    """
    root = manifest.root.resolve()
    frame, counted = _split(config, manifest)
    images = _images(config, place, root, frame)
    check_settings(config, images)
    used = images.used
    paths, masks = images.files(used)
    with closing(Bar("check", len(paths))) as bar:
        checked = survey(
            paths,
            masks,
            root=root,
            hashes=config.split.leakage != "off",
            workers=config.data.workers,
            stop=lambda: bool(stopper.code),
            done=bar.advance,
        )
    if stopper.code:
        raise StopRun(stopper.code)
    if config.data.bad_files == "fail":
        checked.refuse_problems()
    policy = config.split.leakage
    lines, excess = report_leakage(
        frame.iloc[used], checked.hashes, checked.hashed, policy, place / "split.csv"
    )
    problems = _problems(used, checked)
    if excess.any():
        frame = without_leaks(frame, used[excess])
        check_classes(frame, manifest.name, config.split)
        images = _images(config, place, root, frame)
        check_settings(config, images)
        problems = [one for one in problems if one.sample in images.used]
    assert images.bad_files is not None
    images.bad_files.begin(problems)
    sources.write_stamps(place / SOURCES, checked.stamps)
    write_split(frame, place / "split.csv")
    table = format_table(frame)
    write_atomic(place / "split_table.txt", "\n".join([table, *counted]) + "\n")
    folder.describe(place, config, root, manifest.digest)
    print("\n".join([table, *counted, *lines]), flush=True)


def _split(config: Config, manifest: Manifest) -> tuple[pd.DataFrame, list[str]]:
    """The split, with readers' labels where there are some, and lines that count these.

    It is the one that would be without them, so that no label moves an image into training. Only
    where there can be none without them, as of a list that had no label, do they decide it.
    """
    if not config.data.labels:
        return make_split(manifest, config.split), []
    path = Path(config.data.labels)
    labels = current(read_rows(path))
    labelled, _ = with_labels(manifest.table, labels, path.name)
    remarks = []
    try:
        frame = make_split(manifest, config.split)
    except InputError:
        frame = make_split(dataclasses.replace(manifest, table=labelled), config.split)
        remarks = [
            f"the labels of {manifest.name} alone allow no split: those of readers decide it"
        ]
    frame, lines = into_split(frame, labels, path.name)
    check_classes(frame, manifest.name, config.split)
    return frame, [*lines, *remarks]
