"""MODEL_CARD.md: what a run's model is, what it was made from, how well it does and its limits.

The headings follow Mitchell et al., "Model Cards for Model Reporting" (2019). Every fact is one
that stands in the run folder; no path, file name or patient is repeated.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from selftaught.evaluation import summary
from selftaught.evaluation.report import score_words, stored_threshold
from selftaught.evaluation.run_files import RunFiles, flatten, read_run
from selftaught.files import write_atomic

NAME = "MODEL_CARD.md"
SETS = (
    *("Set", "Images", "Groups", "Normal", "Abnormal", "No label", "Known normal"),
    "Known abnormal",
)
# Written at length in model.json: the look of the set's films.
LONG = ("reference",)


def write_card(run: Path) -> Path | None:
    """Write MODEL_CARD.md from the files of a run folder alone.

    Args:
        run: the run folder; `scores.csv` and `metrics.json` have to be there.

    Returns:
        Path of the card; None where the folder holds no model.

    Raises:
        InputError: the run folder, `scores.csv` or `metrics.json` is missing or unreadable.
        MachineError: the disk is full or the folder cannot be written.
    """
    files = read_run(run)
    if not isinstance(files.model.get("sha256"), dict):
        return None
    write_atomic(run / NAME, _card(files))
    return run / NAME


def _card(run: RunFiles) -> str:
    """The whole text."""
    model, sections = run.model, []
    sections.append(
        "**Research, not a diagnosis.** The score orders radiographs by how unusual they look to "
        "this model. It has not been tested for clinical use and must not replace a reader.\n\n"
        + _table(("Fact", "Value"), _identity(run))
    )
    sections.append(
        "## Use\n\nMeant for research: sorting films of the kind below, prepared alike, by how "
        "unusual they look. Not meant for diagnosis, for triage that no reader checks, nor for "
        "other body parts, views, devices or hospitals than those of the films below: what the "
        "model never saw it calls unusual or, worse, normal."
    )
    rows = summary.split_rows(run.split if run.split is not None else run.scores)
    sections.append(
        "## Data\n\nA group is a patient, or what was kept together. Training sees the known "
        "labels alone.\n\n"
        + _table(SETS, ((name, *cells) for name, cells in rows))
        + "\n\nFilms are prepared so before the network sees them; a score of a film prepared "
        "otherwise means nothing.\n\n" + _table(("Step", "Setting"), _flat(model, "preprocessing"))
    )
    sections.append("## Figures\n\n" + _figures(run))
    sections.append("## Threshold\n\n" + _threshold(run))
    sections.append("## Limits\n\n" + "\n".join(f"- {_plain(text)}" for text in _limits(run)))
    sections.append(
        "## Method and options\n\n" + _table(("Option", "Value"), _flat(model, "options"))
    )
    digests = dict(_flat(model, "sha256"))
    rest = digests.pop("facts", None)  # of all else that describes the model
    hashes = [*digests.items(), *([("model.json", rest)] if rest else []), *_recorded(run)]
    sections.append(
        "## Versions and hashes\n\n"
        + _table(("Package", "Version"), _flat(run.environment, "packages"))
        + "\n\n"
        + _table(("File", "SHA-256"), hashes)
    )
    title = f"# Model card: {_plain(model.get('method', 'unknown method'))}"
    return "\n\n".join([title, *sections]) + "\n"


def _identity(run: RunFiles) -> list[tuple[str, str]]:
    """Which model this is."""
    training, network = run.model.get("training") or {}, run.model.get("network") or {}
    facts = {
        "Method": run.model.get("method"),
        "Pre-training": training.get("pretext"),
        "Score": score_words(run),
        "Encoder": (network.get("encoder") or {}).get("architecture"),
        "Image size": network.get("image_size"),
        "Training images": training.get("training_images"),
        "Preset, seed": f"{training.get('preset')}, {training.get('seed')}",
        "Epoch": training.get("epoch"),
        "Program": f"selftaught {run.environment.get('selftaught')}",
        "Python, device": f"{run.environment.get('python')}, {run.environment.get('device')}",
        "SHA-256 of the weights": run.model["sha256"].get("weights.safetensors"),
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]


def _figures(run: RunFiles) -> str:
    """Verdict, all figures with the intervals of the AUROC, and those of body parts."""
    kind, sentence = summary.verdict(run.metrics.get("test") or {})
    heads = ("Figure", "Validation", "Test")
    rows = [(name, *cells) for name, _, cells in summary.figure_table(run.metrics)]
    parts = [
        (part["name"], *(f"{n} ({abnormal}): {auroc}" for n, abnormal, auroc in part["cells"]))
        for part in summary.part_table(run.metrics)
    ]
    text = f"{sentence} Intervals are of 95 %, groups resampled; they do not hold the spread over "
    text += f"seeds.\n\n{_table(heads, rows)}"
    if parts:
        wide = ("Body part", *(f"{one}: images (abnormal), AUROC" for one in heads[1:]))
        text += f"\n\n{_table(wide, parts)}"
    return text


def _threshold(run: RunFiles) -> str:
    """The stored threshold and what it does to the test images."""
    value = stored_threshold(run)
    if value is None:
        return "None is stored, as no normal image was held back: nothing is flagged."
    stored = run.model.get("calibration")
    normals = len((stored if isinstance(stored, dict) else run.model).get("normal_scores") or ())
    section = run.config.get("score")
    quantile = section.get("flag_quantile") if isinstance(section, dict) else None
    share = f"at most {1 - quantile:.3g}" if isinstance(quantile, float) else "a small share"
    test = run.metrics.get("test") or {}
    hits, passes = (
        summary.number(test.get(f"threshold_{name}")) for name in ("sensitivity", "specificity")
    )
    return (
        f"A film is flagged when its score is above {value:.6g}, which {share} of {normals} normal "
        f"validation images exceed. On the test images: sensitivity {hits}, specificity {passes}. "
        "Percentiles are of these normal images, so they move in steps of "
        f"{100 / normals if normals else 100:.3g}. On films of another place both have to be "
        "chosen anew."
    )


def _limits(run: RunFiles) -> list[str]:
    """What a reader of the figures has to know."""
    return [
        "One split of one set and one seed: no figure here says how the model does elsewhere.",
        "Figures by hospital, device, time, sex or age were not measured.",
        *summary.of_data(run),
        *run.problems,
    ]


def _recorded(run: RunFiles) -> list[tuple[str, str]]:
    """Digests of what the figures are from."""
    known = {
        "scores.csv": run.metrics.get("scores_sha256"),
        "split.csv": run.environment.get("split_sha256"),
        "list of images": run.environment.get("manifest_sha256"),
    }
    return [(name, digest) for name, digest in known.items() if isinstance(digest, str)]


def _flat(values: dict[str, Any], section: str) -> list[tuple[str, str]]:
    """The leaves of one section, by dotted name."""
    part = values.get(section)
    known = part if isinstance(part, dict) else {}
    return list(flatten({name: value for name, value in known.items() if name not in LONG}))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are one line each."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _plain(text: object) -> str:
    """Foreign text on one line that is no mark of Markdown, no HTML and no end of a cell."""
    line = " ".join(str(text).split())
    for mark in "\\`|[]<":
        line = line.replace(mark, f"\\{mark}")
    return line
