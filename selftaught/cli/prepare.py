"""`selftaught prepare`: raw films to a checked, cropped, masked, packed set."""

from collections.abc import Sequence
from pathlib import Path

from selftaught.cli.options import build_parser, parse


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
    from selftaught.data.prepare.job import prepare
    from selftaught.training.stop import Stopper

    stopper = Stopper().install()
    out = Path(options.out)
    summary = prepare(Path(options.source), out, config, stop=lambda: bool(stopper.code))
    if summary is None:
        raise stopper.exit()
    print(summary)
    if options.check:
        from selftaught.data.prepare.check import check_set

        print(check_set(out, Path(options.check)))
    print(summary.manifest)
    summary.check(config.bad_limit)
