"""Every engine on any number of ranks moves the weights as one process does."""

import importlib.util

import pytest
import torch

from selftaught.errors import InputError
from selftaught.training.config import build
from selftaught.training.ddp import TorchEngine
from selftaught.training.optim import Lars, load_state, make_optimizer, set_rate, state_of
from tests.ranks import results_of, start_ranks

from . import engine_cases as cases

HALF = cases.STEPS // 2
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not HAS_DEEPSPEED, reason="deepspeed is not installed")
# Of these the state is saved in mid-run: whole, and divided in two ways.
HALVES = [(0, "adam"), (1, "sgd"), (2, "sgd"), (2, "adam")]
ZERO = [pytest.param(stage, marks=needs_deepspeed) for stage in (0, 1, 2)]


def zero(stage, **changes):
    return cases.base(kind="deepspeed", zero_stage=stage, **changes)


@pytest.fixture(scope="module")
def single():
    """One process: the reference."""
    torch.set_num_threads(1)
    return {
        "sgd": cases.train(cases.base()),
        "lars": cases.train(cases.base(), "lars", 0.1),
        "sgd half": cases.train(cases.base(), "sgd", 0.05, HALF),
        "adam": cases.train(cases.base(), "adam", 1e-3),
        "bf16": cases.train(cases.base(precision="bf16")),
        "fp64": cases.train(cases.base(precision="fp64"), "adam", 1e-3),
    }


def jobs(half):
    """What 2 ranks do; half of it belongs to one process that stopped."""
    out = {
        "ddp": (cases.train, (cases.base(),)),
        "ddp bf16": (cases.train, (cases.base(precision="bf16"),)),
        "ddp apart": (cases.train, (cases.base(sync_batch_norm="off"),)),
        "lars": (cases.train, (cases.base(), "lars", 0.1)),
        "ddp resumed": (cases.resume, (cases.base(), "sgd", 0.05, half, HALF)),
        "ddp fp64": (cases.train, (cases.base(precision="fp64"), "adam", 1e-3)),
    }
    if HAS_DEEPSPEED:
        out["zero1 apart"] = (cases.train, (zero(1, sync_batch_norm="off"),))
        out["zero1 bf16"] = (cases.train, (zero(1, precision="bf16"),))
        out["zero0 fp64"] = (cases.train, (zero(0, precision="fp64"), "adam", 1e-3))
        out["zero0 lars"] = (cases.train, (zero(0), "lars", 0.1))
        for stage in (0, 1, 2):
            out[f"zero{stage} sgd"] = (cases.train, (zero(stage),))
            out[f"zero{stage} resumed"] = (cases.resume, (zero(stage), "sgd", 0.05, half, HALF))
        for stage in (0, 2):
            out[f"zero{stage} adam"] = (cases.train, (zero(stage), "adam", 1e-3))
        for stage, name in HALVES:
            lr = {"sgd": 0.05, "adam": 1e-3}[name]
            out[f"zero{stage} {name} halves"] = (cases.halves, (zero(stage), name, lr, HALF))
    return out


@pytest.fixture(scope="module")
def ranks(single):
    """name -> what every rank returned, by number of ranks; pools run at once."""
    alone = {f"zero{s}": (cases.train, (zero(s),)) for s in (0, 1, 2) if HAS_DEEPSPEED}
    given = {
        2: jobs(single["sgd half"]),
        4: {"ddp": (cases.train, (cases.base(),))},
        1: alone or {"ddp": (cases.train, (cases.base(),))},
    }
    pools = {world: start_ranks(world, cases.several, given[world]) for world in given}
    return {world: results_of(*pool) for world, pool in pools.items()}


def largest_gap(found, expected):
    pairs = [(found["weights"][name], value) for name, value in expected["weights"].items()]
    return max(float((one.double() - other.double()).abs().max()) for one, other in pairs)


def assert_same(found, expected, tolerance=1e-6):
    for name, value in expected["weights"].items():
        gap = float((found["weights"][name].double() - value.double()).abs().max())
        assert gap <= tolerance, f"{name} differs by {gap:.3g}"


def assert_repeats(everyone, name, expected, tolerance=1e-6):
    for one in everyone:
        assert_same(one[name], expected, tolerance)
        assert one[name]["losses"] == pytest.approx(expected["losses"], rel=10 * tolerance)
        assert one[name]["norms"] == pytest.approx(expected["norms"], rel=100 * tolerance)


@pytest.mark.parametrize("world", [2, 4])
def test_ddp_repeats_one_process(single, ranks, world):
    assert max(single["sgd"]["norms"]) > 1.0, "clipping is not exercised"
    assert_repeats(ranks[world], "ddp", single["sgd"])


@pytest.mark.parametrize("stage", ZERO)
def test_deepspeed_repeats_one_process(single, ranks, stage):
    assert_repeats(ranks[2], f"zero{stage} sgd", single["sgd"])


@pytest.mark.parametrize("stage", ZERO)
def test_deepspeed_in_one_process(single, ranks, stage):
    assert_repeats(ranks[1], f"zero{stage}", single["sgd"])
    for name, value in ranks[1][0][f"zero{stage}"]["state"].items():
        assert value.shape == single["sgd"]["state"][name].shape


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", ZERO)
def test_deepspeed_on_four_ranks(single, stage):
    job = {"zero": (cases.train, (zero(stage),))}
    # Sums of four are rounded otherwise than one process rounds: float64 tells which is right.
    exact = cases.train(cases.base(precision="fp64"))
    everyone = results_of(*start_ranks(4, cases.several, job))
    assert_repeats(everyone, "zero", exact, 2 * largest_gap(single["sgd"], exact))


def test_lars_on_ranks(single, ranks):
    # Biases move at the full rate, ten thousand times that of the weights: rounding grows.
    for name in ["lars", "zero0 lars"][: 1 + HAS_DEEPSPEED]:
        assert_repeats(ranks[2], name, single["lars"], 1e-4)


def test_double_precision_agrees_with_adam_too(single, ranks):
    for name in ["ddp fp64", "zero0 fp64"][: 1 + HAS_DEEPSPEED]:
        assert_repeats(ranks[2], name, single["fp64"], 1e-11)
        assert ranks[2][0][name]["weights"]["embedder.0.weight"].dtype == torch.float64


def test_norms_apart_are_another_model(single, ranks):
    difference = ranks[2][0]["ddp apart"]["weights"]["embedder.0.weight"]
    difference = (difference - single["sgd"]["weights"]["embedder.0.weight"]).abs().max()
    assert difference > 1e-3, "engine.sync_batch_norm off changes nothing"


def test_shared_buffers_are_those_of_rank_0(ranks):
    for name in ["ddp apart", "zero1 apart"][: 1 + HAS_DEEPSPEED]:
        first, second = (one[name] for one in ranks[2])
        own = [one["mean before buffers are shared"] for one in (first, second)]
        assert not torch.equal(*own), "both ranks saw the same images"
        for one in (first, second):
            assert torch.equal(one["weights"]["embedder.1.running_mean"], own[0])


def test_bf16_is_autocast_around_fp32_weights(single, ranks):
    assert single["bf16"]["losses"] != pytest.approx(single["sgd"]["losses"], rel=1e-4)
    for name in ["ddp bf16", "zero1 bf16"][: 1 + HAS_DEEPSPEED]:
        found = ranks[2][0][name]
        assert found["losses"] == pytest.approx(single["bf16"]["losses"], rel=2e-2)
        assert found["losses"] != pytest.approx(single["sgd"]["losses"], rel=1e-4)
        for key, value in found["weights"].items():
            assert value.dtype == single["sgd"]["weights"][key].dtype, key


@pytest.mark.parametrize("name", ["ddp", *(pytest.param(f"zero{p.values[0]}", marks=p.marks)
                                           for p in ZERO)])  # fmt: skip
def test_state_of_one_process_goes_on_anywhere(single, ranks, name):
    for one in ranks[2]:
        assert_same(one[f"{name} resumed"], single["sgd"])


@needs_deepspeed
@pytest.mark.parametrize(("stage", "optimizer"), HALVES)
def test_deepspeed_state_is_whole_and_exact(single, ranks, stage, optimizer):
    expected = single[optimizer]
    whole, halves = (ranks[2][0][f"zero{stage} {optimizer}{x}"] for x in ("", " halves"))
    for name, value in whole["weights"].items():
        assert torch.equal(halves["weights"][name], value), f"{name}: resuming changed it"
    assert halves["state"].keys() == expected["state"].keys()
    for name, value in halves["state"].items():
        assert torch.equal(value, whole["state"][name])
        assert value.shape == expected["state"][name].shape
        if name.endswith("step"):
            assert value == cases.STEPS
    if optimizer == "sgd":
        # The half that DeepSpeed saved goes on in one process. Adam divides gradients that are
        # nothing but rounding by their own size, so that its runs differ by whole steps.
        assert_same(cases.resume(cases.base(), "sgd", 0.05, halves["half"], HALF), expected)


@pytest.mark.parametrize("name", ["sgd", "lars", "adam"])
def test_a_resumed_optimizer_is_exact(single, name):
    lr = {"sgd": 0.05, "lars": 0.1, "adam": 1e-3}[name]
    half = cases.train(cases.base(), name, lr, HALF)
    found = cases.resume(cases.base(), name, lr, half, HALF)
    for key, value in single[name]["weights"].items():
        assert torch.equal(found["weights"][key], value), key


def test_lars_follows_the_papers_formula():
    torch.manual_seed(0)
    matrix, bias, still = (
        torch.nn.Parameter(torch.randn(*s).double()) for s in [(3, 2), (3,), (2, 2)]
    )
    optimizer = Lars([matrix, bias, still], lr=0.3, momentum=0.8, weight_decay=0.1, trust=0.02)
    expected = [p.detach().clone() for p in (matrix, bias, still)]
    kept = [torch.zeros_like(p) for p in expected]
    for _ in range(3):
        grads = [torch.randn_like(p) for p in expected]
        grads[2].zero_()
        for p, g in zip((matrix, bias, still), grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
        w, g = expected[0], grads[0]
        local = 0.02 * w.norm() / (g.norm() + 0.1 * w.norm())
        kept[0] = 0.8 * kept[0] + 0.3 * local * (g + 0.1 * w)
        kept[1] = 0.8 * kept[1] + 0.3 * grads[1]
        kept[2] = 0.8 * kept[2] + 0.3 * 0.1 * expected[2]
        expected = [w - v for w, v in zip(expected, kept, strict=True)]
        for ours, theirs in zip((matrix, bias, still), expected, strict=True):
            torch.testing.assert_close(ours.detach(), theirs)


def test_clipping_scales_the_update():
    def move(clip):
        task = cases.Small()
        engine = TorchEngine(task, optimizer="sgd", weight_decay=0.0, precision="fp32", clip=clip)
        before = task.embedder[6].weight.detach().clone()
        engine.backward(engine.forward(cases.shares(0, 1)[0])["loss"], 1)
        norm = float(engine.gradient_norm())
        engine.step(0.1)
        return task.embedder[6].weight.detach() - before, norm

    free, norm = move(0.0)
    assert norm > 1.0
    torch.testing.assert_close(move(0.5)[0], free * 0.5 / norm, rtol=1e-3, atol=1e-6)
    assert torch.equal(move(2 * norm)[0], free)


def settings(**changes):
    values = {"out": "r"}
    for name, value in changes.items():
        group, option = name.split("__")
        values.setdefault(group, {})[option] = value
    return build(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine__clip": -1.0}, "engine.clip is -1.0; allowed: 0 or more"),
        ({"engine__clip": float("nan")}, "engine.clip is nan"),
        ({"engine__peak_tflops": -5.0}, "engine.peak_tflops is -5.0"),
        ({"engine__profile": "12-10"}, "engine.profile is '12-10'; allowed: first-last"),
        ({"engine__profile": "x"}, "engine.profile is 'x'"),
        (
            {"engine__kind": "deepspeed", "engine__precision": "fp64"},
            "engine.precision is 'fp64'; allowed: auto, fp32 or bf16 with DeepSpeed at "
            "engine.zero_stage 1",
        ),
        (
            {"engine__kind": "deepspeed", "pretext__optimizer": "lars"},
            "pretext.optimizer is 'lars'; allowed: adam or sgd with engine.zero_stage 1",
        ),
        (
            {"engine__kind": "deepspeed", "engine__zero_stage": 2, "finetune__optimizer": "lars"},
            "finetune.optimizer is 'lars'",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(InputError) as error:
        settings(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_that_work_are_accepted():
    settings(engine__precision="fp64")
    settings(engine__kind="deepspeed", engine__zero_stage=0, engine__precision="fp64")
    settings(pretext__optimizer="lars", finetune__optimizer="lars")
    settings(engine__kind="deepspeed", engine__zero_stage=0, pretext__optimizer="lars")
    settings(engine__profile="10-12", engine__clip=1.0, engine__peak_tflops=989.0)
    with pytest.raises(ValueError, match="allowed: adam, sgd, lars"):
        make_optimizer("lamb", [torch.nn.Parameter(torch.ones(1))], 0.0)


def test_a_missing_deepspeed_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "deepspeed", None)
    with pytest.raises(InputError, match="engine.kind is 'deepspeed', but it cannot be imported"):
        cases.train(zero(1))


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_fused_updates_are_the_plain_ones_and_go_on_from_their_state(name):
    """On a GPU engines fuse; checkpoints pass between both."""

    def moved(fused, state=None):
        weights = [torch.nn.Parameter(torch.linspace(-1, 1, size)) for size in (3, 40)]
        made = make_optimizer(name, weights, 1e-2, fused=fused)
        if state is not None:
            load_state(made, state)
        set_rate(made, 1e-2)
        for step in range(3):
            for weight in weights:
                weight.grad = torch.linspace(1, -2, len(weight)) * (step + 1)
            made.step()
        return torch.cat([weight.detach() for weight in weights]), state_of(made)

    for before in (None, moved(False)[1], moved(True)[1]):
        (plain, left), (fused, right) = moved(False, before), moved(True, before)
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-7)
        assert left.keys() == right.keys()
        for key, value in left.items():
            torch.testing.assert_close(right[key], value, rtol=1e-5, atol=1e-7)
