"""A made-up run folder, complete down to its images."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import save_file

from selftaught.evaluation import evaluate
from selftaught.models import Calibration

PARTS = ("WRIST", "HAND", "ELBOW")


def make_scores(n, generator, parts):
    """Scores of n images in three sets; abnormal ones score higher."""
    index = np.arange(n)
    label = (generator.random(n) < 0.4).astype(int)
    split = np.array(["train", "train", "val", "test"])[(index // 2) % 4]
    label[(split == "train") & (generator.random(n) < 0.8)] = 0
    score = np.round(generator.gamma(6, 1, n) + 3 * label, 3)
    return pd.DataFrame(
        {
            "path": [f"images/{i:04d}.png" for i in index],
            "split": split,
            "label": label,
            "semi_label": np.where(split != "train", 0, np.where(label == 1, -1, 0)),
            "score": score,
            "center": generator.integers(4, size=n),
            "knn_score": score + generator.normal(size=n),
            "group": [f"p{i // 2:04d}" for i in index],
            "body_part": np.array(parts)[index // 2 % len(parts)],
            "study": "study1",
        }
    )


def make_log(epochs=6):
    """Epoch lines of both stages, a warning, and a line torn by a kill."""
    lines = []
    for stage in ("pretext", "finetune"):
        for epoch in range(epochs):
            entry = {
                "kind": "epoch", "stage": stage, "epoch": epoch, "step": 10 * epoch,
                "loss": 3 / (epoch + 1), "lr": 1e-3 if epoch < epochs - 2 else 1e-4,
                "images_per_s": 50.0, "data_wait": 0.1, "spread": 0.9 - 0.02 * epoch,
                "effective_rank": 40.0 - epoch,
            }  # fmt: skip
            if stage == "finetune":
                entry |= {
                    "centers": max(4, 20 - 5 * epoch),
                    "occupancy_max": 0.1 + 0.05 * epoch,
                    "val_auroc": 0.6 + 0.03 * epoch,
                }
            lines.append(json.dumps(entry))
    warning = {"kind": "warning", "stage": "finetune", "message": "only 4 centres <left>"}
    return "\n".join([*lines, json.dumps(warning), '{"kind": "epo'])


def make_image(path, generator, label, sixteen_bit=False):
    """A smooth random texture, with a bright spot when abnormal."""
    image = cv2.GaussianBlur(generator.random((64, 48)).astype(np.float32), (0, 0), 4)
    image = cv2.normalize(image, None, 0, 200, cv2.NORM_MINMAX)
    if label == 1:
        cv2.circle(image, (24, 30), 7, 255, -1)
    image = image.astype(np.uint16) * 16 if sixteen_bit else image.astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


@pytest.fixture
def no_pictures(monkeypatch):
    """Figures stay empty: for tests of what the page says beside them."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)


@pytest.fixture
def make_run(tmp_path):
    """Factory of run folders: `make_run(n, parts=..., edit=f(scores))` returns the folder.

    Embeddings, whose maps take time, come with `maps` and `full`, a training log with `full`.
    """

    def build(
        n=120, *, parts=PARTS, edit=None, images=True, maps=False, full=False, seed=0
    ) -> Path:
        generator = np.random.default_rng(seed)
        run, root = tmp_path / "run", tmp_path / "set"
        (run / "model").mkdir(parents=True)
        scores = make_scores(n, generator, parts)
        scores = edit(scores) if edit else scores
        label, split = scores["label"], scores["split"]
        normals = scores["score"][(split == "val") & (label == 0)]
        calibration = Calibration.from_normals(normals)
        scores["percentile"] = calibration.percentiles(scores["score"])
        scores["flagged"] = calibration.flagged(scores["score"])
        scores.to_csv(run / "scores.csv", index=False)
        scores[["path", "split", "semi_label", "label", "group"]].to_csv(
            run / "split.csv", index=False
        )
        rows = len(scores)
        h = generator.normal(size=(rows, 32)) + 2 * (label.to_numpy(float) == 1)[:, None]
        z = h[:, :16] + scores["center"].to_numpy()[:, None]
        if maps or full:
            save_file(
                {"h": h.astype(np.float32), "z": z.astype(np.float32)},
                run / "embeddings.safetensors",
            )
        metrics = evaluate(scores, seed=1, resamples=100)
        (run / "metrics.json").write_text(json.dumps(metrics))
        if full:
            (run / "metrics.jsonl").write_text(make_log())
        config = {
            "out": "run", "preset": "quick", "seed": 1, "data": {"manifest": str(root)},
            "pretext": {"method": "ntxent", "epochs": 6, "milestones": [70, 90]},
            "finetune": {"centers": 20, "epochs": 6},
        }  # fmt: skip
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        (run / "environment.json").write_text(
            json.dumps({"torch": "2.11.0", "device": "cpu", "image_root": str(root)})
        )
        (run / "model" / "model.json").write_text(json.dumps({"calibration": calibration.facts()}))
        if images:
            for number, (path, value) in enumerate(zip(scores["path"], label, strict=True)):
                target = (root / path).resolve()
                if target.is_relative_to(root):
                    make_image(target, generator, value, sixteen_bit=number % 5 == 0)
        return run

    return build
