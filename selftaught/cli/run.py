"""`selftaught run`: the whole job, from a manifest to a report."""

from collections.abc import Sequence

from selftaught.cli.options import read_config
from selftaught.distributed import is_main


def main(arguments: Sequence[str]) -> None:
    """Run all parts and print where the report is."""
    config = read_config("run", "The whole job: from a list of images to a report.", arguments)
    from selftaught.training.run import run

    place = run(config)
    if is_main():
        print(place / "report.html")
