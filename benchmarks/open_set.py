"""Abnormality of a kind that was never labelled: who still sees it.

python -m benchmarks.open_set knee/manifest.csv --column kl_grade --known 3 --out open \
    --systems a5-a2,a5-a2b,a5-logistic,a5-mahalanobis [options of selftaught table1]

COLUMN names the kind of each abnormal image. Known abnormal images are drawn from the kind KNOWN;
held back are the abnormal images of all other kinds and a fifth of the normal ones, the rest of
which train. Rows of the given test set are left out. Each of `--draws` draws deals the normal
images, by patient, into five folds anew; its figure is the mean AUROC of what is held back.
Printed and kept in OUT/open_set.csv: mean and deviation over the draws, and paired gains over the
first system.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

from selftaught.cli.main import main as selftaught
from selftaught.evaluation.statistics import t_interval

FOLDS, SEEDS = 5, (1, 11, 111, 1111)


def fold_of(table: pd.DataFrame, args: argparse.Namespace, draw: int, fold: int) -> pd.DataFrame:
    """Rows of one fold: `split`, and the known abnormal images as `semi_label` -1."""
    generator = np.random.default_rng((SEEDS[draw], 7))
    table = table[table["split"] != "test"].copy()
    patients = generator.permutation(table["patient"].unique())
    dealt = dict(zip(patients, np.arange(len(patients)) % FOLDS, strict=True))
    held = table["patient"].map(dealt) == fold
    kind = table[args.column].astype("string")
    known = (table["label"] == 1) & (kind == args.known)
    pool = table.index[known & ~held]
    drawn = generator.permutation(pool)[: round(args.budget * (table["label"] == 0).sum())]
    table["split"], table["semi_label"] = "unused", 0
    table.loc[table["label"] == 0, "split"] = np.where(held[table["label"] == 0], "test", "train")
    table.loc[(table["label"] == 1) & ~known, "split"] = "test"
    table.loc[drawn, ["split", "semi_label"]] = "train", -1
    mixed = table["patient"].isin(table.loc[table["split"] == "train", "patient"])
    return table[(table["split"] == "train") | ((table["split"] == "test") & ~mixed)]


def figures(args: argparse.Namespace, common: list[str]) -> pd.DataFrame:
    """AUROC of what is held back, in percent, a row for each draw and a column for each system."""
    whole = pd.read_csv(args.manifest)
    if "patient" not in whole:
        whole["patient"] = whole["path"]
    whole["path"] = [os.path.relpath(args.manifest.parent / one, args.out) for one in whole["path"]]
    names, table = args.systems.split(","), {}
    for draw in range(args.draws):
        sums = dict.fromkeys(names, 0.0)
        for fold in range(FOLDS):
            manifest, out = args.out / f"d{draw}-f{fold}.csv", args.out / f"d{draw}-f{fold}"
            fold_of(whole, args, draw, fold).to_csv(manifest, index=False)
            words = ["--out", str(out), "--data.manifest", str(manifest), "--seeds"]
            words += [str(SEEDS[draw]), "--systems", args.systems, "--data.allow_outside", "true"]
            words += ["--data.features", str(args.out / "features")]
            if code := selftaught(["table1", *words, *common]):
                raise SystemExit(code)
            for name in names:
                (cell,) = (out / "cells" / name).glob("*/*")
                sums[name] += (
                    100 * json.loads((cell / "metrics.json").read_text())["test"]["auroc"] / FOLDS
                )
        table[draw] = sums
    return pd.DataFrame(table).T


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--column", required=True)
    parser.add_argument("--known", required=True)
    parser.add_argument("--systems", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=len(SEEDS), choices=range(2, len(SEEDS) + 1))
    parser.add_argument("--budget", type=float, default=0.1, help="known abnormal a normal image")
    args, common = parser.parse_known_args()
    args.manifest, args.out = args.manifest.absolute(), args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    table = figures(args, common)
    rows = []
    for name in table:
        gains = (table[name] - table.iloc[:, 0]).to_numpy()
        low, high = t_interval(gains)
        rows.append(
            {
                "system": name,
                "mean": table[name].mean(),
                "sd": table[name].std(),
                "gain": gains.mean(),
                "gain_low": low,
                "gain_high": high,
            }
        )
    print(pd.DataFrame(rows).round(2).to_string(index=False))
    pd.DataFrame(rows).round(4).to_csv(args.out / "open_set.csv", index=False)


if __name__ == "__main__":
    main()
