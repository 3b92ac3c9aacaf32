"""How much memory the refusal of a file takes, measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import resource, sys
import cv2, PIL.Image, pydicom, pydicom.pixels
from selftaught.data.decode import BadImage, check_header, read_grey

PIL.Image.preinit()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for read in (check_header, read_grey):
    try:
        read(sys.argv[1])
    except BadImage as error:
        print(error)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) // (1024 if sys.platform == "linux" else 1024**2))
"""


def growth(path: Path) -> tuple[list[str], int]:
    """Lines of the refusals by check_header and read_grey, and MB by which memory grew."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    *lines, grown = result.stdout.splitlines()
    assert result.stderr == ""
    return lines, int(grown)
