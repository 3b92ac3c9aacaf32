"""One look for every figure, and figures as self-contained pictures."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1c2733", "#55616f", "#e4e8ed"
# Okabe-Ito: told apart with every common form of colour blindness.
NORMAL, ABNORMAL, UNKNOWN = "#0072b2", "#d55e00", "#8a949e"
SPLIT_COLORS = {"val": "#7b8794", "test": "#0b5563"}
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a", "#8c6d31",
         "#b3c100", "#a11d33")  # fmt: skip
SETTINGS = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10.0,
    # Text stays text: sharp at every zoom, and drawn with the reader's fonts for any script.
    "svg.fonttype": "none",
    # Fixed ids make the same run give the same bytes.
    "svg.hashsalt": "selftaught",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.8,
}
MISSING_FONT = "Glyph .* missing from font"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image for a page: its bytes as a data URI, words for those who cannot see it, a caption.

    Attributes:
        source: `data:` URI.
        alt: the text alternative.
        width: in CSS pixels.
        height: in CSS pixels.
        caption: sentence below the picture; "" for none.
    """

    source: str
    alt: str
    width: int
    height: int
    caption: str = ""


def render(
    draw: Callable[["Figure"], None],
    *,
    alt: str,
    caption: str = "",
    size: tuple[float, float] = (5.2, 3.9),
    vector: bool = True,
) -> Picture:
    """Draw a figure and encode it.

    Args:
        draw: adds axes and data to the empty figure that it is given.
        alt: the text alternative.
        caption: sentence below the picture.
        size: width and height in inches (96 CSS pixels each).
        vector: SVG; False gives PNG, smaller when there are thousands of points.

    Returns:
        The picture.
    """
    kind = "svg" if vector else "png"
    return picture(encode(draw, size=size, kinds=(kind,))[kind], kind, alt, caption, size)


def picture(
    content: bytes, kind: str, alt: str, caption: str, size: tuple[float, float]
) -> Picture:
    """An encoded figure of `size` inches as a picture; `kind` is svg or png."""
    media = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return Picture(
        source=data_uri(content, media),
        alt=alt,
        width=round(96 * size[0]),
        height=round(96 * size[1]),
        caption=caption,
    )


def encode(
    draw: Callable[["Figure"], None],
    *,
    size: tuple[float, float],
    kinds: Sequence[str] = ("svg", "png"),
) -> dict[str, bytes]:
    """Draw a figure of `size` inches once and encode it in each of `kinds`; same input, same bytes.

    The ground of an SVG is transparent, that of a PNG white.
    """
    import warnings

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    how: dict[str, dict[str, Any]] = {
        "svg": {"metadata": {"Date": None}, "transparent": True},
        "png": {"metadata": {"Software": None}, "dpi": 170},
    }
    encoded = {}
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():  # type: ignore[arg-type]
        # The browser draws the text of an SVG, with fonts that have the glyph.
        warnings.filterwarnings("ignore", MISSING_FONT)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        for kind in kinds:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, **how[kind])
            encoded[kind] = buffer.getvalue()
    return encoded


def data_uri(content: bytes, kind: str) -> str:
    """`content` of media type `kind` as a `data:` URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def plain(text: object, longest: int = 28) -> str:
    """Foreign text for a figure: no mathematics, no line breaks, not too long."""
    line = " ".join(str(text).split())
    if len(line) > longest:
        line = line[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
    line = "".join(c for c in line if c.isprintable())
    return line.replace("$", r"\$")


def unit_axes(axes: "Axes") -> None:
    """Both axes from 0 to 1, square."""
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    ticks = [0, 0.25, 0.5, 0.75, 1]
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
