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
    parser.add_argument(
        "--part",
        type=str,
        default="",
        help="I/N: the I-th of N parts of the films, beside the others on machines that share the "
        "folder; the same command without it then completes the set",
    )
    parser.add_class_arguments(PrepareConfig, as_group=False)
    short = {"--allow-outside": "--allow_outside=true"}
    options = parse(parser, [short.get(word, word) for word in arguments])
    settings = vars(parser.instantiate(options))
    for name in ("config", "source", "out", "check", "part"):
        settings.pop(name, None)
    config = PrepareConfig(**settings)
    if options.part:
        _prepare_part(Path(options.source), Path(options.out), config, options.part)
        return
    if options.check and not Path(options.check).is_file():
        raise InputError(f"check: {options.check}: no such file; allowed: a set's truth.json")
    summary = prepare_on_first_rank(Path(options.source), Path(options.out), config, options.check)
    if summary is not None:
        summary.check(config.bad_limit)


def _prepare_part(source: Path, out: Path, config: "PrepareConfig", text: str) -> None:
    """Prepare one of several parts.

    Raises:
        InputError, MachineError: as `prepare_part`; or it is no part, or has several ranks.
        StopRun: a signal arrived; finished shards are kept.
    """
    from selftaught.data.prepare.job import Part, prepare_part
    from selftaught.training.stop import Stopper

    numbers = [int(one) if one.isascii() and one.isdigit() else 0 for one in text.split("/")]
    if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise InputError(f"part is {text!r}; allowed: I/N with 1 <= I <= N, such as 2/3")
    if launched():
        raise InputError(f"part is {text!r} under a launcher; allowed: one process, --workers")
    with Stopper().install().interrupting():
        print(prepare_part(source, out, config, Part(*numbers)))


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
