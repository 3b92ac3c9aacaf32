"""Figures of the training: losses, centres, spread and rank of the embedding."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from selftaught.evaluation.plot_style import ABNORMAL, MUTED, NORMAL, Picture, plain, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGES = {"pretext": "pre-training", "finetune": "fine-tuning"}
COLORS = {"pretext": NORMAL, "finetune": ABNORMAL}
SIZE = (4.4, 2.9)


def epochs_of(log: Sequence[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Epoch entries by stage and epoch.

    Args:
        log: objects of `metrics.jsonl`. Of an epoch that was done twice (a resumed run) the last
            entry counts.
    """
    stages: dict[str, dict[int, dict[str, Any]]] = {}
    for entry in log:
        epoch = entry.get("epoch")
        if entry.get("kind") == "epoch" and isinstance(epoch, int):
            stages.setdefault(str(entry.get("stage")), {})[epoch] = entry
    order = [*STAGES, *sorted(set(stages) - set(STAGES))]
    return {stage: dict(sorted(stages[stage].items())) for stage in order if stage in stages}


def _series(epochs: dict[int, dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs that have a finite figure `name`, and the figure."""
    pairs = [
        (epoch, float(entry[name]))
        for epoch, entry in epochs.items()
        if isinstance(entry.get(name), int | float) and np.isfinite(entry[name])
    ]
    x, y = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(x, dtype=int), np.array(y, dtype=float)


def _curve(
    stages: dict[str, dict[int, dict[str, Any]]],
    name: str,
    *,
    title: str,
    caption: str,
    steps: bool = False,
    zero: bool = False,
) -> Picture | None:
    """One figure over the epochs of some stages; None when no epoch has it."""
    series = {stage: _series(epochs, name) for stage, epochs in stages.items()}
    series = {stage: (x, y) for stage, (x, y) in series.items() if len(x)}
    if not series:
        return None

    def draw(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        for stage, (x, y) in series.items():
            marker = "o" if len(x) < 15 else None
            axes.plot(x, y, color=COLORS.get(stage, MUTED), marker=marker, markersize=4,
                      label=plain(STAGES.get(stage, stage)),
                      drawstyle="steps-post" if steps else "default")  # fmt: skip
        for stage in series:
            for drop in _rate_drops(stages[stage]):
                axes.axvline(drop, color=COLORS.get(stage, MUTED), linewidth=0.8, linestyle=":")
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if zero:
            axes.set_ylim(bottom=0)
        if len(series) > 1:
            axes.legend(loc="best")

    words = "; ".join(
        f"{STAGES.get(stage, stage)} from {y[0]:.4g} (epoch {x[0]}) to {y[-1]:.4g} (epoch {x[-1]})"
        for stage, (x, y) in series.items()
    )
    return render(draw, alt=f"{title} by epoch: {words}.", caption=caption, size=SIZE)


def _rate_drops(epochs: dict[int, dict[str, Any]]) -> list[int]:
    """Epochs in which the learning rate falls."""
    x, rate = _series(epochs, "lr")
    return [int(epoch) for epoch, now, was in zip(x[1:], rate[1:], rate[:-1], strict=True)
            if now < 0.5 * was]  # fmt: skip


def training_pictures(log: Sequence[dict[str, Any]]) -> list[Picture]:
    """Every figure of the training that the log allows.

    Args:
        log: objects of `metrics.jsonl`.

    Returns:
        Losses of each stage, validation AUROC, centres, occupancy, spread, effective rank.
    """
    stages = epochs_of(log)
    tuned = {"finetune": stages["finetune"]} if "finetune" in stages else {}
    drops = "Dotted lines: the learning rate falls."
    pictures = [
        _curve(
            {stage: epochs}, "loss", caption=drops, title=f"Loss, {plain(STAGES.get(stage, stage))}"
        )
        for stage, epochs in stages.items()
    ]
    pictures += [
        _curve(tuned, "val_auroc", title="Validation AUROC", caption="0.5 is guessing."),
        _curve(
            tuned, "centers", title="Centres left", steps=True, zero=True,
            caption="Centres with too few images are removed. One centre left means the model "
            "is uni-modal.",
        ),
        _curve(
            tuned, "occupancy_max", title="Images at the fullest centre", zero=True,
            caption="How unevenly the training images spread over the centres.",
        ),
        _curve(
            stages, "spread", title="Spread of the embedding", zero=True,
            caption="Standard deviation by dimension. A fall to nearly 0 is a collapse.",
        ),
        _curve(
            stages, "effective_rank", title="Effective rank", zero=True,
            caption="How many dimensions of the embedding are in use.",
        ),
    ]  # fmt: skip
    return [picture for picture in pictures if picture is not None]
