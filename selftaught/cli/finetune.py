"""`selftaught finetune`: centres and fine-tuning of a pre-trained run."""

from collections.abc import Sequence

from selftaught.cli.options import read_config
from selftaught.distributed import is_main
from selftaught.errors import InputError


def main(arguments: Sequence[str]) -> None:
    """Fine-tune the run in `--out` and write its model; start again to go on."""
    config = read_config(
        "finetune",
        "Find centres and fine-tune the pre-trained run in --out; its settings are the defaults.",
        arguments,
    )
    if not config.data.manifest:
        raise InputError(
            f"out: {config.out} holds no run; allowed: the folder of a pre-trained run"
        )
    from selftaught.training.run import run

    place = run(config, ("finetune",))
    if is_main():
        print(place / "model")
