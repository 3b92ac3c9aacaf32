"""What an image file may hold, and the one-line error for a file that does not."""

from pathlib import Path

from selftaught.errors import InputError

MAX_PIXELS = 2**26
MAX_BYTES = 2**30


class BadImage(InputError):
    """An image file that cannot be used.

    Attributes:
        path: the file.
        reason: what is wrong and what is allowed, without the file's name.
    """

    def __init__(self, path: Path | str, reason: str):
        self.path = Path(path)
        self.reason = " ".join(reason.split())
        super().__init__(f"{' '.join(str(path).split())}: {self.reason}")

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (self.path, self.reason)


def not_read(path: Path | str, what: str) -> BadImage:
    """The error for a file that nothing is wrong with, but which is of a kind that is not read.

    Args:
        path: the file.
        what: its kind, such as "a TIFF of 10 bits a sample".
    """
    return BadImage(
        path,
        f"is {what}, a sound kind that is not read; save it again as an ordinary "
        "8 or 16-bit grey PNG or TIFF",
    )


def check_size(path: Path, height: int, width: int) -> None:
    """Refuse an empty image and one above 64 Mpx, before anything is decoded.

    Raises:
        BadImage: a side below 1, or height * width above `MAX_PIXELS`.
    """
    if height < 1 or width < 1:
        raise BadImage(path, f"image of {width} x {height} pixels; at least 1 x 1 is needed")
    if height * width > MAX_PIXELS:
        raise BadImage(
            path,
            f"image of {width} x {height} pixels ({height * width / 2**20:.0f} Mpx); "
            f"allowed up to {MAX_PIXELS // 2**20} Mpx",
        )
