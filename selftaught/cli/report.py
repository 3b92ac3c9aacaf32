"""`selftaught report`: the HTML report of a run."""

from collections.abc import Sequence

from selftaught.cli.parser import build_parser, parse


def main(arguments: Sequence[str]) -> None:
    """Write report.html and MODEL_CARD.md again from the run's files."""
    parser = build_parser("report", "Write report and model card of a run again from its files.")
    parser.add_argument("run", type=str, help="run folder")
    options = parse(parser, arguments)
    from pathlib import Path

    from selftaught.evaluation.card import write_card
    from selftaught.evaluation.report import write_report
    from selftaught.training.folder import environment

    environment(Path(options.run))
    print(write_report(Path(options.run)))
    write_card(Path(options.run))
