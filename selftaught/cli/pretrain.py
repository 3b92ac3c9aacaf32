"""`selftaught pretrain`: split and contrastive pre-training."""

from collections.abc import Sequence

from selftaught.cli.options import read_config
from selftaught.distributed import is_main


def main(arguments: Sequence[str]) -> None:
    """Run the split and the pretext stage; start again to go on."""
    config = read_config(
        "pretrain", "Split the images and pre-train; same options as `selftaught run`.", arguments
    )
    from selftaught.training.run import run

    place = run(config, ("split", "pretrain"))
    if is_main():
        print(place / "checkpoints" / "pretext")
