"""`selftaught calibrate`: a site's own threshold, by its own normal films, as a new model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selftaught.cli.parser import build_parser, parse
from selftaught.cli.score import Scored, add_films, ranks, reading, scored, tell_skipped
from selftaught.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from selftaught.monitoring.threshold import Share


def main(arguments: Sequence[str]) -> None:
    """Write a model folder that differs from MODEL by threshold and normal scores."""
    parser = build_parser(
        "calibrate",
        "Choose the threshold by a site's own films: for a wished rate of false alarms, or for a "
        "wished sensitivity.",
    )
    parser.add_argument("model", type=str, help="model folder, or a run folder with one")
    add_films(
        parser,
        "films the model was not trained on, a manifest or a folder: normal ones (where no film "
        "has a label, all count as normal), with --sensitivity abnormal ones too",
    )
    parser.add_argument(
        "--false_alarms", type=float, help="share of normal films that may be flagged, such as 0.05"
    )
    parser.add_argument(
        "--sensitivity", type=float, help="share of abnormal films to be flagged, such as 0.9"
    )
    parser.add_argument("--out", type=str, default="", help="model folder to write; a new one")
    options = parse(parser, arguments)
    wished = _wished(options.false_alarms, options.sensitivity)
    if not options.data.manifest:
        raise InputError(
            "data.manifest is missing; allowed: a list or a folder of the site's films"
        )
    out = _target(options.out, Path(options.model))
    source = Path(options.data.manifest)
    from selftaught import distributed

    with ranks() as (device, stopper):
        films = scored(Path(options.model), source, device, stopper, **reading(options))
        if distributed.is_main():
            if options.data.bad_files == "skip":
                tell_skipped(films.table)
            _calibrate(Path(options.model), films, *wished, out)


def _wished(false_alarms: float | None, sensitivity: float | None) -> tuple[str, float]:
    """The option that was given, and its value."""
    given = {"false_alarms": false_alarms, "sensitivity": sensitivity}
    values = [(name, value) for name, value in given.items() if value is not None]
    if len(values) != 1:
        raise InputError(
            f"{'both of' if values else 'neither of'} false_alarms and sensitivity "
            f"{'are' if values else 'is'} given; allowed: one of them"
        )
    name, value = values[0]
    if not 0 < value < 1:
        raise InputError(f"{name} is {value:g}; allowed: above 0, below 1, such as 0.05")
    return name, value


def _target(out: str, model: Path) -> Path:
    """The new folder, checked before films are scored."""
    if not out:
        raise InputError("out is missing; allowed: a new folder, for the calibrated model")
    path = Path(out)
    if path.exists() or path.is_symlink():
        raise InputError(f"{path}: exists; allowed: a new folder, as no model is replaced")
    from selftaught.models.files import model_folder

    if model_folder(model).resolve() in path.absolute().resolve().parents:
        raise InputError(f"{path}: lies in the model's own folder; allowed: a folder beside it")
    return path


def _calibrate(model: Path, films: Scored, option: str, value: float, out: Path) -> None:
    """Choose, write, and say in words."""
    from selftaught.files import sha256, standing
    from selftaught.models.files import FACTS, model_folder, recalibrated
    from selftaught.monitoring.observed import patient_numbers
    from selftaught.monitoring.threshold import for_false_alarms, for_sensitivity

    table = films.table[_with_score(films)]
    abnormal = _abnormal(table, option, films.manifest.name)
    _check_unseen(films, table)
    scores, patients = table["score"].to_numpy(), patient_numbers(table)
    if option == "false_alarms":
        choice = for_false_alarms(scores, value, patients)
    else:
        groups = None if patients is None else (patients[~abnormal], patients[abnormal])
        choice = for_sensitivity(scores[~abnormal], scores[abnormal], value, groups)
    folder = model_folder(model)
    facts = {
        "wished": {option: value},
        **choice.facts(),
        "units": "films" if patients is None else "patients",
        "manifest_sha256": films.manifest.digest,
        "of_model_sha256": sha256(standing(folder) / FACTS),
    }
    recalibrated(folder, out, choice.calibration, facts)
    before = films.detector.calibration.threshold
    was = "there was none" if before is None else f"it was {before:.6g}"
    print(f"threshold {choice.calibration.threshold:.6g}; {was}")
    print(_in_words("normal", choice.false_alarms, facts["units"]))
    if choice.sensitivity is not None:
        print(_in_words("abnormal", choice.sensitivity, facts["units"]))
    print(out)


def _with_score(films: Scored) -> "pd.Series":
    """Which films have a score: all that were not skipped."""
    read = ~films.skipped
    wrong = read & ~films.table["score"].map(math.isfinite)
    if wrong.any():
        first = films.manifest.where(int(wrong.argmax()))
        raise InputError(f"{first}: its score is no finite number; allowed: a model that scores it")
    return read


def _abnormal(table: "pd.DataFrame", option: str, name: str) -> "np.ndarray":
    """Which films are labelled abnormal; refuses films that have no place in the list."""
    blank, abnormal = table["label"].isna(), (table["label"] == 1).fillna(False).to_numpy(bool)
    if option == "false_alarms" and abnormal.any():
        raise InputError(
            f"{name}: {abnormal.sum()} of {len(table)} films are labelled abnormal; allowed with "
            "false_alarms: normal films; with sensitivity both are used"
        )
    if option == "sensitivity" and (abnormal.all() or not abnormal.any()):
        kind = "abnormal" if not abnormal.any() else "normal"
        raise InputError(
            f"{name}: no film is labelled {kind}; allowed with sensitivity: films labelled 0 and 1"
        )
    if blank.any() and (option == "sensitivity" or not blank.all()):
        raise InputError(
            f"{name}: {blank.sum()} of {len(table)} films have no label; allowed: 0 or 1 for each"
            + (", or none for any, where all are normal" if option == "false_alarms" else "")
        )
    return abnormal


def _check_unseen(films: Scored, table: "pd.DataFrame") -> None:
    """Refuse films that the model remembers from its training: their scores are too low."""
    bank = films.detector.bank
    if bank is None or films.features is None:
        print("the model remembers no training films: whether these are among them is not checked")
        return
    seen = bank.holds(films.features[table.index.to_numpy(copy=True)]).numpy()
    if seen.any():
        first = films.manifest.where(int(table.index[seen.argmax()]))
        raise InputError(
            f"{first}: the model was trained on this film, and on {seen.sum()} of {len(table)} in "
            "the list; allowed: films that it has not seen"
        )


def _in_words(label: str, share: "Share", units: str) -> str:
    low, high = (100 * end for end in share.interval)
    of = f" of {share.units} patients" if units == "patients" else ""
    return (
        f"flagged of these {share.films} {label} films{of}: {100 * share.share:.2f} %; in the long "
        f"run {low:.2f} to {high:.2f} % of such (95 % interval)"
    )
