"""Where the operators of the graph run, seen while it is written down: that needs no GPU."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed (Linux x86-64, extra gpu)")

from nvidia.dali.pipeline import do_not_convert

from selftaught.data.pipeline import dali_graph
from selftaught.data.pipeline.dali_graph import CODED, Kind, Spec

EVERYTHING = Spec(
    size=64,
    views=2,
    kinds=tuple(Kind),
    resize=True,
    masks=True,
    partly=True,
    return_masks=True,
    brightness=True,
    color=True,
    blur=True,
    scale=1.0,
    device="gpu",
    resident=False,
)
PACK = replace(EVERYTHING, kinds=(Kind.PIXELS8, Kind.PIXELS16), resize=False, resident=True)


class Noted:
    """`nvidia.dali.fn` that notes each operator's options and the device of what it makes."""

    def __init__(self, module: Any, calls: dict[str, list[tuple[dict[str, Any], str]]], path: str):
        self.module, self.calls, self.path = module, calls, path

    def __getattr__(self, name: str) -> Any:
        found, path = getattr(self.module, name), f"{self.path}{name}"
        if not callable(found):
            return Noted(found, self.calls, f"{path}.")

        @do_not_convert
        def call(*inputs: Any, **options: Any) -> Any:
            made = found(*inputs, **options)
            first = made[0] if isinstance(made, (list, tuple)) else made
            self.calls[path].append((options, first.device))
            return made

        return call


def nothing() -> tuple[Any, ...]:
    return ()


def written(monkeypatch: pytest.MonkeyPatch, spec: Spec) -> dict[str, list[tuple[Any, str]]]:
    calls: dict[str, list[tuple[Any, str]]] = defaultdict(list)
    monkeypatch.setattr(dali_graph, "fn", Noted(dali_graph.fn, calls, ""))
    write = dali_graph.pipeline_def(dali_graph._graph, enable_conditionals=True, exec_dynamic=True)
    on_gpu = spec.device == "gpu"
    sizes = {"batch_size": 4, "num_threads": 1, "prefetch_queue_depth": 2}
    write(spec, nothing, nothing, **sizes, device_id=0 if on_gpu else None)
    return calls


@pytest.mark.parametrize("spec", [EVERYTHING, PACK], ids=["files", "resident pack"])
@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_all_operators_run_on_the_device(
    monkeypatch: pytest.MonkeyPatch, spec: Spec, device: str
) -> None:
    calls = written(monkeypatch, replace(spec, device=device))
    feeds = calls.pop("external_source")
    held = spec.resident and device == "gpu"
    assert [made for _, made in feeds] == ["gpu" if held else "cpu", "cpu"]
    assert {"warp_affine", "reductions.mean", "gaussian_blur", "reductions.min", "cat"} <= set(
        calls
    )
    assert {made for one in calls.values() for _, made in one} == {device}


@pytest.mark.parametrize(("device", "place"), [("gpu", "mixed"), ("cpu", "cpu")])
def test_each_file_is_decoded_once_for_all_views(
    monkeypatch: pytest.MonkeyPatch, device: str, place: str
) -> None:
    calls = written(monkeypatch, replace(EVERYTHING, device=device, views=5))
    assert [options["device"] for options, _ in calls["decoders.image"]] == [place] * len(CODED)
    assert len(calls["resize"]) == 2, "the image and its mask, before they become views"
    assert not written(monkeypatch, PACK)["decoders.image"]


def test_a_mask_is_turned_by_its_views_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = written(monkeypatch, EVERYTHING)
    turns = [options["matrix"].name for options, _ in calls["warp_affine"]]
    assert turns[0::2] == turns[1::2] and len(set(turns)) == EVERYTHING.views
