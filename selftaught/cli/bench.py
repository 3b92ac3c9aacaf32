"""`selftaught bench`: one benchmark of the source tree."""

import ast
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from selftaught.errors import InputError

FOLDER = Path(__file__).parents[2] / "benchmarks"


def main(arguments: Sequence[str]) -> None:
    """Run `python -m benchmarks.NAME`; what follows the name goes to the benchmark.

    Raises:
        InputError: there is no such benchmark, or no source tree around the package.
        SystemExit: with the benchmark's exit code, unless it is 0.
    """
    names = benchmarks()
    if list(arguments[:1]) in (["-h"], ["--help"]):
        print("usage: selftaught bench NAME [options of the benchmark]\n")
        print("\n".join(f"  {name:<16}  {text}" for name, text in names.items()))
        raise SystemExit(0)
    allowed = f"allowed: {', '.join(names)}"
    if not names:
        raise InputError(
            "bench: the benchmarks are not part of the installed package; allowed: a clone of the "
            "source, installed by pip install -e"
        )
    if not arguments:
        raise InputError(f"bench: a name is missing; {allowed}")
    if arguments[0] not in names:
        raise InputError(f"bench: unknown benchmark {arguments[0]!r}; {allowed}")
    paths = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    code = subprocess.call(
        [sys.executable, "-m", f"benchmarks.{arguments[0]}", *arguments[1:]],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    if code:
        raise SystemExit(code if code > 0 else 128 - code)


def benchmarks() -> dict[str, str]:
    """What each script of benchmarks/ that can be run measures, by its name."""
    summaries = {}
    for path in sorted(FOLDER.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in text:
            summaries[path.stem] = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    return summaries
