"""Scores by comparison with training images: who is remembered, and the columns of a run."""

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from selftaught import distributed
from selftaught.data.pipeline import Pipeline
from selftaught.methods import Task
from selftaught.methods.begin import sample
from selftaught.methods.task import score_images
from selftaught.models.bank import COLUMNS, Bank
from selftaught.semi_labels import KNOWN_ABNORMAL
from selftaught.training.context import FINETUNE, Run
from selftaught.training.contract import check_finite
from selftaught.training.inference import infer
from selftaught.training.inputs import Rows


def members(run: Run) -> tuple[Rows, Rows]:
    """Training images of the last stage that are remembered: not known abnormal, known abnormal."""
    normals, abnormal = _candidates(run)
    return sample(normals, run.config.score.bank_limit, run.config.seed), abnormal


def _candidates(run: Run) -> tuple[Rows, Rows]:
    rows = run.images.training_rows(FINETUNE)
    known = run.images.semi_label.numpy()[rows] == KNOWN_ABNORMAL
    return rows[~known], rows[known]


def compare(
    run: Run,
    outputs: Mapping[str, Tensor],
    h: Tensor | None,
    rows: Rows,
    columns: Collection[str] = COLUMNS,
) -> tuple[Bank | None, dict[str, Tensor]]:
    """Outputs of a scorer with the scores of a run, `score` being the one of `score.by`.

    All ranks call it; rank 0 computes.

    Args:
        run: says which score.
        outputs: `score` (B,), which becomes `model_score`, and `h` (B, W) where there is any.
        h: (N, W) features of `rows`, among which are the training images to remember; None: the
            method has none.
        rows: (N,) row numbers.
        columns: of the bank, that of `score.by` among them.

    Returns:
        What is remembered, on rank 0 alone, None without features or without normal images; and
        the outputs on all ranks.
    """
    made = {**outputs, "model_score": outputs["score"]}
    normals, abnormal = (torch.from_numpy(np.isin(rows, one)) for one in members(run))
    if h is None or not normals.any():
        return None, made
    score = run.config.score

    def work() -> tuple[Bank, dict[str, Tensor]]:
        bank = Bank.of(
            h[normals],
            h[abnormal],
            by=score.by,
            neighbours=score.neighbours,
            ratio_neighbours=score.ratio_neighbours,
            drawn={"of": len(_candidates(run)[0]), "seed": run.config.seed},
        )
        return bank, bank(outputs["h"], columns)

    bank, compared = run.alone("neighbours", work) or (None, {})
    made |= distributed.broadcast_object(compared)
    made["score"] = made[f"{score.by}_score"]
    return bank, made


def score_rows(
    run: Run, task: Task, pipeline: Pipeline, rows: Rows, *, name: str, bank: bool
) -> tuple[Bank | None, dict[str, Tensor], Rows]:
    """The score of some rows, as `compare` gives it, with a bank made of the task as it is now.

    Args:
        run: device, signals, and what is remembered.
        task: with a scorer.
        pipeline: one view per image, with masks where the scorer takes them.
        rows: (N,) row numbers, rising.
        name: of the progress.
        bank: whether to make one: a forward pass of all images to remember, divided over ranks,
            and as many times N x W products as images are scored, on rank 0.

    Returns:
        What is remembered, on rank 0 alone; outputs of the rows that can be read; their numbers.

    Raises:
        InputError: none of the images can be read.
        MachineError: a score is not finite.
    """
    scorer = task.scorer()
    assert scorer is not None, "checked before the stage trained"
    columns = ("score", "h") if bank else ("score",)

    def compute(images: Tensor, masks: Tensor | None) -> dict[str, Tensor]:
        made = score_images(scorer, images, masks)
        return {name: made[name] for name in columns}

    asked = np.union1d(rows, np.concatenate(members(run))) if bank else rows
    outputs, read = infer(run, compute, [task, scorer], pipeline, asked, name=name)
    check_finite(run, outputs["score"], read)
    wanted = np.isin(read, rows)
    ours = {name: one[torch.from_numpy(wanted)] for name, one in outputs.items()}
    by = run.config.score.by
    kept, made = compare(
        run, ours, outputs.get("h"), read, [] if by == "model" else [f"{by}_score"]
    )
    return kept, made, read[wanted]
