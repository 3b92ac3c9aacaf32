"""A whole run: prepare, split, pretext, fine-tuning, scores and model, metrics, report.

Each part reads files and writes files; what is finished is not done again.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from selftaught import distributed, host
from selftaught.errors import InputError
from selftaught.evaluation.card import write_card
from selftaught.evaluation.metrics import evaluate
from selftaught.evaluation.report import write_report
from selftaught.files import sha256, write_atomic
from selftaught.training import folder
from selftaught.training.config import Config
from selftaught.training.context import FINETUNE, PRETEXT, Run
from selftaught.training.events import OnEvent, ignore, part
from selftaught.training.intake import split_images, use_prepared
from selftaught.training.progress import Reporter
from selftaught.training.scoring import read_scores, score, write_models
from selftaught.training.stage import train_stage
from selftaught.training.stop import Stopper, StopRun

PARTS = ("split", "pretrain", "finetune", "score", "evaluate", "report")


def run(config: Config, parts: Sequence[str] = PARTS, on_event: OnEvent = ignore) -> Path:
    """Carry out the named parts of a run, on every rank.

    Args:
        config: checked settings.
        parts: some of `PARTS`, in order.
        on_event: hears what the run does; `training.events` lists the events.

    Returns:
        The run folder.

    Raises:
        InputError: the input is wrong.
        MachineError: the machine failed; what was saved is intact.
        StopRun: a signal arrived; the state was saved.
    """
    stopper = Stopper().install()
    device = distributed.start(config.engine.timeout)
    with distributed.ending_together(agreed=StopRun), host.defaults(device, gradients=True):
        return _run_parts(config, parts, stopper, device, on_event)


def _run_parts(
    config: Config,
    parts: Sequence[str],
    stopper: Stopper,
    device: torch.device,
    on_event: OnEvent,
) -> Path:
    place = folder.claim(config)
    held = None
    if distributed.is_main():
        held = folder.lock(place)
        # Another run may have begun, and ended, between the look and the lock.
        folder.claim(config)
    distributed.barrier()
    try:
        with part(on_event, "prepare"):
            config = use_prepared(config, place, stopper, on_event)
        with part(on_event, "split"):
            images = split_images(config, place, stopper, on_event)
        with Reporter(place, on_event) as reporter:
            here = Run(
                config=config,
                folder=place,
                images=images,
                device=device,
                reporter=reporter,
                stopper=stopper,
            )
            steps: dict[str, Callable[[], object]] = {
                "pretrain": lambda: train_stage(here, PRETEXT),
                "finetune": lambda: _finetune(here, calibrate="score" not in parts),
                "score": lambda: score(here),
                "evaluate": lambda: here.alone("metrics", lambda: write_metrics(here)),
                "report": lambda: here.alone("report", lambda: write_pages(place)),
            }
            for name in parts:
                if name in steps:
                    with part(on_event, name):
                        steps[name]()
        if distributed.is_main() and images.bad_files and (text := images.bad_files.summary()):
            print(f"{text}; {images.bad_files.path} names them", flush=True)
    except (OSError, InputError):
        folder.check_held(place)
        raise
    finally:
        if held is not None:
            folder.vacate(place)
            held.close()
    distributed.finish()
    return place


def _finetune(run: Run, *, calibrate: bool) -> None:
    """Train the stage that scores; where no scores follow, write its models now."""
    train_stage(run, FINETUNE)
    if calibrate:
        write_models(run)


def write_metrics(run: Run) -> None:
    """metrics.json from scores.csv.

    Raises:
        InputError: there is no scores.csv.
    """
    scores = run.folder / "scores.csv"
    figures = evaluate(read_scores(scores), seed=run.config.seed)
    figures["scores_sha256"] = sha256(scores)
    write_atomic(run.folder / "metrics.json", json.dumps(figures, indent=1) + "\n")


def write_pages(place: Path) -> None:
    """report.html and MODEL_CARD.md."""
    write_report(place)
    write_card(place)
