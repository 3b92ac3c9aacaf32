"""`selftaught prepare`: raw films to a checked, cropped, masked, packed set."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selftaught.cli.parser import build_parser, parse
from selftaught.environment import launched
from selftaught.errors import InputError

if TYPE_CHECKING:
    from selftaught.data.prepare.config import PrepareConfig
    from selftaught.data.prepare.finish import Summary


def main(arguments: Sequence[str]) -> None:
    """Prepare a source, or go on with it; print what became of the films."""
    from selftaught.data.prepare.config import PrepareConfig

    parser = build_parser("prepare", "Raw films to a checked, cropped, masked, packed set.")
    parser.add_argument("source", type=str, help="manifest, MURA-v1.1 or a folder of images")
    parser.add_argument("--out", type=str, required=True, help="folder to write or go on with")
    parser.add_argument(
        "--check", type=str, default="", help="truth.json of `synth`: print how right the result is"
    )
    parser.add_class_arguments(PrepareConfig, as_group=False)
    short = {"--allow-outside": "--allow_outside=true"}
    options = parse(parser, [short.get(word, word) for word in arguments])
    settings = vars(parser.instantiate(options))
    for name in ("config", "source", "out", "check"):
        settings.pop(name, None)
    config = PrepareConfig(**settings)
    if options.check and not Path(options.check).is_file():
        raise InputError(f"check: {options.check}: no such file; allowed: a set's truth.json")
    summary = prepare_on_first_rank(Path(options.source), Path(options.out), config, options.check)
    if summary is not None:
        summary.check(config.bad_limit)


def prepare_on_first_rank(
    source: Path, out: Path, config: "PrepareConfig", truth: str
) -> "Summary | None":
    """Prepare, and print what came of it; of several ranks the first works and the others wait.

    Args:
        source: manifest, MURA tree or folder of images.
        out: folder to create or to go on with.
        config: settings; `workers` is the number of processes on the first rank's machine.
        truth: `truth.json` to compare with, or "".

    Returns:
        What was done, on the first rank; None on the others.

    Raises:
        InputError, MachineError: as `prepare`; or another rank ended.
        StopRun: a signal arrived at any rank; finished shards are kept.
    """
    from selftaught.data.prepare.job import prepare
    from selftaught.training.stop import Stopper, StopRun, first_rank_alone

    def work() -> "Summary":
        summary = prepare(source, out, config)
        print(summary)
        if truth:
            from selftaught.data.prepare.check import check_set

            print(check_set(out, Path(truth)))
        print(summary.manifest)
        return summary

    stopper = Stopper().install()
    if not launched():
        with stopper.interrupting():
            return work()
    from selftaught import distributed

    distributed.start()
    with distributed.ending_together(agreed=StopRun):
        summary = first_rank_alone(work, stopper)
        distributed.finish()
    return summary
