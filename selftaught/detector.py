"""What a user ends with: a trained model that scores radiographs."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property, partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from selftaught import host
from selftaught.arguments import paths_in, tensor_in, whole
from selftaught.errors import InputError
from selftaught.maps.heat import ALWAYS, BEST, Method, raw_heat
from selftaught.maps.scale import NO_SCALE, Scale, read_scales
from selftaught.methods import Task
from selftaught.methods.stored import built, expected
from selftaught.methods.task import FEATURES, score_images
from selftaught.models.bank import COLUMNS, Bank, By
from selftaught.models.calibration import Calibration
from selftaught.models.files import model_folder, read_model
from selftaught.models.films import checked_tensor, levels, read_films
from selftaught.models.preprocessing import Preprocessing

IMAGES = "a list of paths of image files, or a tensor (N, 1, S, S) that is network input already"
Paths = Sequence[str | PathLike[str]]
Masks = Sequence[str | PathLike[str] | None] | Tensor
Made = dict[str, Tensor]
Described = tuple[pd.DataFrame, Tensor | None, Tensor]  # rows, h (N, W), levels (N, 2)
Executor = Literal["auto", "opencv", "dali"]
BadFiles = Literal["fail", "skip"]


def _listed(images: Any) -> Paths | Tensor:
    """Paths that can be counted and read twice, or a plain tensor."""
    if isinstance(images, Tensor):
        return tensor_in("images", images)
    return paths_in("images", images, IMAGES)


class Detector:
    """Scores images by a trained method; higher = more abnormal.

    All methods take either paths of images or a tensor (N, 1, S, S) that already is network input,
    where S is `image_size`. What training did with its films is done with files too: a raw film is
    prepared (carrier, polarity, mask, size) where the training's films were, and brought to the
    network's input as they were; a film of a prepared set is taken where the set's settings are
    those of the training. What cannot be done is refused in one line. Results are tensors on the
    CPU, rows in the order of the images.

    Attributes:
        method: its name.
        scorer: the network, images -> columns.
        preprocessing: what films go through.
        calibration: normal scores and threshold.
        training: facts about the training.
        bank: what the model remembers of its training images; None in models of before.
        by: which score `score` is: the method's own (model), or one that compares with the bank.
        device: where it computes.
        pipeline: who reads and prepares the files, as in `data.pipeline` of a run.
        scales: of heat maps, by method of maps; as far as there are such.
        image_size: S, in pixels.
        input_range: lowest and highest allowed value of a tensor, such as (0, 1).
    """

    def __init__(
        self,
        task: Task,
        preprocessing: Preprocessing,
        calibration: Calibration,
        training: Mapping[str, Any] | None = None,
        bank: Bank | None = None,
        *,
        device: torch.device | str | None = None,
        pipeline: Executor = "auto",
    ) -> None:
        """Take over parts that are in memory; `Detector.load` reads them from a model folder.

        Raises:
            InputError: the method cannot score, or there is no such pipeline.
        """
        if pipeline not in get_args(Executor):
            allowed = ", ".join(get_args(Executor))
            raise InputError(f"data.pipeline {pipeline!r}: allowed: {allowed}")
        self.method, self.masks = task.options.method, task.masks
        default = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device or default)
        with host.defaults(self.device):
            scorer = task.eval().scorer()
            if scorer is None:
                raise InputError(f"method {self.method} cannot score; allowed: one with a scorer")
            self.scorer = scorer.to(self.device).eval().requires_grad_(False)
        self.preprocessing, self.calibration = preprocessing, calibration
        self.training, self.bank = dict(training or {}), bank
        self.by: By = "model" if bank is None else bank.by
        self.pipeline: Executor = pipeline
        self.scales: dict[Method, Scale] = {}
        self.image_size = preprocessing.image_size
        self.input_range = preprocessing.input_range

    @classmethod
    def load(
        cls,
        folder: str | PathLike[str],
        *,
        device: torch.device | str | None = None,
        pipeline: Executor = "auto",
    ) -> "Detector":
        """Read a model folder.

        A method of your own is imported by the dotted path in the folder's model.json, from
        Python's path as it is, and runs its code; so does an encoder's program in the folder: load
        such models only from people you trust.

        Args:
            folder: written by `save_model`, or a run folder, whose `model` is meant.
            device: where to compute; a GPU if there is one unless given.
            pipeline: opencv on CPU threads, dali on `device`; auto = dali on a GPU where it is
                installed and the preprocessing allows it. Their views agree within a grey level on
                average, so scores differ a little: compare scores of one pipeline.

        Raises:
            InputError: the folder is incomplete, damaged or holds another kind of model.
        """
        folder = model_folder(Path(folder))
        with host.defaults(), torch.random.fork_rng(devices=[]):
            stored = read_model(folder, expected)
            task = built(stored)
            task.load_state_dict(stored.state)
        parts = stored.preprocessing, stored.calibration, stored.training, stored.bank
        detector = cls(task, *parts, device=device, pipeline=pipeline)
        detector.scales = read_scales(stored)
        return detector

    def score(
        self,
        images: Paths | Tensor,
        *,
        masks: Masks | None = None,
        body_parts: Sequence[str] | None = None,
        batch_size: int = 32,
        bad_files: BadFiles = "fail",
    ) -> Tensor:
        """Anomaly scores.

        Args:
            images: N paths, or a float tensor (N, 1, S, S) within `input_range`.
            masks: N paths of body masks (None where there is none), where the model was trained
                with masks; beside a tensor, a tensor like it in [0, 1], where the method's score
                looks at masks (by default all of the image). Raw films of a model whose films were
                prepared have theirs found where none is given, and films of prepared sets bring
                theirs.
            body_parts: N names ("" where unknown), for films that are prepared by the published
                rule of the carrier; others need none.
            batch_size: images at a time; changes results by rounding only.
            bad_files: of paths that cannot be read or prepared: fail = the first one is an error;
                skip = each is named in a warning and has no score.

        Returns:
            (N,) float32, higher = more abnormal; NaN for what was skipped.

        Raises:
            ValueError: a tensor of another shape or type, outside the range or not finite; masks
                that do not match.
            InputError: an image cannot be read, and such are not skipped; or was prepared
                otherwise than the training's.
        """
        columns, _ = self._columns(images, masks, body_parts, batch_size, bad_files)
        return self._score(columns)

    def embed(
        self,
        images: Paths | Tensor,
        *,
        masks: Masks | None = None,
        body_parts: Sequence[str] | None = None,
        batch_size: int = 32,
        bad_files: BadFiles = "fail",
    ) -> tuple[Tensor, Tensor]:
        """Features h (N, W) and embeddings z (N, D), float32; arguments as for `score`.

        Raises:
            InputError: the method has no features; and as for `score`.
        """
        columns = self._columns(images, masks, body_parts, batch_size, bad_files)[0]
        if absent := [name for name in FEATURES if name not in columns]:
            raise InputError(f"method {self.method} has no features {absent[0]}; allowed: score")
        return columns["h"], columns["z"]

    def explain(
        self,
        images: Paths | Tensor,
        *,
        masks: Masks | None = None,
        body_parts: Sequence[str] | None = None,
        batch_size: int = 32,
        bad_files: BadFiles = "fail",
        progress: Callable[[int], object] = lambda count: None,
    ) -> pd.DataFrame:
        """Scores with what they mean; `progress` gets the number of images done; else as `score`.

        Returns:
            One row per image: `path` (str, "" for a tensor's rows), `score` (float32), `center`
            (int64, number of the nearest centre, where the method has centres), `percentile`
            (share of normal validation images that score no higher, 0-100; NaN if the model has
            none), `flagged` (Int8, 1 when the score is above the stored threshold; missing if the
            model has none), `p_value` (`Calibration.p_values`; NaN likewise), then `model_score`
            (the method's own), `ratio_score`, `normality_score`, `knn_score` (float32; as far as
            the model remembers its training images), further columns of the method. With skip also
            `problem` (str: which file of a skipped image cannot be used, and why; "" for the
            others); all else of what was skipped is missing, and whole numbers are Int64.
        """
        images = _listed(images)
        out, problems = self._columns(images, masks, body_parts, batch_size, bad_files, progress)
        return self._table(images, out, problems if bad_files == "skip" else None)

    def describe(self, images: Paths | Tensor, **how: Any) -> Described:
        """`explain` with its arguments, and h and `levels` of the same pass."""
        images, run, span = _listed(images), self._run, self.input_range
        out, problems = self._columns(
            images, **how, make=lambda *one: {**run(*one), "levels": levels(one[0], span)}
        )
        skipped = problems if how.get("bad_files") == "skip" else None
        return self._table(images, out, skipped), out.get("h"), out["levels"]

    def _table(
        self, images: Paths | Tensor, out: dict[str, Tensor], problems: dict[int, str] | None
    ) -> pd.DataFrame:
        out = self._scores(out, COLUMNS)
        named = {n: v.numpy() for n, v in out.items() if n not in FEATURES and v.ndim == 1}
        paths = [""] * len(images) if isinstance(images, Tensor) else [fspath(p) for p in images]
        columns: dict[str, Any] = {"path": pd.Series(paths, dtype=str), "score": named.pop("score")}
        if "center" in named:
            columns["center"] = named.pop("center")
        columns["percentile"] = self.calibration.percentiles(columns["score"])
        columns["flagged"] = self.calibration.flagged(columns["score"])
        columns["p_value"] = self.calibration.p_values(columns["score"])
        table = pd.DataFrame({**columns, **named})
        if problems is not None:
            whole = [name for name in table if table[name].dtype == np.int64]
            table = table.astype(dict.fromkeys(whole, "Int64"))
            table.loc[list(problems), whole] = pd.NA
            table["problem"] = [problems.get(row, "") for row in range(len(table))]
        return table

    def maps(
        self,
        images: Paths | Tensor,
        *,
        masks: Masks | None = None,
        body_parts: Sequence[str] | None = None,
        batch_size: int = 32,
        bad_files: BadFiles = "fail",
        progress: Callable[[int], object] = lambda count: None,
        method: Method | None = None,
        scaled: bool = True,
    ) -> Tensor:
        """Where in each image the score comes from, for `selftaught.maps.overlay`.

        Args:
            images: as for `score`.
            masks: as for `score`.
            body_parts: as for `score`.
            batch_size: as for `score`.
            bad_files: as for `score`.
            progress: as for `explain`.
            method: of `selftaught.maps.METHODS`; None: `map_method`.
            scaled: from 0, as on normal films, to 1, the top of the model's scale; False: raw, at
                least 0, as `Scale.from_normals` takes it.

        Returns:
            (N, S, S) float32 of the network's view; NaN for what was skipped.

        Raises:
            InputError: as `score`; `scales` lacks the method, or it cannot explain this score.
        """
        method = method or self.map_method
        if scaled and method not in self.scales:
            raise InputError(f"maps: {NO_SCALE}")
        given = images, masks, body_parts, batch_size, bad_files, progress
        raw = self._columns(*given, partial(self._heat, method, batch_size))[0]["heat"]
        return self.scales[method](raw) if scaled else raw

    @property
    def map_method(self) -> Method:
        """The method of maps by default: the best that the model allows, or else has a scale of."""
        known, best = self.scales, self._best_maps
        return best if best in known or not known else next(iter(known))

    @cached_property
    def _best_maps(self) -> Method:
        """What finds most, or else what explains any score."""
        blank = torch.zeros(1, 1, self.image_size, self.image_size, device="cpu")
        try:
            self._heat(BEST, 1, blank, torch.ones_like(blank) if self.masks else None)
        except InputError:
            return ALWAYS
        return BEST

    def _columns(
        self,
        images: Paths | Tensor,
        masks: Masks | None = None,
        body_parts: Sequence[str] | None = None,
        batch_size: int = 32,
        bad_files: BadFiles = "fail",
        progress: Callable[[int], object] = lambda count: None,
        make: Callable[[Tensor, Tensor | None], Made] | None = None,
    ) -> tuple[Made, dict[int, str]]:
        """What `make`, or the scorer, gives; NaN and -1 in rows that were skipped; why, by row."""
        batch_size, images = whole("batch_size", batch_size), _listed(images)
        if bad_files not in get_args(BadFiles):
            raise ValueError(f"bad_files={bad_files!r}: must be one of {get_args(BadFiles)}")
        problems: dict[int, str] = {}
        if isinstance(images, Tensor):
            masks = checked_tensor(images, masks, self.preprocessing, self.masks)
            numbers = torch.arange(len(images), device="cpu").split(batch_size)
            batches: Iterator[tuple[Tensor, Tensor, Tensor | None]] = (
                (rows, images[rows], None if masks is None else masks[rows]) for rows in numbers
            )
        elif isinstance(masks, Tensor):
            raise ValueError("masks: a tensor beside paths; allowed: paths of masks")
        else:
            skipped = problems if bad_files == "skip" else None
            batches = read_films(
                images,
                masks,
                body_parts,
                self.preprocessing,
                batch_size=batch_size,
                return_masks=self.masks,
                pipeline=self.pipeline,
                device=self.device,
                skipped=skipped,
            )
        out: dict[str, Tensor] = {}
        for number, (rows, batch, regions) in enumerate(batches, 1):
            if len(rows):
                made = (make or self._run)(batch, regions)
                # Filled outside inference mode, so that the results may enter other computations.
                out = out or {name: _missing(len(images), one) for name, one in made.items()}
                for name, one in made.items():
                    out[name][rows] = one
            progress(min(number * batch_size, len(images)))
        if not out:
            blank = torch.zeros(1, 1, self.image_size, self.image_size, device="cpu")
            made = (make or self._run)(blank, torch.ones_like(blank) if self.masks else None)
            out = {name: _missing(len(images), one) for name, one in made.items()}
        return out, problems

    def _scores(self, out: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """The method's columns after those of the bank; `score` is the chosen one."""
        scores = {"score": out["score"], "model_score": out["score"]}
        if self.bank is not None:
            read = ~out["h"].isnan().any(dim=1)  # the others were skipped
            for name, values in self.bank(out["h"][read], names).items():
                scores[name] = _missing(len(read), values)
                scores[name][read] = values
            scores["score"] = scores[f"{self.by}_score"]
        return {**scores, **{name: one for name, one in out.items() if name not in scores}}

    def _score(self, columns: Made) -> Tensor:
        """The chosen score alone."""
        return self._scores(columns, [] if self.by == "model" else [f"{self.by}_score"])["score"]

    def _heat(self, method: Method, batch_size: int, images: Tensor, masks: Tensor | None) -> Made:
        """Raw heat of images by a method of maps."""
        sloped = method != ALWAYS
        if sloped and self.by != "model":
            reason = f"needs a gradient, which the score by {self.by} lacks; allowed: {ALWAYS}"
            raise InputError(f"maps: method {method} {reason}")

        def score(some: Tensor, regions: Tensor | None) -> Tensor:
            if sloped:
                return score_images(self.scorer, some, regions)["score"]
            return self._score(self._run(some, regions))

        place = (self.device if sloped else torch.device("cpu")), torch.float32
        with host.defaults(self.device, gradients=sloped):
            images, masks = images.to(*place), None if masks is None else masks.to(*place)
            return {"heat": raw_heat(method, self.scorer, score, images, masks, batch_size).cpu()}

    def _run(self, batch: Tensor, masks: Tensor | None) -> dict[str, Tensor]:
        """What the scorer makes of images, on the CPU: float32, or int64."""
        with host.defaults(self.device), torch.inference_mode():
            masks = None if masks is None else masks.to(self.device, torch.float32)
            made = score_images(self.scorer, batch.to(self.device, torch.float32), masks)
            return {
                name: one.to("cpu", torch.float32 if one.is_floating_point() else torch.int64)
                for name, one in made.items()
            }


def _missing(rows: int, like: Tensor) -> Tensor:
    """(rows, ...) missing values: NaN, or -1 for whole numbers."""
    nothing = torch.nan if like.is_floating_point() else -1
    return torch.full((rows, *like.shape[1:]), nothing, dtype=like.dtype, device="cpu")
