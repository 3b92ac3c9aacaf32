"""torch.compile takes every loss as one graph, and the real compiler makes the same of it."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from selftaught.losses import (
    MADLoss,
    NTXentLoss,
    compat,
    info_nce_loss,
    mad_loss_with_assignment,
    nearest_center,
    supcon_loss,
)
from tests.losses.formulas import views
from tests.losses.test_modules import MODULES

LABELS = torch.tensor([0, 1, -1, 0, 2, -1, 2, 0])


def call_supcon(a, b, t):
    return supcon_loss(a, b, LABELS, t)


def call_info_nce(a, b, t):
    return info_nce_loss(a, b, negatives=a[:3], temperature=t)


def call_clip(a, b, t):
    return info_nce_loss(a, b, temperature=t, symmetric=True, reduction="sum")


def call_mad(a, b, t):
    active = torch.arange(len(b)) != 2
    loss, squared, index = mad_loss_with_assignment(a, b, LABELS % 3 - 1, active=active)
    return loss * t + squared.mean() + index.sum()


def call_nearest(a, b, t):
    squared, index = nearest_center(a, b)
    return (squared * (index + 1)).sum() / t


def call_lightly(a, b, t):
    return compat.NTXentLoss(0.5)(a, b) * t


def call_pytorch_metric_learning(a, b, t):
    return compat.SupConLoss(0.5)(a + b, LABELS / 2) * t


def call_open_clip(a, b, t):
    return compat.ClipLoss()(a, b, 1 / t)


def call_tasks(a, b, t):
    tasks = torch.stack([a, a + b])
    gradients = torch.func.vmap(torch.func.grad(lambda x: info_nce_loss(x, b)))(tasks)
    return (
        torch.func.vmap(lambda x: info_nce_loss(x, b))(tasks).sum() * t + gradients.detach().sum()
    )


CALLS = [call_supcon, call_info_nce, call_clip, call_mad, call_nearest]
CALLS += [call_lightly, call_pytorch_metric_learning, call_open_clip, call_tasks]


def evaluate(function, dtype=torch.float64):
    inputs = [v.to(dtype).requires_grad_() for v in views(8, 16, 0.5)]
    inputs.append(torch.tensor(0.3, dtype=dtype, requires_grad=True))
    loss = function(*inputs)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("function", CALLS, ids=[f.__name__ for f in CALLS])
def test_one_graph(function):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(evaluate(compiled), evaluate(function))


def train_with_a_bank(compiled):
    """Losses, gradients and queues of six steps; the queue is full after two and a bit."""
    torch.manual_seed(3)
    module = compat.NTXentLoss(0.2, memory_bank_size=(20, 16)).double()
    call, seen = compiled(module), []
    for step in range(6):
        z = [v.requires_grad_() for v in views(8, 16, 0.5, seed=step)]
        loss = call(*z)
        loss.backward()
        seen += [loss.detach(), *(v.grad for v in z), module.bank.clone(), module.bank_ptr.clone()]
    return seen


def value_and_gradient(function, first, *others):
    leaf = first.clone().requires_grad_()
    loss = function(leaf, *others)
    loss.backward()
    return loss.detach(), leaf.grad


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("mode", [{}, {"dynamic": True}, {"mode": "reduce-overhead"}], ids=str)
def test_every_module_through_the_real_compiler(name, mode):
    torch._dynamo.reset()
    make, inputs = MODULES[name]
    module = make()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, **mode)
    expected = value_and_gradient(module, *inputs)
    torch.testing.assert_close(value_and_gradient(compiled, *inputs), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("way", ["export", "strict export", "trace"])
def test_every_module_as_a_graph_of_its_own(name, way):
    torch._dynamo.reset()
    make, inputs = MODULES[name]
    module, inputs = make(), tuple(map(torch.as_tensor, inputs))
    if way == "trace":
        graph = torch.jit.trace(module, inputs)
    else:
        graph = torch.export.export(module, inputs, strict=way != "export").module()
    torch.testing.assert_close(graph(*inputs), module(*inputs))


@pytest.mark.parametrize("name", MODULES)
def test_without_values(name):
    """Shapes of a model's losses are asked for in a mode where tensors hold nothing."""
    make, inputs = MODULES[name]
    module = make()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = (mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for t in inputs)
        loss = module(*fakes)
    assert loss.shape == () and loss.dtype == torch.float32


# The partitioner of the real compiler computes again in the backward pass what is cheap, such as a
# copy of the bank, from what is by then another bank.
BACKENDS = pytest.mark.parametrize(
    "backend", ["aot_eager_decomp_partition", pytest.param("inductor", marks=pytest.mark.slow)]
)


@BACKENDS
def test_memory_bank_is_one_graph(backend):
    torch._dynamo.reset()
    found = train_with_a_bank(lambda m: torch.compile(m, fullgraph=True, backend=backend))
    torch.testing.assert_close(found, train_with_a_bank(lambda m: m))


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(16, 12).double()
        self.ntxent = NTXentLoss(nn.Parameter(torch.tensor(0.3, dtype=torch.float64)))
        self.mad = MADLoss(torch.randn(5, 12))

    def forward(self, x1, x2):
        z1, z2 = self.linear(x1), self.linear(x2)
        return self.ntxent(z1, z2) + self.mad(z1, LABELS[: len(x1)] % 3 - 1)


@BACKENDS
def test_training_step_is_one_graph_for_all_batch_sizes(backend):
    torch._dynamo.reset()
    step = Step()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for images in (8, 5):
        x = views(images, 16, 0.5)
        found = []
        for function in (step, compiled):
            step.zero_grad()
            loss = function(*x)
            loss.backward()
            found.append([loss.detach(), *(p.grad.clone() for p in step.parameters())])
        torch.testing.assert_close(found[1], found[0])
