"""Films judged against their set: which are turned, which are left, and that the same is said."""

import csv
import json
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from films import chest, stop_after

from selftaught.data.images.pack import Pack
from selftaught.data.prepare import carrier, job, survey
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.film import prepare_film
from selftaught.data.prepare.job import prepare
from selftaught.data.prepare.pattern import MEAN_CHEST, likeness, pattern_of
from selftaught.data.prepare.polarity import alone, invert, is_inverted_published, kind_of, look_at
from selftaught.data.prepare.reference import (
    NO_REFERENCE,
    Reference,
    judge_in_set,
    read_reference,
    settle,
)
from selftaught.errors import InputError
from selftaught.phantoms.export import encode
from selftaught.phantoms.radiograph import radiograph

REAL = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real radiographs are not beside the repo")
CONFIG = PrepareConfig(carrier="none", mask="none", workers=1, sheets=0)


@cache
def limb(seed: int) -> np.ndarray:
    """(h, w) uint8: a phantom whose background can be seen."""
    parts = ("forearm", "humerus", "wrist")
    part = parts[seed % len(parts)]
    image = radiograph(7, seed, size=144, body_part=part, kind="none", clutter=False).image
    return (image >> 8).astype(np.uint8)


def knee(seed: int) -> np.ndarray:
    """(144, 144) uint8: tissue from side to side, cortex and spongy bone, no background."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:144, :144] / 144
    gap = 0.5 + random.normal(0, 0.02) + 0.03 * np.cos(7 * (x - 0.5))
    grey = 90 + 80 * np.exp(-(((x - 0.5) / 0.3) ** 2)) - 70 * np.exp(-(((y - gap) / 0.03) ** 2))
    spongy = cv2.GaussianBlur(random.normal(0, 1, grey.shape), (0, 0), 0.8)
    grey += 25 * np.maximum(spongy, 0.3) + random.normal(0, 8) * (y - 0.5)
    return np.clip(grey, 0, 255).astype(np.uint8)


def same(seed: int) -> np.ndarray:
    """One film, again and again."""
    return chest(3)


def deep(seed: int) -> np.ndarray:
    """16 bits that use 11 of them, as a detector stores them."""
    return chest(seed).astype(np.uint16) * 8


def bordered(seed: int) -> np.ndarray:
    """Black bars that a collimator left, and a white letter."""
    grey = chest(seed)
    grey[:, : 6 + seed % 9] = grey[-(4 + seed % 7) :] = 0
    cv2.putText(grey, "L", (104, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 2)
    return grey


def verdicts(films: list[np.ndarray], parts: list[str] | None = None) -> list[str]:
    """What `prepare` decides of a set."""
    looks = [look_at(film) for film in films]
    reference = settle(looks, [False] * len(looks))
    kinds = [kind_of(part) for part in parts or [""] * len(films)]
    return [judge_in_set(*one, reference)[0] for one in zip(looks, kinds, strict=True)]


def inverted(films: list[np.ndarray], which: set[int]) -> list[np.ndarray]:
    """Some of the films as negatives, of 16 bits over the 11 that are used."""
    return [
        film if number not in which else invert(film) if film.dtype == np.uint8 else 2047 - film
        for number, film in enumerate(films)
    ]


SETS = {
    "chests": [chest],
    "limbs": [limb],
    "knees without a background": [knee],
    "one film many times": [same],
    "16 bits of which 11 are used": [deep],
    "collimated and lettered": [bordered],
    "chests and limbs": [chest, limb],
    "knees and chests": [knee, chest],
    "all of them": [chest, limb, knee, bordered],
}


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1], ids=lambda share: f"{share:.0%}")
@pytest.mark.parametrize("name", SETS)
def test_of_a_set_exactly_the_negatives_are_turned(name: str, share: float) -> None:
    makers = SETS[name]
    films = [makers[number % len(makers)](number) for number in range(12 * len(makers) + 8)]
    which = set(np.random.default_rng(5).permutation(len(films))[: round(share * len(films))])
    found = verdicts(inverted(films, which))
    wrong = [n for n, one in enumerate(found) if one == "negative" and n not in which]
    missed = [n for n in which if found[n] != "negative"]
    assert not wrong and len(missed) <= 0.05 * len(which), (wrong, missed)


@pytest.mark.parametrize(("maker", "others"), [(chest, limb), (knee, chest), (limb, chest)])
def test_a_film_unlike_all_others_is_not_turned(maker, others) -> None:
    films = [others(number) for number in range(30)]
    for seed in range(5):
        assert verdicts([maker(seed), *films])[0] != "negative"


def test_a_chest_alone_is_no_limb() -> None:
    for seed in range(8):
        look = look_at(chest(seed))
        assert is_inverted_published(chest(seed))
        assert alone(look, "unknown") != "negative" == look_at(limb_negative(seed)).verdict
        assert alone(look, "chest") == "positive"
        assert alone(look_at(invert(chest(seed))), "chest") == "negative"
        # Where nothing says that it is a chest, its negative is left as well.
        assert alone(look_at(invert(chest(seed))), "unknown") != "positive"


def limb_negative(seed: int) -> np.ndarray:
    return invert(limb(3 * seed))


@pytest.mark.parametrize("part", ["skull", "Abdomen", "XR_SPINE", "whole body"])
def test_parts_that_no_rule_was_tested_for_are_left(part: str) -> None:
    films = inverted([limb(number) for number in range(20)], {1, 2})
    assert set(verdicts(films, [part] * 20)) == {"unsure"}


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("", "unknown"),
        (" ", "unknown"),
        ("Unknown", "unknown"),
        ("XR_ELBOW", "limb"),
        ("Left hand", "limb"),
        ("lower-legs", "limb"),
        ("Chest PA", "chest"),
        ("THORAX", "chest"),
        ("Lungs", "chest"),
        ("pelvis", "other"),
        ("handbag", "other"),
    ],
)
def test_names_of_body_parts(part: str, kind: str) -> None:
    assert kind_of(part) == kind


@pytest.mark.parametrize("films", [1, 7])
def test_too_few_films_say_nothing(films: int) -> None:
    looks = [look_at(chest(number)) for number in range(films)]
    assert settle(looks, [False] * films) == NO_REFERENCE


def test_half_of_a_set_that_nothing_speaks_for_is_unsettled() -> None:
    """Films that are alike, but neither chests nor of any fine structure."""
    y, x = np.mgrid[:64, :64] / 64
    films = [
        (120 + 90 * np.cos(5 * x + 3 * y + 0.02 * number)).astype(np.uint8) for number in range(20)
    ]
    looks = [look_at(film) for film in inverted(films, set(range(0, 20, 2)))]
    reference = settle(looks, [False] * 20)
    assert reference.unsettled and not len(reference.patterns)
    # A few among many are another matter, and so are files that state it.
    few = settle([look_at(film) for film in inverted(films, {3, 9})], [False] * 20)
    assert len(few.patterns) == 20 and (likeness(few.patterns, few.patterns[0]) > 0.5).all()
    stated = settle([look_at(film) for film in films], [True] * 20)
    np.testing.assert_array_equal(stated.patterns, [look_at(film).pattern for film in films])


def stripe(seed: int, size: int) -> np.ndarray:
    """(size, size) uint8: a bright limb on black."""
    random = np.random.default_rng(seed)
    off = np.abs(np.linspace(-1, 1, size) - random.normal(0, 0.02))
    bright = off < 0.5
    rows = 1 - 0.2 * np.linspace(0, 1, size)[:, None]
    spongy = np.full((size, size), 130.0)
    spongy[::7] = spongy[:, ::9] = 190
    grey = np.where(bright[None], spongy * rows, 12 * rows)
    return np.clip(grey + random.normal(0, 1, grey.shape), 0, 255).astype(np.uint8)


def test_what_a_film_shows_itself_has_a_veto() -> None:
    """Two bright limbs with a dark gap are like a negative of one; their details are bright."""
    look = look_at(limb(1))
    reference = Reference(np.stack([-look.pattern] * 4))
    for structure, chest_like, verdict in (
        (-0.1, 0.0, "negative"),
        (0.1, 0.0, "unsure"),
        (-0.1, 0.6, "unsure"),
        (0.1, -0.6, "negative"),
    ):
        film = look._replace(structure=structure, chest=chest_like)
        assert reference.judge(film) == verdict


def test_a_film_as_like_one_side_as_the_other_is_unsure() -> None:
    look = look_at(limb(1))
    both_ways = Reference(np.stack([look.pattern, -look.pattern] * 4))
    assert both_ways.judge(look) == "unsure" and both_ways.judge(look_at(chest(1))) == "unsure"
    assert Reference(both_ways.patterns[::2]).judge(look) == "positive"


def test_most_of_a_set_is_turned_only_where_its_films_look_like_it_otherwise_too() -> None:
    # So small that no fine structure shows: there is a background, and nothing else.
    looks = [look_at(invert(stripe(number, 64))) for number in range(20)]
    assert settle(looks, [False] * 20).unsettled


def test_stated_films_are_positives_for_their_neighbours() -> None:
    looks = [look_at(invert(chest(number))) for number in range(12)]
    patterns = np.stack([look.pattern for look in looks])
    np.testing.assert_array_equal(settle(looks, [True] * 12).patterns, patterns)
    np.testing.assert_array_equal(settle(looks, [False] * 12).patterns, -patterns)


def test_a_pattern_depends_on_ranks_only_and_changes_sign() -> None:
    grey = chest(1).astype(np.float32)
    pattern = pattern_of(grey)
    np.testing.assert_array_equal(pattern_of(255 - grey), -pattern)
    np.testing.assert_array_equal(pattern_of(grey * 257), pattern)
    assert likeness(pattern[None], pattern_of(255 * (grey / 255) ** 2))[0] > 0.98
    mirrored = pattern_of(np.ascontiguousarray(grey[:, ::-1]))
    assert likeness(pattern[None], mirrored)[0] == pytest.approx(1.0)
    # 12 cells that rise from left to right have these ranks, by hand.
    ramp = np.tile(np.arange(12, dtype=np.float32), (12, 1))
    expected = np.rint(12 * np.arange(12) + 5.5 - 71.5).astype(np.int8)
    np.testing.assert_array_equal(pattern_of(ramp).reshape(12, 12), np.tile(expected, (12, 1)))
    assert not pattern_of(np.full((20, 30), 7, np.float32)).any()
    assert likeness(MEAN_CHEST[None], MEAN_CHEST)[0] == pytest.approx(1.0)


def write(folder: Path, films: list[np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for number, film in enumerate(films):
        cv2.imwrite(str(folder / f"{number:02d}.png"), film)
    return folder


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def content(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """30 chests, three of them negatives."""
    return write(tmp_path / "raw", inverted([chest(n) for n in range(30)], {4, 11, 29}))


def test_a_set_is_prepared_so_and_says_so(raw: Path, tmp_path: Path) -> None:
    summary = prepare(raw, tmp_path / "out", CONFIG)
    listed, pack = rows(tmp_path / "out"), Pack(tmp_path / "out" / "pack")
    assert [n for n, row in enumerate(listed) if row["inverted"] == "1"] == [4, 11, 29]
    assert all(listed[n]["polarity"] == "set" for n in (4, 11, 29))
    for number in range(30):
        np.testing.assert_array_equal(pack.image(number), chest(number))
    unsure = sum(row["polarity"] == "unsure" for row in listed)
    assert (
        "polarity: 3 turned (0 by what the film shows, 3 only by the set's other films), "
        f"{unsure} unsure, left as they came"
    ) in str(summary)
    assert prepare(raw, tmp_path / "out", CONFIG) == summary


def test_many_turned_films_want_a_look(raw: Path, tmp_path: Path) -> None:
    films = inverted([chest(n) for n in range(20)], set(range(0, 20, 3)))
    summary = prepare(write(tmp_path / "many", films), tmp_path / "out", CONFIG)
    line = next(one for one in summary.remarks if "no body part is named" in one)
    assert "7 of 20 turned" in line and "--polarity none, in a run --prepare.polarity none" in line
    listed = "path,body_part\n" + "".join(f"{n:02d}.png,skull\n" for n in range(20))
    (tmp_path / "many" / "manifest.csv").write_text(listed)
    other = prepare(tmp_path / "many" / "manifest.csv", tmp_path / "skulls", CONFIG)
    assert other.counts["inverted"] == 0 and other.counts["polarity unsure"] == 20
    assert "polarity: 20 are of body parts that no rule was tested for" in other.remarks


def test_a_stated_polarity_is_flagged_and_not_overruled(raw: Path, tmp_path: Path) -> None:
    for number, grey in ((40, chest(40)), (41, invert(chest(41)))):
        (raw / f"{number}.dcm").write_bytes(encode(grey.astype(np.uint16) * 257, "dicom"))
    prepare(raw, tmp_path / "out", CONFIG)
    listed = {row["source"]: row for row in rows(tmp_path / "out")}
    assert (listed["40.dcm"]["inverted"], listed["40.dcm"]["polarity"]) == ("0", "stated")
    assert (listed["41.dcm"]["inverted"], listed["41.dcm"]["polarity"]) == ("0", "unsure")


def test_what_is_decided_depends_neither_on_workers_nor_on_kills(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "SHARD_IMAGES", 8)
    prepare(raw, tmp_path / "whole", CONFIG)
    prepare(raw, tmp_path / "two", PrepareConfig(**{**vars(CONFIG), "workers": 2}))
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        prepare(raw, tmp_path / "killed", CONFIG)
    looked = []
    monkeypatch.setattr(survey, "see_films", lambda *given: looked.append(given))
    prepare(raw, tmp_path / "killed", CONFIG)
    assert not looked  # what was compared is kept
    for name in ("two", "killed"):
        assert content(tmp_path / name) == content(tmp_path / "whole")


def test_films_that_changed_before_the_job_went_on_are_compared_again(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "SHARD_IMAGES", 8)
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        prepare(raw, tmp_path / "out", CONFIG)
    cv2.imwrite(str(raw / "20.png"), invert(chest(77)))
    worked, real_work = [], job.work_shard
    monkeypatch.setattr(
        job, "work_shard", lambda *given: worked.append(given[1]) or real_work(*given)
    )
    with pytest.warns(UserWarning, match=r"20\.png has changed since the set was looked through"):
        prepare(raw, tmp_path / "out", CONFIG)
    assert worked == [0, 1, 2, 3]  # the finished ones too: they were judged by other films
    prepare(raw, tmp_path / "whole", CONFIG)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert rows(tmp_path / "out")[20]["inverted"] == "1"


def test_a_film_is_looked_for_on_its_page_once_unless_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write(tmp_path / "raw", [np.pad(chest(n), 20, constant_values=9) for n in range(6)])
    config = PrepareConfig(**{**vars(CONFIG), "carrier": "default"})
    looked, find = [], carrier.find_carrier
    monkeypatch.setattr(carrier, "find_carrier", lambda grey: looked.append(1) or find(grey))
    prepare(raw, tmp_path / "out", config)
    assert len(looked) == 6
    assert {row["carrier"] for row in rows(tmp_path / "out")} == {"cropped"}
    real_work = job.work_shard

    def another(*given: object) -> None:
        cv2.imwrite(str(raw / "03.png"), np.pad(chest(3), 40, constant_values=9))
        real_work(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(job, "work_shard", another)
    prepare(raw, tmp_path / "changed", config)
    assert len(looked) == 6 + 6 + 1
    quads = [rows(tmp_path / name)[3]["quad"] for name in ("out", "changed")]
    assert quads[0] != quads[1]


def test_a_film_alone_is_judged_by_the_sets_reference_as_in_the_set(
    raw: Path, tmp_path: Path
) -> None:
    prepare(raw, tmp_path / "out", CONFIG)
    stored = read_reference(tmp_path / "out")
    again = Reference.from_text(stored.text())
    pack = Pack(tmp_path / "out" / "pack")
    for number, row in enumerate(rows(tmp_path / "out")):
        film = prepare_film(raw / row["source"], None, "", CONFIG, again)
        assert (int(film.inverted), film.polarity) == (int(row["inverted"]), row["polarity"])
        np.testing.assert_array_equal(film.image, pack.image(number))
    cv2.imwrite(str(raw / "new.png"), invert(chest(99)))
    assert prepare_film(raw / "new.png", None, "", CONFIG, again).inverted
    assert not prepare_film(raw / "new.png", None, "", CONFIG).inverted


def test_a_damaged_reference_is_named(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "out", CONFIG)
    path = tmp_path / "out" / "polarity.json"
    whole = json.loads(path.read_text())
    for bad in ("{", "[]", json.dumps({**whole, "reference": whole["reference"][:8]})):
        path.write_text(bad)
        with pytest.raises(InputError, match=r"polarity\.json: is damaged; prepare the films"):
            read_reference(tmp_path / "out")
    path.unlink()
    assert read_reference(tmp_path / "out") == NO_REFERENCE  # as of sets that are older


def test_every_body_part_is_looked_at(raw: Path, tmp_path: Path) -> None:
    counts = {"hand": 500, "chest": 10, "elbow": 100, "skull": 300}
    listed = [job.Row(0, "", "", "", part) for part, count in counts.items() for _ in range(count)]
    listed = [row._replace(row=number) for number, row in enumerate(listed)]
    chosen = survey._chosen(listed)
    parts = [row.body_part for row in chosen]
    assert {part: parts.count(part) for part in counts} == {
        "hand": 91,
        "chest": 10,
        "elbow": 91,
        "skull": 0,
    }
    assert chosen == sorted(set(chosen)) and chosen[0].row < 6 and chosen[90].row > 490


@real
@pytest.mark.real_data
@pytest.mark.parametrize("every", [0, 10, 2, 1])
def test_real_chests_against_their_set(every: int) -> None:
    paths = sorted((REAL / "chest" / "images").iterdir())
    films = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths]
    which = set(range(0, len(films), every)) if every else set()
    for parts in (None, ["chest"] * len(films)):
        found = verdicts(inverted(films, which), parts)
        assert not [n for n, one in enumerate(found) if one == "negative" and n not in which]
        assert sum(found[n] == "negative" for n in which) >= 0.95 * len(which)
    assert not [n for n, film in enumerate(films) if alone(look_at(film), "unknown") == "negative"]
