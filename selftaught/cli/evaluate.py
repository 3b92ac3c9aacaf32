"""`selftaught evaluate`: the figures of a run or of any scores.csv."""

import json
from collections.abc import Sequence
from os.path import normpath
from pathlib import Path
from unicodedata import normalize

from selftaught.cli.outputs import check_out
from selftaught.cli.parser import build_parser, parse
from selftaught.errors import InputError


def main(arguments: Sequence[str]) -> None:
    """Write metrics.json beside scores.csv, NAME_metrics.json beside others; print the AUROCs."""
    parser = build_parser("evaluate", "Compute AUROC and the other figures from scores.")
    parser.add_argument("scores", type=str, help="run folder or scores.csv")
    parser.add_argument("--out", type=str, default="", help="JSON file to write; beside the scores")
    parser.add_argument("--seed", type=int, default=1, help="seed of the bootstrap")
    options = parse(parser, arguments)
    from selftaught.data.manifest.check import SETS, show
    from selftaught.evaluation.metrics import SPLITS, check_columns, evaluate, set_names
    from selftaught.files import sha256, write_atomic
    from selftaught.training.scoring import read_scores

    source = Path(options.scores)
    table = source / "scores.csv" if source.is_dir() else source
    beside = "metrics.json" if table.name == "scores.csv" else f"{table.stem}_metrics.json"
    target = Path(options.out) if options.out else table.with_name(beside)
    scores = read_scores(table)
    check_out(target, SPLITS, ".json")
    check_columns(scores, ("path", "label", "score"), table)
    same = scores["path"].map(lambda path: normpath(normalize("NFC", path))).duplicated()
    if same.any():
        twice = scores["path"][same].iloc[0]
        raise InputError(f"{table}: {show(twice)} appears twice; allowed: each image once")
    scores["split"] = set_names(scores["split"]) if "split" in scores else ""
    if not (scores["split"] != "").any():
        print(f"{table}: no split is named, so all {len(scores)} images count as test")
        scores["split"] = "test"
    strange = scores["split"][~scores["split"].isin(SETS)]
    if len(strange):
        name = show(strange.iloc[0])
        print(f"{table}: {len(strange)} images are in no set, such as {name}, and do not count")
    figures = evaluate(scores, seed=options.seed) | {"scores_sha256": sha256(table)}
    write_atomic(target, json.dumps(figures, indent=1) + "\n")
    for name in SPLITS:
        part = figures.get(name) or {}
        if part.get("auroc") is not None:
            low, high = part.get("auroc_ci") or (float("nan"), float("nan"))
            print(f"{name}: AUROC {part['auroc']:.4f} [{low:.4f}, {high:.4f}]")
        else:
            reason = (part.get("reasons") or {}).get("auroc", "no such images")
            print(f"{name}: no AUROC: {reason}")
    print(target)
