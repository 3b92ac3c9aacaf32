"""How much memory the refusal of a file takes, measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

# Not `ru_maxrss` where it can be avoided: a process starts with its parent's.
PEAK = """
def peak():
    import resource, sys
    from pathlib import Path

    status = Path("/proc/self/status")
    if status.exists():
        words = status.read_text().split()
        return int(words[words.index("VmHWM:") + 1]) // 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // (1024**2 if sys.platform == "darwin" else 1024)
"""
SCRIPT = (
    PEAK
    + """
import sys
import cv2, PIL.Image, pydicom, pydicom.pixels
import selftaught.data.images.pack
from selftaught.data.images.decode import BadImage, check_header, read_grey

PIL.Image.preinit()
before = peak()
for path in sys.argv[1:]:
    for read in (check_header, read_grey):
        try:
            read(path)
        except BadImage as error:
            print(error)
print(peak() - before)
"""
)


def growth(*paths: Path) -> tuple[list[str], int]:
    """Lines of the refusals by check_header and read_grey, and MB by which memory grew in all."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    *lines, grown = result.stdout.splitlines()
    assert result.stderr == ""
    return lines, int(grown)
