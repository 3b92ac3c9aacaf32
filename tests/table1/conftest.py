"""Folders of made-up runs: small scores in place of training."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import save_file

from selftaught.files import sha256
from selftaught.table1 import results
from selftaught.table1.plan import KINDS


def make_split(n=48, seed=0):
    """N images, a patient for each two, half of them abnormal; train, val, test, test in turn."""
    index = np.arange(n)
    label = np.random.default_rng(seed).permutation(index % 2)
    return pd.DataFrame(
        {
            "path": [f"{i:03d}.png" for i in index],
            "split": np.array(["train", "val", "test", "test"])[index // 2 % 4],
            "label": label,
            "semi_label": 0,
            "group": [f"p{i // 2:03d}" for i in index],
            "body_part": np.array(["WRIST", "HAND"])[index % 2],
        }
    )


def make_log(seed, epochs=4, stages=("pretext", "finetune")):
    """Epoch lines of 10 steps each; speed and rise known by hand."""
    return "".join(
        json.dumps(
            {
                "kind": "epoch", "stage": stage, "epoch": epoch, "step": 10 * (epoch + 1),
                "loss": 1.0, "images_per_s": 40.0, "peak_memory_gib": 1.5,
            }
            | ({"val_auroc": 0.5 + 0.1 * epoch + 0.01 * (seed % 4)} if stage == "finetune" else {})
        )
        + "\n"
        for stage in stages
        for epoch in range(epochs)
    )  # fmt: skip


def write_run(
    folder, scores, *, seed=1, size=64, preset="quick", views="plain", embeddings=False, log=None
):
    """A run folder as far as a table reads it."""
    folder.mkdir(parents=True)
    scores.to_csv(folder / "scores.csv", index=False)
    scores[["path", "split", "label", "semi_label", "group"]].to_csv(
        folder / "split.csv", index=False
    )
    figures = {"test": {}, "val": {}, "scores_sha256": sha256(folder / "scores.csv")}
    (folder / "metrics.json").write_text(json.dumps(figures))
    (folder / "metrics.jsonl").write_text(make_log(seed) if log is None else log)
    config = {
        "preset": preset, "seed": seed, "data": {"image_size": size, "evaluation_views": views},
        "pretext": {"batch_size": 8}, "finetune": {"batch_size": 16},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text(
        json.dumps({"selftaught": "0.1.0", "packages": {"torch": "2.11.0"}, "device": "cpu"})
    )
    if embeddings:
        points = np.random.default_rng(seed).normal(size=(len(scores), 6)).astype(np.float32)
        points += 3 * scores["label"].to_numpy(np.float32)[:, None]
        save_file(
            {"h": points, "z": points[:, :4].copy(), "pretext_h": points[:, ::-1].copy()},
            folder / "embeddings.safetensors",
        )


class Table:
    """A folder with a plan and made-up runs."""

    def __init__(self, out):
        self.out, self.lines, self.split = out, [], make_split()

    def add(self, row, seed=1, quality=1.0, *, scores=None, run=True, title=None, **more):
        """A cell whose scores tell normal from abnormal as well as `quality` says."""
        settings = {name: more.pop(name) for name in tuple(more) if name not in KINDS}
        folder = run if isinstance(run, str) else f"cells/{row}/s{seed:04d}"
        line = {
            "row": row, "title": title or row.capitalize(), "known_abnormal": 0.05, "seed": seed,
            "split_seed": 42, "run": folder, "score": "score", "extra": 0, "pollution": 0.0,
            "digest": "d", "donor": "", "state": "done" if run else "waiting", "problem": "",
            "folds": 0, "fold": 0,
        } | more  # fmt: skip
        self.lines.append(line)
        if run and not (self.out / line["run"]).exists():
            if scores is None:
                generator = np.random.default_rng([seed, *map(ord, row)])
                split = settings.pop("split", self.split)
                noise = generator.normal(size=len(split))
                scores = split.assign(score=np.round(noise + quality * split["label"], 3))
            write_run(self.out / line["run"], scores, seed=seed, **settings)
        return self.out / line["run"]

    def write(self):
        """Write plan.csv; returns the folder."""
        self.out.mkdir(exist_ok=True)
        with (self.out / "plan.csv").open("w", newline="") as lines:
            writer = csv.DictWriter(lines, list(KINDS))
            writer.writeheader()
            writer.writerows(self.lines)
        return self.out


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves out the figures, which take the most time."""
    monkeypatch.setattr("selftaught.table1.collect.write_figures", lambda out, rows: ([], []))


@pytest.fixture
def table(tmp_path, monkeypatch):
    """An empty `Table`, of which a collect takes little time."""
    monkeypatch.setattr(results, "RESAMPLES", 200)
    return Table(tmp_path / "table")
