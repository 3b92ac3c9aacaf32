"""`selftaught pretrain`: split and contrastive pre-training."""

from collections.abc import Sequence

from selftaught.cli.options import read_config


def main(arguments: Sequence[str]) -> None:
    """Run the split and the pretext stage; start again to go on."""
    config = read_config(
        "pretrain", "Split the images and pre-train; same options as `selftaught run`.", arguments
    )
    from selftaught.training.run import run

    print(run(config, ("split", "pretrain")) / "checkpoints" / "pretext")
