"""The composed order as a DALI graph: decoded once, then one matrix for every view.

The graph draws nothing: whatever differs between samples comes in through its inputs, so an
iteration is a function of what it is fed, on a GPU and on a CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import nvidia.dali
from nvidia.dali import fn, math
from nvidia.dali.pipeline import do_not_convert

from selftaught.data.pipeline.composed import EPSILON

# The type stubs of DALI 2.4 lack its constants and some options.
types: Any = nvidia.dali.types
pipeline_def: Any = nvidia.dali.pipeline_def
Node = Any
DaliGraph = Any
BIT_WEIGHTS = np.array([[128, 64, 32, 16, 8, 4, 2, 1]], np.uint8)
EVERY_BIT = types.Constant(255, dtype=types.UINT8)
Source = Callable[[], tuple[Any, ...]]


class Kind(IntEnum):
    """What the bytes of a sample are."""

    PIXELS8 = 0
    PIXELS16 = 1
    CODED8 = 2
    CODED16 = 3


CODED = (Kind.CODED8, Kind.CODED16)
# Type and dimensions per sample of each field of `dali_source.Numbers`.
NUMBERS: dict[str, tuple[Any, int]] = {
    "kind": (types.INT32, 0),
    "shape": (types.INT32, 1),
    "resized": (types.FLOAT, 1),
    "levels": (types.FLOAT, 1),
    "turns": (types.FLOAT, 3),
    "tones": (types.FLOAT, 2),
    "sigmas": (types.FLOAT, 1),
    "windows": (types.INT32, 1),
}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What is fixed when a graph is built; what is left out costs nothing.

    Args:
        size: S, side of the views in pixels.
        views: V, views per image.
        kinds: the kinds of samples that may come.
        resize: whether an image may have another size than its place on the canvas.
        masks: whether masks are fed; then views are multiplied by them.
        partly: whether some samples have no mask, and their views stay as they are.
        return_masks: whether masks come out too.
        brightness: whether the brightness of the fine-tuning stage may differ from 1.
        color: whether views may be colour distorted.
        blur: whether views may be blurred.
        scale: highest value of a view.
        device: "cpu" or "gpu", where the operators run.
        resident: whether pixels and masks are fed from the GPU.
    """

    size: int
    views: int
    kinds: tuple[Kind, ...]
    resize: bool
    masks: bool
    partly: bool
    return_masks: bool
    brightness: bool
    color: bool
    blur: bool
    scale: float
    device: str
    resident: bool

    @property
    def pixel_inputs(self) -> tuple[str, ...]:
        """Names of what the source of pixels gives: lists of one array per sample."""
        return ("data", "masks") if self.masks else ("data",)

    @property
    def number_inputs(self) -> tuple[str, ...]:
        """Names of what the source of numbers gives: fields of `dali_source.Numbers`."""
        unused = {
            "kind": len(self.kinds) == 1,
            "shape": not self.masks and all(kind in CODED for kind in self.kinds),
            "resized": not self.resize,
            "tones": not (self.brightness or self.color),
            "sigmas": not self.blur,
            "windows": not self.blur,
        }
        return tuple(name for name in NUMBERS if not unused.get(name))


def build(
    spec: Spec,
    pixels: Source,
    numbers: Source,
    *,
    batch_size: int,
    threads: int,
    device_id: int | None,
    depth: int,
) -> DaliGraph:
    """Build the graph.

    Args:
        spec: what it does.
        pixels: gives `Spec.pixel_inputs` of the next iteration or raises StopIteration; their
            memory must stay until the iteration's outputs are there.
        numbers: gives `Spec.number_inputs` of the same iteration or raises StopIteration.
        batch_size: the most samples of an iteration.
        threads: threads of the CPU operators.
        device_id: the GPU, or None.
        depth: iterations in flight.

    Returns:
        a built pipeline; outputs views (V, 1, S, S) float32 per sample, then masks alike if asked.
    """
    graph = pipeline_def(_graph, enable_conditionals=True, exec_dynamic=True)(
        spec,
        pixels,
        numbers,
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=depth,
    )
    graph.build()
    return graph


def _graph(spec: Spec, pixels: Source, numbers: Source) -> tuple[Node, ...]:
    fed = _inputs(spec, pixels, numbers)
    levels = _there(fed["levels"], spec.device)
    low, factor, top, keep = levels[0], levels[1], levels[2], levels[3]
    image = _image(fed, spec.kinds, spec.device)
    # As the table of `sample.autocontrast`: stretched, then cut to whole levels.
    image = math.floor(math.clamp((image - low) * factor, 0.0, top))
    masks = _masks(fed, spec.device) if spec.masks else None
    if spec.resize:
        image = _resize(image, fed["resized"])
        masks = _resize(masks, fed["resized"]) if spec.masks else None
    tones = _there(fed["tones"], spec.device) if "tones" in fed else [None] * spec.views
    made, regions = [], []
    for v in range(spec.views):
        turn = fed["turns"][v]
        view = _tone(_warp(image, turn, spec.size), tones[v], top, spec)
        if spec.blur:
            view = _blur(view, fed["sigmas"][v], fed["windows"][v])
        view = _normalise(view, top, spec.scale)
        if spec.masks:
            region = _warp(masks, turn, spec.size) * (1.0 / 255.0)
            view = view * (math.max(region, keep) if spec.partly else region)
            regions.append(region)
        made.append(view)
    outputs = [_together(made, spec.size)]
    if spec.return_masks:
        outputs.append(_together(regions, spec.size))
    return tuple(outputs)


@do_not_convert
def _inputs(spec: Spec, pixels: Source, numbers: Source) -> dict[str, Node]:
    names, numbered = spec.pixel_inputs, spec.number_inputs
    images = fn.external_source(
        source=pixels,
        num_outputs=len(names),
        device="gpu" if spec.resident and spec.device == "gpu" else "cpu",
        dtype=types.UINT8,
        ndim=1,
        no_copy=True,
    )
    rest = fn.external_source(
        source=numbers,
        num_outputs=len(numbered),
        dtype=[NUMBERS[name][0] for name in numbered],
        ndim=[NUMBERS[name][1] for name in numbered],
    )
    return dict(zip((*names, *numbered), (*images, *rest), strict=True))


def _there(node: Node, device: str) -> Node:
    """On the device of the operators; a GPU's operators take arguments from the host only."""
    return node.gpu() if device == "gpu" else node


def _image(fed: dict[str, Node], kinds: tuple[Kind, ...], device: str) -> Node:
    """Grey levels (H, W, 1) float32 of each sample's kind."""
    if len(kinds) == 1:
        image = _read(fed, kinds[0], device)
    elif fed["kind"] == int(kinds[0]):
        image = _read(fed, kinds[0], device)
    else:
        image = _image(fed, kinds[1:], device)
    return image


def _read(fed: dict[str, Node], kind: Kind, device: str) -> Node:
    dtype = types.UINT16 if kind in (Kind.PIXELS16, Kind.CODED16) else types.UINT8
    if kind in CODED:
        place = "mixed" if device == "gpu" else "cpu"
        image = fn.decoders.image(fed["data"], device=place, output_type=types.GRAY, dtype=dtype)
    else:
        pixels = _there(fed["data"], device)
        image = fn.reinterpret(pixels, dtype=dtype, shape=fed["shape"], layout="HWC")
    return fn.cast(image, dtype=types.FLOAT)


def _masks(fed: dict[str, Node], device: str) -> Node:
    """Masks (H, W, 1) uint8, 0 or 255, from their bits."""
    bits = fn.reshape(_there(fed["masks"], device), shape=[-1, 1])
    weights = types.Constant(BIT_WEIGHTS, device=device)
    pixels = fn.reshape((bits & weights) // weights * EVERY_BIT, shape=[-1])
    height, width = fed["shape"][0], fed["shape"][1]
    inside = fn.slice(pixels, 0, height * width, axes=[0])
    return fn.reshape(inside, shape=fed["shape"], layout="HWC")


def _resize(image: Node, size: Node) -> Node:
    return fn.resize(image, size=size, interp_type=types.INTERP_LINEAR, antialias=True)


def _warp(image: Node, turn: Node, size: int) -> Node:
    return fn.warp_affine(
        image,
        matrix=turn,
        size=(size, size),
        fill_value=0.0,
        inverse_map=True,
        interp_type=types.INTERP_LINEAR,
        dtype=types.FLOAT,
    )


def _tone(image: Node, tone: Node, top: Node, spec: Spec) -> Node:
    """As `composed`: two brightnesses, then contrast about the rounded mean, each clipped."""
    if spec.brightness:
        image = math.clamp(image * tone[0], 0.0, top)
    if spec.color:
        image = math.clamp(image * tone[1], 0.0, top)
        mean = math.floor(fn.reductions.mean(image) + 0.5)
        image = math.clamp(mean + (image - mean) * tone[2], 0.0, top)
    return image


def _blur(image: Node, sigma: Node, window: Node) -> Node:
    if sigma > 0:
        image = fn.gaussian_blur(image, sigma=sigma, window_size=window)
    return image


def _normalise(image: Node, top: Node, scale: float) -> Node:
    """Min-max over the frame to [0, scale]."""
    low, high = fn.reductions.min(image), fn.reductions.max(image)
    return (image - low) * (scale / (high - low + EPSILON * top))


def _together(views: list[Node], size: int) -> Node:
    """(V, 1, S, S) from V images (S, S, 1)."""
    flat = [fn.reshape(view, shape=[1, 1, size, size], layout="") for view in views]
    return fn.cat(*flat, axis=0) if len(flat) > 1 else flat[0]
