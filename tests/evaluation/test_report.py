import html as html_module
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from selftaught.errors import InputError
from selftaught.evaluation.report import cell, find_image_root, write_report
from selftaught.evaluation.run_files import read_run

VOID = {"meta", "link", "img", "line", "rect", "circle", "br"}


class Page(HTMLParser):
    """Checks nesting and gathers what the tests ask for."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.links, self.text = [], [], set(), set(), ""
        self.feed(text)
        self.text = " ".join(self.text.split())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), f"attribute twice: {attrs}"
        self.tags.append((tag, attributes))
        assert attributes.get("id") not in self.ids - {None}
        self.ids.add(attributes.get("id"))
        if attributes.get("href", "").startswith("#"):
            self.links.add(attributes["href"][1:])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data + " "

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def report(run, **options):
    return write_report(run, **options).read_text(encoding="utf-8")


def without_data(text):
    """The page without its pictures, whose base64 can hold any letters."""
    return re.sub(r"data:[a-z+/]+;base64,[A-Za-z0-9+/=]+", "data:", text)


def test_whole_report(make_run):
    run = make_run(full=True)
    metrics = json.loads((run / "metrics.json").read_text())["test"]
    text = report(run)
    page = Page(text)
    assert f"Test AUROC {metrics['auroc']:.3f}" in page.text
    low, high = metrics["auroc_ci"]
    assert f"95 % interval {low:.3f} to {high:.3f}" in page.text
    for words in ("This is not a diagnosis", "Glossary", "only 4 centres <left>", "Percentile",
                  "pretext.milestones", "[70, 90]", "WRIST", "Most anomalous"):  # fmt: skip
        assert words in page.text
    # Nothing had to be replaced by a sentence, and every picture has words.
    assert "absent" not in {a.get("class") for a in page.all("p")}
    pictures = page.all("img")
    assert len(pictures) > 60
    assert all(len(a["alt"]) > 10 and a["src"].startswith("data:image/") for a in pictures)
    assert page.links <= page.ids
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("script") == [] and page.all("iframe") == []
    assert len(text) < 15_000_000
    assert not re.search(r"https?:|//[a-z]|url\(|@import|javascript:", without_data(text))
    assert "default-src 'none'" in text
    # The same run gives the same bytes.
    assert report(run) == text


def test_hostile_text_is_escaped(make_run):
    script, image = "<script>alert(1)</script>", 'images/"><img src=x onerror=alert(2)>.png'
    formula, maths = "=HYPERLINK(1)", r"a$b_{$ \frac{$^"

    def edit(scores):
        test = scores.index[scores["split"] == "test"]
        scores.loc[test[scores["score"][test].argmax()], "path"] = image
        scores.loc[test[scores["score"][test].argmin()], "path"] = "=1+cmd"
        return scores

    parts = (script, formula, maths, "\u624b <b>&amp;", "x" * 300)
    run = make_run(200, parts=parts, edit=edit, maps=True)
    entry = {"kind": "warning", "stage": script, "message": "<svg onload=alert(3)>"}
    (run / "metrics.jsonl").write_text(json.dumps(entry))
    (run / "environment.json").write_text(json.dumps({script: '"><script>', "@x": "=2"}))
    text = report(run, image_root=run.parent / "set")
    page = Page(text)
    assert page.all("script") == []
    assert not any(name.startswith("on") for _, a in page.tags for name in a)
    assert all(a["src"].startswith("data:image/") for a in page.all("img"))
    assert html_module.escape(script) in text and script in page.text
    assert image in page.text and '"&gt;' not in script
    for shown in (f"'{formula}", "'=1+cmd", "'=2", "'@x", maths.replace("  ", " ")):
        assert shown in page.text
    assert f" {formula}" not in page.text


@pytest.mark.usefixtures("no_pictures")
def test_paths_do_not_leave_the_image_folder(make_run):
    def edit(scores):
        test = scores.index[scores["split"] == "test"]
        scores.loc[test[scores["score"][test].argmax()], "path"] = "../outside.png"
        return scores

    run = make_run(40, edit=edit)
    source = run.parent / "set" / "images" / "0000.png"
    (run.parent / "outside.png").write_bytes(source.read_bytes())
    text = report(run)
    assert "1 of the images cannot be shown" in text
    assert text.count("not shown") >= 1


@pytest.mark.parametrize("label", [0, 1])
def test_one_label(make_run, label):
    run = make_run(60, edit=lambda scores: scores.assign(label=label), maps=label == 1)
    page = Page(report(run))
    assert f"No test AUROC: no {'abnormal' if label == 0 else 'normal'} image" in page.text
    assert "No ROC or precision-recall curve" in page.text
    assert "No figure: no body part has both" in page.text
    assert "Test AUROC none" in page.text


def test_no_labels_at_all(make_run):
    run = make_run(60, edit=lambda scores: scores.assign(label=np.nan), maps=True)
    page = Page(report(run))
    assert "No test AUROC: no labelled image" in page.text
    assert "neighbours are training images not known to be abnormal" in page.text
    assert "no percentile" in page.text and "stores no threshold" in page.text


@pytest.mark.usefixtures("no_pictures")
def test_without_optional_columns(make_run):
    optional = ["group", "body_part", "study", "knn_score", "center", "semi_label"]

    def edit(scores):
        return scores.drop(columns=[name for name in optional if name not in ("group", "center")])

    run = make_run(60, edit=lambda s: edit(s.assign(semi_label=0)).assign(semi_label=0))
    table = pd.read_csv(run / "scores.csv").drop(columns=["group", "center", "semi_label"])
    table.to_csv(run / "scores.csv", index=False)
    (run / "split.csv").unlink()
    page = Page(report(run))
    assert "No body parts" in page.text and "over studies" not in page.text
    assert "AUROC of other scores" not in page.text


@pytest.mark.parametrize("count", [1, 4])
def test_few_test_images(make_run, count):
    def edit(scores):
        test = scores.index[scores["split"] == "test"]
        scores = scores.drop(test[count:]).reset_index(drop=True)
        scores.loc[scores["split"] == "test", "label"] = (np.arange(count) % 2).tolist()
        return scores

    page = Page(report(make_run(48, edit=edit, maps=True)))
    assert "at least 5 test images" in page.text
    assert "Most anomalous" in page.text


@pytest.mark.usefixtures("no_pictures")
def test_no_test_set(make_run):
    run = make_run(48, edit=lambda s: s[s["split"] == "train"].reset_index(drop=True))
    page = Page(report(run))
    for words in ("No images: the test set is empty", "No histogram", "No body parts"):
        assert words in page.text


@pytest.mark.usefixtures("no_pictures")
def test_images_deleted_since(make_run):
    run = make_run(60)
    for file in (run.parent / "set" / "images").iterdir():
        file.unlink()
    text = report(run)
    assert "moved or deleted" in text and "data:image/jpeg" not in text
    (run.parent / "set" / "images").rmdir()
    (run.parent / "set").rmdir()
    assert "their folder is no longer there" in report(run)
    (run / "environment.json").unlink()
    (run / "config.yaml").unlink()
    assert "their folder is not recorded" in report(run)


@pytest.mark.usefixtures("no_pictures")
def test_damaged_image(make_run):
    run = make_run(60)
    for file in list((run.parent / "set" / "images").iterdir())[::2]:
        file.write_bytes(file.read_bytes()[:100])
    assert "of the images cannot be shown" in report(run)


@pytest.mark.usefixtures("no_pictures")
def test_only_scores_and_metrics(make_run):
    run = make_run(60)
    for name in ("config.yaml", "environment.json", "split.csv", "model/model.json"):
        (run / name).unlink()
    page = Page(report(run))
    for words in ("No curves: metrics.jsonl", "No map", "No neighbours", "are missing",
                  "config.yaml is missing", "embeddings.safetensors is missing"):  # fmt: skip
        assert words in page.text


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"\xff" * 500])
def test_damaged_parts(make_run, content):
    run = make_run(60)
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "embeddings.safetensors"):
        (run / name).write_bytes(content)
    page = Page(report(run))
    assert "embeddings.safetensors cannot be read" in page.text


def test_collapsed_embeddings(make_run):
    from safetensors.numpy import save_file

    run = make_run(60)
    same = np.full((60, 8), 3.0, np.float32)
    save_file(
        {"h": same, "z": np.full((60, 8), np.nan, np.float32)}, run / "embeddings.safetensors"
    )
    page = Page(report(run))
    assert "No map of the encoder output h" in page.text
    assert "z has shape (60, 8) or holds non-finite values" in page.text


def test_equal_scores(make_run):
    run = make_run(60, edit=lambda scores: scores.assign(score=1.0))
    assert "Not told apart from guessing" in Page(report(run)).text


@pytest.mark.usefixtures("no_pictures")
def test_leak_and_small_set_warnings(make_run):
    run = make_run(60, edit=lambda scores: scores.assign(group=scores.index % 7))
    page = Page(report(run))
    assert "7 of 7 groups (patients) are in more than one set" in page.text
    assert "the intervals are rough" in page.text


@pytest.mark.usefixtures("no_pictures")
def test_below_guessing_is_said(make_run):
    run = make_run(200, edit=lambda scores: scores.assign(score=20 - scores["score"]))
    assert "Below guessing (0.5)" in Page(report(run)).text


@pytest.mark.usefixtures("no_pictures")
def test_neighbours_are_normal_training_images(make_run):
    run = make_run(80, maps=True)
    scores = pd.read_csv(run / "scores.csv")
    page = Page(report(run))
    titles = {a["title"] for a in page.all("li") if "title" in a}
    rows = scores[scores["path"].isin(titles)]
    assert len(titles) > 3
    assert set(rows["split"]) == {"train"} and set(rows["label"]) == {0}


@pytest.mark.usefixtures("no_pictures")
def test_grid_order_and_ties(make_run):
    run = make_run(80)
    scores = pd.read_csv(run / "scores.csv")
    test = scores[scores["split"] == "test"].sort_values("score", ascending=False)
    shown = re.findall(r'class="path">([^<]+)<', report(run))
    assert shown[:8] == test["path"].head(8).tolist()
    assert shown[8:16] == test["path"].iloc[::-1].head(8).tolist()


@pytest.mark.parametrize("name", ["scores.csv", "metrics.json"])
def test_missing_files_are_an_input_error(make_run, name):
    run = make_run(40, images=False)
    (run / name).unlink()
    with pytest.raises(InputError, match=f"holds no {re.escape(name)}"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_bad_files_are_an_input_error(make_run):
    run = make_run(40, images=False)
    with pytest.raises(InputError, match="no such run folder"):
        write_report(run / "nowhere")
    (run / "metrics.json").write_text("{")
    with pytest.raises(InputError, match=r"metrics\.json: not JSON"):
        write_report(run)
    (run / "scores.csv").write_text("path,label\na,1\n")
    with pytest.raises(InputError, match="column split is missing"):
        write_report(run)


def test_image_root(make_run, tmp_path):
    run = make_run(40, images=False)
    assert find_image_root(read_run(run)) == tmp_path / "set"
    (run / "environment.json").unlink()
    assert find_image_root(read_run(run)) == tmp_path  # data.manifest is no folder: its parent
    (tmp_path / "set").mkdir()
    assert find_image_root(read_run(run)) == tmp_path / "set"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("=1", "'=1"), ("@a", "'@a"), ("-a", "'-a"), ("+b", "'+b"), ("\tx", "'\tx"),
     ("-1.5", "-1.5"), ("1e-6", "1e-6"), ("WRIST", "WRIST"), ("", "")],
)  # fmt: skip
def test_cell(text, shown):
    assert cell(text) == shown
