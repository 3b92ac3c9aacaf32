"""Registration of the ops: opcheck, derivatives of both orders, and what is refused."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from selftaught.kernels import dispatch, ops
from tests.losses.formulas import views

LABELS = torch.tensor([0, 1, 0, 3, 3, 2])
SEMI = torch.tensor([0, 1, -1, -1, 0, 1])
ACTIVE = torch.tensor([True, False, True, True, True, True])


def leaf(seed: int, rows: int = 5) -> torch.Tensor:
    return views(rows, 7, 0.5, seed=seed)[0].requires_grad_()


def temperature() -> torch.Tensor:
    return torch.tensor(0.4, dtype=torch.float64, requires_grad=True)


def cases(backend="auto"):
    """Op, its differentiable inputs, and how they become its arguments."""
    z1, z2, negatives, tau = leaf(0, 6), leaf(1, 6), leaf(2, 4), temperature()
    last = ("auto", backend)
    return {
        "ntxent": (ops.ntxent, (z1, tau), lambda z, t: (z, t, 0.0, True, *last)),
        "ntxent, fixed": (
            ops.ntxent,
            (z1,),
            lambda z: (z, None, 0.4, False, *last),
        ),
        "supcon": (ops.supcon, (z1, tau), lambda a, t: (a, LABELS, t, 0.0, False, True, *last)),
        "info_nce": (
            ops.info_nce,
            (z1, z2, negatives, tau),
            lambda a, b, n, t: (a, b, n, t, 0.0, False, True, True, *last),
        ),
        "clip": (
            ops.info_nce,
            (z1, z2, tau),
            lambda a, b, t: (a, b, None, t, 0.0, True, True, False, *last),
        ),
        "nearest_center": (ops.nearest_center, (z1, z2), lambda a, b: (a, b, ACTIVE, *last)),
        "mad": (ops.mad, (z1, z2), lambda a, b: (a, b, SEMI, ACTIVE, 0.7, 1e-2, *last)),
    }


def first_output(op, arguments):
    def function(*inputs):
        result = op(*arguments(*inputs))
        return result[0] if isinstance(result, tuple) else result

    return function


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", cases())
def test_opcheck(name, backend):
    op, inputs, arguments = cases(backend)[name]
    torch.library.opcheck(op, arguments(*inputs))


@pytest.mark.parametrize("name", cases())
def test_opcheck_of_transposed_half_precision(name):
    op, inputs, arguments = cases()[name]
    low = [v.detach().float() for v in inputs]
    low = [v if v.ndim == 0 else v.bfloat16().T.contiguous().T for v in low]
    torch.library.opcheck(op, arguments(*(v.requires_grad_() for v in low)))


@pytest.mark.parametrize("name", cases())
def test_opcheck_of_the_backward(name):
    op, inputs, arguments = cases()[name]
    *passed, backend = arguments(*(v.detach() for v in inputs))
    outputs = op(*passed, backend)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    family = next(f for f in ops.FAMILIES if op.name() == f"selftaught::{f.name}")
    backward = getattr(torch.ops.selftaught, f"{family.name}_backward").default
    grad = torch.ones_like(outputs[0])
    for wanted in (True, False):
        needs = [isinstance(passed[p], torch.Tensor) and wanted for p in family.differentiable]
        torch.library.opcheck(backward, (grad, *passed, *outputs, needs, backend))


@pytest.mark.parametrize("name", cases())
def test_both_derivatives(name):
    op, inputs, arguments = cases("reference")[name]
    function = first_output(op, arguments)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", cases())
def test_derivative_of_the_best_backend(name):
    op, inputs, arguments = cases()[name]
    assert gradcheck(first_output(op, arguments), inputs)


def test_second_derivatives_where_a_row_has_no_negatives_or_positives():
    tau = temperature()
    alone = torch.tensor([0, 0, 1])
    assert gradgradcheck(
        lambda a, t: ops.supcon(a, alone, t, 0.0, False, True, "auto", "reference"),
        (leaf(0, 3), tau),
    )
    z = leaf(0, 2)
    loss = ops.ntxent(z, tau, 0.0, True, "auto", "reference").sum()
    (first,) = torch.autograd.grad(loss, z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z)
    assert torch.equal(first, torch.zeros_like(z)) and torch.equal(second, torch.zeros_like(z))


def test_only_the_gradients_that_are_needed_are_returned():
    z1, z2 = leaf(0), leaf(1).detach()
    loss = ops.info_nce(z1, z2, None, None, 0.4, False, True, True, "auto", "auto")
    loss.sum().backward()
    assert z1.grad is not None and z2.grad is None


def test_rerun_is_bit_equal():
    for op, inputs, arguments in cases().values():
        function = first_output(op, arguments)
        runs = [torch.autograd.grad(function(*inputs).sum(), inputs) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_second_derivative_elsewhere_is_a_clear_error(monkeypatch):
    """A backend that is no reference, made of the reference's functions."""
    reference = dispatch.load("reference")
    monkeypatch.setattr(dispatch, "load", lambda backend: reference)
    z = leaf(0, 6)
    loss = ops.ntxent(z, None, 0.4, True, "auto", "cpp")
    (gradient,) = torch.autograd.grad(loss.sum(), z, create_graph=True)
    with pytest.raises(NotImplementedError, match="ntxent exist only with backend='reference'"):
        gradient.sum().backward()
