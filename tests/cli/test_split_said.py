"""What `selftaught split` says of columns under other names and of images it cannot read."""

import pandas as pd
import pytest

from selftaught.cli.main import main
from selftaught.data.manifest import read_manifest
from selftaught.data.split import SplitConfig, SplitWarning, make_split
from selftaught.errors import InputError
from tests.tiny import write_images


@pytest.fixture
def manifest(tmp_path):
    return write_images(tmp_path / "images")


def rename(manifest, **columns):
    pd.read_csv(manifest, dtype=str).rename(columns=columns).to_csv(manifest, index=False)
    return read_manifest(manifest)


@pytest.mark.parametrize("name", ["lable", "Labels"])
def test_a_misspelt_label_column_is_named(manifest, name):
    with pytest.raises(InputError, match=f'no image has a label; .*did you mean "{name}"'):
        make_split(rename(manifest, label=name), SplitConfig())


def test_without_labels_the_column_is_asked_for(manifest):
    table = pd.read_csv(manifest).drop(columns="label")
    table.to_csv(manifest, index=False)
    with pytest.raises(InputError, match='a column "label" with 0 normal') as caught:
        make_split(read_manifest(manifest), SplitConfig())
    assert "did you mean" not in str(caught.value)


def test_a_patient_column_under_another_name_is_pointed_at(manifest):
    with pytest.warns(SplitWarning, match='did you mean "Patient_ID" to be "patient"'):
        make_split(rename(manifest, patient="Patient_ID"), SplitConfig())


def test_an_image_that_cannot_be_read_is_named(manifest, tmp_path):
    frame = make_split(read_manifest(manifest), SplitConfig())
    bad = frame["path"][frame["split"] == "test"].iloc[0]
    (manifest.parent / bad).write_bytes(b"")
    with pytest.warns(SplitWarning, match=rf"1 of \d+ images .* {manifest.parent / bad}: is empty"):
        assert main(["split", str(manifest), "--out", str(tmp_path / "s.csv")]) == 0


def test_the_folder_is_looked_for_before_the_images_are_read(manifest, tmp_path, capsys):
    (manifest.parent / "001.png").unlink()
    assert main(["split", str(manifest), "--out", str(tmp_path / "no" / "s.csv")]) == 2
    assert "s.csv': there is no folder" in capsys.readouterr().err
