"""What films went through: stored, read back strictly, and the view that it gives."""

import dataclasses
import json
import math

import numpy as np
import pytest

from selftaught.data.augment import Augment, finetune_augment, plain
from selftaught.data.prepare.claim import shaping
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.reference import Reference
from selftaught.models import Preprocessing

PREPARED = Preprocessing(
    image_size=64,
    autocontrast=0.5,
    order="published",
    mask_scale=255,
    input_range=(0.0, 255.0),
    masked=True,
    prepared=shaping(PrepareConfig(size=96, carrier="paper", bits="8")),
    reference=Reference(np.arange(288, dtype=np.int8).reshape(2, 144)).text(),
)


@pytest.mark.parametrize("films", [PREPARED, Preprocessing(image_size=32, known=False)])
def test_it_comes_back_from_what_a_model_stores(films):
    facts = json.loads(json.dumps(films.facts()))
    assert Preprocessing.from_facts(facts) == films


def test_what_an_older_prepare_did_not_know_has_its_default():
    facts = PREPARED.facts()
    facts["prepared"] = {"size": 96, "carrier": "paper", "bits": "8", "workers": 3}
    assert Preprocessing.from_facts(facts) == PREPARED


def test_the_view_is_that_of_the_training_without_chance(tmp_path):
    (tmp_path / "manifest.csv").write_text("path\na.png\n")
    for augment in (finetune_augment("paper"), finetune_augment(), Augment(mask_scale=255)):
        films = Preprocessing.of(augment, 64, False, tmp_path)
        assert films.augment() == plain(augment)
        assert films.input_range == augment.input_range and films.prepared is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": "32"}, "image_size is '32'"),
        ({"image_size": 0}, "image_size is 0; allowed: 1 to 8192"),
        ({"image_size": True}, "image_size is True"),
        ({"image_size": 1 << 40}, "image_size"),
        ({"input_range": [1, 0]}, "input_range"),
        ({"input_range": [0, math.inf]}, "input_range"),
        ({"input_range": 7}, "iterable"),
        ({"input_range": [0, 1, 2]}, "unpack"),
        ({"autocontrast": 50}, "autocontrast 50: allowed"),
        ({"autocontrast": "much"}, "autocontrast|supported"),
        ({"order": "random"}, "order 'random': allowed"),
        ({"mask_scale": 3}, "mask_scale 3: allowed"),
        ({"masked": 1}, "masked is 1; allowed: true or false"),
        ({"known": "yes"}, "known is 'yes'"),
        ({"prepared": "paper"}, "mapping"),
        ({"prepared": {"carrier": "guess"}}, "carrier is 'guess'; allowed: default, paper, none"),
        ({"prepared": {"mask": ["paper"]}}, "mask is"),
        ({"prepared": {"bits": 16}}, "bits is 16; allowed: keep, 8"),
        ({"prepared": {"size": 1 << 40}}, "size is 1099511627776; allowed: 16 to 8192"),
        ({"prepared": {"size": 96.5}}, "size is 96.5; allowed: a whole number"),
        ({"prepared": {"cutoff": None}}, "supported"),
        ({"prepared": {"deskew": True}}, "deskew"),
        ({"reference": 7}, "reference|bytes-like"),
        ({"reference": "?"}, "reference"),
        ({"reference": "AAAA"}, "reference: 3 bytes, must be a multiple of 144"),
        ({"sharpen": 1}, "sharpen"),
    ],
)
def test_what_no_model_stores_is_refused(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Preprocessing.from_facts({**PREPARED.facts(), **changes})


def test_models_that_are_older_than_the_comparison_of_films_have_no_reference():
    facts = PREPARED.facts()
    del facts["reference"]
    films = Preprocessing.from_facts(facts)
    assert films == dataclasses.replace(PREPARED, reference="")
    assert len(Reference.from_text(films.reference).patterns) == 0


@pytest.mark.parametrize("name", ["image_size", "masked", "prepared", "known", "order"])
def test_what_a_model_must_say_may_not_be_left_out(name):
    facts = PREPARED.facts()
    del facts[name]
    with pytest.raises(TypeError, match=f"lacks {name}"):
        Preprocessing.from_facts(facts)
