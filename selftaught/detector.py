"""What a user ends with: a trained model that scores radiographs."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from selftaught.errors import InputError
from selftaught.losses import nearest_center
from selftaught.models import Embedder, load_model

if TYPE_CHECKING:
    from selftaught.data.augment import Augment

PREPARATION = ("autocontrast", "order", "mask_scale")
SLACK = 1e-6  # of the input range: resampling in float32 may overshoot by rounding
Paths = Sequence[str | PathLike[str]]
Masks = Sequence[str | PathLike[str] | None]
Executor = Literal["auto", "opencv", "dali"]
BadFiles = Literal["fail", "skip"]


def _listed(images: Paths | Tensor) -> Paths | Tensor:
    """Paths that can be counted and read twice, or a tensor without history."""
    if isinstance(images, np.ndarray):
        raise ValueError("images: a NumPy array; allowed: paths, or torch.from_numpy(images)")
    if isinstance(images, Tensor):
        return images.detach()
    return images if isinstance(images, (str, bytes, PathLike)) else list(images)


class Detector:
    """Scores images by their distance to the nearest hypersphere centre (paper, Sec. 2.3).

    All methods take either paths of images (any format that training reads; preprocessed
    deterministically as in training) or a tensor (N, 1, S, S) that already is network input,
    where S is `image_size`. Results are tensors on the CPU, rows in the order of the images.

    Attributes:
        image_size: S, in pixels.
        input_range: lowest and highest allowed value of a tensor, [0, 1].
        centers: (K, D) float32.
        facts: what was stored with the model: preprocessing, threshold, normal scores, training.
        pipeline: who reads and prepares the files, as in `data.pipeline` of a run.
    """

    def __init__(
        self,
        embedder: Embedder,
        centers: Tensor,
        facts: dict,
        *,
        device: torch.device | str | None = None,
        pipeline: Executor = "auto",
    ) -> None:
        """Wrap parts that are in memory; `Detector.load` reads them from a model folder."""
        if pipeline not in get_args(Executor):
            allowed = ", ".join(get_args(Executor))
            raise InputError(f"data.pipeline {pipeline!r}: allowed: {allowed}")
        default = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device or default)
        self.embedder = embedder.to(self.device).eval().requires_grad_(False)
        self.centers = centers.to(self.device, torch.float32)
        self.facts = facts
        self.pipeline: Executor = pipeline
        self.image_size: int = facts["preprocessing"]["image_size"]
        low, high = facts["preprocessing"]["input_range"]
        self.input_range = (float(low), float(high))

    @classmethod
    def load(
        cls,
        folder: str | PathLike[str],
        *,
        device: torch.device | str | None = None,
        pipeline: Executor = "auto",
    ) -> "Detector":
        """Read a model folder.

        Args:
            folder: written by `save_model`, or a run folder, whose `model` is meant.
            device: where to compute; a GPU if there is one unless given.
            pipeline: opencv on CPU threads, dali on `device`; auto = dali on a GPU where it is
                installed and the preprocessing allows it. Their views agree within a grey level on
                average, so scores differ a little: compare scores of one pipeline.

        Raises:
            InputError: the folder is incomplete, damaged or holds another kind of model.
        """
        folder = Path(folder)
        if not (folder / "model.json").exists() and (folder / "model").is_dir():
            folder = folder / "model"
        return cls(*load_model(folder), device=device, pipeline=pipeline)

    def score(
        self,
        images: Paths | Tensor,
        *,
        masks: Masks | None = None,
        batch_size: int = 32,
        bad_files: BadFiles = "fail",
    ) -> Tensor:
        """Anomaly scores.

        Args:
            images: N paths, or a float tensor (N, 1, S, S) within `input_range`.
            masks: N paths of body masks (None where there is none); only with paths.
            batch_size: images at a time; changes results by rounding only.
            bad_files: of paths that cannot be read: fail = the first one is an error; skip = each
                is named in a warning and has no score.

        Returns:
            (N,) float32, higher = more abnormal; NaN for what was skipped.

        Raises:
            ValueError: a tensor of another shape or type, outside the range or not finite; masks
                that do not match.
            InputError: an image cannot be read, and such are not skipped.
        """
        _, z, problems = self._embed(_listed(images), masks, batch_size, bad_files)
        return self._scores(z, problems)[0]

    def embed(
        self,
        images: Paths | Tensor,
        *,
        masks: Masks | None = None,
        batch_size: int = 32,
        bad_files: BadFiles = "fail",
    ) -> tuple[Tensor, Tensor]:
        """Features h (N, 512) and embeddings z (N, D), float32; arguments as for `score`."""
        return self._embed(_listed(images), masks, batch_size, bad_files)[:2]

    def explain(
        self,
        images: Paths | Tensor,
        *,
        masks: Masks | None = None,
        batch_size: int = 32,
        bad_files: BadFiles = "fail",
        progress: Callable[[int], object] = lambda count: None,
    ) -> pd.DataFrame:
        """Scores with what they mean; arguments and errors as for `score`.

        Args:
            images: as for `score`.
            masks: as for `score`.
            batch_size: as for `score`.
            bad_files: as for `score`.
            progress: called after each batch with the number of images that are done.

        Returns:
            One row per image: `path` (str, "" for a tensor's rows), `score` (float32), `center`
            (int64, number of the nearest centre), `percentile` (share of normal validation images
            that score no higher, 0-100; NaN if the model has none) and `flagged` (Int8, 1 when
            the score is above the stored threshold; missing if the model has none). With
            `bad_files` skip also `problem` (str: which file of a skipped image cannot be read, and
            why; "" for the others); all else of what was skipped is missing, and `center` Int64.
        """
        images = _listed(images)
        _, z, problems = self._embed(images, masks, batch_size, bad_files, progress)
        score, center = self._scores(z, problems)
        values = score.double().numpy()
        normal, threshold = np.sort(self.facts["normal_scores"]), self.facts["threshold"]
        percentile = np.full(len(values), np.nan)
        if len(normal):
            percentile = 100.0 * np.searchsorted(normal, values, side="right") / len(normal)
            percentile[np.isnan(values)] = np.nan
        flagged = [pd.NA] * len(values) if threshold is None else values > threshold
        paths = [""] * len(values) if isinstance(images, Tensor) else [fspath(p) for p in images]
        table = pd.DataFrame(
            {
                "path": pd.Series(paths, dtype=str),
                "score": score.numpy(),
                "center": center.numpy(),
                "percentile": percentile,
                "flagged": pd.array(flagged, dtype="boolean").astype("Int8"),
            }
        )
        if bad_files == "skip":
            table["problem"] = [problems.get(row, "") for row in range(len(table))]
            table = table.astype({"center": "Int64"})
            table.loc[list(problems), ["center", "flagged"]] = pd.NA
        return table

    def _embed(
        self,
        images: Paths | Tensor,
        masks: Masks | None,
        batch_size: int,
        bad_files: BadFiles,
        progress: Callable[[int], object] = lambda count: None,
    ) -> tuple[Tensor, Tensor, dict[int, str]]:
        """What `embed` gives, rows of NaN for what was skipped, and why by row."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if bad_files not in get_args(BadFiles):
            raise ValueError(f"bad_files={bad_files!r}: must be one of {get_args(BadFiles)}")
        # Filled outside inference mode, so that the results may enter other computations.
        h = torch.full((len(images), self.embedder.encoder.width), torch.nan)
        z = torch.full((len(images), self.embedder.head.widths[-1]), torch.nan)
        problems: dict[int, str] = {}
        if isinstance(images, Tensor):
            self._check(images, masks)
            numbers = torch.arange(len(images)).split(batch_size)
            batches: Iterator[tuple[Tensor, Tensor]] = ((rows, images[rows]) for rows in numbers)
        else:
            skipped = problems if bad_files == "skip" else None
            batches = self._read(images, masks, batch_size, skipped)
        for number, (rows, batch) in enumerate(batches, 1):
            if len(rows):
                with torch.inference_mode():
                    h[rows], z[rows] = self.embedder(batch.to(self.device, torch.float32))
            progress(min(number * batch_size, len(images)))
        return h, z, problems

    def _scores(self, z: Tensor, problems: dict[int, str]) -> tuple[Tensor, Tensor]:
        """`_nearest` of the rows without a problem; NaN and -1 for the others."""
        if not problems:
            return self._nearest(z)
        good = torch.tensor([row not in problems for row in range(len(z))])
        score, center = torch.full((len(z),), torch.nan), torch.full((len(z),), -1)
        score[good], center[good] = self._nearest(z[good])
        return score, center

    def _nearest(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Distance (N,) float32 and number (N,) int64 of the nearest centre."""
        if not len(z):
            return torch.empty(0), torch.empty(0, dtype=torch.int64)
        squared, center = nearest_center(z.to(self.device), self.centers)
        return squared.sqrt().cpu(), center.cpu()

    def _check(self, images: Tensor, masks: Masks | None) -> None:
        """Refuse a tensor that is not this model's network input."""
        if masks is not None:
            raise ValueError("masks: only with paths; a tensor is network input already")
        wanted = (1, self.image_size, self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"images: shape {tuple(images.shape)}, must be "
                f"(N, 1, {self.image_size}, {self.image_size})"
            )
        if not images.is_floating_point():
            raise ValueError(f"images: {images.dtype}, must be floating point")
        if not images.numel():
            return
        low, high = (float(value) for value in images.aminmax())
        least, most = self.input_range
        slack = SLACK * (most - least)
        if not (least - slack <= low and high <= most + slack):
            raise ValueError(
                f"images: values from {low:g} to {high:g}, must be within [{least:g}, {most:g}]"
            )

    def _read(
        self,
        images: Paths,
        masks: Masks | None,
        batch_size: int,
        skipped: dict[int, str] | None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (b,) and images (b, 1, S, S) of files, as evaluation during training saw them.

        What cannot be read goes into `skipped`, by row, with the reason; None: it is an error.
        """
        from selftaught.data.images.bad_files import Skipping
        from selftaught.data.pipeline import open_pipeline

        if isinstance(images, (str, bytes, PathLike)):
            raise ValueError(f"images: {images!r} is one path, must be a list of paths")
        paths = [Path(path) for path in images]
        covers = None if masks is None else [None if m is None else Path(m) for m in masks]
        if covers is not None and len(covers) != len(paths):
            raise ValueError(f"masks: {len(covers)} for {len(paths)} images, must be as many")
        if covers is None and self.facts["preprocessing"].get("masked"):
            warnings.warn("trained on masked images, scoring without masks", stacklevel=3)
        if not paths:
            return
        ids = np.arange(len(paths), dtype=np.int64)
        requests = ((0, ids[i : i + batch_size]) for i in range(0, len(ids), batch_size))
        with open_pipeline(
            self.pipeline,
            paths=paths,
            device=self.device,
            masks=covers,
            image_size=self.image_size,
            augment=self._preparation(),
            seed=0,
            stage="plain",
            views=1,
            cache_bytes=0,
            skipping=None if skipped is None else Skipping(),
        ) as pipeline:
            for batch in pipeline.batches(requests):
                for problem in batch.problems:
                    text = f"{problem.file}: {problem.reason}"
                    warnings.warn(f"{text}; it gets no score", stacklevel=4)
                    assert skipped is not None
                    skipped[problem.sample] = text
                yield batch.ids, batch.views[:, 0]

    def _preparation(self) -> "Augment":
        """The stored preprocessing without randomness, checked against the stored range."""
        from selftaught.data.augment import Augment

        stored = self.facts["preprocessing"]
        augment = Augment(**{name: stored[name] for name in PREPARATION if name in stored})
        if augment.input_range != self.input_range:
            raise InputError(
                f"model: input_range {self.input_range}, but its preprocessing gives "
                f"{augment.input_range}; pass tensors instead of paths"
            )
        return augment
