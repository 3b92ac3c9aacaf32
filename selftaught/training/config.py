"""Every setting of a run: frozen dataclasses that are also the command line's options."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from selftaught.data.plan import Augment, finetune_augment, pretext_augment
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.split import SplitConfig
from selftaught.errors import InputError

Preset = Literal["quick", "default", "paper"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read and how.

    Args:
        manifest: CSV or parquet list of images, a folder with normal/ and abnormal/, or MURA-v1.1.
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
    """

    manifest: str = ""
    prepare: Literal["auto", "always", "never"] = "auto"
    pack: str = ""
    image_size: int = 512
    pipeline: Literal["auto", "opencv", "dali"] = "auto"
    workers: int | Literal["auto"] = "auto"
    mask: Literal["auto", "none"] = "auto"
    allow_outside: bool = False
    bad_files: Literal["fail", "skip"] = "fail"
    bad_limit: float = 0.01
    cache_gib: float = 2.0
    evaluation_views: Literal["plain", "augmented"] = "plain"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder and its head.

    Args:
        architecture: residual network without its classifier.
        stem: imagenet = 7x7 stride 2 and max-pool, small = 3x3 stride 1 for images under 64 px.
        batch_norm: affine, or plain = without scale and shift as published.
        head: widths of the projection head after the encoder's own width.
        weights: a ResNet state dict on this disk for pretext.method imagenet; never downloaded.
    """

    architecture: Literal["resnet18", "resnet50"] = "resnet18"
    stem: Literal["imagenet", "small"] = "imagenet"
    batch_norm: Literal["affine", "plain"] = "affine"
    head: list[int] = field(default_factory=lambda: [256, 128])
    weights: str = ""


@dataclass(frozen=True, kw_only=True)
class PretextConfig:
    """Contrastive pre-training on unlabelled images (paper, Eq. 1).

    Args:
        method: ntxent = SimCLR, supcon = known abnormal images attract each other,
            imagenet = start from model.weights, none = random weights.
        epochs: passes over the training set.
        batch_size: images in a global batch; divided over ranks. Each gives two views.
        lr: learning rate.
        optimizer: adam as published; sgd and lars (for large batches) have momentum 0.9 and want
            rates of their own, some 0.05 and 0.3 times batch_size / 256.
        milestones: epochs at which the rate is divided by ten.
        temperature: of the softmax over similarities.
        weight_decay: coupled L2.
        augment: how a view is drawn.
    """

    method: Literal["ntxent", "supcon", "imagenet", "none"] = "ntxent"
    epochs: int = 100
    batch_size: int = 24
    lr: float = 1e-3
    optimizer: Literal["adam", "sgd", "lars"] = "adam"
    milestones: list[int] = field(default_factory=lambda: [70, 90])
    temperature: float = 0.5
    weight_decay: float = 1e-6
    augment: Augment = field(default_factory=lambda: pretext_augment("default"))


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Multi-centre semi-supervised fine-tuning (paper, Eq. 2).

    Args:
        centers: hypersphere centres found by k-means; 1 = uni-modal (Deep SAD).
        gamma: a centre with fewer than gamma times the largest centre's images is removed.
        eta: weight of known images.
        epochs: passes over the training set.
        batch_size: images in a global batch; divided over ranks.
        lr: learning rate.
        optimizer: adam as published; sgd and lars (for large batches) have momentum 0.9 and want
            rates of their own, some 0.05 and 0.3 times batch_size / 256.
        milestones: epochs at which the rate is divided by ten.
        weight_decay: coupled L2.
        center_epsilon: centre coordinates closer to 0 than this are pushed to +-this; 0 stays.
        center_views: plain, or augmented = random views for k-means as published.
        validate_every: epochs between validation AUROCs; 0 = never.
        augment: how a view is drawn.
    """

    centers: int = 100
    gamma: float = 0.05
    eta: float = 1.0
    epochs: int = 150
    batch_size: int = 16
    lr: float = 1e-4
    optimizer: Literal["adam", "sgd", "lars"] = "adam"
    milestones: list[int] = field(default_factory=lambda: [90, 140])
    weight_decay: float = 1e-6
    center_epsilon: float = 0.1
    center_views: Literal["plain", "augmented"] = "plain"
    validate_every: int = 1
    augment: Augment = field(default_factory=lambda: finetune_augment("default"))


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the work is carried out; all but accumulate, clip and sync_batch_norm compute the same.

    Args:
        kind: ddp covers one process and any number under torchrun; deepspeed too, where installed.
        zero_stage: with deepspeed, what is divided over ranks: 0 = nothing, 1 = optimizer state,
            2 = gradients too.
        precision: auto = bf16 autocast on GPUs and CPUs that multiply bf16, fp32 elsewhere;
            fp64 = weights and arithmetic in double precision, to compare machines.
        accumulate: micro-batches per optimizer step; a contrastive loss then sees only the
            negatives of its micro-batch, on all ranks.
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

    kind: Literal["ddp", "deepspeed"] = "ddp"
    zero_stage: Literal[0, 1, 2] = 1
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    accumulate: int = 1
    clip: float = 0.0
    sync_batch_norm: Literal["auto", "off"] = "auto"
    compile: bool = False
    peak_tflops: float = 0.0
    profile: str = ""
    save_every: int = 0
    resume: Literal["auto", "never"] = "auto"
    timeout: float = 600.0


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Scoring.

    Args:
        neighbours: k of the mean distance to the k nearest normal training images.
        batch_size: images in a forward pass.
        flag_quantile: images above this quantile of normal validation scores are flagged.
    """

    neighbours: int = 100
    batch_size: int = 64
    flag_quantile: float = 0.95


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run.

    Args:
        out: the run folder.
        preset: default = corrected method, paper = as published, quick = for laptops.
        seed: of weights, order of samples, augmentation and k-means.
        data: what is read.
        prepare: how raw films become a packed set, where data.prepare asks for one.
        split: who trains, who tests, whose labels are known.
        model: the network.
        pretext: contrastive pre-training.
        finetune: fine-tuning around centres.
        engine: precision, checkpoints, ranks.
        score: scoring.
    """

    out: str = ""
    preset: Preset = "default"
    seed: int = 1
    data: DataConfig = field(default_factory=DataConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pretext: PretextConfig = field(default_factory=PretextConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)


def preset_overrides(preset: Preset) -> dict[str, Any]:
    """What a preset changes against the defaults, as dotted option names."""
    if preset == "paper":
        return {
            "preset": "paper",
            "data.evaluation_views": "augmented",
            "prepare.carrier": "paper",
            "prepare.polarity": "paper",
            "prepare.mask": "paper",
            "split.scheme": "paper",
            "model.batch_norm": "plain",
            "pretext.augment": dataclasses.asdict(pretext_augment("paper")),
            "finetune.augment": dataclasses.asdict(finetune_augment("paper")),
            "finetune.center_views": "augmented",
        }
    if preset == "quick":
        return {
            "preset": "quick",
            "data.image_size": 64,
            "pretext.epochs": 6,
            # With a few hundred images the published 1e-3 collapses the embedding.
            "pretext.lr": 1e-4,
            "pretext.milestones": [],
            "pretext.temperature": 0.2,
            "pretext.augment.blur": 0.0,
            "finetune.epochs": 40,
            "finetune.milestones": [28, 36],
            "finetune.centers": 20,
            "score.neighbours": 20,
        }
    return {"preset": "default"}


def flatten(config: Config) -> dict[str, Any]:
    """All settings by dotted name."""
    out: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            out[prefix] = list(value) if isinstance(value, tuple) else value

    walk("", dataclasses.asdict(config))
    return out


def dump(config: Config) -> str:
    """The resolved settings as YAML, readable by `--config`."""
    nested: dict[str, Any] = {}
    for name, value in flatten(config).items():
        *groups, last = name.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return yaml.safe_dump(nested, sort_keys=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file, safely.

    Raises:
        InputError: the file is missing, is not YAML or is no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; --config takes a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds {type(content).__name__}; allowed: a mapping of options")
    return content
