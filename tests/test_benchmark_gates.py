"""Benchmarks of data and training step: what they say of their gates, one part measured again.

A GPU's figures are made up here, and nothing is measured.
"""

import csv

import pytest
import torch

pytest.importorskip("cv2")

from benchmarks import data, record, training_step
from benchmarks.data import STAYS, gates, prepared, row
from selftaught.models.network import Network


def made(provider, mode, source, rate, masks=True, **figures):
    return row(provider, mode, source, ["m"] if masks else None, rate, **figures)


def test_a_gate_is_told_from_the_row_it_is_about():
    rows = [
        made("selftaught opencv", "alone", "pack", 300.0, ratio=11.9),
        made("selftaught opencv", "alone", "pack", 400.0, masks=False, ratio=13.0),
        made("selftaught opencv", "alone", "png", 200.0, ratio=7.9),
        made("selftaught prepare, carrier none", "prepare", "png", 59.0),
        made("selftaught prepare, carrier default", "prepare", "png", 5.0),
    ]
    assert gates(rows) == [
        "pack, masks: 11.9 x torchvision v2 per CPU-second (gate 3)",
        "prepare: 59.0 images/s (gate 40 on two cores)",
    ]
    assert gates([]) == []


def test_on_a_gpu_loader_and_overlap_are_compared():
    rows = [
        made("selftaught dali", "loader 16", "pack", 6000.0),
        made("selftaught dali", "loader 16", "jpeg", 1.0),
        made("torchvision v2", "loader 16", "pack", 400.0),
        made(STAYS, "overlap", "pack", 1000.0),
        made("selftaught dali", "overlap", "pack", 980.0),
    ]
    assert gates(rows) == [
        "loader: 6000.0 images/s (gate 3000), 15.0 x torchvision v2 (gate 3)",
        "overlap, selftaught dali: 2.0% of a step is waiting (gate 3%)",
    ]


def test_one_part_measured_again_leaves_the_other_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(data.torch.cuda, "is_available", lambda: False)
    earlier = [
        made("selftaught opencv", "alone", "pack", 300.0, cpu=299.0)
        | {"threads": 7, "date": "old"},
        made("selftaught prepare, carrier none", "prepare", "png", 1.0),
    ]
    record.write("data", earlier)
    monkeypatch.setattr(data, "write_films", lambda folder: {"png": ([], [])})
    monkeypatch.setattr(data, "seconds", lambda work: 2.0)
    monkeypatch.setattr(data.os, "link", lambda *names: None)
    monkeypatch.setattr(data, "prepared", lambda paths, place: prepared([""] * 12, place))
    used = iter([(0, 0, 0.0, 0.0, 0), (0, 0, 4.0, 4.0, 0)] * 2)
    monkeypatch.setattr(data.os, "times", lambda: next(used))
    monkeypatch.setattr("sys.argv", ["data", "--only", "prepare"])
    data.main()
    with (tmp_path / "data.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [(r["provider"], r["images_per_second"], r["threads"]) for r in rows] == [
        ("selftaught opencv", "300.0", "7"),
        ("selftaught prepare, carrier none", "240.0", str(data.available_cores())),
        ("selftaught prepare, carrier default", "60.0", str(data.available_cores())),
    ]
    assert [r["images_per_cpu_second"] for r in rows] == ["299.0", "60.0", "15.0"]
    assert rows[0]["date"] == "old" != rows[1]["date"]
    assert (tmp_path / "data.png").exists()


@pytest.mark.parametrize("part", ["loader", "overlap"])
def test_a_part_that_cannot_be_measured_here_is_refused(monkeypatch, part):
    monkeypatch.setattr(data.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["data", "--only", part])
    with pytest.raises(SystemExit) as end:
        data.main()
    assert end.value.code == 2


def test_the_step_on_a_gpu_is_held_to_views_per_second():
    rows = [
        {"provider": "plain", "views_per_s": 9000.0},
        {"provider": "selftaught", "views_per_s": 2400.0},
    ]
    assert training_step.gate(rows) == "gate of 2,500 views/s: MISSED, 2,400"
    rows.append({"provider": "selftaught, compiled", "views_per_s": 2500.0})
    assert training_step.gate(rows) == "gate of 2,500 views/s: met, 2,500"


def test_plain_loop_and_ours_begin_with_the_same_loss():
    shape = training_step.Shape(32, 4, 1, "fp32", torch.device("cpu"))
    batches = shape.batches()
    plain = Network(seed=1).embedder()
    optimizer = torch.optim.Adam(plain.parameters())
    ours = training_step.new_engine(shape).task
    expected = ours(batches[0])["loss"].item()
    _, (found,) = training_step.plain_round(plain, optimizer, batches, shape)
    assert found == pytest.approx(expected, rel=1e-5)
