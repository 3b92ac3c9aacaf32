"""One page that shows a whole run: `report.html`, complete in itself."""

from pathlib import Path
from typing import Any

import numpy as np

from selftaught import methods
from selftaught.errors import InputError
from selftaught.evaluation import plots, summary
from selftaught.evaluation.heat import heat_cards
from selftaught.evaluation.images import grids
from selftaught.evaluation.plots_training import training_pictures
from selftaught.evaluation.run_files import RunFiles, find_image_root, flatten, read_run
from selftaught.evaluation.tsne import tsne_pictures
from selftaught.files import write_atomic
from selftaught.models.bank import NAMES

TEMPLATE = Path(__file__).with_name("report_template.html")
# What spreadsheets take for a formula when a cell of the page is pasted into one.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
CHIPS = (
    ("Preset", "preset"),
    ("Seed", "seed"),
    ("Pretext", "pretext.method"),
    ("Image size", "data.image_size"),
    ("Centres", "finetune.centers"),
    ("Pretext epochs", "pretext.epochs"),
    ("Fine-tuning epochs", "finetune.epochs"),
    ("Device", "device"),
    ("Version", "selftaught"),
)


def write_report(run: Path, *, image_root: Path | None = None) -> Path:
    """Write `report.html` from the files of a run folder alone.

    The page needs no network and no script. Text that came with the data is escaped. What cannot
    be shown (no body parts, one label, images deleted since) is said in a sentence instead.

    Args:
        run: the run folder; `scores.csv` and `metrics.json` have to be there.
        image_root: the folder that the paths of `scores.csv` are relative to. Without it the
            `image_root` of `environment.json` counts, then the folder of `data.manifest`.

    Returns:
        Path of the page.

    Raises:
        InputError: the run folder, `scores.csv` or `metrics.json` is missing or unreadable.
        MachineError: the disk is full or the folder cannot be written.
    """
    files = read_run(run)
    page = template(TEMPLATE).render(_context(files, image_root or find_image_root(files)))
    target = run / "report.html"
    write_atomic(target, page)
    return target


def cell(text: object) -> str:
    """Foreign text that no spreadsheet takes for a formula: an apostrophe in front."""
    line = str(text)
    try:
        float(line)
    except ValueError:
        return f"'{line}" if line.startswith(FORMULA) else line
    return line


def template(path: Path) -> Any:
    """A page's template, which escapes every value and may include the parts of pages beside it.

    Args:
        path: its file; filters `cell`, `number` and `score` are there.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader([path.parent, TEMPLATE.parent]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "number": summary.number, "score": "{:#.4g}".format}
    return environment.get_template(path.name)


def _seed(run: RunFiles) -> int:
    """The seed of the run, for the draw of images and the maps."""
    seed = run.config.get("seed")
    return seed if isinstance(seed, int) else 0


def _score_by(run: RunFiles) -> str:
    section = run.config.get("score")
    return str(section.get("by", "model") if isinstance(section, dict) else "model")


def score_words(run: RunFiles) -> str:
    """What the score of the run is; runs from before methods had one."""
    if (by := _score_by(run)) in NAMES:
        return NAMES[by]
    section = run.config.get("finetune")
    name = section.get("method") if isinstance(section, dict) else None
    try:
        return methods.load(str(name or methods.FINETUNE)).score_name
    except InputError:
        return methods.Task.score_name


def stored_threshold(run: RunFiles) -> float | None:
    """The stored threshold, where it is a number."""
    stored = run.model.get("calibration")
    # Models of the first format hold it beside the rest.
    value = (stored if isinstance(stored, dict) else run.model).get("threshold")
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def _context(run: RunFiles, root: Path | None) -> dict[str, Any]:
    """Everything that the template names."""
    scores, metrics, threshold = run.scores, run.metrics, stored_threshold(run)
    test = metrics.get("test") or {}
    settings, environment = dict(flatten(run.config)), dict(flatten(run.environment))
    known = environment | settings
    maps, map_problems = tsne_pictures(scores, run.embeddings, _seed(run))
    score_name = score_words(run)
    image_grids, image_problems = grids(scores, run.embeddings, root)
    curves = [plots.roc(scores, metrics, threshold), plots.precision_recall(scores)]
    histograms = [plots.histogram(scores, split, threshold) for split in ("val", "test")]
    return {
        "name": run.folder.resolve().name,
        "chips": [(name, known[key]) for name, key in CHIPS if known.get(key)],
        "test": test,
        "score_name": score_name,
        "verdict": summary.verdict(test),
        "sentences": summary.in_words(test),
        "warnings": summary.warnings(run),
        "problems": run.problems,
        "figures": summary.figure_table(metrics),
        "ablations": summary.ablation_table(metrics, score_name, _score_by(run)),
        "splits": summary.split_rows(run.split if run.split is not None else scores),
        "threshold": threshold,
        "curves": [picture for picture in curves if picture],
        "histograms": [picture for picture in histograms if picture],
        "parts": summary.part_table(metrics),
        "part_picture": plots.body_parts(metrics),
        "grids": image_grids,
        "any_image": any(card.thumbnail for grid in image_grids for card in grid.cards),
        "image_problems": image_problems,
        "heat": heat_cards(run),
        "maps": maps,
        "map_problems": map_problems,
        "training": training_pictures(run.log),
        "settings": settings,
        "environment": environment,
        "model": dict(flatten(run.model)),
        "resamples": metrics.get("resamples"),
    }
