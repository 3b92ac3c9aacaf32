"""Draws the picture beside a benchmark's CSV, from the CSV alone.

python -m benchmarks.plot [NAME ...]

Without a name, every CSV in results/ that has a picture. Each benchmark draws its own when it ends.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import place

OURS, THEIRS = "C0", "C7"
Row = dict[str, str]
Spread = tuple[float, float, float]  # low, middle, high
Panels = dict[str, dict[str, Spread]]  # title of a panel, then label of a line


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def lines(rows: list[Row], title: str) -> Any:
    """Milliseconds over the first number of the shape, a line for each provider."""
    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        size = int(row["shape"].split("x")[0])
        series[row["provider"]].append((size, float(row["ms_median"])))
    figure, axes = _pyplot().subplots(figsize=(8.5, 4.5), layout="constrained")
    for provider, points in series.items():
        ours = provider.startswith("selftaught")
        axes.plot(*zip(*sorted(points), strict=True), "o-" if ours else "s--", label=provider)
    axes.set(yscale="log", xlabel="rows (2B)", ylabel="milliseconds", title=title)
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def panels(
    found: Panels,
    title: str,
    unit: str,
    *,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    columns: int = 2,
) -> Any:
    """A panel for each title, a line for each label with its value: ours first and in blue.

    Args:
        found: values of every panel.
        title: above all of them.
        unit: below each of them.
        log: points on a logarithmic axis, with the spread as a line; else bars.
        limits: ends of an axis that does not begin at 0, then with points.
        columns: panels side by side.
    """
    shared = [value for panel in found.values() for spread in panel.values() for value in spread]
    low, high = min(value for value in shared if value > 0), max(shared)
    count = max(len(panel) for panel in found.values())
    columns = min(columns, len(found))
    down = -(-len(found) // columns)
    plt = _pyplot()
    figure, grid = plt.subplots(
        down,
        columns,
        figsize=(5.6 * columns, 0.6 + down * (1.0 + 0.24 * count)),
        squeeze=False,
        layout="constrained",
    )
    for axes, (name, panel) in zip(grid.flat, found.items(), strict=False):
        # Ours first; else in the order of the CSV.
        labels = sorted(panel, key=lambda label: not label.startswith("selftaught"))
        for y, label in enumerate(labels):
            less, middle, more = panel[label]
            color = OURS if label.startswith("selftaught") else THEIRS
            if log or limits:
                axes.plot([less, more], [y, y], color=color, alpha=0.5, linewidth=3)
                axes.plot(middle, y, "o", color=color)
            else:
                axes.barh(y, middle, color=color)
            full = limits is not None and middle > 0.2 * limits[0] + 0.8 * limits[1]
            axes.annotate(
                written(middle),
                (max(more, middle), y),
                xytext=(-7 if full else 7, 0),
                textcoords="offset points",
                ha="right" if full else "left",
                va="center",
                fontsize="small",
            )
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel(unit)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        if log:
            # Room at the right for the figure of the longest one.
            axes.set(xscale="log", xlim=(low * (low / high) ** 0.05, high * (high / low) ** 0.2))
        else:
            axes.set_xlim(*(limits or (0, 1.15 * high)))
    for axes in grid.flat[len(found) :]:
        axes.remove()
    figure.suptitle(title)
    figure.get_layout_engine().set(hspace=0.06)
    return figure


def written(value: float) -> str:
    """A figure as it stands beside its point."""
    if 0 < value < 1e-2:
        return f"{value:.1e}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.{3 if value >= 1 else 4}g}"


def times(rows: list[Row], *, by: Callable[[Row], str]) -> Panels:
    """Milliseconds with their spread of every provider, in panels."""
    found: Panels = defaultdict(dict)
    for row in rows:
        spread = (float(row[key]) for key in ("ms_p20", "ms_median", "ms_p80"))
        found[by(row)][row["provider"]] = tuple(spread)  # type: ignore[assignment]
    return found


def values(rows: list[Row], column: str, *, by: Callable[[Row], str], label: str) -> Panels:
    """One column as it is, in panels; rows without a figure are left out."""
    found: Panels = defaultdict(dict)
    for row in rows:
        if row[column]:
            found[by(row)][row[label]] = (float(row[column]),) * 3
    return found


SPREAD = "milliseconds (line: 20 % to 80 % of the rounds)"


def ntxent(rows: list[Row]) -> Any:
    chosen = [r for r in rows if r["kernel"] == "ntxent" and r["mode"] == "full"]
    chosen = [r for r in chosen if r["shape"].endswith("x128")]
    return lines(chosen, "NT-Xent forward + backward, fp32, D = 128")


def nearest_center(rows: list[Row]) -> Any:
    titles = {"nearest_center": "nearest centre, forward", "mad_loss": "MAD loss, with gradient"}
    found = times(rows, by=lambda r: f"{titles[r['kernel']]}, {r['shape']}")
    return panels(found, "Nearest centre and MAD loss, fp32, N x K x D", SPREAD, log=True)


def kmeans(rows: list[Row]) -> Any:
    found = times(rows, by=lambda r: f"{r['shape']}, {r['mode']}")
    return panels(found, "k-means, fp32, rows x centres x width", SPREAD, log=True)


def neighbours(rows: list[Row]) -> Any:
    found = times(rows, by=lambda r: f"{r['shape']}, {r['mode']}")
    return panels(found, "100-NN score, fp32, queries x database x width", SPREAD, log=True)


def data(rows: list[Row]) -> Any:
    chosen = [r for r in rows if r["mode"] == "alone" and r["masks"] == "True"]
    found = values(
        chosen, "images_per_cpu_second", by=lambda r: f"from {r['source']}", label="provider"
    )
    title = "Two augmented views of 512 px with masks"
    return panels(found, title, "images per CPU-second", columns=1)


def training_step(rows: list[Row]) -> Any:
    found = values(
        rows, "ratio_to_plain_median", by=lambda r: f"{r['shape']}, {r['dtype']}", label="provider"
    )
    return panels(found, "Training step", "time over that of a plain PyTorch loop")


def scaling(rows: list[Row]) -> Any:
    named = [r | {"label": f"{r['ranks']} rank{'s' * (r['ranks'] != '1')}"} for r in rows]
    alone = {r["ranks"]: float(r["images_per_s"]) for r in rows}.get("1", 0)
    found = values(
        named, "images_per_s", by=lambda r: f"{r['batch']} images of {r['size']} px", label="label"
    )
    for panel in found.values():
        ours = {f"selftaught, {label}": spread for label, spread in panel.items()}
        ideal = {f"{r['ranks']} x one rank": (int(r["ranks"]) * alone,) * 3 for r in named}
        ideal = {label: spread for label, spread in ideal.items() if spread[0] > alone}
        panel.clear()
        panel.update(ours | ideal)
    return panels(found, "Pretext steps of one global batch on ranks of one machine", "images/s")


def agreement(rows: list[Row]) -> Any:
    def of(row: Row) -> str:
        return f"{row['stage']}, {row['precision']}, {row['optimizer']} {float(row['lr']):.2g}"

    found = values(rows, "largest_difference", by=of, label="run")
    title = "20 steps against one process with one thread"
    return panels(found, title, "largest relative difference of a loss", log=True)


def cheap_baselines(rows: list[Row]) -> Any:
    found = values(rows, "test", by=lambda r: r["set"], label="method")
    title = "Methods that need no network, 64 x 64 pixels"
    return panels(found, title, "test AUROC", limits=(0.5, 1), columns=1)


def maps(rows: list[Row]) -> Any:
    rows = [r for r in rows if "flagged" not in r["kind"]]
    found = values(rows, "pointing", by=lambda r: f"{r['kind']}: {r['model']}", label="provider")
    return panels(
        found, "Heat maps on synthetic metal", "hottest pixel in the truth, share of films"
    )


PICTURES: dict[str, Callable[[list[Row]], Any]] = {
    one.__name__: one
    for one in (
        *(ntxent, nearest_center, kmeans, neighbours, data),
        *(training_step, scaling, agreement, cheap_baselines, maps),
    )
}


def draw(name: str) -> Path:
    """Draw the PNG beside the CSV of a benchmark.

    Args:
        name: of `PICTURES`.

    Returns:
        The PNG.
    """
    with place(name, "csv").open(newline="", encoding="utf-8") as handle:
        figure = PICTURES[name](list(csv.DictReader(handle)))
    path = place(name, "png")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    _pyplot().close(figure)
    return path


def main() -> None:
    """Draw what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    names = parser.parse_args().names
    for name in names:
        if name not in PICTURES or not place(name, "csv").exists():
            there = [one for one in PICTURES if place(one, "csv").exists()]
            parser.error(f"no picture of {name!r}; allowed: {', '.join(there)}")
    for name in names or [one for one in PICTURES if place(one, "csv").exists()]:
        print(draw(name))


if __name__ == "__main__":
    main()
