"""A picture beside a benchmark's CSV."""

from collections import defaultdict
from pathlib import Path

from benchmarks.record import place


def lines(name: str, rows: list[dict[str, object]], title: str) -> Path:
    """Milliseconds over the first number of the shape, a line for each provider, to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        size = int(str(row["shape"]).split("x")[0])
        series[str(row["provider"])].append((size, float(str(row["ms_median"]))))
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for provider, points in series.items():
        ours = provider.startswith("selftaught")
        axes.plot(*zip(*sorted(points), strict=True), "o-" if ours else "s--", label=provider)
    axes.set(xscale="log", yscale="log", xlabel="rows (2B)", ylabel="milliseconds", title=title)
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path = place(name, "png")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def bars(name: str, values: dict[str, float], title: str) -> Path:
    """A horizontal bar for each value, in their order from the top, to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.32 * len(values)), layout="constrained")
    colors = ["C0" if label.startswith("selftaught") else "C7" for label in values]
    axes.bar_label(axes.barh(list(values), list(values.values()), color=colors), padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_title(title, fontsize="medium")
    path = place(name, "png")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
