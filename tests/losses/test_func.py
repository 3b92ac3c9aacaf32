"""torch.func over the losses: gradients of many tasks at once, Jacobians, what is refused."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from selftaught.losses import (
    InfoNCELoss,
    NTXentLoss,
    info_nce_loss,
    mad_loss,
    mad_loss_with_assignment,
    nearest_center,
    ntxent_loss,
    supcon_loss,
)
from tests.losses import formulas
from tests.losses.formulas import views

# PyTorch's own loop over what has no rule for vmap warns of it.
no_loops = pytest.mark.filterwarnings("error:There is a performance drop")
pytestmark = [pytest.mark.usefixtures("every_backend"), no_loops]

TASKS = torch.stack([views(5, 7, 0.5, seed=seed)[0] for seed in range(3)])
OTHER, QUEUE = views(5, 7, 0.5, seed=9)
LABELS, SEMI = torch.tensor([0, 1, -1, 0, 1]), torch.tensor([0, 1, -1, 0, -1])
# Rows of a loss of (5, 7) embeddings, ours and the formula.
LOSSES = {
    "ntxent": (
        lambda z: ntxent_loss(z, OTHER, 0.3, reduction="none"),
        lambda z: formulas.ntxent(z, OTHER, 0.3),
    ),
    "supcon": (
        lambda z: supcon_loss(OTHER, z, LABELS, 0.3, reduction="none"),
        lambda z: formulas.supcon(OTHER, z, LABELS, 0.3),
    ),
    "info_nce": (
        lambda z: info_nce_loss(z, OTHER, negatives=QUEUE, temperature=0.3, reduction="none"),
        lambda z: formulas.info_nce(z, OTHER, QUEUE, 0.3),
    ),
    "clip": (
        lambda z: info_nce_loss(
            OTHER, z, temperature=0.3, symmetric=True, normalize=False, reduction="none"
        ),
        lambda z: formulas.info_nce(OTHER, z, None, 0.3, symmetric=True, normalize=False),
    ),
    "queue": (
        lambda z: info_nce_loss(
            OTHER, QUEUE, negatives=z, temperature=0.3, in_batch=False, reduction="none"
        ),
        lambda z: formulas.queue(OTHER, QUEUE, z, 0.3),
    ),
    "mad": (
        lambda z: mad_loss(z, OTHER, SEMI, eta=0.7, eps=0.1, reduction="none"),
        lambda z: formulas.mad(z, OTHER, SEMI, 0.7, 0.1),
    ),
    "mad, centres": (
        lambda z: mad_loss_with_assignment(OTHER, z, SEMI, eps=0.1, reduction="none").loss,
        lambda z: formulas.mad(OTHER, z, SEMI, 1.0, 0.1),
    ),
    "nearest_center": (
        lambda z: nearest_center(z, OTHER)[0],
        lambda z: formulas.nearest(z, OTHER)[0],
    ),
}
every_loss = pytest.mark.parametrize("loss", LOSSES)


def plain_gradient(rows, z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(rows(z).mean(), z)[0]


@every_loss
def test_gradients_of_tasks(loss):
    ours, theirs = LOSSES[loss]
    expected = torch.stack([plain_gradient(theirs, z) for z in TASKS])

    def mean(z):
        return ours(z).mean()

    torch.testing.assert_close(torch.stack([grad(mean)(z) for z in TASKS]), expected)
    torch.testing.assert_close(vmap(grad(mean))(TASKS), expected)
    torch.testing.assert_close(grad(lambda all_z: vmap(mean)(all_z).sum())(TASKS), expected)
    torch.testing.assert_close(vmap(ours)(TASKS), torch.stack([theirs(z) for z in TASKS]))
    torch.testing.assert_close(vmap(mean, in_dims=2)(TASKS.movedim(0, 2)), vmap(mean)(TASKS))
    _, pull = vjp(mean, TASKS[1])
    torch.testing.assert_close(pull(torch.tensor(1.0).double())[0], expected[1])


@every_loss
def test_jacobians(loss):
    ours, theirs = LOSSES[loss]
    expected = torch.stack([torch.autograd.functional.jacobian(theirs, z) for z in TASKS])
    torch.testing.assert_close(jacrev(ours)(TASKS[0]), expected[0])
    torch.testing.assert_close(vmap(jacrev(ours))(TASKS), expected)


@every_loss
def test_second_derivatives_on_reference_or_an_error(loss, every_backend):
    ours, theirs = LOSSES[loss]

    def by_reverse_mode():
        return jacrev(grad(lambda z: ours(z).mean()))(TASKS[0])

    if every_backend != "reference":
        with pytest.raises(NotImplementedError, match="only with backend='reference'") as refused:
            by_reverse_mode()
        assert "\n" not in str(refused.value)
        return
    expected = [torch.autograd.functional.hessian(lambda a: theirs(a).mean(), z) for z in TASKS]
    torch.testing.assert_close(by_reverse_mode(), expected[0])
    of_tasks = vmap(jacrev(grad(lambda z: ours(z).mean())))(TASKS)
    torch.testing.assert_close(of_tasks, torch.stack(expected))


@every_loss
def test_forward_mode_is_refused_not_wrong(loss):
    """Ops without a forward-mode formula would give tangents of 0; also below another level."""

    def mean(z):
        return LOSSES[loss][0](z).mean()

    z = TASKS[0]
    for call in (
        lambda: jvp(mean, (z,), (z,)),
        lambda: jacfwd(mean)(z),
        lambda: hessian(mean)(z),
        lambda: jvp(grad(mean), (z,), (z,)),
        lambda: grad(lambda a: jvp(mean, (a,), (a,))[1])(z),
        lambda: vmap(lambda a: jvp(mean, (a,), (a,))[1])(TASKS),
    ):
        with pytest.raises(NotImplementedError, match="forward-mode derivatives") as refused:
            call()
        assert "\n" not in str(refused.value)


def test_forward_mode_is_refused_for_every_tensor():
    z1, z2 = views(4, 6, 0.5)
    tau = torch.tensor(0.3, dtype=torch.float64)
    for function, at in (
        (lambda t: ntxent_loss(z1, z2, t), tau),
        (lambda key: info_nce_loss(z1, key), z2),
        (lambda queue: info_nce_loss(z1, z2, negatives=queue, in_batch=False), z1),
        (lambda centers: nearest_center(z1, centers)[0].sum(), z2),
    ):
        with pytest.raises(NotImplementedError, match="forward-mode"):
            jvp(function, (at,), (torch.ones_like(at),))


def test_whatever_differs_between_tasks():
    """Labels, temperatures, centres that are active; a task in a task."""
    labels = torch.stack([LABELS, LABELS.roll(1), LABELS * 0])
    found = vmap(lambda z, y: supcon_loss(z, OTHER, y, 0.3))(TASKS, labels)
    expected = [
        formulas.supcon(z, OTHER, y, 0.3).mean() for z, y in zip(TASKS, labels, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(expected))
    taus = torch.tensor([0.1, 0.3, 2.0], dtype=torch.float64)
    found = vmap(grad(lambda t: ntxent_loss(TASKS[0], OTHER, t)))(taus)
    expected = [plain_gradient(lambda t: formulas.ntxent(TASKS[0], OTHER, t), t) for t in taus]
    torch.testing.assert_close(found, torch.stack(expected))
    active = torch.eye(5, dtype=torch.bool)[:3]
    found = vmap(lambda z, a: nearest_center(z, OTHER, active=a))(TASKS, active)
    assert torch.equal(found[1], torch.arange(3)[:, None].expand(3, 5))
    nested = vmap(vmap(lambda z: ntxent_loss(z, OTHER)))(torch.stack([TASKS, TASKS.flip(0)]))
    flat = vmap(lambda z: ntxent_loss(z, OTHER))(TASKS)
    assert torch.equal(nested, torch.stack([flat, flat.flip(0)]))


def test_functional_call_of_a_whole_model():
    """Gradients by an encoder's weights and the loss's temperature, one model for each task."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(7, 4).double()
            self.loss = NTXentLoss(nn.Parameter(torch.tensor(0.4, dtype=torch.float64)))

        def forward(self, x1, x2):
            return self.loss(self.encoder(x1), self.encoder(x2))

    torch.manual_seed(2)
    model = Model()
    names = dict(model.named_parameters())
    assert set(names) == {"encoder.weight", "encoder.bias", "loss.temperature"}

    def of_task(weights, x1):
        return functional_call(model, weights, (x1, OTHER))

    found = vmap(grad(of_task), in_dims=(None, 0))(
        {name: value.detach() for name, value in names.items()}, TASKS
    )
    for task, x1 in enumerate(TASKS):
        model.zero_grad()
        model(x1, OTHER).backward()
        for name, value in names.items():
            torch.testing.assert_close(found[name][task], value.grad)


def test_unchecked_under_a_transform():
    """A NaN in one task is its NaN loss, and no error."""
    z = TASKS.clone()
    z[1, 0, 0] = float("nan")
    found = vmap(lambda a: InfoNCELoss()(a, OTHER))(z)
    assert found.isnan().tolist() == [False, True, False]
