"""`selftaught score`: anomaly scores of a run's images, or of any images with a trained model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from selftaught.cli.outputs import check_out
from selftaught.cli.parser import build_parser, parse, same_file
from selftaught.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from jsonargparse import ArgumentParser, Namespace

    from selftaught.data.manifest import Manifest
    from selftaught.detector import BadFiles, Detector, Executor
    from selftaught.training.stop import Stopper

BATCH = 32
MARKS = ("path", "score", "percentile", "flagged")  # columns of every scores file
RUNS_OWN = {
    "out": ("", "a run's own scores go to its scores.csv"),
    "data.pipeline": ("auto", "a run scores with its own"),
    "data.bad_files": ("fail", "a run has its own"),
    "maps": ("", "`selftaught maps RUN` makes those of a run"),
}


def main(arguments: Sequence[str]) -> None:
    """Write scores.csv; higher = more abnormal."""
    parser = build_parser("score", "Score images: higher = more abnormal.")
    parser.add_argument("model", type=str, help="run folder, or model folder with --data.manifest")
    add_films(parser, "images to score: a manifest or a folder")
    parser.add_argument("--out", type=str, default="", help="scores file (CSV) to write")
    parser.add_argument(
        "--maps", type=str, default="", help="folder for the films with their heat (docs/maps.md)"
    )
    options = parse(parser, arguments)
    if options.data.manifest:
        score_over_ranks(
            Path(options.model),
            Path(options.data.manifest),
            options.out,
            **reading(options),
            maps=options.maps,
        )
        return
    for name, (default, reason) in RUNS_OWN.items():
        if options[name] != default:
            raise InputError(f"{name} needs --data.manifest; {reason}")
    if not (Path(options.model) / "config.yaml").exists():
        raise InputError(f"{options.model}: is no run folder; a model folder needs --data.manifest")
    from selftaught.cli.options import read_config
    from selftaught.training.run import run

    config = read_config("score", "", ["--out", options.model])
    print(run(config, ("score",)) / "scores.csv")


def add_films(parser: "ArgumentParser", what: str) -> None:
    """The options of a command that scores a list of films, which are read as `what` says."""
    parser.add_argument("--data.manifest", type=str, default="", help=what)
    parser.add_argument("--data.allow_outside", type=bool, default=False, help="accept such paths")
    parser.add_argument(
        "--data.pipeline", type=str, default="auto", help="auto, opencv or dali reads the images"
    )
    parser.add_argument(
        "--data.bad_files",
        type=Literal["fail", "skip"],
        default="fail",
        help="images that cannot be read: fail names the first and ends; skip gives them no score "
        "but the reason",
    )


def reading(options: "Namespace") -> dict[str, Any]:
    """What the options of `add_films` say to `scored`."""
    data = options.data
    return {
        "allow_outside": data.allow_outside,
        "executor": data.pipeline,
        "bad_files": data.bad_files,
    }


def score_over_ranks(
    model: Path,
    source: Path,
    out: str,
    *,
    allow_outside: bool,
    executor: "Executor",
    bad_files: "BadFiles",
    maps: str = "",
) -> None:
    """Score the images of a source on the ranks of a launcher, or on this process alone.

    Every rank scores its share of the images; the first writes all.

    Args:
        model: model folder, or a run folder with one.
        source: manifest, or folder of images.
        out: scores file (CSV) to write.
        allow_outside: accept paths that leave the manifest's folder.
        executor: who reads the images.
        bad_files: fail, or skip: no score, and the reason in the column `problem`.
        maps: folder for maps of the images, once they have their scores; "" = none.

    Raises:
        InputError: no `out`, the model or the source is wrong, or an image that is not skipped;
            or no image can be read; or maps over several ranks.
        MachineError: the disk is full, or another rank ended.
        StopRun: a signal arrived at any rank; nothing was written.
    """
    from selftaught import distributed
    from selftaught.files import write_atomic

    with ranks() as (device, stopper):
        target = _target(out, source)
        if maps and distributed.world_size() > 1:
            raise InputError("maps: one process makes them; allowed: without a launcher")
        how: Any = {
            "allow_outside": allow_outside,
            "executor": executor,
            "bad_files": bad_files,
        }
        table = scored(model, source, device, stopper, **how).table
        if distributed.is_main():
            write_atomic(target, lambda path: table.to_csv(path, index=False))
            if bad_files == "skip":
                tell_skipped(table)
            print(target)
        if maps:
            from selftaught.cli.maps import maps_of_list

            print(maps_of_list(model, source, Path(maps), **how))


@contextmanager
def ranks() -> Iterator[tuple["torch.device", "Stopper"]]:
    """The ranks of a launcher, or this process alone: they end together, signals included."""
    from selftaught import distributed
    from selftaught.training.stop import Stopper, StopRun

    stopper = Stopper().install()
    device = distributed.start()
    with distributed.ending_together(agreed=StopRun):
        yield device, stopper
        distributed.finish()


def _target(out: str, source: Path) -> Path:
    """The file to write, checked."""
    if not out:
        raise InputError("out is missing; allowed: the scores file (CSV) to write")
    if same_file(Path(out), source):
        raise InputError(f"out is {out!r}, the manifest itself; allowed: another file")
    check_out(Path(out), MARKS)
    return Path(out)


class Scored(NamedTuple):
    """Films with their scores, on every rank.

    Attributes:
        detector: the model.
        manifest: the films.
        table: the manifest's, with the columns of `Detector.explain`.
        features, levels: (N, W) and (N, 2), of `Detector.describe`.
        skipped: (N,) bool, films that cannot be read.
    """

    detector: "Detector"
    manifest: "Manifest"
    table: "pd.DataFrame"
    features: "torch.Tensor | None"
    levels: "torch.Tensor"
    skipped: "pd.Series"


def scored(
    model: Path,
    source: Path,
    device: "torch.device",
    stopper: "Stopper",
    *,
    allow_outside: bool,
    executor: "Executor",
    bad_files: "BadFiles",
) -> Scored:
    """Score the images of a source, each rank its share.

    Raises:
        InputError: as `score_over_ranks`.
    """
    import pandas as pd
    import torch

    from selftaught import distributed
    from selftaught.data.manifest import read_manifest
    from selftaught.detector import Detector

    skip = bad_files == "skip"
    listed = read_manifest(source, allow_outside=allow_outside, missing=skip, unlabelled=True)
    table = listed.table.copy()
    masks = [listed.root / name if name else None for name in table["mask"]]
    share = range(distributed.rank(), len(table), distributed.world_size())
    detector = Detector.load(model, device=device, pipeline=executor)
    films = detector.preprocessing
    masked = any(masks) and (films.masked or not films.known)
    with _Watched(len(table), stopper, device) as watched:
        described = detector.describe(
            [listed.root / table["path"].iloc[row] for row in share],
            masks=[masks[row] for row in share] if masked else None,
            body_parts=[table["body_part"].iloc[row] for row in share],
            batch_size=BATCH,
            bad_files=bad_files,
            progress=watched.batch,
        )
    described[0].index = pd.Index(share)
    parts = distributed.gather_objects(described)
    scores = pd.concat([table for table, _, _ in parts])
    order = scores.index.argsort()
    scores = scores.iloc[order]
    features = None if described[1] is None else torch.cat([h for _, h, _ in parts])[order]
    levels = torch.cat([levels for _, _, levels in parts])[order]
    for name in scores.columns.drop("path"):
        table[name] = scores[name]
    if skip:
        table["problem"] = table["problem"].str.removeprefix(f"{listed.root}/")
        if (table["problem"] != "").all():
            raise InputError(
                f"{source}: none of {len(table)} images can be read; the first: "
                f"{table['problem'].iloc[0]}"
            )
    skipped = table["problem"] != "" if skip else pd.Series(False, table.index)
    return Scored(detector, listed, table, features, levels, skipped)


class _Watched:
    """Progress of scoring over ranks; a signal to any of them ends all after the same batch.

    Args:
        total: images of all ranks.
        stopper: its signals.
        device: of this rank.
    """

    def __init__(self, total: int, stopper: "Stopper", device: "torch.device") -> None:
        from selftaught import distributed
        from selftaught.console import Bar

        self.total, self.stopper, self.device = total, stopper, device
        self.ranks, self.number = distributed.world_size(), 0
        # However uneven the shares are, all ranks look at each other equally often.
        self.batches = -(-total // self.ranks // BATCH)
        self.bar = Bar("score", total) if distributed.is_main() else None

    def __enter__(self) -> "_Watched":
        return self

    def batch(self, _: int = 0) -> None:
        """Another batch is done here."""
        self.number += 1
        if self.stopper.requested(self.device):
            raise self.stopper.exit("no score was written, the same command begins anew")
        if self.bar is not None:
            self.bar.advance(min(self.number * BATCH * self.ranks, self.total))

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            while kind is None and self.number < self.batches:
                self.batch()
        finally:
            if self.bar is not None:
                self.bar.close()


def tell_skipped(table: "pd.DataFrame") -> None:
    """One line with the number of images without a score, by label."""
    from selftaught.data.images.bad_files import in_words

    if sentence := in_words(table[table["problem"] != ""], len(table)):
        print(sentence, flush=True)
