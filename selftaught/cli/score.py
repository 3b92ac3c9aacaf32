"""`selftaught score`: anomaly scores of a run's images, or of any images with a trained model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftaught.cli.options import build_parser, parse, same_file
from selftaught.errors import InputError, MachineError

if TYPE_CHECKING:
    import torch


def main(arguments: Sequence[str]) -> None:
    """Write scores.csv; higher = more abnormal."""
    parser = build_parser("score", "Score images: distance to the nearest centre.")
    parser.add_argument("model", type=str, help="run folder, or model folder with --data.manifest")
    parser.add_argument("--data.manifest", type=str, default="", help="images to score")
    parser.add_argument("--data.allow_outside", type=bool, default=False, help="accept such paths")
    parser.add_argument(
        "--data.pipeline", type=str, default="auto", help="auto, opencv or dali reads the images"
    )
    parser.add_argument("--out", type=str, default="", help="scores file (CSV) to write")
    options = parse(parser, arguments)
    if options.data.manifest:
        score_over_ranks(Path(options.model), options.data.manifest, options)
        return
    if options.out:
        raise InputError("out needs --data.manifest; a run's own scores go to its scores.csv")
    if options.data.pipeline != "auto":
        raise InputError("data.pipeline needs --data.manifest; a run scores with its own")
    if not (Path(options.model) / "config.yaml").exists():
        raise InputError(f"{options.model}: is no run folder; a model folder needs --data.manifest")
    from selftaught.cli.options import read_config
    from selftaught.training.run import run

    config = read_config("score", "", ["--out", options.model])
    print(run(config, ("score",)) / "scores.csv")


def score_over_ranks(model: Path, manifest: str, options: object) -> None:
    """`score_manifest` on the ranks of a launcher, or on this process alone."""
    from selftaught import distributed

    device = distributed.start()
    try:
        target = score_manifest(model, manifest, options, device)
    except Exception as error:
        other = distributed.other_failure(error)
        if other:
            raise MachineError(other) from error
        raise
    if distributed.is_main():
        print(target)
    distributed.finish()


def score_manifest(model: Path, manifest: str, options: object, device: "torch.device") -> Path:
    """Score the images of a manifest with a model folder (or the one in a run folder).

    Every rank scores its share of the images; the first writes all.

    Raises:
        InputError: no `--out`, or the model, the manifest or an image is wrong.
    """
    out = getattr(options, "out", "")
    if not out:
        raise InputError("out is missing; allowed: the scores file (CSV) to write")
    if same_file(Path(out), Path(manifest)):
        raise InputError(f"out is {out!r}, the manifest itself; allowed: another file")
    import pandas as pd

    from selftaught import distributed
    from selftaught.data.manifest import read_manifest
    from selftaught.detector import Detector
    from selftaught.files import write_atomic

    folder = model / "model" if (model / "model").is_dir() else model
    outside = bool(getattr(getattr(options, "data", None), "allow_outside", False))
    listed = read_manifest(manifest, allow_outside=outside)
    table = listed.table.copy()
    masks = [listed.root / name if name else None for name in table["mask"]]
    executor: Any = getattr(getattr(options, "data", None), "pipeline", "auto")
    share = range(distributed.rank(), len(table), distributed.world_size())
    scored = Detector.load(folder, device=device, pipeline=executor).explain(
        [listed.root / table["path"].iloc[row] for row in share],
        masks=[masks[row] for row in share] if any(masks) else None,
    )
    scored.index = pd.Index(share)
    found = pd.concat(distributed.gather_objects(scored)).sort_index()
    for name in ("score", "center", "percentile", "flagged"):
        table[name] = found[name].to_numpy()
    target = Path(out)
    if distributed.is_main():
        write_atomic(target, lambda path: table.to_csv(path, index=False))
    return target
