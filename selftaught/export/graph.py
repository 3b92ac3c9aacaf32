"""A detector as one traced program: films -> scores and what they mean; ONNX or torch.export."""

import io
import logging
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from selftaught.detector import Detector
from selftaught.errors import InputError
from selftaught.export import contents
from selftaught.export.view import View
from selftaught.methods.task import FEATURES, score_images
from selftaught.models.calibration import Calibration
from selftaught.models.files import first_line

# Scores that differ by less than this share of themselves, or of the spread of normal scores, are
# the same score but for rounding, which differs between runtimes.
TIE = 1e-5


def slack(scores: np.ndarray | np.floating, calibration: Calibration) -> np.ndarray:
    """How far from each of `scores` a score is the same but for rounding."""
    normals = calibration.normal_scores
    spread = float(np.std(normals)) if normals else 0.0
    return TIE * np.maximum(np.abs(scores), spread)


class Graph(nn.Module):
    """Films of one size and their bits, with masks where the model has them -> named columns.

    Args:
        detector: on the CPU.

    Attributes:
        masked: whether it takes masks.
    """

    least: Tensor
    most: Tensor
    weights: Tensor

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        films, scores = detector.preprocessing, detector.calibration
        self.view = View(films.augment(), films.image_size)
        self.scorer, self.bank, self.by = detector.scorer, detector.bank, detector.by
        self.masked, self.regions = films.masked, detector.masks
        normals = np.asarray(scores.normal_scores)
        near = slack(normals, scores)
        # The lowest score that counts as no lower than each normal one, and the highest that
        # counts as no higher than it, or than the threshold.
        self.register_buffer("least", torch.from_numpy(normals - near))
        self.register_buffer("most", torch.from_numpy(normals + near))
        self.register_buffer("weights", torch.from_numpy(scores.weights))
        limit = scores.threshold
        self.limit = None if limit is None else limit + float(slack(np.array(limit), scores))

    def forward(
        self, films: Tensor, bits: Tensor, masks: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Columns (N,), float32 and int64; NaN and -1 for films that show nothing.

        Args:
            films: (N, H, W) uint16 grey levels, brighter = denser.
            bits: (N,) int64, 8 for films whose white is 255, more where it is 65535.
            masks: (N, H, W) uint8, 255 on the body.
        """
        levels, deep = films.to(torch.int64), bits > 8
        low, high = levels.amin((1, 2)), levels.amax((1, 2))
        usable = (low < high) & (deep | (high <= 255))
        levels = torch.where(deep[:, None, None], levels, levels.clamp(max=255))
        view, regions = self.view(levels, deep, None if masks is None else masks.to(torch.int64))
        columns = score_images(self.scorer, view, regions if self.regions else None)
        score = columns["score"].float()
        further = {n: one for n, one in columns.items() if n != "score" and n not in FEATURES}
        if self.by != "model":
            assert self.bank is not None
            further = {"model_score": score, **further}
            score = self.bank(columns["h"], [f"{self.by}_score"])[f"{self.by}_score"]
        score = torch.where(usable, score, torch.nan)
        made = {
            "score": score,
            "percentile": self._percentile(score),
            "flagged": self._flag(score),
            "p_value": self._p_value(score),
        }
        for name, one in further.items():
            floats = one.is_floating_point()
            one = one.float() if floats else one.long()
            made[name] = torch.where(usable, one, torch.nan if floats else -1)
        return made

    def _percentile(self, score: Tensor) -> Tensor:
        """Share of normal scores that are no higher, in per cent; NaN without normals."""
        if not len(self.least):
            return torch.full_like(score, torch.nan)
        below = (self.least <= score.double()[:, None]).sum(1)
        share = (100.0 * below.double() / len(self.least)).float()
        return torch.where(score.isnan(), torch.nan, share)

    def _p_value(self, score: Tensor) -> Tensor:
        """As `Calibration.p_values`; NaN without normals."""
        if not len(self.most):
            return torch.full_like(score, torch.nan)
        above = ((score.double()[:, None] <= self.most) * self.weights).sum(1)
        share = ((1.0 + above) / (1.0 + self.weights.sum())).float()
        return torch.where(score.isnan(), torch.nan, share)

    def _flag(self, score: Tensor) -> Tensor:
        """1 above the threshold, else 0; -1 without a threshold."""
        if self.limit is None:
            return torch.full_like(score, -1, dtype=torch.int64)
        above = (score.double() > self.limit).long()
        return torch.where(score.isnan(), -1, above)


class Traced(NamedTuple):
    """A traced detector.

    Attributes:
        program: of `Graph`.
        inputs: names of what it takes.
        outputs: names of what it gives.
    """

    program: torch.export.ExportedProgram
    inputs: list[str]
    outputs: list[str]


def traced(detector: Detector) -> Traced:
    """The program of a detector, for any number, height and width of films.

    Raises:
        InputError: the method's scorer, or the preprocessing, cannot be traced.
    """
    films = detector.preprocessing
    if films.order != "composed":
        raise InputError(
            f"the model's views are in the {films.order} order, whose steps are Pillow's; allowed: "
            "models of the composed order"
        )
    graph = Graph(detector).eval()
    shape = (2, films.image_size + 24, films.image_size + 8)
    example = [torch.zeros(shape, dtype=torch.uint16), torch.full((2,), 8)]
    count, height, width = (torch.export.Dim(name) for name in ("count", "height", "width"))
    moving = [{0: count, 1: height, 2: width}, {0: count}]
    if graph.masked:
        example.append(torch.zeros(shape, dtype=torch.uint8))
        moving.append(moving[0])
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(graph, tuple(example), dynamic_shapes=tuple(moving))
    except Exception as error:  # whatever a method's own code raises while it is traced
        raise InputError(
            f"method {detector.method} cannot be exported, as its scorer cannot be traced: "
            f"{_reason(error)}"
        ) from error
    outputs = program.call_spec.out_spec
    assert outputs is not None
    names = list(outputs.unflatten(list(range(outputs.num_leaves))))
    return Traced(program, ["films", "bits", "masks"][: len(example)], names)


def _reason(error: BaseException) -> str:
    """What went wrong at first, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(first_line(error).split())[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress and advice, which are about this package's code, left out."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.onnx", "onnxscript")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def as_onnx(traced: Traced) -> bytes:
    """The program as an ONNX model without metadata.

    Raises:
        InputError: an operator has no counterpart in ONNX, or it is larger than ONNX files can be.
    """
    try:
        with _quiet():
            made = torch.onnx.export(
                traced.program,
                dynamo=True,
                input_names=traced.inputs,
                output_names=traced.outputs,
                verbose=False,
            )
        assert made is not None
        graphs: list[Any] = [made.model.graph, *made.model.functions.values()]
        for one in graphs:
            for node in one.all_nodes():  # where in our source it comes from
                node.metadata_props.clear()
                node.doc_string = None
        content: bytes = made.model_proto.SerializeToString(deterministic=True)
    except Exception as error:
        raise InputError(f"ONNX cannot hold this model: {_reason(error)}") from error
    return content


def as_program(traced: Traced) -> bytes:
    """The program as a torch.export archive."""
    made = io.BytesIO()
    torch.export.save(traced.program, made)
    return made.getvalue()


def write(path: Path, content: bytes, facts: str) -> None:
    """Write an exported model, .onnx or .pt2 by the path, with its facts as metadata."""
    if path.suffix == ".onnx":
        import onnx

        model = onnx.ModelProto.FromString(content)
        onnx.helper.set_model_props(model, {contents.KEY: facts})
        path.write_bytes(model.SerializeToString(deterministic=True))
        return
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/extra/{contents.KEY}", facts)
