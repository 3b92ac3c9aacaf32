"""Which settings of a run can work together, and the line that refuses the others."""

import math
from typing import Any

from selftaught.errors import InputError
from selftaught.training.config import Config

LONGEST = 30 * 24 * 3600
MOST_GIB = 1 << 20
WIDEST = 65_536


def _require(option: str, value: Any, allowed: str, fine: bool) -> None:
    if not fine:
        raise InputError(f"{option} is {value!r}; allowed: {allowed}")


def profile_window(text: str) -> range:
    """The 0-based steps that `engine.profile` names, first and last included; none if empty.

    Raises:
        InputError: it is not `first-last` with 0 <= first <= last.
    """
    if not text:
        return range(0)
    first, dash, last = text.partition("-")
    fine = bool(dash) and first.isdecimal() and last.isdecimal() and int(first) <= int(last)
    _require("engine.profile", text, "first-last steps counted from 0, such as 10-12", fine)
    return range(int(first), int(last) + 1)


def _check_engine(config: Config) -> None:
    engine = config.engine
    for name, smallest in (("accumulate", 1), ("clip", 0), ("peak_tflops", 0), ("save_every", 0)):
        value = getattr(engine, name)
        fine = math.isfinite(value) and value >= smallest
        _require(f"engine.{name}", value, f"{smallest} or more", fine)
    profile_window(engine.profile)
    _require(
        "engine.precision",
        engine.precision,
        f"auto, fp32 or bf16 with DeepSpeed at engine.zero_stage {engine.zero_stage}, which keeps "
        "its divided weights in float32, or engine.zero_stage 0",
        engine.precision != "fp64" or engine.kind != "deepspeed" or engine.zero_stage == 0,
    )
    fine = 1 <= engine.timeout <= LONGEST
    _require("engine.timeout", engine.timeout, f"1 to {LONGEST:,} seconds", fine)
    for name, stage in (("pretext", config.pretext), ("finetune", config.finetune)):
        _require(
            f"{name}.optimizer",
            stage.optimizer,
            f"adam or sgd with engine.zero_stage {engine.zero_stage}, which flattens the layers "
            "that lars scales by, or engine.zero_stage 0",
            stage.optimizer != "lars" or engine.kind != "deepspeed" or engine.zero_stage == 0,
        )


def check(config: Config) -> Config:
    """Refuse settings that cannot work, naming option, value and what is allowed.

    Raises:
        InputError: the first setting that is out of range.
    """
    _require("out", config.out, "the run folder's path", bool(config.out))
    _require("seed", config.seed, "0 to 2**32 - 1", 0 <= config.seed < 2**32)
    _require(
        "data.image_size",
        config.data.image_size,
        "16 to 4096",
        16 <= config.data.image_size <= 4096,
    )
    smallest = 16 if config.model.stem == "small" else 32
    _require(
        "data.image_size",
        config.data.image_size,
        f"{smallest} to 4096 with model.stem {config.model.stem}",
        config.data.image_size >= smallest,
    )
    workers = config.data.workers
    _require("data.workers", workers, "auto or 0 to 256", workers == "auto" or 0 <= workers <= 256)
    limit = config.data.bad_limit
    _require("data.bad_limit", limit, "0 to 1", 0 <= limit <= 1)
    cache = config.data.cache_gib
    _require("data.cache_gib", cache, f"0 to {MOST_GIB:,}", 0 <= cache <= MOST_GIB)
    head = config.model.head
    fine = bool(head) and min(head) > 0 and max(head) <= WIDEST
    _require("model.head", head, f"one or more widths of 1 to {WIDEST:,}", fine)
    for name, stage, smallest in (("pretext", config.pretext, 2), ("finetune", config.finetune, 1)):
        _require(f"{name}.epochs", stage.epochs, "1 or more", stage.epochs >= 1)
        _require(
            f"{name}.batch_size",
            stage.batch_size,
            f"{smallest} or more",
            stage.batch_size >= smallest,
        )
        _require(f"{name}.lr", stage.lr, "above 0", stage.lr > 0)
        _require(f"{name}.weight_decay", stage.weight_decay, "0 or more", stage.weight_decay >= 0)
        rising = stage.milestones == sorted(set(stage.milestones))
        _require(f"{name}.milestones", stage.milestones, "rising epochs", rising)
    _require(
        "pretext.temperature", config.pretext.temperature, "above 0", config.pretext.temperature > 0
    )
    if config.pretext.method == "imagenet":
        _require(
            "model.weights",
            config.model.weights,
            "a ResNet state dict on this disk, as pretext.method is imagenet",
            bool(config.model.weights),
        )
    tune = config.finetune
    _require("finetune.centers", tune.centers, "1 to 65536", 1 <= tune.centers <= 65536)
    _require("finetune.gamma", tune.gamma, "0 to 1", 0 <= tune.gamma <= 1)
    _require("finetune.eta", tune.eta, "above 0", tune.eta > 0)
    _require("finetune.center_epsilon", tune.center_epsilon, "0 or more", tune.center_epsilon >= 0)
    _require("finetune.validate_every", tune.validate_every, "0 or more", tune.validate_every >= 0)
    for name, augment in (("pretext", config.pretext.augment), ("finetune", tune.augment)):
        _require(
            "data.pipeline",
            config.data.pipeline,
            f"auto or opencv with {name}.augment.order published, or the order composed",
            config.data.pipeline != "dali" or augment.order != "published",
        )
    _check_engine(config)
    _require("score.neighbours", config.score.neighbours, "1 or more", config.score.neighbours >= 1)
    _require("score.batch_size", config.score.batch_size, "1 or more", config.score.batch_size >= 1)
    quantile = config.score.flag_quantile
    _require("score.flag_quantile", quantile, "between 0 and 1", 0 < quantile < 1)
    return config
