"""What the benchmark of the data says of its gates; a GPU's figures are made up here."""

import pytest

pytest.importorskip("cv2")

from benchmarks.data import STAYS, gates, row


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
