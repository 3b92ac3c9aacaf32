"""What a method is: a Task, its Options, and what training offers it at its start."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import Parameter

from selftaught.data.augment import Augment, finetune_augment
from selftaught.errors import InputError, require
from selftaught.models.encoder import Encoder
from selftaught.models.network import Network

# Columns of scores.csv and of manifests, which no output of a scorer may replace.
FEATURES = ("h", "z")
TAKEN = {
    *("path", "split", "label", "semi_label", "mask", "group", "patient", "body_part", "study"),
    *("percentile", "flagged", "p_value", "model_score", "ratio_score", "normality_score"),
    *("knn_score", "pretext_knn_score", "pretext_h", "levels", "problem", "row"),
}

Result = TypeVar("Result")
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every trained method; a method's own stand below them in its file.

    Args:
        method: the method's name, or the dotted path of a Task of your own.
        epochs: passes over the training set.
        batch_size: images in a global batch; divided over ranks.
        lr: learning rate.
        optimizer: adam as published; sgd and lars (for large batches) have momentum 0.9 and want
            rates of their own, some 0.05 and 0.3 times batch_size / 256.
        milestones: epochs at which the rate is divided by ten.
        weight_decay: coupled L2.
        validate_every: epochs between validation AUROCs, where the method scores; 0 = never.
        average: share of the averaged weights that a step keeps (less in the first steps), up to
            below 1; the averaged ones are validated, scored and begun from; 0 = the raw ones are.
        recalibrate: plain training images from which the batch norms of the weights that score get
            their statistics anew at each epoch's end, 2 or more; 0 = those of training stay.
        augment: how a view is drawn.

    Raises:
        ValueError: a value out of range; the message begins with the option.
    """

    # What a preset changes, by option; an option's name may go into its parts (`augment.blur`).
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    least_images: ClassVar[int] = 1  # in a batch
    least_epochs: ClassVar[int] = 1
    # Column of the manifest whose values batches hold as `stratum`; a method makes it an option.
    strata = ""

    # Never changes in a run, not even where the other options may until the stage begins.
    method: str = field(default="", metadata={"resume": ""})
    epochs: int = 100
    batch_size: int = 16
    lr: float = 1e-4
    optimizer: Literal["adam", "sgd", "lars"] = "adam"
    milestones: list[int] = field(default_factory=list)
    weight_decay: float = 1e-6
    validate_every: int = 1
    average: float = 0.0
    recalibrate: int = 0
    augment: Augment = field(default_factory=finetune_augment)

    def __post_init__(self) -> None:
        least = self.least_images
        epochs = self.least_epochs
        require("epochs", self.epochs, f"{epochs} or more", self.epochs >= epochs)
        require("batch_size", self.batch_size, f"{least} or more", self.batch_size >= least)
        require("lr", self.lr, "above 0", 0 < self.lr < math.inf)
        optimizers = ("adam", "sgd", "lars")
        require("optimizer", self.optimizer, ", ".join(optimizers), self.optimizer in optimizers)
        decay = self.weight_decay
        require("weight_decay", decay, "0 or more", 0 <= decay < math.inf)
        rising = list(self.milestones) == sorted(set(self.milestones))
        require("milestones", self.milestones, "rising epochs", rising)
        require("validate_every", self.validate_every, "0 or more", self.validate_every >= 0)
        require("average", self.average, "0 to below 1", 0 <= self.average < 1)
        fine = self.recalibrate == 0 or self.recalibrate >= 2
        require("recalibrate", self.recalibrate, "0, or 2 or more", fine)


AnyOptions: TypeAlias = Options  # its name inside Task, where `Options` is the method's own


class Start(Protocol):
    """What training offers a task that begins; the same on every rank, which all call alike."""

    seed: int  # of the run
    rows: Rows  # of the training images
    labels: Tensor  # (images in the split table,) int64: -1 known abnormal, +1 known normal, 0

    @property
    def batch_size(self) -> int:
        """Images in a global batch."""

    def weights(self) -> Mapping[str, Tensor]:
        """State of the stage before, on the CPU; empty in the first stage."""

    def batches(self, rows: Rows, *, random: bool = False) -> Iterator[dict[str, Any]]:
        """All of `rows`, on every rank, as batches of one view: plain, or a random one of each."""

    def features(self, rows: Rows, *, random: bool = False, mirrored: bool | None = None) -> Tensor:
        """Z (N, D) of the task's `features` in eval mode, of the rows that can be read.

        Of images as they are scored, or of random views. Of a frozen encoder also of plain views
        alone (mirrored False) or of their mirror images alone (True).
        """

    def alone(self, work: Callable[[], Result]) -> Result:
        """Let rank 0 do `work`; its result on all ranks."""

    def note(self, text: str) -> None:
        """A line for the log."""

    def warn(self, text: str) -> None:
        """A line that a person must see: on the console, in the log and in the report."""


class Task(nn.Module):
    """Model plus loss. Shapes in `__init__`, first contents in `begin`; all else is its state.

    A batch is a dict: `views` (B, V, 1, S, S) float32 in the declared input range; `masks` of the
    same shape in [0, 1], or None; `semi_label` (B,) int64, -1 known abnormal, +1 known normal,
    0 unknown; `ids` (B,) int64; `epoch` and `step`, whole numbers counted from 0. In training, and
    where the options name `strata`, `stratum` (B,) int64 too: an image's number in
    `network.strata`, or -1. Where the task's encoder is `frozen`, views are its features (B, V, W),
    which an encoder gives back as they are.

    Parameters are touched in `forward` alone. Noise of a task's own is a function of seed, epoch
    and ids, so that neither a resume nor the number of ranks changes a result.

    Attributes:
        Options: what can be set; its defaults are the method's.
        views: V, views of an image in a batch.
        masks: whether the batch holds masks, and the scorer takes them; views are multiplied by
            them anyway. Where an image has no mask, it is the image's frame.
        players: optimizers that take turns in a step, such as a GAN's two.
        betas: of the optimizer adam, how much it keeps of mean and mean square of the gradients.
        needs_weights: whether it starts from the state dict that `model.weights` names.
        score_name: what the score is, in the report's words.
        copied: floating-point buffers that are no part of an average of weights, which takes them
            as they are: queues, and what stands for nothing yet.
        whole_batch: the loss is no mean over images each by itself: it compares them with each
            other, or divides by what some of them add up to, so that micro-batches change it.
    """

    Options: ClassVar[type[AnyOptions]] = AnyOptions
    views: ClassVar[int] = 1
    masks: ClassVar[bool] = False
    players: ClassVar[tuple[str, ...]] = ("all",)
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    whole_batch: bool = False
    needs_weights: ClassVar[bool] = False
    score_name: ClassVar[str] = "score of the method"
    copied: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: AnyOptions, network: Network) -> None:
        """Build with shapes alone; never reads data, since resume and load build with it too.

        Loading builds on the meta device first, to compare shapes before it reads weights.

        Args:
            options: of this method.
            network: what its networks are built from.
        """
        super().__init__()
        self.options, self.network = options, network

    def check(self, labels: Tensor) -> None:
        """Refuse what cannot begin, before anything is written.

        Args:
            labels: (N,) -1, 0, +1 of the training images.

        Raises:
            ValueError: names the option first, as `Options` does.
        """

    @property
    def known_share(self) -> float:
        """Share of each global batch that is known abnormal, drawn with replacement.

        0: images as they come, each once in an epoch.
        """
        return 0.0

    def begin(self, start: Start) -> None:
        """First contents: weights of the stage before, centres, statistics.

        Fresh weights come from `network.embedder()`, or from a generator of `start.seed`: two
        starts, and all ranks, draw the same.
        """

    def before_step(self, step: int) -> None:
        """Change once a step, before its micro-batches: moving averages, queues."""

    def turns(self, step: int) -> tuple[str, ...]:
        """Whose turn it is in a step, in order."""
        return self.players

    def forward(self, batch: dict[str, Any], player: str = "all") -> dict[str, Tensor]:
        """`{"loss": 0-d}` of a batch, for one of `players`.

        Further 0-d outputs are figures, whose means over the epoch and the ranks are logged.
        """
        raise NotImplementedError

    def parameters_of(self, player: str) -> Iterable[Parameter]:
        """What the optimizer of `player` moves."""
        return self.parameters()

    def rates(self) -> Mapping[Parameter, float]:
        """Parameters that move at a share of the learning rate, and this share."""
        return {}

    def frozen(self) -> Encoder | None:
        """The encoder, images (B, 1, S, S) -> features (B, W), that is held still; None: none is.

        Images go through it once, plain and mirrored; their features are kept, and stand for them
        in training, validation and scores.
        """
        return None

    def close_epoch(self) -> dict[str, float]:
        """Change between epochs; return figures of the epoch."""
        return {}

    def renew(self, start: Start) -> None:
        """Change between epochs what needs the images, such as a subspace of their features.

        With averaged weights it is called for them too, after the raw ones.
        """

    def check_epoch(self, epoch: int) -> list[str]:
        """What a person must hear after this epoch, counted from 0; each line with its figure."""
        return []

    def before_save(self) -> None:
        """Move state that ranks hold apart to rank 0."""

    def after_load(self) -> None:
        """Take up a state that rank 0 held for all ranks."""

    def features(self, images: Tensor) -> tuple[Tensor, Tensor] | None:
        """H (B, W) and z (B, D) of images (B, 1, S, S), for probes, neighbours and t-SNE."""
        return None

    def backbone(self) -> nn.Module | None:
        """The part that does most of the work, images -> features: what `engine.compile` takes."""
        return None

    def scorer(self) -> nn.Module | None:
        """Images (B, 1, S, S) -> `score` (B,), higher = more abnormal; None: it cannot score.

        Called with images, and masks (B, 1, S, S) in [0, 1] where the task takes `masks`.
        Further outputs (B,) become columns of scores.csv, under names that are none of its own;
        `h` and `z` (B, ...), if there are such, are features, so that one pass gives them too.
        Without `h` the columns that compare an image with training images stay empty. The scorer is
        tried on blank images before the first step.
        """
        return None


def score_images(
    scorer: nn.Module, images: Tensor, masks: Tensor | None = None
) -> dict[str, Tensor]:
    """What a scorer makes of images (B, 1, S, S), with their masks where it takes such.

    Raises:
        InputError: its outputs are not as `Task.scorer` says.
    """
    outputs = scorer(images) if masks is None else scorer(images, masks)
    count = images.shape[0]  # len() would fix the number of images in a traced program
    if not isinstance(outputs, dict) or not isinstance(outputs.get("score"), Tensor):
        raise _unlike("the scorer", outputs, '{"score": a float tensor (B,), ...}')
    if taken := sorted(TAKEN & outputs.keys()):
        raise _unlike("the scorer", taken[0], "outputs of other names than scores.csv has")
    for name, values in outputs.items():
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if name in FEATURES:
            if len(shape) != 2 or shape[0] != count:
                raise _unlike(f"the scorer's {name!r}", shape, f"(B, D), here ({count}, D)")
        elif shape != (count,):
            raise _unlike(f"the scorer's {name!r}", shape, f"(B,), here ({count},)")
    return outputs


def loss_of(outputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss in what a task's `forward` gave, and its figures without gradient.

    Raises:
        InputError: it is not `{"loss": 0-d float tensor with a gradient}`.
    """
    loss = outputs.get("loss") if isinstance(outputs, dict) else None
    if not (
        isinstance(loss, Tensor)
        and loss.ndim == 0
        and loss.is_floating_point()
        and loss.requires_grad
    ):
        raise _unlike("forward", outputs, '{"loss": a 0-d float tensor with a gradient}')
    figures = {
        name: one.detach()
        for name, one in outputs.items()
        if name != "loss" and isinstance(one, Tensor) and one.ndim == 0
    }
    return loss, figures


def _unlike(what: str, given: Any, allowed: str) -> InputError:
    if isinstance(given, dict):
        given = {name: tuple(getattr(value, "shape", ())) for name, value in given.items()}
    elif isinstance(given, Tensor):
        given = f"a tensor {tuple(given.shape)}"
    text = " ".join(str(given).split())[:200]
    return InputError(f"method: {what} gave {text}; allowed: {allowed}")


class System(NamedTuple):
    """A named pair of methods: a row of the paper's Table 1, or one that a reviewer asks for.

    Attributes:
        title: as the table prints it.
        pretext: method of the first stage.
        finetune: method of the second.
        changes: settings of a run that differ from the preset, by dotted name.
        score: column of scores.csv that is this row's score, `score` as the run's `score.by`
            has it, `model_score` the method's own; rows that differ in it alone share their runs.
        note: what is as published here and what is not, and why; one or two sentences.
        extra: whether the row is not in the paper's table.
        against: row that it is compared with; "" = Ours.
    """

    title: str
    pretext: str
    finetune: str
    changes: Mapping[str, Any] = {}
    score: str = "score"
    note: str = ""
    extra: bool = False
    against: str = ""
