"""A whole run: prepare, split, pretext, centres, fine-tuning, model, scores, metrics, report.

Each part reads files and writes files; what is finished is not done again.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from selftaught import distributed
from selftaught.errors import InputError
from selftaught.evaluation.calibration import percentiles, threshold_from_normals
from selftaught.evaluation.metrics import evaluate
from selftaught.evaluation.report import write_report
from selftaught.files import write_atomic
from selftaught.models.files import save_model
from selftaught.search import knn_score
from selftaught.training import finetune, folder, guards, pretext
from selftaught.training.beginning import split_images
from selftaught.training.config import Config
from selftaught.training.inputs import Embedded, Images, embed, open_plain
from selftaught.training.prepared import use_prepared
from selftaught.training.progress import Reporter
from selftaught.training.stages import open_evaluation
from selftaught.training.stop import Stopper, StopRun, first_rank_alone
from selftaught.training.tasks import KNOWN_ABNORMAL, FinetuneTask

PARTS = ("split", "pretrain", "finetune", "score", "evaluate", "report")


def run(config: Config, parts: Sequence[str] = PARTS) -> Path:
    """Carry out the named parts of a run, on every rank.

    Args:
        config: checked settings.
        parts: some of `PARTS`, in order.

    Returns:
        The run folder.

    Raises:
        InputError: the input is wrong.
        MachineError: the machine failed; what was saved is intact.
        StopRun: a signal arrived; the state was saved.
    """
    stopper = Stopper().install()
    device = distributed.start(config.engine.timeout)
    with distributed.ending_together(agreed=StopRun):
        return _run_parts(config, parts, stopper, device)


def _run_parts(
    config: Config, parts: Sequence[str], stopper: Stopper, device: torch.device
) -> Path:
    place = folder.claim(config)
    held = None
    if distributed.is_main():
        held = folder.lock(place)
        # Another run may have begun, and ended, between the look and the lock.
        folder.claim(config)
    distributed.barrier()
    try:
        config = use_prepared(config, place, stopper)
        images = split_images(config, place, stopper)
        with Reporter(place) as reporter:
            steps: dict[str, Callable[[], object]] = {
                "split": lambda: None,
                "pretrain": lambda: pretext.pretrain(
                    config, images, place, reporter, stopper, device
                ),
                "finetune": lambda: finish_finetune(
                    config, images, place, reporter, stopper, device
                ),
                "score": lambda: score(config, images, place, reporter, stopper, device),
                "evaluate": lambda: first_rank_alone(lambda: write_metrics(config, place), stopper),
                "report": lambda: first_rank_alone(lambda: write_report(place), stopper),
            }
            for part in parts:
                steps[part]()
        if distributed.is_main() and images.bad_files and (said := images.bad_files.summary()):
            print(f"{said}; {images.bad_files.path} names them", flush=True)
    except (OSError, InputError):
        folder.check_held(place)
        raise
    finally:
        if held is not None:
            held.close()
    distributed.finish()
    return place


def finish_finetune(
    config: Config,
    images: Images,
    place: Path,
    reporter: Reporter,
    stopper: Stopper,
    device: torch.device,
) -> None:
    """Fine-tune, then write model/ (last epoch) and model-best/ (best validated epoch)."""
    if (place / "model" / "model.json").exists() and not finetune.is_damaged(place):
        return
    finetune.finetune(config, images, place, reporter, stopper, device)
    best = (place / "checkpoints" / "best" / "best.json").exists()
    for which, name in [("best", "model-best"), ("last", "model")][0 if best else 1 :]:
        try:
            task = finetune.finetuned_task(config, images, place, which).to(device)
        except InputError as error:
            if which == "last":
                raise
            reporter.warn("finetune", f"{error}; model-best is not written")
            continue
        _write_model(config, images, place / name, task, which, stopper)


def _write_model(
    config: Config, images: Images, path: Path, task: FinetuneTask, which: str, stopper: Stopper
) -> None:
    """Calibrate on the normal validation images and save everything a scorer needs."""
    rows = images.rows("val")
    rows = rows[(images.frame["label"].iloc[rows] == 0).fillna(False).to_numpy(bool)]
    scores: list[float] = []
    if len(rows):
        z = embed_rows(config, images, task, rows, stopper).z
        scores = task.distance(z.to(task.centers.device))[0].cpu().tolist()
    threshold = threshold_from_normals(scores, config.score.flag_quantile) if scores else None
    augment = config.finetune.augment
    facts = {
        "preprocessing": {
            "image_size": config.data.image_size,
            "input_range": list(augment.input_range),
            "autocontrast": augment.autocontrast,
            "order": augment.order,
            "mask_scale": augment.mask_scale,
            "masked": images.masked,
        },
        "threshold": threshold,
        "normal_scores": sorted(scores),
        "training": {
            "epoch": which,
            "seed": config.seed,
            "preset": config.preset,
            "pretext": config.pretext.method,
            "centers_initial": config.finetune.centers,
            "centers_left": int(task.active.sum()),
            "training_images": len(images.rows("train")),
        },
    }
    if distributed.is_main():
        save_model(path, task.embedder.cpu(), task.centers[task.active].cpu(), facts)
    distributed.barrier()


def embed_rows(
    config: Config,
    images: Images,
    task: FinetuneTask,
    rows: np.ndarray,
    stopper: Stopper,
    reporter: Reporter | None = None,
) -> Embedded:
    """Embeddings of rows as evaluation sees them."""
    with open_evaluation(config, images) as pipeline:
        return embed(
            task.embedder,
            pipeline,
            rows,
            batch_size=config.score.batch_size,
            stopper=stopper,
            reporter=reporter,
            name="score",
            images=images,
        )


def score(
    config: Config,
    images: Images,
    place: Path,
    reporter: Reporter,
    stopper: Stopper,
    device: torch.device,
) -> None:
    """Write scores.csv of all images that are not unused, embeddings.safetensors of those read."""
    if (place / "scores.csv").exists():
        return
    task = finetune.finetuned_task(config, images, place).to(device)
    found = embed_rows(config, images, task, images.used, stopper, reporter)
    before = _pretext_features(config, images, place, found.rows, stopper, reporter, device)
    pretext_h, (h, z, rows) = before.h, found.only(before.rows)
    distance, center = task.distance(z.to(device))
    for problem in guards.check_scores(distance):
        reporter.warn("score", problem)

    frame = images.frame.iloc[rows]
    learnt = np.isin(rows, images.training_rows("finetune"))
    bank = torch.tensor(learnt & (frame["semi_label"] != KNOWN_ABNORMAL).to_numpy())
    k = config.score.neighbours

    def write() -> None:
        left = torch.cumsum(task.active.long(), 0).cpu() - 1
        facts = json.loads((place / "model" / "model.json").read_text("utf-8"))
        table = _score_table(frame, distance.cpu().numpy(), left[center.cpu()].numpy(), facts)
        table.insert(8, "knn_score", knn_score(h, h[bank], k).numpy())
        table.insert(9, "pretext_knn_score", knn_score(pretext_h, pretext_h[bank], k).numpy())
        table = _with_skipped(table, images)
        tensors = {"h": h.float().contiguous(), "z": z.float().contiguous()}
        write_atomic(place / "embeddings.safetensors", lambda path: save_file(tensors, path))
        write_atomic(place / "scores.csv", lambda path: table.to_csv(path, index=False))

    first_rank_alone(write, stopper)
    distributed.barrier()


def _pretext_features(
    config: Config,
    images: Images,
    place: Path,
    rows: np.ndarray,
    stopper: Stopper,
    reporter: Reporter,
    device: torch.device,
) -> Embedded:
    embedder = pretext.pretrained_embedder(config, images, place).to(device)
    with open_plain(images, config.finetune.augment) as pipeline:
        return embed(
            embedder,
            pipeline,
            rows,
            batch_size=config.score.batch_size,
            stopper=stopper,
            reporter=reporter,
            name="pretext features",
            images=images,
        )


def _score_table(
    frame: pd.DataFrame, distance: np.ndarray, center: np.ndarray, facts: dict[str, Any]
) -> pd.DataFrame:
    normal, threshold = facts["normal_scores"], facts["threshold"]
    table = frame[["path", "split", "label", "semi_label"]].copy()
    table["score"] = distance
    table["center"] = center
    table["percentile"] = percentiles(distance, normal) if normal else np.nan
    flagged = pd.array(distance > threshold, dtype="Int8") if threshold is not None else pd.NA
    table["flagged"] = flagged
    for name in ("group", "patient", "body_part", "study"):
        table[name] = frame[name]
    return table


def _with_skipped(table: pd.DataFrame, images: Images) -> pd.DataFrame:
    """Scores with a row for each image that was skipped: no score, and the reason in `problem`."""
    skipped = np.setdiff1d(images.used, table.index)
    if not len(skipped):
        return table
    assert images.bad_files is not None
    whole = table.astype({"center": "Int64"}).reindex(images.used)
    for name in set(table.columns) & set(images.frame.columns):
        whole[name] = images.frame[name]
    whole["problem"] = ""
    for row in skipped:
        whole.loc[row, "problem"] = images.bad_files.reason(str(images.frame["path"].iloc[row]))
    return whole


def write_metrics(config: Config, place: Path) -> None:
    """metrics.json from scores.csv.

    Raises:
        InputError: there is no scores.csv.
    """
    figures = evaluate(read_scores(place / "scores.csv"), seed=config.seed)
    write_atomic(place / "metrics.json", json.dumps(figures, indent=1) + "\n")


def read_scores(path: Path) -> pd.DataFrame:
    """A scores.csv with text columns kept as text.

    Raises:
        InputError: it is missing.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; run `selftaught score` first")
    # A body part called "NA" is text; an empty label or percentile is a missing number.
    text = {name: str for name in ("path", "split", "group", "patient", "body_part", "study")}
    try:
        header = pd.read_csv(path, nrows=0).columns
        missing = {name: [""] for name in header if name not in text}
        return pd.read_csv(
            path, dtype=text, keep_default_na=False, na_values=missing, index_col=False
        )
    except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as a scores file (CSV): {reason}") from error
