"""`selftaught log`: a run folder, mirrored into MLflow or Weights & Biases."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from selftaught.cli.parser import build_parser, parse


def main(arguments: Sequence[str]) -> None:
    """Mirror settings, curves, figures, report and card of a finished or running run."""
    parser = build_parser(
        "log",
        "Mirror a run's settings, curves and figures into a tracker, which its own environment "
        "variables configure (MLFLOW_TRACKING_URI, WANDB_MODE=offline, ...). Images and scores "
        "of single images are not sent.",
    )
    parser.add_argument("run", type=str, help="run folder; may still be running")
    parser.add_argument(
        "--to", type=Literal["mlflow", "wandb"], required=True, help="which tracker"
    )
    parser.add_argument("--project", type=str, default="selftaught", help="experiment or project")
    options = parse(parser, arguments)
    from selftaught.evaluation.trackers import mirror

    print(mirror(Path(options.run), options.to, options.project))
