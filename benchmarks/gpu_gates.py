"""The gates of the design, each computed from the rows of `gpu_suite`."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

Row = dict[str, str]
BIG = ("16384x128", "32768x128", "65536x128")
MB = 2**20


class Table:
    """Rows of the CSV; of what was measured twice the last counts."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = [row for row in rows if row.get("ms_median") or row.get("phase") == "wgmma"]

    def find(self, **wanted: str) -> list[Row]:
        """Rows whose columns begin with these words, the last of each kind only."""
        found: dict[tuple[str, ...], Row] = {}
        for row in self.rows:
            if all(row[key].startswith(value) for key, value in wanted.items()):
                columns = ("phase", "kernel", "provider", "mode", "shape", "dtype")
                found[tuple(row[key] for key in columns)] = row
        return list(found.values())

    def least(self, column: str, **wanted: str) -> float | None:
        """Smallest number of a column."""
        numbers = [float(row[column]) for row in self.find(**wanted) if row[column]]
        return min(numbers, default=None)

    def most(self, column: str, **wanted: str) -> float | None:
        """Largest number of a column."""
        numbers = [float(row[column]) for row in self.find(**wanted) if row[column]]
        return max(numbers, default=None)


class Gate(NamedTuple):
    """What must be true.

    Attributes:
        name: what it is about.
        bound: the least or most allowed.
        value: of the table; None: not measured.
        unit: of both.
        least: `bound` is the least allowed, else the most.
    """

    name: str
    bound: float
    value: Callable[[Table], float | None]
    unit: str = ""
    least: bool = True

    def passes(self, value: float) -> bool:
        """Whether a value is within the bound."""
        return value >= self.bound if self.least else value <= self.bound


def _share(provider: str, mode: str, factor: float = 1.0) -> Callable[[Table], float | None]:
    """Smallest share of the ceiling at the big sizes, of the best tier at each."""

    def value(table: Table) -> float | None:
        each = [
            table.most("share", phase="ntxent", provider=provider, mode=mode, shape=shape)
            for shape in BIG
        ]
        there = [100 * factor * share for share in each if share is not None]
        return min(there) if len(there) == len(BIG) else None

    return value


def _times(peer: str, size: str = "16384x128") -> Callable[[Table], float | None]:
    """How many times as fast the best of ours is, forward and backward."""

    def value(table: Table) -> float | None:
        settings = {"phase": "ntxent", "mode": "full", "shape": size}
        theirs = [
            float(row["ms_median"]) for row in table.find(**settings) if row["provider"] == peer
        ]
        own = table.least("ms_median", provider="selftaught", **settings)
        return theirs[0] / own if theirs and own else None

    return value


def _error(table: Table) -> float | None:
    column, settings = "gradient_error_small_loss", {"phase": "ntxent", "mode": "full"}
    theirs = table.least(column, provider="eager bf16", **settings)
    own = table.most(column, provider="selftaught triton fp32", **settings)
    return theirs / own if theirs and own else None


def _memory(table: Table) -> float | None:
    """Beside the gradient of 65,536 x 128 float32."""
    found = table.least(
        "extra_mb", phase="ntxent", provider="selftaught", mode="full", shape="65536x128"
    )
    return None if found is None else found - 65_536 * 128 * 4 / MB


def _million(table: Table) -> float | None:
    found = table.least("ms_median", phase="million", shape="1048576x")
    return None if found is None else found / 1000


def _floor(dtype: str) -> Callable[[Table], float | None]:
    def value(table: Table) -> float | None:
        found = table.most(
            "share", phase="mad", provider="selftaught", mode="full", shape="1000000x", dtype=dtype
        )
        return None if found is None else 100 * found

    return value


def _wgmma(table: Table) -> float | None:
    """Rows that the warpgroup instructions had right, of four."""
    rows = [row for row in table.find(phase="wgmma") if "cuda" in row["provider"]]
    return float(sum(row["note"] == "right" for row in rows)) if rows else None


def _decision(table: Table) -> float | None:
    """Time of Triton's best tier over wgmma's, at the big size nearest to a training batch."""
    settings = {"phase": "ntxent", "mode": "full", "shape": "16384x128"}
    triton = table.least("ms_median", provider="selftaught triton", **settings)
    own = table.least("ms_median", provider="selftaught cuda wgmma", **settings)
    return triton / own if triton and own else None


def _launches(phase: str, shape: str) -> Callable[[Table], float | None]:
    return lambda table: table.least(
        "launches", phase=phase, provider="selftaught", mode="full", shape=shape
    )


def _knn(table: Table) -> float | None:
    theirs = table.least("ms_median", phase="search", kernel="knn", provider="faiss")
    own = table.least("ms_median", phase="search", kernel="knn", provider="selftaught")
    return theirs / own if theirs and own else None


GATES = (
    Gate("wgmma right at 300 and 20,000 rows, fp16 and bf16", 4, _wgmma, "of 4"),
    Gate(
        "NT-Xent forward+backward, Triton, 16,384 rows and more",
        55,
        _share("selftaught triton", "full"),
        "% of matmul",
    ),
    Gate(
        "NT-Xent forward against the bare product",
        100,
        _share("selftaught", "forward", 2.0),
        "% of its rate",
    ),
    Gate("NT-Xent, 16,384 rows, over eager fp32", 20, _times("eager"), "x"),
    Gate("NT-Xent, 16,384 rows, over eager bf16", 12, _times("eager bf16 autocast"), "x"),
    Gate(
        "NT-Xent, 16,384 rows, over torch.compile bf16",
        3.5,
        _times("torch.compile bf16 autocast"),
        "x",
    ),
    Gate(
        "NT-Xent, 16,384 rows, over FlexAttention", 1.5, _times("flex_attention log-sum"), "x"
    ),
    Gate("NT-Xent, 16,384 rows, over memeff", 1.5, _times("memeff"), "x"),
    Gate("gradient error near a loss of 0.01, eager bf16 over ours", 50, _error, "x"),
    Gate("memory at 65,536 rows beside the gradient", 60, _memory, "MB", least=False),
    Gate("2^20 rows on one GPU", 1.5, _million, "s", least=False),
    Gate("MAD loss, 1e6 x 100 x 128, bf16", 70, _floor("bfloat16"), "% of the copy rate"),
    Gate("MAD loss, 1e6 x 100 x 128, fp32", 70, _floor("float32"), "% of the copy rate"),
    Gate("launches of an NT-Xent step, 1,024 rows", 8, _launches("ntxent", "1024x"), least=False),
    Gate("launches of a MAD step, 4,096 rows", 4, _launches("mad", "4096x"), least=False),
    Gate("100-NN, 1e4 x 1e6 x 128, over FAISS", 1, _knn, "x"),
    Gate("wgmma over Triton (it becomes the default)", 1.15, _decision, "x"),
)  # fmt: skip
