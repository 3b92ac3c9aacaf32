"""torch.compile of the backbone: on ranks with synchronised norms, and where it does not work."""

import signal

import pytest
import torch

from selftaught.errors import InputError
from selftaught.training import compiling
from tests.faults.injected import At, send
from tests.faults.ranks import start
from tests.ranks import run_ranks
from tests.tiny import options, write_images
from tests.training.toys import learn, lines

from . import test_watch as cases


class Shares(cases.Steps):
    """Every rank's own images."""

    def __init__(self, rank):
        super().__init__()
        self.rank = rank

    def batches(self, first):
        for batch in super().batches(first):
            yield batch | {"views": batch["views"] * (1 + self.rank) - self.rank}


def both_ways(folder):
    """Both ways: losses, weights and statistics of this rank."""
    from selftaught import distributed

    out = {}
    for name, compile_ in (("eager", False), ("compiled", True)):
        task = learn(folder / name, cases.Fit(), Shares(distributed.rank()), compile=compile_)
        out[name] = {key: value.clone() for key, value in task.state_dict().items()}
    return out


@pytest.mark.slow
def test_two_ranks_with_shared_norms_learn_the_same(tmp_path):
    ranks = run_ranks(2, both_ways, tmp_path)
    losses = {
        name: [line["loss"] for line in lines(tmp_path / name, "step")]
        for name in ("eager", "compiled")
    }
    assert len(losses["eager"]) == 4
    assert losses["compiled"] == pytest.approx(losses["eager"], rel=1e-5)
    (note,) = (e for e in lines(tmp_path / "compiled", "note") if "compile_s" in e)
    assert note["compile_s"] > 0
    for found in ranks:
        for name, value in found["eager"].items():
            torch.testing.assert_close(found["compiled"][name], value, rtol=1e-5, atol=1e-6)
            # Both ranks hold one model, statistics too.
            assert torch.equal(found["compiled"][name], ranks[0]["compiled"][name])


@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_a_machine_without_a_compiler_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    import torch._inductor.config as inductor

    # Not monkeypatch, which cannot undo it on this kind of module.
    elsewhere = inductor.patch({"cpp.cxx": (str(tmp_path / "g++"),), "force_disable_caches": True})
    torch._dynamo.reset()
    with elsewhere, pytest.raises(InputError) as error:
        cases.run(tmp_path / "run", compile=True)
    told = str(error.value)
    assert told.startswith("engine.compile is true, but torch.compile does not work here: ")
    assert str(tmp_path / "g++") in told and told.endswith("; allowed: false")
    assert "\n" not in told and len(told) < 500


def test_other_errors_of_a_compiled_pass_stay_what_they_are(tmp_path, monkeypatch):
    def broken(x):
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(compiling.torch, "compile", lambda function, **_: broken)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        cases.run(tmp_path / "run", compile=True)


RESULTS = ("model/weights.safetensors", "scores.csv", "metrics.json")
# At rates that leave rounding what it is.
SHORT = {"pretext.epochs": 2, "pretext.lr": 5e-7, "finetune.epochs": 2, "finetune.lr": 5e-7}
SLOW = (pytest.mark.slow, pytest.mark.timeout(1800))


def run(manifest, place, *, code=0, fault=None, compile_=True):
    more = {"engine.precision": "fp32", "engine.compile": compile_}
    started = start(
        place.with_name(f"{place.name} said"), options(manifest, place, **SHORT, **more), 1, fault
    )
    assert started.end(800) == [code], started.said(0)
    return started.said(0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Manifest and folder of a compiled run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    manifest = write_images(folder / "images")
    said = run(manifest, folder / "run")
    for stage in ("pretext", "finetune"):
        assert f"{stage}: torch.compile of the backbone: forward and backward" in said
    return manifest, folder / "run"


def stop_and_go_on(manifest, place, stage):
    run(manifest, place, code=143, fault=At(0, stage, 3, send, signal.SIGTERM))
    assert f"{stage}: torch.compile of the backbone" in run(manifest, place)


def assert_same_bits(place, expected):
    for name in RESULTS:
        assert (place / name).read_bytes() == (expected / name).read_bytes(), f"{name} differs"


@pytest.mark.parametrize("stage", [
    pytest.param("pretext", marks=SLOW),
    pytest.param("finetune", marks=SLOW),
])  # fmt: skip
def test_a_compiled_run_that_is_stopped_goes_on_with_the_same_bits(whole, tmp_path, stage):
    manifest, expected = whole
    stop_and_go_on(manifest, tmp_path / "run", stage)
    assert_same_bits(tmp_path / "run", expected)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_compiled_run_learns_as_one_that_is_not(whole, tmp_path):
    manifest, compiled = whole
    run(manifest, tmp_path / "run", compile_=False)
    losses = [
        [line["loss"] for line in lines(place, "step")] for place in (compiled, tmp_path / "run")
    ]
    assert len(losses[1]) > 10
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
