"""Scores of a run's images, and the model that gives them: each image is embedded once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from selftaught import distributed
from selftaught.errors import InputError
from selftaught.files import write_atomic
from selftaught.methods import Task
from selftaught.methods.task import score_images
from selftaught.models.bank import COLUMNS, Bank
from selftaught.models.calibration import Calibration
from selftaught.models.files import save_model
from selftaught.models.preprocessing import Preprocessing
from selftaught.models.seen import seen
from selftaught.search import knn_score
from selftaught.training import checkpoint, guards
from selftaught.training.bank import compare, members, score_rows
from selftaught.training.context import FINETUNE, PRETEXT, Run
from selftaught.training.contract import check_finite, check_scorer
from selftaught.training.events import part
from selftaught.training.inference import infer
from selftaught.training.inputs import Images, Rows, open_plain
from selftaught.training.kept_features import open_evaluation
from selftaught.training.tasks import trained_task

Known = tuple[Tensor, Bank | None]
GROUPS = ("group", "patient", "body_part", "study")


def write_models(run: Run, known: Mapping[str, Known] | None = None) -> None:
    """Write model-best/ (best validated epoch) and model/ (last epoch), where they are not there.

    Args:
        run: fine-tuning is finished.
        known: by model, where it is known already: scores of the normal validation images, and
            on rank 0 the bank.
    """
    with part(run.reporter.on_event, "model"):
        _write_models(run, known or {})


def _write_models(run: Run, known: Mapping[str, Known]) -> None:
    kinds = {"model": False}
    if distributed.broadcast_object(checkpoint.has_best(run.checkpoints("best"))):
        kinds = {"model-best": True, "model": False}
    for name, best in kinds.items():
        if distributed.broadcast_object((run.folder / name / "model.json").exists()):
            continue
        try:
            task = trained_task(run, FINETUNE, best=best)
        except InputError as error:
            if not best:
                raise
            run.reporter.warn("finetune", f"{error}; model-best is not written")
            continue
        facts = known[name] if name in known else _score_normals(run, task)
        _write_model(run, run.folder / name, task, *facts, "best" if best else "last")


def _normal_validation(images: Images) -> Rows:
    rows = images.rows("val")
    normal = (images.frame["label"].iloc[rows] == 0).fillna(False).to_numpy(bool)
    return rows[normal]


def _score_normals(run: Run, task: Task) -> Known:
    """Scores (N,) of the normal validation images, as they will be scored, and the bank."""
    rows = _normal_validation(run.images)
    features = "h" in check_scorer(task, run.device, run.kind)
    if not features and not len(rows):
        return torch.empty(0), None
    remembered = np.concatenate(members(run)) if features else rows
    with open_evaluation(run, task, np.union1d(rows, remembered)) as pipeline:
        bank, outputs, _ = score_rows(run, task, pipeline, rows, name="model", bank=features)
    return outputs["score"], bank


def _write_model(
    run: Run, path: Path, task: Task, normals: Tensor, bank: Bank | None, epoch: str
) -> None:
    config, images = run.config, run.images
    if distributed.is_main():
        facts = {
            "epoch": epoch,
            "seed": config.seed,
            "preset": config.preset,
            "pretext": config.pretext.method,
            "training_images": len(images.rows("train")),
            "films": seen(images.frame.iloc[images.rows("train")], images.root),
        }
        save_model(
            path,
            task.cpu(),
            Preprocessing.of(
                config.finetune.augment,
                config.data.image_size,
                images.masked,
                Path(config.data.manifest),
            ),
            Calibration.from_normals(normals.tolist(), config.score.flag_quantile),
            facts,
            bank,
        )
        task.to(run.device)
    distributed.barrier()


def score(run: Run) -> None:
    """Write the models, scores.csv of all images in use, embeddings.safetensors of those read."""
    if (run.folder / "scores.csv").exists():
        return
    task = trained_task(run, FINETUNE)
    outputs, rows = _embed(run, task, trained_task(run, PRETEXT))
    check_finite(run, outputs["score"], rows)
    bank, outputs = compare(run, outputs, outputs.get("h"), rows)
    for problem in guards.check_scores(outputs["score"]):
        run.reporter.warn("score", problem)
    normal = np.isin(rows, _normal_validation(run.images))
    normals = outputs["score"][torch.from_numpy(normal)]
    write_models(run, {"model": (normals, bank)})
    calibration = Calibration.from_normals(normals.tolist(), run.config.score.flag_quantile)

    def write() -> None:
        table = _table(run, outputs, rows, calibration)
        features: dict[str, Tensor] = {
            name: outputs[name].float().contiguous()
            for name in ("h", "z", "pretext_h")
            if name in outputs
        }
        if features:
            path = run.folder / "embeddings.safetensors"
            write_atomic(path, lambda temporary: save_file(features, temporary))
        write_atomic(run.folder / "scores.csv", lambda path: table.to_csv(path, index=False))

    run.alone("scores", write)
    distributed.barrier()


def _embed(run: Run, task: Task, before: Task) -> tuple[dict[str, Tensor], Rows]:
    """The scorer's outputs and `pretext_h`, in one pass where both tasks see the same views."""
    scorer = task.scorer()
    assert scorer is not None, "checked before the stage trained"

    def scored_by(images: Tensor, masks: Tensor | None) -> dict[str, Tensor]:
        return score_images(scorer, images, masks)

    def with_pretext(images: Tensor, masks: Tensor | None = None) -> dict[str, Tensor]:
        features = before.features(images)
        return {} if features is None else {"pretext_h": features[0]}

    with open_evaluation(run, task, run.images.used) as pipeline:
        if run.config.data.evaluation_views == "plain" and _see_alike(task, before):
            return infer(
                run,
                lambda images, masks: {**scored_by(images, masks), **with_pretext(images)},
                [scorer, before],
                pipeline,
                run.images.used,
                name="score",
                show=True,
            )
        scored, rows = infer(
            run, scored_by, [scorer], pipeline, run.images.used, name="score", show=True
        )
    with open_plain(run.images, run.config.finetune.augment) as pipeline:
        extra, read = infer(
            run, with_pretext, [before], pipeline, rows, name="pretext features", show=True
        )
    kept = torch.from_numpy(np.isin(rows, read))
    return {**{name: values[kept] for name, values in scored.items()}, **extra}, read


def _see_alike(task: Task, before: Task) -> bool:
    """Whether the stage before can take what this task takes: images, or one encoder's features."""
    frozen, backbone = task.frozen(), before.backbone()
    if frozen is None:
        return True
    states = [{} if one is None else one.state_dict() for one in (frozen, backbone)]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][name]) for name, value in states[0].items()
    )


def _table(
    run: Run, outputs: Mapping[str, Tensor], rows: Rows, calibration: Calibration
) -> pd.DataFrame:
    """scores.csv: the columns that every method has, then those of this one."""
    frame = run.images.frame.iloc[rows]
    table = frame[["path", "split", "label", "semi_label"]].copy()
    scores = outputs["score"].numpy()
    table["score"] = scores
    table["center"] = outputs["center"].numpy() if "center" in outputs else pd.NA
    table["percentile"] = calibration.percentiles(scores)
    table["flagged"] = calibration.flagged(scores)
    table["p_value"] = calibration.p_values(scores)
    for column in ("model_score", *COLUMNS):
        table[column] = outputs[column].numpy() if column in outputs else np.nan
    h, bank = outputs.get("pretext_h"), torch.from_numpy(np.isin(rows, members(run)[0]))
    table["pretext_knn_score"] = np.nan
    if h is not None and bank.any():
        near = knn_score(h, h[bank], run.config.score.neighbours)
        table["pretext_knn_score"] = near.numpy()
    for name in GROUPS:
        table[name] = frame[name]
    for name, values in outputs.items():
        if values.ndim == 1 and name not in table:
            table[name] = values.numpy()
    return _with_skipped(table, run.images)


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


def read_scores(path: Path) -> pd.DataFrame:
    """A scores.csv with text columns kept as text.

    Raises:
        InputError: it is missing.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; run `selftaught score` first")
    # A body part called "NA" is text; an empty label or percentile is a missing number.
    text: dict[str, Any] = {name: str for name in ("path", "split", *GROUPS)}
    try:
        header = pd.read_csv(path, nrows=0).columns
        missing = {name: [""] for name in header if name not in text}
        return pd.read_csv(
            path, dtype=text, keep_default_na=False, na_values=missing, index_col=False
        )
    except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as a scores file (CSV): {reason}") from error
