"""All tests of one run of `selftaught monitor`, and what they mean in words."""

from collections.abc import Sequence

import numpy as np

from selftaught.monitoring import drift
from selftaught.monitoring.drift import FEWEST, Films, Test
from selftaught.monitoring.observed import (
    ABNORMAL,
    EMBEDDINGS,
    LEVELS,
    NUMBERS,
    SCORES,
    TESTS,
    Observed,
)

SEED = 1
NUMERIC = {SCORES, *LEVELS, *NUMBERS}
LABELS = {"0": "normal", "1": "abnormal"}


def compare(here: Observed, there: Observed, alarm_rate: float) -> list[Test]:
    """Every test of `TESTS`, those that cannot be made with the reason.

    What is one and the same in all films is no test: no deal could give another value, so that it
    takes no share of the rate from the others (Tarone, 1990).

    Args:
        here: the films to watch.
        there: what they are compared with.
        alarm_rate: probability of any alarm where nothing has changed, at the most.
    """
    possible = [name for name in TESTS if not _missing(name, here, there)]
    count = drift.permutations(alarm_rate, len(possible))
    tests = []
    for name in TESTS:
        if reason := _missing(name, here, there):
            tests.append(Test(name=name, words=reason))
            continue
        one, other = here[name], there[name]
        if name == EMBEDDINGS:
            p = drift.of_features(one, other, count, SEED)
        elif name in NUMERIC:
            p = drift.of_numbers(one, other, count, SEED)
        else:
            p = drift.of_kinds(one, other, count, SEED)
        films = len(one.values), len(other.values)
        tests.append(Test(name=name, p=p, films=films, words=_in_words(name, one, other)))
    return drift.judged(tests, alarm_rate)


def _missing(name: str, here: Observed, there: Observed) -> str:
    """Why a test cannot be made; "" where it can."""
    for films, whose in ((here.get(name), "these films"), (there.get(name), "the reference")):
        if films is None:
            return f"not known of {whose}"
        if len(films.values) < FEWEST:
            return f"known of {len(films.values)} of {whose}; {FEWEST} at least are needed"
    one, other = here[name].values, there[name].values
    if name == EMBEDDINGS:
        same = one.shape[1] == other.shape[1]
        return "" if same else "the reference has features of another width"
    constant = (one == one[0]).all() and (other == one[0]).all()
    return _in_words(name, here[name], there[name]) if constant else ""


def _in_words(name: str, here: Films, there: Films) -> str:
    """What was seen, here against there."""
    if name == EMBEDDINGS:
        return "distribution of the encoder's features"
    if name in NUMERIC:
        unit = f" {NUMBERS[name]}" if name in NUMBERS else ""
        low, high = (np.median(films.values.astype(float)) for films in (here, there))
        way = f"; mostly {direction(here, there)}" if name == SCORES else ""
        return f"median {low:.4g} against {high:.4g}{unit}{way}"
    parts = []
    rare = 0
    for kind in np.unique(np.concatenate([here.values, there.values])):
        shares = [float((films.values == kind).mean()) for films in (here, there)]
        # What few films say may be anybody's name, typed into the wrong field.
        if sum((films.values == kind).sum() for films in (here, there)) < FEWEST:
            rare += 1
            continue
        word = LABELS.get(kind, kind) if name == ABNORMAL else kind
        parts.append(f"{word} {100 * shares[0]:.1f} % against {100 * shares[1]:.1f} %")
    return "; ".join(parts + [f"{rare} rare kinds"] * bool(rare))


def direction(here: Films, there: Films) -> str:
    """Whether scores are mostly higher or lower, by the larger distance of distributions."""
    values = np.unique(np.concatenate([here.values, there.values]))
    shares = [
        np.searchsorted(np.sort(films.values), values, side="right") / len(films.values)
        for films in (here, there)
    ]
    difference = shares[0] - shares[1]
    return "higher" if -difference.min() >= difference.max() else "lower"


def meaning(tests: Sequence[Test], labelled: bool, reference: bool) -> list[str]:
    """What alarms may come from, and what they do not say.

    Args:
        tests: of `compare`.
        labelled: scores, embeddings and levels are those of films that are labelled normal.
        reference: the other films are a list of the site, and not the model's normal films.
    """
    alarms = {test.name: test for test in tests if test.alarm}
    lines = []
    if alarms.keys() & set(LEVELS):
        lines.append(
            "Brightness and contrast are those of the network's input. Ask first whether exposure, "
            "window, processing, devices or the way of export have changed."
        )
    if alarms.keys() & {SCORES, EMBEDDINGS} and not labelled:
        lines.append(
            "Scores and embeddings are of all films, whatever they show. More or fewer abnormal "
            "films move them as a fault does: look at the films before you look for a fault, or "
            "label them and run this again."
        )
    if SCORES in alarms and "lower" in alarms[SCORES].words and not labelled:
        lines.append(
            "Scores are mostly lower. More abnormal films would raise them; fewer of them than in "
            "the reference, or a fault, lower them."
        )
    if ABNORMAL in alarms:
        lines.append(
            "The share of abnormal films has changed, by their labels. That is no fault of the "
            "model; but its threshold was chosen for another share."
        )
    if alarms.keys() & {SCORES, EMBEDDINGS} and labelled:
        lines.append(
            "Films labelled normal have other scores or embeddings than before: the films, their "
            "devices, their processing or the labels have changed, not the share of abnormal ones."
        )
    if not labelled and not reference:
        lines.append(
            "These films are compared with the model's normal films, and a week holds abnormal "
            "films too. Give a list of an earlier, usual time of the same site as "
            "--data.reference: that holds its usual share of them."
        )
    return lines
